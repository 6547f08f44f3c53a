//! What is done when a node fails, how long it may take, and when an earlier run of it will do.

use std::{sync::Arc, time::Duration};

use super::{definition::RetryOn, expression::Expression};
use crate::value::Name;

/// Longest jitter of a wait: LangGraph adds up to a second.
const JITTER: Duration = Duration::from_secs(1);

/// What holds for every run of a node.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// When it is run again; `None` never.
    pub retry: Option<Retry>,
    /// Longest run; of an agent, of one answer and of one call of a tool.
    pub timeout: Option<Duration>,
    /// Longest silence of its model.
    pub idle_timeout: Option<Duration>,
    /// When its writes are taken from an earlier run.
    pub cache: Option<CachePolicy>,
    /// Where the run goes on when it has failed for good.
    pub on_error: Option<ErrorRoute>,
}

impl Policy {
    /// Whether a run of expressions under it is nothing but that: it waits for nothing and tells nobody.
    pub fn only_computes(&self) -> bool {
        let is_repeated = self.retry.as_ref().is_some_and(|retry| retry.covers(FailureClass::Expression));
        self.cache.is_none() && self.on_error.is_none() && !is_repeated
    }
}

/// When a node that failed is run again. Defaults and names are those of LangGraph's `RetryPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Most runs, the first one included.
    pub max_attempts: u32,
    /// The wait before the second run.
    pub initial_interval: Duration,
    /// How much longer each wait is than the one before.
    pub backoff_factor: f64,
    /// The longest wait, without jitter.
    pub max_interval: Duration,
    /// Whether waits are spread.
    pub jitter: bool,
    /// Which failures are worth another run.
    pub retry_on: Vec<RetryOn>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            initial_interval: Duration::from_millis(500),
            backoff_factor: 2.0,
            max_interval: Duration::from_secs(128),
            jitter: true,
            retry_on: vec![RetryOn::ModelUnavailable, RetryOn::Timeout],
        }
    }
}

impl Retry {
    /// Whether failures of `class` are worth another run.
    pub fn covers(&self, class: FailureClass) -> bool {
        self.retry_on.iter().any(|on| on.covers(class))
    }

    /// How long to wait after run number `attempt` (from 1) failed; `None` when it was the last one.
    ///
    /// `random` is any number, evenly spread; with jitter up to a second of it is added.
    pub fn wait(&self, attempt: u32, random: u64) -> Option<Duration> {
        if attempt >= self.max_attempts {
            return None;
        }
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial_interval.as_secs_f64() * self.backoff_factor.powi(exponent);
        let wait = seconds(grown).min(self.max_interval);
        let part = u32::try_from(random >> 32).expect("32 bits are left");
        Some(if self.jitter { wait + JITTER.mul_f64(f64::from(part) / f64::from(u32::MAX)) } else { wait })
    }
}

/// A number of seconds as a time; what does not fit is the longest there is.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

impl RetryOn {
    fn covers(self, class: FailureClass) -> bool {
        match self {
            Self::ModelUnavailable => class == FailureClass::ModelUnavailable,
            Self::Timeout => class == FailureClass::Timeout,
            Self::ToolError => class == FailureClass::ToolError,
            Self::Expression => class == FailureClass::Expression,
            Self::Output => class == FailureClass::Output,
            Self::Any => class != FailureClass::Final,
        }
    }
}

/// What kind of failure a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// No model answered.
    ModelUnavailable,
    /// The node or a tool took too long.
    Timeout,
    /// A tool failed.
    ToolError,
    /// An expression, a template or a condition failed.
    Expression,
    /// The answer is not what was asked for.
    Output,
    /// Anything else that may be different another time or another way.
    Other,
    /// The job has reached one of its limits, or this program has a fault: no retry and no route helps.
    Final,
}

impl FailureClass {
    /// The class of failures with this code.
    pub fn of(code: &str) -> Self {
        match code {
            "MODEL_UNAVAILABLE" | "MODEL_THROTTLED" | "MODEL_TIMEOUT" | "MODEL_BREAKER_OPEN" => {
                Self::ModelUnavailable
            }
            "NODE_TIMEOUT" | "NODE_IDLE_TIMEOUT" | "TOOL_TIMEOUT" => Self::Timeout,
            "NODE_EXPRESSION" | "CONDITION_FAILED" => Self::Expression,
            "NODE_OUTPUT_INVALID" => Self::Output,
            "BUDGET_EXHAUSTED"
            | "MODEL_PRICE_UNKNOWN"
            | "MODEL_CALL_LIMIT"
            | "TOOL_CALL_LIMIT"
            | "INTERNAL" => Self::Final,
            "NODE_TOOL_FAILED" => Self::ToolError,
            tool if tool.starts_with("TOOL_") || tool.starts_with("SECRET_") => Self::ToolError,
            _ => Self::Other,
        }
    }

    /// The word in events, metrics and the error object.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ModelUnavailable => "model_unavailable",
            Self::Timeout => "timeout",
            Self::ToolError => "tool_error",
            Self::Expression => "expression",
            Self::Output => "output",
            Self::Other => "other",
            Self::Final => "final",
        }
    }
}

/// When a node's writes are taken from an earlier run.
#[derive(Clone, Debug)]
pub struct CachePolicy {
    /// Tells the inputs apart; `None` for everything the node reads.
    pub key: Option<Expression>,
    /// How long the writes may be used again.
    pub ttl: Duration,
    /// Digest of what the definition says about the node's work.
    pub fingerprint: Arc<str>,
}

/// Where the run goes on when a node has failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorRoute {
    /// The trigger channel of the next node; `None` leads to END.
    pub target: Option<Name>,
    /// The channel that gets the error.
    pub channel: Name,
}

/// What one job may do beside its supersteps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallLimits {
    /// Most requests to models.
    pub model_calls: Option<u64>,
    /// Most calls of tools.
    pub tool_calls: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(retry: &Retry, random: u64) -> Vec<f64> {
        (1..).map_while(|attempt| retry.wait(attempt, random)).map(|wait| wait.as_secs_f64()).collect()
    }

    #[test]
    fn waits_grow_by_the_factor_up_to_the_longest_and_end() {
        let retry = Retry { max_attempts: 6, max_interval: Duration::from_secs(3), ..Retry::default() };
        assert_eq!(waits(&retry, 0), [0.5, 1.0, 2.0, 3.0, 3.0]);
        assert_eq!(waits(&retry, u64::MAX), [1.5, 2.0, 3.0, 4.0, 4.0]);
        assert_eq!(waits(&Retry { jitter: false, ..Retry::default() }, u64::MAX), [0.5, 1.0]);
        assert_eq!(waits(&Retry { max_attempts: 1, ..Retry::default() }, 0), Vec::<f64>::new());
    }

    #[test]
    fn no_number_is_too_large_for_a_wait() {
        let retry = Retry { max_attempts: u32::MAX, backoff_factor: 100.0, ..Retry::default() };
        assert_eq!(retry.wait(u32::MAX - 1, 0), Some(retry.max_interval));
    }

    #[test]
    fn any_covers_everything_but_the_limits_of_the_job() {
        let on = |retry_on: &[RetryOn]| Retry { retry_on: retry_on.to_vec(), ..Retry::default() };
        for (code, class) in [
            ("MODEL_THROTTLED", FailureClass::ModelUnavailable),
            ("MODEL_BREAKER_OPEN", FailureClass::ModelUnavailable),
            ("NODE_IDLE_TIMEOUT", FailureClass::Timeout),
            ("TOOL_TIMEOUT", FailureClass::Timeout),
            ("TOOL_FAILED", FailureClass::ToolError),
            ("SECRET_UNAVAILABLE", FailureClass::ToolError),
            ("NODE_TOOL_FAILED", FailureClass::ToolError),
            ("CONDITION_FAILED", FailureClass::Expression),
            ("NODE_OUTPUT_INVALID", FailureClass::Output),
            ("MODEL_REJECTED", FailureClass::Other),
        ] {
            assert_eq!(FailureClass::of(code), class, "{code}");
            assert!(on(&[RetryOn::Any]).covers(class), "{code}");
        }
        for code in
            ["BUDGET_EXHAUSTED", "MODEL_PRICE_UNKNOWN", "MODEL_CALL_LIMIT", "TOOL_CALL_LIMIT", "INTERNAL"]
        {
            assert!(!on(&[RetryOn::Any]).covers(FailureClass::of(code)), "{code}");
        }
        assert!(!on(&[RetryOn::Timeout, RetryOn::ToolError]).covers(FailureClass::ModelUnavailable));
    }
}
