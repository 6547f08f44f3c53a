//! What a definition says about every call of a tool, whatever answers it: how long, how often, how much.

use std::{sync::LazyLock, time::Duration};

use async_trait::async_trait;

use super::{Answer, Call, SharedTool, Tell, Tool, shorten_bytes};
use crate::{
    graph::{Effect, Retry, ToolDefinition},
    model::ToolSpec,
    telemetry::Pass,
};

/// The policy of tools whose definitions say nothing.
static NONE: LazyLock<CallPolicy> = LazyLock::new(CallPolicy::default);

/// What holds for every call of a tool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallPolicy {
    /// The longest call; the node may say less.
    pub timeout: Option<Duration>,
    /// When a call is made again; `None` leaves it to the node.
    pub retry: Option<Retry>,
    /// Most bytes of an answer.
    pub max_output_bytes: Option<usize>,
}

impl CallPolicy {
    /// What a definition says.
    pub fn of(definition: &ToolDefinition) -> Self {
        let bytes = definition.max_output_bytes;
        Self {
            timeout: definition.timeout(),
            retry: definition.retry(),
            max_output_bytes: bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
        }
    }

    /// A policy that says nothing.
    pub fn none() -> &'static Self {
        &NONE
    }

    /// `answer`, cut to what is allowed.
    pub fn bounded(&self, answer: Answer) -> Answer {
        match self.max_output_bytes {
            None => answer,
            Some(limit) => Answer { content: shorten_bytes(answer.content, limit), ..answer },
        }
    }
}

/// A tool with a policy of its definition.
pub(super) struct Governed {
    tool: SharedTool,
    policy: CallPolicy,
}

impl Governed {
    /// `tool`, under `policy`.
    pub(super) fn new(tool: SharedTool, policy: CallPolicy) -> Self {
        Self { tool, policy }
    }
}

#[async_trait]
impl Tool for Governed {
    fn spec(&self) -> &ToolSpec {
        self.tool.spec()
    }

    fn effect(&self) -> Effect {
        self.tool.effect()
    }

    fn policy(&self) -> &CallPolicy {
        &self.policy
    }

    fn keeps_limit(&self) -> bool {
        self.tool.keeps_limit()
    }

    async fn prepare(&self) {
        self.tool.prepare().await;
    }

    async fn turn(&self) -> Option<Pass> {
        self.tool.turn().await
    }

    async fn call(&self, call: Call<'_>) -> Answer {
        self.tool.call(call).await
    }

    async fn call_telling(&self, call: Call<'_>, tell: Tell<'_>) -> Answer {
        self.tool.call_telling(call, tell).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures::executor::block_on;
    use serde_json::json;

    use super::*;
    use crate::{
        graph::{FailureClass, RetryOn},
        ids::UnixNanos,
        tool::Progress,
        value::{Map, State},
    };

    fn policy(json: serde_json::Value) -> CallPolicy {
        CallPolicy::of(&serde_json::from_value(json).expect("a definition"))
    }

    #[test]
    fn a_definition_says_how_long_how_often_and_how_much() {
        let said = policy(json!({"name": "t", "timeout_seconds": 2.5, "max_output_bytes": 9,
            "retry": {"max_attempts": 4}}));
        assert_eq!((said.timeout, said.max_output_bytes), (Some(Duration::from_millis(2_500)), Some(9)));
        let retry = said.retry.expect("it says so");
        assert_eq!(retry.max_attempts, 4);
        assert!(retry.covers(FailureClass::ToolError) && retry.covers(FailureClass::Timeout));
        assert!(!retry.covers(FailureClass::ModelUnavailable), "a tool's own failures are meant");
        let chosen = policy(json!({"name": "t", "retry": {"retry_on": ["timeout"]}})).retry;
        assert_eq!(chosen.expect("it says so").retry_on, [RetryOn::Timeout]);
        assert_eq!(policy(json!({"name": "t"})), *CallPolicy::none());
    }

    /// Says that half is done, and answers.
    struct Half(ToolSpec);

    #[async_trait]
    impl Tool for Half {
        fn spec(&self) -> &ToolSpec {
            &self.0
        }

        fn effect(&self) -> Effect {
            Effect::Pure
        }

        async fn call(&self, call: Call<'_>) -> Answer {
            self.call_telling(call, &|_| {}).await
        }

        async fn call_telling(&self, _: Call<'_>, tell: Tell<'_>) -> Answer {
            tell(Progress { done: 0.5, total: None, message: None });
            Answer::success("done")
        }
    }

    #[test]
    fn a_tool_with_a_policy_still_tells_how_far_its_calls_are() {
        let spec = ToolSpec { name: "t".into(), description: String::new(), parameters: json!({}).into() };
        let tool = Governed::new(Arc::new(Half(spec)), CallPolicy::default());
        let (args, state, heard) = (Map::new(), State::new(), Mutex::new(Vec::new()));
        let call = Call {
            id: "c",
            args: &args,
            state: &state,
            now: UnixNanos(0),
            idempotency_key: "k",
            limit: None,
        };
        let tell = |progress: Progress| heard.lock().expect("nobody panics with it").push(progress.done);
        assert_eq!(block_on(tool.call_telling(call, &tell)), Answer::success("done"));
        assert_eq!(heard.into_inner().expect("nobody panics with it"), [0.5]);
    }

    #[test]
    fn an_answer_is_cut_between_two_characters_and_says_so() {
        let bounded = |limit: u64, text: &str| {
            let policy = policy(json!({"name": "t", "max_output_bytes": limit}));
            policy.bounded(Answer::success(text)).content
        };
        assert_eq!(bounded(4, "käse"), "käs\n[cut after 4 bytes; ask for less to see the rest]");
        assert_eq!(bounded(2, "käse"), "k\n[cut after 2 bytes; ask for less to see the rest]");
        assert_eq!(bounded(5, "käse"), "käse");
    }
}
