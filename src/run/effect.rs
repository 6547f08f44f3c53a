//! Calls of tools that change something outside: in the ledger before they are made and after, never repeated blindly.
//!
//! **Invariant:** no such call is made before its intent is stored under the epoch that still owns the thread.
//! **Invariant:** an irreversible call that may have taken effect is made again only when a person says that it
//! has not.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::time::Instant;

use super::{
    Error, policy,
    position::Here,
    task::{Replied, TaskRun},
};
use crate::{
    graph::Effect,
    ids, node,
    pregel::Question,
    store::{self, EffectRow, EffectState},
    telemetry::metric,
    tool::{Answer, CallOutcome, SharedTool},
    value::{ToolCall, ToolStatus, Value},
};

/// Longest id of a call that stands in the ledger as it is; an entry of an index has about 2,700 bytes in all.
const MAX_CALL_ID_BYTES: usize = 255;

/// How often an intent is stored when its commit outlasts the lease; a database that is so slow counts as away.
const INTENT_TRIES: u32 = 5;

/// The answer that lets a call count as made.
const HAPPENED: &str = "happened";

/// The answer that lets a call be made once more.
const DID_NOT_HAPPEN: &str = "did_not_happen";

/// Answers `call` of a tool that changes something: from the ledger, by a person, or by making it.
pub(super) async fn call(
    run: &mut TaskRun<'_>,
    call: &ToolCall,
    tool: &SharedTool,
) -> Result<Replied, Error> {
    let mut entry = Entry::new(run, call, tool);
    let mut in_doubt = match entry.look_up().await? {
        Found::Answered(answer) => return Ok(Replied::Answer { answer, is_replayed: true }),
        Found::InDoubt => true,
        Found::ToMake => false,
    };
    let mut made = 0;
    // Every turn but the first takes an answer of a person, or is one that the tool's or the node's policy allows.
    loop {
        if in_doubt {
            match entry.ask().await? {
                Decision::Waits(interrupt) => return Ok(Replied::Waits(vec![interrupt])),
                Decision::Made(answer) => return entry.settle(answer).await,
                Decision::NotMade => {}
            }
        }
        let answer = entry.make().await?;
        made += 1;
        let may_repeat = !entry.is_irreversible() || answer.outcome == CallOutcome::NotMade;
        let own = tool.policy().retry.as_ref();
        if may_repeat && policy::call_again(entry.run, own, &answer, made).await? {
            in_doubt = false;
            continue;
        }
        if may_repeat || answer.outcome == CallOutcome::Known {
            return entry.settle(answer).await;
        }
        in_doubt = true;
    }
}

/// A call's id as a part of a key in the database: models choose ids of any length and any characters.
fn row_id(call_id: &Arc<str>) -> Arc<str> {
    if call_id.len() <= MAX_CALL_ID_BYTES && !call_id.contains('\0') {
        return call_id.clone();
    }
    format!("{:032x}", ids::digest(&[call_id.as_bytes()])).into()
}

/// Stores an intent, again when that took so long that somebody else may have the thread by now: a process that
/// was paused must not call.
async fn while_held<F>(lease: Duration, intend: impl Fn() -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    for _ in 0..INTENT_TRIES {
        let asked = Instant::now();
        intend().await?;
        if asked.elapsed() < lease {
            return Ok(());
        }
    }
    let slow = format!("{INTENT_TRIES} commits took longer than the lease of the thread");
    Err(store::Error::Unavailable(slow.into()).into())
}

/// What the ledger says of a call. Only a task that may have been run before can stand in it.
async fn earlier(run: &TaskRun<'_>, call: &ToolCall) -> Result<Option<EffectRow>, Error> {
    let (attempt, view) = (&run.here.running.attempt, run.view);
    if !run.position.is_known && view.tries.number() == 0 {
        return Ok(None);
    }
    let rows = attempt.ports.store.effects(&attempt.claim.thread_id, view.ns, view.id).await?;
    let call_id = row_id(&call.id);
    Ok(rows.into_iter().find(|row| row.call_id == call_id))
}

/// Whether account is kept of the call, whatever its tool says of itself now.
pub(super) async fn is_kept(run: &TaskRun<'_>, call: &ToolCall) -> Result<bool, Error> {
    Ok(earlier(run, call).await?.is_some())
}

/// What the ledger has of a call.
enum Found {
    /// The answer it got.
    Answered(Answer),
    /// It may have taken effect, and must not do so twice.
    InDoubt,
    /// Nothing that keeps it from being made.
    ToMake,
}

/// What a person says of a call in doubt.
enum Decision {
    Waits(Arc<crate::value::Interrupt>),
    /// It was made, and this is its answer.
    Made(Answer),
    NotMade,
}

/// A call and its row in the ledger.
struct Entry<'a, 'run> {
    run: &'a mut TaskRun<'run>,
    call: &'a ToolCall,
    tool: &'a SharedTool,
    row: EffectRow,
}

impl<'a, 'run> Entry<'a, 'run> {
    /// Of a call that nothing is stored of.
    fn new(run: &'a mut TaskRun<'run>, call: &'a ToolCall, tool: &'a SharedTool) -> Self {
        let (running, view) = (run.here.running, run.view);
        let row = EffectRow {
            ns: view.ns.clone(),
            task_id: view.id.clone(),
            call_id: row_id(&call.id),
            tool: call.name.clone(),
            effect: tool.effect(),
            idempotency_key: node::idempotency_key(&running.scope, view, call),
            state: EffectState::Intended,
            epoch: running.attempt.claim.epoch,
            asked: 0,
            answer: None,
        };
        Self { run, call, tool, row }
    }

    fn is_irreversible(&self) -> bool {
        self.row.effect == Effect::Irreversible
    }

    /// Goes on from what the ledger says of the call.
    async fn look_up(&mut self) -> Result<Found, Error> {
        let Some(earlier) = earlier(self.run, self.call).await? else { return Ok(Found::ToMake) };
        // What a tool says of itself may change from one attempt to the next; the graver word counts.
        self.row.effect = self.row.effect.max(earlier.effect);
        let told = earlier.answer.as_ref().and_then(Answer::from_value);
        match (earlier.state, told) {
            (EffectState::Done | EffectState::Failed, Some(answer)) => {
                count("replayed");
                return Ok(Found::Answered(answer));
            }
            // It is known that it reached nobody.
            (EffectState::Failed, None) => return Ok(Found::ToMake),
            _ if !self.is_irreversible() => return Ok(Found::ToMake),
            _ => {}
        }
        self.run.dialogue.skip(earlier.asked);
        self.row.asked = earlier.asked;
        self.row.state = earlier.state;
        Ok(Found::InDoubt)
    }

    /// Makes the call once its intent is stored.
    async fn make(&mut self) -> Result<Answer, Error> {
        let Here { running, committer, .. } = self.run.here;
        let turn = self.tool.turn().await;
        self.row.asked = self.run.dialogue.used().len();
        self.row.state = EffectState::Intended;
        while_held(running.attempt.ports.store.lease(), || committer.effect(self.row.clone())).await?;
        let answer = node::run_tool(&running.scope, self.run.view, self.call).await;
        drop(turn);
        if self.is_irreversible() && answer.outcome == CallOutcome::NotMade {
            // Whoever goes on after a crash in the pause that may follow need ask nobody.
            self.store(EffectState::Failed).await?;
        }
        Ok(answer)
    }

    async fn store(&mut self, state: EffectState) -> Result<(), Error> {
        self.row.state = state;
        self.run.here.committer.effect(self.row.clone()).await
    }

    async fn settle(mut self, answer: Answer) -> Result<Replied, Error> {
        let (state, word) = match answer.status {
            ToolStatus::Success => (EffectState::Done, "done"),
            ToolStatus::Error => (EffectState::Failed, "failed"),
        };
        self.row.answer = Some(answer.to_value());
        self.store(state).await?;
        count(word);
        Ok(Replied::Answer { answer, is_replayed: false })
    }

    async fn ask(&mut self) -> Result<Decision, Error> {
        if self.row.state != EffectState::Unknown {
            self.store(EffectState::Unknown).await?;
            count("unknown");
        }
        let answer = match self.run.dialogue.ask(self.question()) {
            Ok(answer) => answer,
            Err(interrupt) => return Ok(Decision::Waits(Arc::new(interrupt))),
        };
        if answer.as_str() == Some(DID_NOT_HAPPEN) {
            return Ok(Decision::NotMade);
        }
        let result = answer.as_map().and_then(|map| map.get("result"));
        Ok(Decision::Made(match result {
            Some(Value::String(text)) => Answer::success(&**text),
            Some(result) => Answer::success(result.to_json().to_string()),
            None => Answer::success("the call took effect; its answer was lost"),
        }))
    }

    fn question(&self) -> Question {
        let EffectRow { tool, call_id, idempotency_key, .. } = &self.row;
        let question = format!(
            "It is not known whether this call of {tool} took effect: no answer to it was stored. Look there, and \
             answer \"{HAPPENED}\", \"{DID_NOT_HAPPEN}\" (then it is made once more), or {{\"result\": …}} with \
             what it answered."
        );
        let value = json!({
            "kind": "unknown_effect",
            "tool": &**tool,
            "tool_call_id": &**call_id,
            "idempotency_key": idempotency_key,
            "question": question,
        });
        let schema = json!({ "anyOf": [
            { "enum": [HAPPENED, DID_NOT_HAPPEN] },
            { "type": "object", "properties": { "result": true }, "required": ["result"],
                "additionalProperties": false },
        ] });
        Question { value: value.into(), response_schema: Some(schema) }
    }
}

fn count(outcome: &'static str) {
    metrics::counter!(metric::EFFECTS, "outcome" => outcome).increment(1);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_intent_that_outlasted_the_lease_is_stored_again() {
        let lease = Duration::from_secs(5);
        let commits = |slow: u32| async move {
            let count = Cell::new(0);
            let intend = || {
                count.set(count.get() + 1);
                let pause = if count.get() <= slow { lease } else { Duration::ZERO };
                async move {
                    tokio::time::sleep(pause).await;
                    Ok(())
                }
            };
            (while_held(lease, intend).await.is_ok(), count.get())
        };
        assert_eq!(commits(0).await, (true, 1));
        assert_eq!(commits(2).await, (true, 3));
        assert_eq!(commits(u32::MAX).await, (false, INTENT_TRIES));
    }
}
