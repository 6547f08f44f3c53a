//! Every metric name as a constant; contract.md section 7.

/// Counter: ended jobs by `status`.
pub const JOBS: &str = "agent_executor_jobs_total";
/// Histogram: seconds from claim to end.
pub const JOB_SECONDS: &str = "agent_executor_job_duration_seconds";
/// Counter: failed jobs by the `code` of their failure.
pub const JOB_FAILURES: &str = "agent_executor_job_failures_total";
/// Counter: jobs handed to other processes before their end.
pub const HANDED_BACK: &str = "agent_executor_jobs_handed_back_total";
/// Counter: failed attempts to reach Postgres.
pub const DB_ERRORS: &str = "agent_executor_db_connection_errors_total";
/// Counter: failed sends to the Redis-protocol server.
pub const REDIS_ERRORS: &str = "agent_executor_redis_publish_errors_total";
/// Counter: sent events by `event_type`.
pub const REDIS_PUBLISHED: &str = "agent_executor_redis_publish_total";
/// Counter: messages settled as done.
pub const NATS_PROCESSED: &str = "agent_executor_nats_messages_processed_total";
/// Counter: messages settled as not done.
pub const NATS_FAILED: &str = "agent_executor_nats_messages_failed_total";
/// Gauge: requests that waited in the stream when this process last asked for some; with all slots full it does not ask.
pub const QUEUE_PENDING: &str = "agent_executor_queue_pending";
/// Gauge: jobs being run.
pub const IN_FLIGHT: &str = "agent_executor_jobs_in_flight";
/// Counter: deliveries after the first.
pub const REDELIVERIES: &str = "agent_executor_redeliveries_total";
/// Counter: applied supersteps.
pub const SUPERSTEPS: &str = "agent_executor_supersteps_total";
/// Histogram: seconds from handing in a commit to its answer.
pub const COMMIT_SECONDS: &str = "agent_executor_checkpoint_commit_seconds";
/// Histogram: commits per statement.
pub const COMMIT_BATCH: &str = "agent_executor_checkpoint_batch_size";
/// Counter: tokens by `provider`, `model`, `kind`.
pub const LLM_TOKENS: &str = "agent_executor_llm_tokens_total";
/// Gauge that only grows, since counters are whole numbers: dollars by `provider`, `model`, of calls whose price is known.
pub const LLM_COST: &str = "agent_executor_llm_cost_usd_total";
/// Counter: model calls whose price is not known, by `provider`, `model`.
pub const LLM_UNPRICED: &str = "agent_executor_llm_unpriced_calls_total";
/// Counter: looks for kept answers of models by `outcome`: hit, miss, unreadable, error.
pub const LLM_CACHE: &str = "agent_executor_llm_cache_total";
/// Histogram: seconds of a model call by `provider`, `model`.
pub const LLM_SECONDS: &str = "agent_executor_llm_request_seconds";
/// Counter: model calls that failed, before any retry, by `provider`, `code`.
pub const LLM_FAILURES: &str = "agent_executor_llm_failures_total";
/// Gauge: model calls that wait for their turn, by `provider`.
pub const LLM_WAITING: &str = "agent_executor_llm_waiting";
/// Histogram: seconds a model call waited for its turn, by `provider`.
pub const LLM_WAIT_SECONDS: &str = "agent_executor_llm_wait_seconds";
/// Gauge: addresses of a `provider` that are not asked because they failed; mostly 0 or 1.
pub const LLM_BREAKER_OPEN: &str = "agent_executor_llm_breaker_open";
/// Gauge: 1 while the limits of a `provider` are shared with other processes, 0 while this process keeps to its share.
pub const LLM_LIMITS_SHARED: &str = "agent_executor_llm_limits_shared";
/// Histogram: seconds from claim to the first token of a job.
pub const FIRST_TOKEN_SECONDS: &str = "agent_executor_time_to_first_token_seconds";
/// Histogram: seconds of a node's task by `node`.
pub const NODE_SECONDS: &str = "agent_executor_node_seconds";
/// Counter: tool calls by `tool`, `status`.
pub const TOOL_CALLS: &str = "agent_executor_tool_calls_total";
/// Counter: calls of tools that were made and failed, before they are made again or asked about, by `tool`, `code`.
pub const TOOL_FAILURES: &str = "agent_executor_tool_failures_total";
/// Counter: calls of tools that are not pure by `outcome`: done, failed, unknown, replayed.
pub const EFFECTS: &str = "agent_executor_effects_total";
/// Counter: runs of nodes and calls of tools that a node's policy repeated, by `class` of the failure.
pub const NODE_RETRIES: &str = "agent_executor_node_retries_total";
/// Counter: failures that `on_error` led to another node, by `class`.
pub const NODE_ERRORS_ROUTED: &str = "agent_executor_node_errors_routed_total";
/// Counter: looks into the cache of nodes by `outcome`: hit, miss.
pub const NODE_CACHE: &str = "agent_executor_node_cache_total";
/// Counter: events dropped by `event_type`.
pub const STREAM_DROPPED: &str = "agent_executor_stream_dropped_total";
/// Counter: dead letters by `reason`.
pub const DEAD_LETTERS: &str = "agent_executor_dead_letters_total";
/// Counter: writes refused because the thread has a later epoch.
pub const FENCED_WRITES: &str = "agent_executor_fenced_writes_total";
/// Counter: jobs taken up because their owner was gone.
pub const ADOPTED: &str = "agent_executor_adopted_jobs_total";
/// Counter: results published by the relay, because whoever ended their job did not.
pub const RELAYED: &str = "agent_executor_relayed_results_total";
/// Counter: messages the broker had forgotten, by `action`.
pub const RECONCILED: &str = "agent_executor_reconciled_messages_total";
/// Gauge: how much of a limit is in use, by `kind`.
pub const IN_USE: &str = "agent_executor_in_use";
/// Gauge: that limit, by `kind`.
pub const LIMIT: &str = "agent_executor_limit";
/// Counter: what was turned away because of that limit, by `kind`.
pub const TURNED_AWAY: &str = "agent_executor_turned_away_total";
/// Gauge, always 1: version and commit as labels.
pub const BUILD_INFO: &str = "agent_executor_build_info";
