//! Asks the servers and compares what they say.

use std::{collections::HashMap, time::Duration};

use super::{
    GRACE, Servers, open_nats, open_store,
    report::{Finding, Report, Severity},
};
use crate::{
    cli::error::Error,
    config::Config,
    ids::JobId,
    job::{Decoded, Job, decode},
    queue::{Queue, nats::Nats},
    store::{Inspect, Store, Waiting, postgres::PostgresStore},
    stream::dragonfly::Reader,
};

/// A job that nobody holds is taken up by a running executor after ten seconds.
const UNHEARD: Duration = Duration::from_secs(15);

/// Waiting jobs whose message is looked for; each is a request to the broker. The next run sees the next ones.
const MOST_WAITING: u32 = 200;

/// Messages that were delivered and are not settled, looked at in one run, and how many at a time.
const MOST_LINGERING: usize = 1000;
const LINGERING_AT_ONCE: usize = 64;

const DEAD: (&str, &str) = (
    "threads belong to an executor that has died",
    "a running executor takes them over within seconds: is one running, with free slots? --repair frees them at once",
);
const STUCK: (&str, &str) = (
    "threads have jobs that nobody takes up",
    "start an executor, or more of them; --repair sends copies of the messages, which an executor takes at once",
);
const OVERDUE: (&str, &str) =
    ("queued jobs are past their deadline", "any running executor ends them as failed: start one");
const UNPUBLISHED: (&str, &str) = (
    "results wait to be published",
    "running executors publish them once the broker takes them; --repair publishes them now",
);
const SUSPECTS: (&str, &str) = (
    "jobs were running when their executor died",
    "from 2 deaths on they run alone, at MAX_CRASHES they are given up; look at why pods ended (OOMKilled?)",
);

/// Postgres and what is in it; none when it does not answer.
pub(super) async fn at_store(config: &Config, report: &mut Report) -> Option<PostgresStore> {
    let store = match open_store(config).await {
        Ok(store) => store,
        Err(error) => {
            report.unreached("postgres", &error);
            return None;
        }
    };
    let overview = match store.overview(&GRACE).await {
        Ok(overview) => overview,
        Err(error) => {
            report.reached("postgres", "unknown".to_owned());
            let what = format!("the tables cannot be read: {error}");
            report.add(Finding::wrong("schema", what, 1, "agent-executor migrate"));
            return None;
        }
    };
    report.reached("postgres", overview.version.clone());
    report.add_found(("dead_leases", Severity::Wrong), &overview.dead_leases, DEAD);
    report.add_found(("stuck_threads", Severity::Wrong), &overview.stuck_threads, STUCK);
    report.add_found(("overdue_jobs", Severity::Wrong), &overview.overdue_jobs, OVERDUE);
    report.add_found(("unpublished_results", Severity::Wrong), &overview.unpublished, UNPUBLISHED);
    report.add_found(("suspects", Severity::Note), &overview.suspects, SUSPECTS);
    let letters: u64 = overview.dead_letters.values().sum();
    if letters > 0 {
        let what = format!("{letters} dead letters wait for somebody");
        let repair = "agent-executor dlq list; then dlq show, dlq replay or dlq discard";
        let reasons = overview.dead_letters.iter().map(|(reason, count)| format!("{reason} {count}"));
        let finding = Finding::wrong("dead_letters", what, letters, repair);
        report.add(Finding { ids: reasons.collect(), count: 0, ..finding });
    }
    report.overview = Some(overview);
    Some(store)
}

/// NATS, its streams and its consumer; none when messages cannot be looked at.
pub(super) async fn at_broker(config: &Config, report: &mut Report) -> Option<Nats> {
    let examined = match Nats::examine(&config.nats).await {
        Ok(examined) => examined,
        Err(error) => {
            report.unreached("nats", &error);
            return None;
        }
    };
    report.reached("nats", examined.version);
    for doubt in &examined.doubts {
        let (severity, repair) = if doubt.works {
            (Severity::Note, "nats stream edit, or nats consumer edit")
        } else {
            (Severity::Wrong, "see QUEUE_UNUSABLE; what is missing is made by `agent-executor serve`")
        };
        let what = format!("{}: {}", doubt.object, doubt.reason);
        report.add(Finding { severity, ..Finding::wrong("broker", what, 1, repair) });
    }
    report.broker = Some(examined.numbers);
    if examined.doubts.iter().any(|doubt| !doubt.works) {
        return None;
    }
    match open_nats(config).await {
        Ok(nats) => Some(nats),
        Err(error) => {
            report.unfinished(&error.into());
            None
        }
    }
}

/// The server of live events.
pub(super) async fn at_stream_server(config: &Config, report: &mut Report) {
    let reader = match Reader::connect(config.dragonfly.clone()).await {
        Ok(reader) => reader,
        Err(error) => return report.unreached("dragonfly", &error),
    };
    match reader.server().await {
        Ok(version) => report.reached("dragonfly", version),
        Err(error) => report.unreached("dragonfly", &error),
    }
}

/// Whether somebody works.
pub(super) fn at_load(report: &mut Report) {
    let Some(numbers) = &report.broker else { return };
    let open = report.overview.as_ref().map_or(0, |overview| overview.jobs_queued + overview.jobs_running);
    if numbers.waiting_pulls == 0 && numbers.pending + open > 0 {
        let what = format!(
            "no executor asks for work, {} requests wait and {open} jobs are open: none runs, or all slots are full",
            numbers.pending
        );
        let repair = "start an executor, or more of them";
        report.add(Finding { severity: Severity::Note, ..Finding::wrong("nobody_asks", what, 1, repair) });
    }
}

/// What the broker's messages and the store's jobs say about each other.
#[derive(Default)]
pub(super) struct Messages {
    /// Messages of jobs that are done.
    pub(super) settled: Vec<(u64, JobId)>,
    /// Delivered messages of jobs that the store does not know.
    pub(super) unknown: Vec<(u64, Job)>,
}

/// Compares messages with jobs.
pub(super) async fn at_messages(
    config: &Config,
    (store, nats): Servers<'_>,
    report: &mut Report,
) -> Result<Messages, Error> {
    let gone: Vec<Waiting> = without_message(store, nats).await?;
    if !gone.is_empty() {
        let what = format!("{} jobs wait whose message is gone", gone.len());
        let repair = "a running executor takes them up from Postgres; --repair sends their messages again, so that one starts";
        let finding = Finding::wrong("lost_messages", what, as_count(gone.len()), repair);
        report.add(finding.with_ids(gone.iter().map(|job| job.job_id.to_string())));
    }
    let found = lingering(config, (store, nats)).await?;
    if !found.settled.is_empty() {
        let what = format!("{} messages are left of jobs that are done", found.settled.len());
        let repair = "running executors remove them in time; --repair removes them now";
        let finding = Finding::wrong("settled_messages", what, as_count(found.settled.len()), repair);
        report.add(finding.with_ids(found.settled.iter().map(|(_, job_id)| job_id.to_string())));
    }
    if !found.unknown.is_empty() {
        let what =
            format!("{} messages were delivered of jobs that Postgres does not know", found.unknown.len());
        let repair =
            "their executor died at once, or the broker forgot them; --repair makes their jobs known";
        let finding = Finding::wrong("unknown_jobs", what, as_count(found.unknown.len()), repair);
        report.add(finding.with_ids(found.unknown.iter().map(|(_, job)| job.job_id.to_string())));
    }
    Ok(found)
}

pub(super) fn as_count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

async fn without_message(store: &dyn Store, nats: &dyn Queue) -> Result<Vec<Waiting>, Error> {
    let mut gone = Vec::new();
    for job in store.waiting(UNHEARD, MOST_WAITING).await? {
        if !has_message(nats, &job).await? {
            gone.push(job);
        }
    }
    Ok(gone)
}

async fn has_message(nats: &dyn Queue, job: &Waiting) -> Result<bool, Error> {
    Ok(match job.message_seq {
        Some(seq) => nats.fetch(seq).await?.is_some(),
        None => false,
    })
}

/// Jobs whose message is to be sent once more: it is gone, or nobody has heard it for long.
pub(super) async fn silent(store: &dyn Store, nats: &dyn Queue) -> Result<Vec<Waiting>, Error> {
    let stuck: Vec<JobId> =
        store.waiting(GRACE.waiting, MOST_WAITING).await?.into_iter().map(|job| job.job_id).collect();
    let mut silent = Vec::new();
    for job in store.waiting(UNHEARD, MOST_WAITING).await? {
        let unheard = stuck.contains(&job.job_id) && !job.is_copied;
        if unheard || !has_message(nats, &job).await? {
            silent.push(job);
        }
    }
    Ok(silent)
}

async fn lingering(config: &Config, (store, nats): Servers<'_>) -> Result<Messages, Error> {
    // Younger ones may be on their way between two steps of an executor.
    let age = config.nats.ack_wait.max(GRACE.waiting);
    let (mut found, mut after, mut looked_at) = (Messages::default(), 0, 0);
    while looked_at < MOST_LINGERING {
        let page = nats.lingering(after, age, LINGERING_AT_ONCE).await?;
        let Some(last) = page.last() else { break };
        after = last.stream_seq;
        looked_at += page.len();
        let read = page.iter().filter_map(|message| {
            match decode(&message.headers, &message.payload, &config.job) {
                Decoded::Job(job) => Some((message.stream_seq, *job)),
                // Its dead letter is made by whoever gets it next.
                Decoded::Unreadable { .. } => None,
            }
        });
        let jobs: Vec<(u64, Job)> = read.collect();
        let ids: Vec<JobId> = jobs.iter().map(|(_, job)| job.job_id.clone()).collect();
        let known = store.known(&ids).await?;
        let known: HashMap<_, _> = known.into_iter().map(|job| (job.job_id, job.published)).collect();
        for (seq, job) in jobs {
            match known.get(&job.job_id) {
                Some(true) => found.settled.push((seq, job.job_id)),
                Some(false) => {}
                None => found.unknown.push((seq, job)),
            }
        }
    }
    Ok(found)
}
