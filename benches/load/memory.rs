//! What a job that waits costs in the memory of its executor.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_nats::jetstream::{self, consumer::PullConsumer};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;

use crate::{
    Servers,
    driver::{Driver, Until, request, slow, three_nodes},
    executor::Executor,
    report::{Goal, Report},
    servers::{Nats, until},
};

/// Jobs that wait, a row of the table each.
const WAITING: [usize; 2] = [1_000, 10_000];
/// Jobs that run in the meantime: the default of MAX_CONCURRENT_JOBS, so that no slot is free.
const ALL_SLOTS: usize = 100;
/// Jobs that run when slots stay free; the waiting ones are for their threads.
const BUSY_THREADS: usize = 50;
/// Jobs before anything is measured, and how many at a time: connections are open and caches filled, but the allocator
/// holds no room from busier times in which waiting jobs would seem to cost nothing.
const WARM_UP: (usize, usize) = (200, 8);
/// Longer than a measurement.
const FOR_EVER: Duration = Duration::from_secs(600);
/// How long the memory must not have grown, and how long it may take until then.
const STILL: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(15));
/// Requests on their way to the broker at a time.
const PUBLISHING: usize = 256;
const START_WITHIN: Duration = Duration::from_secs(60);

/// What the jobs wait for.
#[derive(Clone, Copy)]
enum For {
    /// A slot; every thread is free.
    Slot,
    /// Their thread; slots are free.
    Thread,
}

impl For {
    fn text(self) -> &'static str {
        match self {
            Self::Slot => "a slot",
            Self::Thread => "a busy thread",
        }
    }
}

pub(crate) async fn measure(servers: &Servers, report: &mut Report) -> Result<()> {
    report.line(
        "\nMemory of the executor (resident set) when jobs run that never end, and with this many more waiting.\n\
         `delivered`: waiting ones that the broker has handed out, to be held or handed back for a while.\n\n\
         waiting for      jobs  delivered   before KB    after KB   KB per job",
    );
    let mut rows = Vec::new();
    for (why, count) in WAITING.into_iter().flat_map(|count| [(For::Slot, count), (For::Thread, count)]) {
        let Grown { before, after, delivered } = grown(servers, why, count).await?;
        let per_job = (after - before).max(0.0) / count as f64;
        let what = why.text();
        report.line(format!(
            "{what:<14} {count:>6} {delivered:>10} {before:>11.0} {after:>11.0} {per_job:>12.2}"
        ));
        report.target(
            format!("memory of one of {count} jobs waiting for {what}"),
            Goal::AtMost(20.0),
            per_job,
            "KB",
        );
        rows.push(
            json!({ "waiting_for": what, "jobs": count, "delivered": delivered, "rss_before_kb": before,
                          "rss_after_kb": after, "kb_per_job": per_job }),
        );
    }
    report.json("memory", rows.into());
    Ok(())
}

/// Kilobytes before and after, and how many waiting messages were with executors in the end.
struct Grown {
    before: f64,
    after: f64,
    delivered: usize,
}

async fn grown(servers: &Servers, why: For, count: usize) -> Result<Grown> {
    // A queue and a database of its own: what waits here is never run.
    let nats = Nats::start().await?;
    let database = servers.postgres.fresh_database().await?;
    let executor = crate::executor(&database, &nats, &servers.redis).await?;
    let mut driver = Driver::new(&nats.url(), "warm").await?;
    let (jobs, in_flight) = WARM_UP;
    driver.run(&three_nodes(), in_flight, Until { time: FOR_EVER, jobs }).await?;
    let jetstream = jetstream::new(async_nats::connect(nats.url()).await?);
    let busy = match why {
        For::Slot => ALL_SLOTS,
        For::Thread => BUSY_THREADS,
    };
    publish(&jetstream, "busy", busy, busy).await?;
    let running = || async {
        let metrics = executor.get("/metrics").await.unwrap_or_default().1;
        let name = agent_executor::telemetry::metric::IN_FLIGHT;
        metrics.lines().any(|line| line.strip_prefix(name) == Some(&format!(" {busy}")))
    };
    until("all slots run", START_WITHIN, running).await?;
    let before = settled(&executor).await?;
    let threads = match why {
        For::Slot => count,
        For::Thread => busy,
    };
    publish(&jetstream, if threads == busy { "busy" } else { "free" }, threads, count).await?;
    let after = settled(&executor).await?;
    let stream = jetstream.get_stream("AGENT_EXECUTION").await?;
    let consumer: std::result::Result<PullConsumer, _> = stream.get_consumer("agent-executor-workers").await;
    let mut consumer = consumer.map_err(|error| anyhow::anyhow!("{error}"))?;
    let delivered = consumer.info().await?.num_ack_pending.saturating_sub(busy);
    executor.kill()?;
    Ok(Grown { before, after, delivered })
}

/// Publishes `count` jobs that never end, spread over `threads` threads.
async fn publish(jetstream: &jetstream::Context, thread: &str, threads: usize, count: usize) -> Result<()> {
    let definition = slow(FOR_EVER).to_string();
    let one = |nth: usize| {
        let id = format!("{thread}-{threads}-{count}-{nth}");
        let place = format!("{thread}-{}", nth % threads);
        let request = request(&id, &definition);
        let request = request.replacen('{', &format!(r#"{{"thread_id":"{place}","#), 1);
        async move {
            jetstream.publish("agent.execute.load", request.into()).await?.await?;
            anyhow::Ok(())
        }
    };
    futures::stream::iter(0..count).map(one).buffer_unordered(PUBLISHING).try_collect().await
}

/// The resident set in kilobytes, once it has stopped growing.
async fn settled(executor: &Executor) -> Result<f64> {
    let (still, within) = STILL;
    let began = Instant::now();
    let (mut largest, mut since) = (0.0, Instant::now());
    while since.elapsed() < still && began.elapsed() < within {
        let now = resident(executor)?;
        if now > largest * 1.005 {
            since = Instant::now();
        }
        largest = now.max(largest);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(largest)
}

fn resident(executor: &Executor) -> Result<f64> {
    let pid = executor.pid().context("the executor is gone")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
