//! The load driver behind `make bench`: whole jobs per second through real servers and one executor process, beside
//! what the same servers do with nothing between, measured in the same run on the same machine.
//!
//! The job is a graph of three nodes whose scripted model answers at once, so what is measured is everything but the
//! model. `JOBS=n` sets how many jobs a row takes.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use executor::Executor;
use futures::StreamExt;
use serde_json::{Value as Json, json};
use servers::{Nats, Postgres, Redis};

#[path = "../dev/executor.rs"]
mod executor;
#[path = "../dev/servers.rs"]
mod servers;

/// How many jobs are on their way at a time, a row of the table each.
const IN_FLIGHT: [usize; 3] = [1, 16, 64];
/// Jobs per row unless `JOBS` says otherwise: some seconds per row on a small machine.
const JOBS: usize = 300;
/// Jobs before the first row: connections open, statements prepared, caches warm.
const WARM_UP: usize = 30;
/// No job of this kind takes this long unless something is broken.
const RESULT_WITHIN: Duration = Duration::from_secs(60);
/// How long the database alone is measured, per row.
const BASELINE_SECONDS: u32 = 3;

/// What one row of the table measured.
struct Measured {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

/// What one job leaves in the database, on average.
struct Footprint {
    commits: f64,
    rows: f64,
    bytes: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let jobs = std::env::var_os("JOBS").and_then(|jobs| jobs.to_str()?.parse().ok()).unwrap_or(JOBS);
    let (postgres, nats, redis) = tokio::try_join!(Postgres::start(), Nats::start(), Redis::start())?;
    let (database, queue, stream) = (postgres.url(), nats.url(), redis.url());
    let settings = [
        ("DATABASE_URL", database.as_str()),
        ("NATS_URL", &queue),
        ("DRAGONFLY_URL", &stream),
        ("LOG_LEVEL", "warn"),
    ];
    let executor = Executor::start(Path::new(env!("CARGO_BIN_EXE_agent-executor")), &settings).await?;
    let rows = measure(&queue, jobs, &postgres).await;
    let rows = rows.with_context(|| format!("the executor's last words:\n{}", executor.log_tail()))?;
    let status = executor.terminate().await?;
    ensure!(status.success(), "the executor ended with {status}");
    print!("{rows}");
    Ok(())
}

/// The table, as text.
async fn measure(queue: &str, jobs: usize, postgres: &Postgres) -> Result<String> {
    let client = async_nats::connect(queue).await?;
    let mut driver = Driver::new(client.clone()).await?;
    driver.run(WARM_UP, 1).await?;
    let footprint = footprint(postgres, WARM_UP).await?;
    let script = format!(
        "insert into bench_rows select g, repeat('x', {:.0}) from generate_series(1, {:.0}) g;\n",
        footprint.bytes / footprint.rows,
        (footprint.rows / footprint.commits).max(1.0)
    );
    postgres.sql("postgres", "create table bench_rows (n int, body text)").await?;
    let mut table = format!(
        "\n{jobs} jobs per row, three nodes each, scripted model without delay.\n\
         One job leaves {:.1} commits (its checkpoints, its start, its end), {:.1} rows and {:.0} bytes in PostgreSQL; \"PostgreSQL alone\" is pgbench\n\
         writing as many in as many commits, \"JetStream alone\" is the request's publish and its acknowledgement. PostgreSQL\n\
         runs without fsync here: compare within the table only.\n\n\
         {:>9} {:>9} {:>9} {:>9}   {:>16} {:>6}   {:>15} {:>6}\n",
        footprint.commits,
        footprint.rows,
        footprint.bytes,
        "in flight",
        "jobs/s",
        "p50 ms",
        "p99 ms",
        "PostgreSQL alone",
        "ratio",
        "JetStream alone",
        "ratio"
    );
    for in_flight in IN_FLIGHT {
        let ours = driver.run(jobs, in_flight).await?;
        let commits = postgres.pgbench("postgres", &script, in_flight, BASELINE_SECONDS).await?;
        let database = commits / footprint.commits;
        let stream = publish_alone(&client, jobs, in_flight).await?;
        table += &format!(
            "{in_flight:>9} {:>9.1} {:>9.1} {:>9.1}   {database:>9.1} jobs/s {:>5.1}x   {stream:>8.1} jobs/s {:>5.1}x\n",
            ours.per_second,
            ours.p50.as_secs_f64() * 1e3,
            ours.p99.as_secs_f64() * 1e3,
            database / ours.per_second,
            stream / ours.per_second
        );
    }
    Ok(table)
}

/// Publishes jobs and listens for their results.
struct Driver {
    client: async_nats::Client,
    results: async_nats::Subscriber,
    next: usize,
}

impl Driver {
    async fn new(client: async_nats::Client) -> Result<Self> {
        let results = client.subscribe("agent.status.>").await?;
        client.flush().await?;
        Ok(Self { client, results, next: 0 })
    }

    /// Runs `jobs` jobs, `in_flight` at a time: each result lets the next job go.
    async fn run(&mut self, jobs: usize, in_flight: usize) -> Result<Measured> {
        let began = Instant::now();
        let mut waiting: HashMap<String, Instant> = HashMap::new();
        let mut latencies = Vec::with_capacity(jobs);
        let mut published = 0;
        while latencies.len() < jobs {
            while published < jobs && waiting.len() < in_flight {
                let id = format!("load-{}", self.next);
                self.next += 1;
                published += 1;
                waiting.insert(id.clone(), Instant::now());
                publish(&self.client, &id, "agent.execute.load").await?;
            }
            let message = tokio::time::timeout(RESULT_WITHIN, self.results.next()).await;
            let message = message.context("no result in time")?.context("the subscription ended")?;
            let event: Json = serde_json::from_slice(&message.payload)?;
            let subject = message.subject.as_str();
            ensure!(subject == "agent.status.completed", "{subject}: {}", event["data"]["error"]);
            let id = event["subject"].as_str().context("a result without its job")?;
            latencies.extend(waiting.remove(id).map(|since| since.elapsed()));
        }
        let per_second = jobs as f64 / began.elapsed().as_secs_f64();
        latencies.sort_unstable();
        let at = |percent: usize| latencies[(jobs * percent / 100).min(jobs - 1)];
        Ok(Measured { per_second, p50: at(50), p99: at(99) })
    }
}

async fn publish(client: &async_nats::Client, id: &str, subject: &'static str) -> Result<()> {
    let jetstream = async_nats::jetstream::new(client.clone());
    jetstream.publish(subject, request(id).to_string().into()).await?.await?;
    Ok(())
}

/// Requests per second that JetStream takes when nobody works on them.
async fn publish_alone(client: &async_nats::Client, jobs: usize, in_flight: usize) -> Result<f64> {
    let jetstream = async_nats::jetstream::new(client.clone());
    let config = async_nats::jetstream::stream::Config {
        name: "BENCH".to_owned(),
        subjects: vec!["bench.alone".to_owned()],
        ..Default::default()
    };
    jetstream.get_or_create_stream(config).await?;
    let began = Instant::now();
    let all = futures::stream::iter(0..jobs)
        .map(|n| async move { publish(client, &format!("alone-{n}"), "bench.alone").await });
    let mut all = std::pin::pin!(all.map(Box::pin).buffer_unordered(in_flight));
    while let Some(done) = all.next().await {
        done?;
    }
    Ok(jobs as f64 / began.elapsed().as_secs_f64())
}

/// A graph of three nodes in a row: a transform, a model that answers at once, a transform.
fn request(id: &str) -> Json {
    let script = json!({ "replies": [{ "text": "A short answer." }] });
    json!({
        "job_id": id,
        "agent_definition": {
            "name": "load",
            "channels": {
                "messages": { "reducer": "messages" },
                "question": { "reducer": "last_value" },
                "answer": { "reducer": "last_value" },
            },
            "nodes": [
                { "id": "first", "type": "transform", "writes": { "question": "'What is measured?'" } },
                { "id": "second", "type": "model",
                  "model": { "provider": "scripted", "model": "load", "script": script } },
                { "id": "third", "type": "transform", "writes": { "answer": "messages | length" } },
            ],
            "edges": [
                { "from": "START", "to": "first" },
                { "from": "first", "to": "second" },
                { "from": "second", "to": "third" },
                { "from": "third", "to": "END" },
            ],
        },
        "input": { "messages": [{ "role": "user", "content": "Go." }] },
    })
}

/// What the `jobs` jobs so far have left behind, per job.
async fn footprint(postgres: &Postgres, jobs: usize) -> Result<Footprint> {
    let counted = postgres.sql("postgres", FOOTPRINT).await?;
    let numbers: Vec<f64> = counted.split('|').map(str::parse).collect::<Result<_, _>>()?;
    let [commits, rows, bytes] = numbers[..] else {
        anyhow::bail!("three numbers were asked for: {counted}")
    };
    ensure!(commits > 0.0, "no checkpoint was written");
    let jobs = jobs as f64;
    // The job's own row is written when it is accepted and when it ends: two commits more.
    Ok(Footprint { commits: commits / jobs + 2.0, rows: rows / jobs + 2.0, bytes: bytes / jobs })
}

const FOOTPRINT: &str = "select (select count(*) from checkpoints), \
     (select count(*) from checkpoints) + (select count(*) from checkpoint_blobs) \
         + (select count(*) from checkpoint_writes), \
     (select coalesce(sum(length(checkpoint::text) + length(metadata::text)), 0) from checkpoints) \
         + (select coalesce(sum(length(blob)), 0) from checkpoint_blobs) \
         + (select coalesce(sum(length(blob)), 0) from checkpoint_writes)";
