//! Does at once what the background duties of executors do.

use super::{
    GRACE, Servers,
    look::{self, Messages},
    report::Report,
};
use crate::{
    cli::error::Error,
    config::Config,
    job::{Job, encode_request},
    queue::{self, Replay},
    store::{Record, Store, Waiting},
};

/// Rows of one statement, and statements of one repair: more is for the next run.
const BATCH: u32 = 500;
const MOST_BATCHES: u32 = 100;

/// Results read at once: each may have a megabyte.
const RESULTS_AT_ONCE: u32 = 64;

/// Mends what was found; what cannot be mended stays a finding.
pub(super) async fn all(config: &Config, servers: Servers<'_>, found: &Messages, report: &mut Report) {
    if let Err(error) = each(config, servers, found, report).await {
        report.unfinished(&error);
    }
}

async fn each(
    config: &Config,
    servers: Servers<'_>,
    found: &Messages,
    report: &mut Report,
) -> Result<(), Error> {
    let (store, nats) = servers;
    if report.has("dead_leases") {
        let freed = free(store).await?;
        report.repaired("dead_leases", format!("freed {freed} threads"));
    }
    if report.has("unpublished_results") {
        let (published, refused) = publish(servers).await?;
        match refused {
            None => report.repaired("unpublished_results", format!("published {published} results")),
            Some(error) => report.unfinished(&error),
        }
    }
    for (seq, _) in &found.settled {
        nats.discard(*seq).await?;
    }
    report.repaired("settled_messages", format!("removed {} messages", found.settled.len()));
    let mut recorded = 0;
    for (seq, job) in &found.unknown {
        let record = Record::of(job, Some(*seq), config.worker.job_timeout);
        recorded += u64::from(store.record(&record).await?);
    }
    report.repaired("unknown_jobs", format!("made {recorded} jobs known"));
    // Last, since all of the above may leave jobs that wait.
    if ["dead_leases", "stuck_threads", "lost_messages"].iter().any(|code| report.has(code)) {
        let (sent, left) = send_again(config, servers).await?;
        let done = format!("sent the messages of {sent} jobs again");
        if left == 0 {
            report.repaired("lost_messages", done.clone());
            report.repaired("stuck_threads", done);
        }
    }
    Ok(())
}

async fn free(store: &dyn Store) -> Result<usize, Error> {
    let mut freed = 0;
    for _ in 0..MOST_BATCHES {
        let batch = store.free_dead(GRACE.lease, BATCH).await?;
        freed += batch.len();
        if batch.is_empty() {
            break;
        }
    }
    Ok(freed)
}

/// How many results were published, and why the broker refuses the first of those that it refuses.
async fn publish((store, nats): Servers<'_>) -> Result<(u64, Option<Error>), Error> {
    let (mut published, mut refused) = (0, None);
    let mut after = None;
    for _ in 0..MOST_BATCHES {
        let waiting = store.unpublished(GRACE.unpublished, after.as_ref(), RESULTS_AT_ONCE).await?;
        let Some(last) = waiting.last() else { break };
        after = Some(last.job_id.clone());
        for result in waiting {
            match nats.publish(&result).await {
                Ok(()) => {
                    store.mark_published(&result.job_id).await?;
                    published += 1;
                }
                Err(error @ queue::Error::Unavailable(_)) => return Err(error.into()),
                Err(error) => {
                    refused.get_or_insert(Error::from(error));
                }
            }
        }
    }
    Ok((published, refused))
}

/// How many messages were sent, and how many could not be.
async fn send_again(config: &Config, (store, nats): Servers<'_>) -> Result<(u64, u64), Error> {
    let (mut sent, mut left) = (0, 0);
    for waiting in look::silent(store, nats).await? {
        let Some(message) = message(config, &waiting) else {
            left += 1;
            continue;
        };
        let seq = nats.resubmit(&message).await?;
        store.copied(&waiting.job_id, seq).await?;
        sent += 1;
    }
    Ok((sent, left))
}

/// The job's message as it can be sent once more; whoever else sends it sends the same.
fn message(config: &Config, waiting: &Waiting) -> Option<Replay> {
    let job: Job = serde_json::from_slice(&waiting.request).ok()?;
    let request = encode_request(&job)?;
    Some(Replay {
        subject: config.nats.submit_subject.clone(),
        headers: request.headers,
        payload: request.payload,
        msg_id: format!("doctor:{}:{}", waiting.job_id, waiting.message_seq.unwrap_or_default()),
        replay_of: format!("job:{}", waiting.job_id),
    })
}
