//! The ledger of effects: which calls of outside tools were meant, made and answered.

use std::sync::Arc;

use super::{Error, langgraph};
use crate::{
    graph::Effect,
    ids::{Epoch, Namespace, TaskId, ThreadId},
    value::{Name, Value},
};

/// Largest encoded answer in bytes. Answers of tools are cut at 100,000 characters, which is less in any script.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;

/// One call of a tool that does something outside. The same call of the same task has one row.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectRow {
    /// The graph the task belongs to.
    pub ns: Namespace,
    /// The task, which is the same in every attempt.
    pub task_id: TaskId,
    /// The model's id of the call, or its digest when it is long.
    pub call_id: Arc<str>,
    /// The tool.
    pub tool: Name,
    /// What a repeated call would do.
    pub effect: Effect,
    /// What the tool can tell a repeat by.
    pub idempotency_key: String,
    /// How far the call has got.
    pub state: EffectState,
    /// The claim under which it got there.
    pub epoch: Epoch,
    /// Questions that the task had had answered by then; they do not decide about this call.
    pub asked: usize,
    /// The answer of a call that is done or failed.
    pub answer: Option<Value>,
}

/// A row with its answer in LangGraph's bytes.
#[derive(Clone, Debug)]
pub(crate) struct StoredEffect {
    /// The row without its answer.
    pub(crate) row: EffectRow,
    pub(crate) answer: Option<Vec<u8>>,
}

impl StoredEffect {
    pub(crate) fn encode(row: &EffectRow) -> Result<Self, Error> {
        let unstorable =
            |reason: String| Error::Unstorable { channel: format!("answer of {}", row.tool), reason };
        let encode = |value: &Value| {
            let mut bytes = Vec::new();
            langgraph::encode_value(value, &mut bytes).map_err(|error| unstorable(error.to_string()))?;
            match bytes.len() {
                size if size > MAX_ANSWER_BYTES => {
                    Err(unstorable(format!("it has {size} bytes, at most {MAX_ANSWER_BYTES} are kept")))
                }
                _ => Ok(bytes),
            }
        };
        let answer = row.answer.as_ref().map(encode).transpose()?;
        Ok(Self { row: EffectRow { answer: None, ..row.clone() }, answer })
    }

    pub(crate) fn into_row(self, thread_id: &ThreadId) -> Result<EffectRow, Error> {
        let corrupt = |error: langgraph::Error| Error::Corrupt {
            thread_id: thread_id.to_string(),
            what: "effect",
            reason: error.to_string(),
        };
        let answer = self.answer.map(|bytes| langgraph::decode_value(&bytes)).transpose().map_err(corrupt)?;
        Ok(EffectRow { answer, ..self.row })
    }

    /// About how many bytes the row adds to a statement beside its keys.
    pub(crate) fn size(&self) -> usize {
        self.answer.as_ref().map_or(0, Vec::len)
    }
}

/// How far a call has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectState {
    /// It may be made at any moment, or has been.
    Intended,
    /// It succeeded.
    Done,
    /// It failed, and its answer says how.
    Failed,
    /// It may have taken effect, and a person has to say whether it did.
    Unknown,
}

impl EffectState {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    /// The state that [`EffectState::as_str`] writes as `text`.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Intended, Self::Done, Self::Failed, Self::Unknown]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}
