//! How runs end: the outcome and what it is called, what it gives back, what readers are still to hear of it.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::{code, failure, tell_interrupts};
use crate::{
    graph::CompiledGraph,
    ids::{CheckpointId, Namespace},
    job::{Failure, ResultEvent},
    pregel::MESSAGES,
    store::{self, Commit, JobState},
    stream::Emitter,
    telemetry::scrub::Scrubber,
    value::{Message, Name, State, Value},
};

/// Most characters of the text of a run that failed by its own word; errors stand in results whole.
const MAX_HALTED_CHARS: usize = 10_000;

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All the way to END.
    Completed(Output),
    /// It waits for a person: `[{id, value, response_schema?}]`.
    Interrupted(Json),
    /// It failed.
    Failed(Failure),
    /// Somebody did not want it any more.
    Cancelled(Failure),
}

impl Outcome {
    /// A part of this program broke its own rules.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::Failed(failure(code::INTERNAL, message))
    }

    /// The run panicked, which ended its task and not the process.
    pub fn panicked() -> Self {
        Self::internal("a part of the executor panicked; its log has the place")
    }

    /// The store cannot keep, or cannot give back, what the run needs stored.
    pub fn unstorable(error: &store::Error) -> Self {
        Self::Failed(failure(error.code(), error.to_string()))
    }

    /// How the job stands in the store.
    pub fn state(&self) -> JobState {
        match self {
            Self::Completed(_) | Self::Interrupted(_) => JobState::Succeeded,
            Self::Failed(failure)
                if [code::POISON, code::MAX_DELIVERIES].contains(&failure.code.as_str()) =>
            {
                JobState::Dead
            }
            Self::Failed(_) => JobState::Failed,
            Self::Cancelled(_) => JobState::Cancelled,
        }
    }

    /// The word for it in events and metrics.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Completed(_) => "completed",
            Self::Interrupted(_) => "interrupted",
            Self::Failed(_) => "failed",
            Self::Cancelled(_) => "cancelled",
        }
    }

    /// What kept the run from its end, when something did.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) | Self::Cancelled(failure) => Some(failure),
            Self::Completed(_) | Self::Interrupted(_) => None,
        }
    }

    /// The same for operators, as the store keeps it.
    pub fn error(&self) -> Option<Json> {
        self.failure().map(|failure| json!(failure))
    }

    /// Whether what the job stored is to be taken back.
    pub fn undoes(&self) -> bool {
        self.failure().is_some_and(|failure| failure.code == code::JOB_ROLLED_BACK)
    }

    /// What is reported of it.
    pub fn result_event(&self) -> ResultEvent {
        match self {
            Self::Completed(output) => {
                ResultEvent::Completed { output: output.output.clone(), files: output.files.clone() }
            }
            Self::Interrupted(interrupts) => {
                ResultEvent::Interrupted { interrupts: interrupts.clone(), count: 1 }
            }
            Self::Failed(failure) => ResultEvent::Failed(failure.clone()),
            Self::Cancelled(failure) => ResultEvent::Cancelled(failure.clone()),
        }
    }

    /// `final_result` of the `end` event: the same object as `result` in the CloudEvent, null without one.
    pub fn final_result(&self) -> Json {
        match self {
            Self::Completed(output) => {
                let mut result = json!({ "output": output.output, "status": "completed" });
                if let Some(files) = &output.files {
                    result["files"] = files.clone();
                }
                result
            }
            Self::Interrupted(_) | Self::Failed(_) | Self::Cancelled(_) => Json::Null,
        }
    }

    /// The same without known secrets, and errors without what stands beside a name such as `password`.
    pub(super) fn scrubbed(self) -> Self {
        let scrubber = Scrubber::process();
        let clean = |mut json: Json| {
            scrubber.json(&mut json);
            json
        };
        let told =
            |failure: Failure| Failure { message: scrubber.report(&failure.message).into_owned(), ..failure };
        match self {
            Self::Completed(Output { output, files }) => {
                Self::Completed(Output { output: clean(output), files: files.map(clean) })
            }
            Self::Interrupted(interrupts) => Self::Interrupted(clean(interrupts)),
            Self::Failed(failure) => Self::Failed(told(failure)),
            Self::Cancelled(failure) => Self::Cancelled(told(failure)),
        }
    }
}

/// What a completed run gives back.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The text of the last AI message, or the output channels.
    pub output: Json,
    /// The run's virtual files, when it has any.
    pub files: Option<Json>,
}

/// How a run ended, with its numbers.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Supersteps of the job, earlier attempts included.
    pub steps: u64,
    /// The newest root checkpoint.
    pub checkpoint_id: Option<String>,
    /// What is to be stored with the end of the job.
    pub last: Option<Commit>,
    /// The states after the supersteps that are stored with it, to be told of then.
    pub untold: Vec<Untold>,
    /// The author's version of the definition, when it has one.
    pub version: Option<Arc<str>>,
}

/// A state that readers have not heard of.
#[derive(Clone, Debug)]
pub struct Untold {
    state: State,
    step: i64,
    checkpoint_id: String,
}

impl Untold {
    /// After superstep `step` of the root graph, which made the checkpoint.
    pub(super) fn new(state: State, step: i64, checkpoint_id: &CheckpointId) -> Self {
        Self { state, step, checkpoint_id: checkpoint_id.to_string() }
    }

    pub(super) fn tell(&self, emitter: &Emitter) {
        emitter.state_update(&Namespace::root(), &self.state, self.step, &self.checkpoint_id);
    }
}

impl Report {
    /// Of a job that ended before its graph made a step.
    pub fn early(outcome: Outcome) -> Self {
        let outcome = outcome.scrubbed();
        Self { outcome, steps: 0, checkpoint_id: None, last: None, untold: Vec::new(), version: None }
    }

    /// Tells readers the states after the last supersteps, and what the run waits for. To be called once that is
    /// stored.
    pub(super) fn tell_last(&self, emitter: &Emitter) {
        self.untold.iter().for_each(|untold| untold.tell(emitter));
        if let Outcome::Interrupted(interrupts) = &self.outcome {
            tell_interrupts(emitter, interrupts);
        }
    }

    /// How many events [`Report::tell_last`] and [`tell_end`](super::tell_end) are going to emit.
    pub(super) fn events_left(&self) -> u64 {
        let of_outcome = match &self.outcome {
            Outcome::Completed(_) => 0,
            // What it waits for, or its error.
            Outcome::Interrupted(_) | Outcome::Failed(_) | Outcome::Cancelled(_) => 1,
        };
        u64::try_from(self.untold.len()).expect("a count fits 64 bits") + of_outcome + 1
    }
}

/// What the state gives back at the end: the output channels if there are any, else the last AI message,
/// else every channel but the built-in ones.
pub(super) fn output(graph: &CompiledGraph, state: &State) -> Output {
    let files = state.get("files").filter(|files| files.as_map().is_some_and(|files| !files.is_empty()));
    let last_answer = || {
        let messages = state.get(MESSAGES)?;
        let is_ai = |message: &&Arc<Message>| message.type_name() == "ai";
        let answer = messages.messages().rfind(is_ai)?.content.text();
        Some(Json::String(answer.to_string()))
    };
    let channels = |names: &mut dyn Iterator<Item = &Name>| {
        let pairs = names.filter_map(|name| Some((name.to_string(), state.get(name)?.to_json())));
        Json::Object(pairs.collect())
    };
    let is_builtin = |name: &str| matches!(name, MESSAGES | "files" | "todos");
    let output = if graph.output.is_empty() {
        last_answer().unwrap_or_else(|| channels(&mut graph.channels.keys().filter(|name| !is_builtin(name))))
    } else {
        channels(&mut graph.output.iter())
    };
    Output { output, files: files.map(Value::to_json) }
}

/// The failure of a run whose final text begins with the mark of failure. Named output channels are no text, and an
/// answer before the last question of a person is not of this run.
pub(super) fn halted(graph: &CompiledGraph, state: &State) -> Option<Failure> {
    let mark = graph.failure_mark.as_deref().filter(|_| graph.output.is_empty())?;
    let since = state.get(MESSAGES)?.messages().rev().take_while(|m| m.type_name() != "human");
    let text =
        since.filter(|message| message.type_name() == "ai").map(|message| message.content.text()).next()?;
    let text = text.trim();
    let said = text.char_indices().nth(MAX_HALTED_CHARS).map_or(text, |(end, _)| &text[..end]);
    text.starts_with(mark).then(|| failure(code::AGENT_HALTED, said))
}
