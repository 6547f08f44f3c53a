//! Whole jobs per second, beside what each server alone does with what a job leaves there.

use std::time::Instant;

use anyhow::Result;
use fred::prelude::{Builder, ClientLike, Config as RedisConfig, StreamsInterface};
use serde_json::json;

use crate::{
    BARE_TURN, Plan, Servers, TURN, TURNS,
    bare::{Counted, Rows, publish_pairs},
    cpu::Cpu,
    driver::{Driver, Turn, Until, request, three_nodes},
    raw_redis::{Commands, RawRedis},
    report::{Goal, Report},
    statements,
};

/// How many jobs are on their way at a time, a row of the table each.
const IN_FLIGHT: [usize; 4] = [1, 16, 64, 256];
/// Jobs before the first row: connections open, statements prepared, caches warm.
const WARM_UP: usize = 200;
/// Jobs whose rows the bare inserts repeat.
const SAMPLE: usize = 1000;

/// Jobs per second of the servers, each alone and with nothing between.
#[derive(Clone, Copy, Default)]
struct Bare {
    postgres: f64,
    jetstream: f64,
    redis: f64,
}

impl Bare {
    /// If the machine did nothing else, and one after the other.
    fn together(self) -> f64 {
        1.0 / (1.0 / self.postgres + 1.0 / self.jetstream + 1.0 / self.redis)
    }

    fn and(self, other: Self, weight: f64) -> Self {
        Self {
            postgres: self.postgres + weight * other.postgres,
            jetstream: self.jetstream + weight * other.jetstream,
            redis: self.redis + weight * other.redis,
        }
    }
}

pub(crate) async fn measure(servers: &Servers, plan: &Plan, report: &mut Report) -> Result<()> {
    let executor = crate::executor(&servers.postgres.url(), &servers.nats, &servers.redis).await?;
    let client = async_nats::connect(servers.nats.url()).await?;
    let mut driver = Driver::new(&servers.nats.url(), "jobs").await?;
    let definition = three_nodes();
    let time = TURN * 4;
    driver.run(&definition, 16, Until { time, jobs: WARM_UP }).await?;
    report.line(HEAD);
    let mut rows = Vec::new();
    let wanted = |in_flight: &usize| plan.in_flight.is_none_or(|only| only == *in_flight);
    for in_flight in IN_FLIGHT.into_iter().filter(wanted) {
        let (mut ours, mut bare, mut cpu) = (Turn::default(), Bare::default(), Cpu::default());
        let mut batch = 0.0;
        for _ in 0..TURNS {
            let (before, counted) = (Cpu::now(servers, &executor), Counted::by(&executor).await?);
            let until = Until { time: plan.turn, jobs: plan.jobs };
            if plan.statements {
                statements::reset(&servers.postgres).await?;
            }
            let turn = driver.run(&definition, in_flight, until).await?;
            if plan.statements {
                statements::tell(&servers.postgres, turn.jobs(), report).await?;
            }
            cpu = cpu.and(Cpu::now(servers, &executor).since(before));
            let now = Counted::by(&executor).await?;
            let batching = now.batching_since(counted, in_flight);
            let commits_per_job = now.commits_since(counted) / turn.jobs();
            batch += batching.commits / f64::from(TURNS);

            let sample = &turn.ids[..turn.ids.len().min(SAMPLE)];
            let commits = ((sample.len() as f64 * commits_per_job).round() as usize).max(1);
            let left = Rows::of(&servers.postgres, sample, commits, true).await?;
            let commits_per_second = left.rate(&servers.postgres, batching, BARE_TURN).await?;
            let events = events(servers, sample).await?;
            let sizes = (request("jobs-0000000", &definition.to_string()).len(), left.mean_result_bytes());
            let alone = Bare {
                postgres: commits_per_second / commits_per_job,
                jetstream: publish_pairs(&client, sizes, in_flight, BARE_TURN).await?,
                redis: redis_alone(servers, &events, in_flight).await?,
            };
            bare = bare.and(alone, 1.0 / f64::from(TURNS));
            ours.and(turn);
        }
        rows.push(row(in_flight, &ours, (bare, batch), cpu, report));
    }
    report.json("jobs", rows.into());
    let status = executor.terminate().await?;
    anyhow::ensure!(status.success(), "the executor ended with {status}");
    Ok(())
}

const HEAD: &str = "\nJobs: three nodes, 200 tokens, scripted model without delay, one executor. Beside them each server alone with\n\
    what a job leaves there: PostgreSQL inserts its rows, gathered as ours (batch); JetStream stores and confirms request\n\
    and result; Redis takes its events in a pipeline. `together`: the three one after the other; ratio: ours to that.\n\
    CPU: milliseconds per job of executor, PostgreSQL, NATS, Redis and this driver.\n\n\
    in flight    jobs/s   p50 ms   p99 ms  batch  PostgreSQL  JetStream    Redis  together  ratio    CPU  exec    pg  nats redis  drvr";

fn row(
    in_flight: usize,
    ours: &Turn,
    (bare, batch): (Bare, f64),
    cpu: Cpu,
    report: &mut Report,
) -> serde_json::Value {
    let rate = ours.jobs() / ours.seconds;
    let (p50, p99) = (ours.percentile(50), ours.percentile(99));
    let (together, cpu) = (bare.together(), cpu.millis_per(ours.jobs()));
    report.line(format!(
        "{in_flight:>9} {rate:>9.0} {p50:>8.2} {p99:>8.2} {batch:>6.1} {:>11.0} {:>10.0} {:>8.0} {together:>9.0} {:>6.2} \
         {:>6.2} {:>5.2} {:>5.2} {:>5.2} {:>5.2} {:>5.2}",
        bare.postgres,
        bare.jetstream,
        bare.redis,
        rate / together,
        cpu.total(),
        cpu.executor,
        cpu.postgres,
        cpu.nats,
        cpu.redis,
        cpu.driver,
    ));
    match in_flight {
        1 => report.target("p50 of a job at 1 in flight", Goal::AtMost(3.0), p50, "ms"),
        64 => report.target("jobs at 64 in flight", Goal::AtLeast(1650.0), rate, "jobs/s"),
        _ => {}
    }
    json!({
        "in_flight": in_flight, "jobs": ours.jobs(), "jobs_per_second": rate, "p50_ms": p50, "p99_ms": p99,
        "commits_per_statement": batch,
        "alone_jobs_per_second": { "postgres": bare.postgres, "jetstream": bare.jetstream, "redis": bare.redis,
                                   "together": together },
        "ratio": rate / together,
        "cpu_ms_per_job": cpu.json(),
    })
}

/// An event as it was sent: stream, entry id, entry. The message on the channel is about as large.
type Sent = (String, String, String);

/// The events of some jobs.
async fn events(servers: &Servers, ids: &[String]) -> Result<Vec<Vec<Sent>>> {
    let client = Builder::from_config(RedisConfig::from_url(&servers.redis.url())?).build()?;
    client.init().await?;
    let mut all = Vec::new();
    for id in ids.iter().take(SAMPLE) {
        let key = format!("langgraph:stream:{id}");
        let entries: Vec<(String, std::collections::HashMap<String, String>)> =
            client.xrange_values(&key, "-", "+", None).await?;
        let sent = entries
            .into_iter()
            .map(|(id, mut fields)| (key.clone(), id, fields.remove("event").unwrap_or_default()));
        all.push(sent.collect());
    }
    client.quit().await?;
    Ok(all)
}

/// Jobs per second whose events Redis takes, those of `in_flight` jobs at a time.
async fn redis_alone(servers: &Servers, jobs: &[Vec<Sent>], in_flight: usize) -> Result<f64> {
    let mut redis = RawRedis::connect(servers.redis.port()).await?;
    let (mut done, mut round, mut spent) = (0, 0, std::time::Duration::ZERO);
    while spent < BARE_TURN {
        round += 1;
        for group in jobs.chunks(in_flight) {
            let mut commands = Commands::default();
            for (key, id, entry) in group.iter().flatten() {
                let key = format!("bare:{round}:{key}");
                commands.push_event(&key, id, entry.as_bytes(), entry.as_bytes());
            }
            let began = Instant::now();
            redis.run(&commands).await?;
            spent += began.elapsed();
            done += group.len();
        }
    }
    Ok(done as f64 / spent.as_secs_f64())
}
