//! The Prometheus recorder: which metrics exist, what they mean and how their buckets lie.
//!
//! **Invariant:** every metric without labels is on `/metrics` from the start, at zero.

use std::{sync::OnceLock, time::Duration};

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

use super::metric;

/// Seconds a job, a model call or a first token may take; contract.md section 7.
const SECONDS: [f64; 12] = [0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];

/// Seconds of a commit: one round trip to a near database up to a failover.
const COMMIT_SECONDS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Commits in one statement.
const BATCH: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Why messages become dead letters; TROUBLESHOOTING.md explains each.
const DEAD_LETTER_REASONS: [&str; 12] = [
    "not_json",
    "not_an_object",
    "no_job_id",
    "unknown_type",
    "bad_cloudevent",
    "bad_request",
    "definition_invalid",
    "undecodable",
    "poison",
    "max_deliveries",
    "terminated",
    "agent_not_found",
];

/// Classes of failures that a node's policy may act on.
const FAILURE_CLASSES: [&str; 6] =
    ["model_unavailable", "timeout", "tool_error", "expression", "output", "other"];

/// Time between two clean-ups of the histograms' buffers; they grow with every sample until then.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The metrics of the process; the first call installs the recorder.
///
/// # Panics
/// When something else has installed a recorder before; there is one per process.
pub fn metrics() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| install().expect("the buckets are not empty and no other recorder exists")).clone()
}

/// Cleans up behind the histograms until `stop`.
pub async fn run_upkeep(handle: PrometheusHandle, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(UPKEEP_EVERY)).await.is_some() {
        handle.run_upkeep();
    }
}

fn install() -> Result<PrometheusHandle, BuildError> {
    let full = |name: &str| Matcher::Full(name.to_owned());
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(full(metric::JOB_SECONDS), &SECONDS)?
        .set_buckets_for_metric(full(metric::LLM_SECONDS), &SECONDS)?
        .set_buckets_for_metric(full(metric::FIRST_TOKEN_SECONDS), &SECONDS)?
        .set_buckets_for_metric(full(metric::NODE_SECONDS), &SECONDS)?
        .set_buckets_for_metric(full(metric::COMMIT_SECONDS), &COMMIT_SECONDS)?
        .set_buckets_for_metric(full(metric::COMMIT_BATCH), &BATCH)?
        .install_recorder()?;
    describe();
    start_at_zero();
    Ok(handle)
}

fn describe() {
    describe_counter!(metric::JOBS, "Ended jobs by status");
    describe_histogram!(metric::JOB_SECONDS, "Seconds from the claim of a job to its end");
    describe_counter!(metric::JOB_FAILURES, "Failed jobs by the code of their failure");
    describe_counter!(metric::HANDED_BACK, "Jobs handed to other processes before their end");
    describe_counter!(metric::DB_ERRORS, "Failed attempts to reach Postgres");
    describe_counter!(metric::REDIS_ERRORS, "Failed sends of live events");
    describe_counter!(metric::REDIS_PUBLISHED, "Sent live events by type");
    describe_counter!(metric::NATS_PROCESSED, "Messages settled as done");
    describe_counter!(metric::NATS_FAILED, "Messages settled as not done");
    describe_gauge!(metric::QUEUE_PENDING, "Requests that waited when this process last asked for some");
    describe_gauge!(metric::IN_FLIGHT, "Jobs being run");
    describe_counter!(metric::REDELIVERIES, "Deliveries after the first of a message");
    describe_counter!(metric::SUPERSTEPS, "Applied supersteps");
    describe_histogram!(metric::COMMIT_SECONDS, "Seconds from handing in a commit to its answer");
    describe_histogram!(metric::COMMIT_BATCH, "Commits in one statement");
    describe_counter!(metric::LLM_TOKENS, "Tokens by provider, model and kind");
    describe_gauge!(metric::LLM_COST, "Dollars for models by provider and model, as far as prices are known");
    describe_counter!(metric::LLM_UNPRICED, "Model calls whose price is not known, by provider and model");
    describe_counter!(metric::LLM_CACHE, "Looks for kept answers of models by outcome");
    describe_histogram!(metric::LLM_SECONDS, "Seconds of a model call by provider and model");
    describe_counter!(metric::LLM_FAILURES, "Model calls that failed, by provider and code");
    describe_histogram!(metric::NODE_SECONDS, "Seconds of a task by node");
    describe_histogram!(metric::FIRST_TOKEN_SECONDS, "Seconds from the claim of a job to its first token");
    describe_counter!(metric::TOOL_CALLS, "Tool calls by tool and status");
    describe_counter!(metric::TOOL_FAILURES, "Tool calls that were made and failed, by tool and code");
    describe_counter!(metric::EFFECTS, "Calls of tools that do something outside, by outcome");
    describe_counter!(metric::NODE_RETRIES, "What a node's policy repeated, by class of the failure");
    describe_counter!(metric::NODE_ERRORS_ROUTED, "Failures that led to another node, by class");
    describe_counter!(metric::NODE_CACHE, "Looks into the cache of nodes by outcome");
    describe_counter!(metric::STREAM_DROPPED, "Dropped live events by type");
    describe_counter!(metric::DEAD_LETTERS, "Dead letters by reason");
    describe_counter!(metric::FENCED_WRITES, "Writes refused because the thread has a later epoch");
    describe_counter!(metric::ADOPTED, "Jobs taken up because their owner was gone");
    describe_counter!(metric::RELAYED, "Results published for a process that did not");
    describe_counter!(metric::RECONCILED, "Messages the broker had forgotten, by action");
    describe_gauge!(metric::IN_USE, "How much of a limit is in use, by kind");
    describe_gauge!(metric::LIMIT, "The limit, by kind");
    describe_counter!(metric::TURNED_AWAY, "Turned away because of a limit, by kind");
    describe_gauge!(metric::BUILD_INFO, "Always 1; version and commit are labels");
}

/// A counter that appears with its first count hides that count from `rate()`.
fn start_at_zero() {
    for name in [
        metric::DB_ERRORS,
        metric::REDIS_ERRORS,
        metric::NATS_PROCESSED,
        metric::NATS_FAILED,
        metric::REDELIVERIES,
        metric::SUPERSTEPS,
        metric::FENCED_WRITES,
        metric::HANDED_BACK,
        metric::ADOPTED,
        metric::RELAYED,
    ] {
        counter!(name).absolute(0);
    }
    for status in ["completed", "failed", "interrupted", "cancelled"] {
        counter!(metric::JOBS, "status" => status).absolute(0);
    }
    for outcome in ["done", "failed", "unknown", "replayed"] {
        counter!(metric::EFFECTS, "outcome" => outcome).absolute(0);
    }
    for action in ["recorded", "discarded"] {
        counter!(metric::RECONCILED, "action" => action).absolute(0);
    }
    for class in FAILURE_CLASSES {
        counter!(metric::NODE_RETRIES, "class" => class).absolute(0);
        counter!(metric::NODE_ERRORS_ROUTED, "class" => class).absolute(0);
    }
    for outcome in ["hit", "miss"] {
        counter!(metric::NODE_CACHE, "outcome" => outcome).absolute(0);
        counter!(metric::LLM_CACHE, "outcome" => outcome).absolute(0);
    }
    // Text is what is dropped first.
    counter!(metric::STREAM_DROPPED, "event_type" => "on_llm_stream").absolute(0);
    for reason in DEAD_LETTER_REASONS {
        counter!(metric::DEAD_LETTERS, "reason" => reason).absolute(0);
    }
    // The one code with an alert of its own; others come with their first job.
    counter!(metric::JOB_FAILURES, "code" => "BUDGET_EXHAUSTED").absolute(0);
    for name in
        [metric::JOB_SECONDS, metric::FIRST_TOKEN_SECONDS, metric::COMMIT_SECONDS, metric::COMMIT_BATCH]
    {
        // Getting the histogram registers it; recording a zero would be a lie.
        let _ = metrics::histogram!(name);
    }
    gauge!(metric::IN_FLIGHT).set(0.0);
    gauge!(metric::QUEUE_PENDING).set(0.0);
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("GIT_COMMIT").unwrap_or("unknown");
    gauge!(metric::BUILD_INFO, "version" => version, "commit" => commit).set(1.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_there_from_the_start_with_the_promised_buckets() {
        let text = metrics().render();
        for name in [
            metric::JOBS,
            metric::JOB_SECONDS,
            metric::DB_ERRORS,
            metric::REDIS_ERRORS,
            metric::NATS_PROCESSED,
            metric::NATS_FAILED,
            metric::IN_FLIGHT,
            metric::QUEUE_PENDING,
            metric::REDELIVERIES,
            metric::SUPERSTEPS,
            metric::COMMIT_SECONDS,
            metric::COMMIT_BATCH,
            metric::FIRST_TOKEN_SECONDS,
            metric::FENCED_WRITES,
            metric::EFFECTS,
            metric::DEAD_LETTERS,
            metric::JOB_FAILURES,
            metric::HANDED_BACK,
            metric::ADOPTED,
            metric::RELAYED,
            metric::RECONCILED,
            metric::BUILD_INFO,
        ] {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name} is missing in\n{text}");
        }
        metrics::histogram!(metric::LLM_SECONDS, "provider" => "p", "model" => "m").record(700.0);
        let text = metrics().render();
        let bucket = "agent_executor_llm_request_seconds_bucket{provider=\"p\",model=\"m\",le=\"1800\"} 1";
        assert!(text.contains(bucket), "{text}");
        assert!(text.contains("model=\"m\",le=\"600\"} 0"), "{text}");
    }
}
