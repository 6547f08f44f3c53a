//! Durable supersteps per second through the whole program, beside a bare insert of the same rows.

use anyhow::Result;
use serde_json::{Value as Json, json};

use crate::{
    BARE_TURN, Plan, Servers, TURN, TURNS,
    bare::{Batching, Counted, Rows},
    cpu::Cpu,
    driver::{Driver, Turn, Until},
    report::{Goal, Report},
};

/// Threads that run at a time.
const THREADS: [usize; 2] = [1, 64];
/// How often a job goes through the chain: once, and so often that its start and end hardly count.
const PASSES: [usize; 2] = [1, 20];
/// Nodes of the chain.
const NODES: usize = 10;
/// Commits whose rows the bare insert repeats, at most.
const SAMPLE: usize = 8000;

pub(crate) async fn measure(servers: &Servers, plan: &Plan, report: &mut Report) -> Result<()> {
    let executor = crate::executor(&servers.postgres.url(), &servers.nats, &servers.redis).await?;
    let mut driver = Driver::new(&servers.nats.url(), "steps").await?;
    driver.run(&chain(1), 16, Until { time: TURN, jobs: 100 }).await?;
    report.line(HEAD);
    let mut rows = Vec::new();
    for (threads, passes) in THREADS.into_iter().flat_map(|threads| PASSES.map(|passes| (threads, passes))) {
        let steps = NODES * passes;
        let (mut ours, mut cpu) = (Turn::default(), Cpu::default());
        let (mut bare, mut batch, mut per_commit) = (0.0, 0.0, (0.0, 0.0));
        for _ in 0..TURNS {
            let (before, counted) = (Cpu::now(servers, &executor), Counted::by(&executor).await?);
            let turn =
                driver.run(&chain(passes), threads, Until { time: plan.turn, jobs: plan.jobs }).await?;
            cpu = cpu.and(Cpu::now(servers, &executor).since(before));
            let now = Counted::by(&executor).await?;
            let batching: Batching = now.batching_since(counted, threads);
            let commits_per_job = now.commits_since(counted) / turn.jobs();
            let sample = &turn.ids[..turn.ids.len().min((SAMPLE / steps).max(1))];
            let commits = ((sample.len() as f64 * commits_per_job).round() as usize).max(1);
            let left = Rows::of(&servers.postgres, sample, commits, false).await?;
            let rate = left.rate(&servers.postgres, batching, BARE_TURN).await?;
            bare += rate * steps as f64 / commits_per_job / f64::from(TURNS);
            batch += batching.commits / f64::from(TURNS);
            per_commit = left.per_commit();
            ours.and(turn);
        }
        let figures = Figures { threads, passes, bare, batch, per_commit };
        rows.push(row(&figures, &ours, cpu, report));
    }
    report.json("supersteps", rows.into());
    let status = executor.terminate().await?;
    anyhow::ensure!(status.success(), "the executor ended with {status}");
    Ok(())
}

const HEAD: &str = "\nDurable supersteps: a chain of ten transforms, through queue, stream and store; one checkpoint each. `passes`: how\n\
    often a job goes through it. Beside it a bare multi-row insert of the same rows, gathered as ours (batch).\n\n\
    threads  passes  supersteps/s   batch  rows  bytes   bare insert/s  ratio    CPU µs  exec    pg  nats redis  drvr";

struct Figures {
    threads: usize,
    passes: usize,
    bare: f64,
    batch: f64,
    per_commit: (f64, f64),
}

fn row(figures: &Figures, ours: &Turn, cpu: Cpu, report: &mut Report) -> Json {
    let Figures { threads, passes, bare, batch, per_commit: (rows, bytes) } = *figures;
    let steps = ours.jobs() * (NODES * passes) as f64;
    let rate = steps / ours.seconds;
    let cpu = cpu.millis_per(steps / 1e3);
    report.line(format!(
        "{threads:>7} {passes:>7} {rate:>13.0} {batch:>7.1} {rows:>5.1} {bytes:>6.0} {bare:>15.0} {:>6.2} {:>9.0} {:>5.0} {:>5.0} \
         {:>5.0} {:>5.0} {:>5.0}",
        rate / bare,
        cpu.total(),
        cpu.executor,
        cpu.postgres,
        cpu.nats,
        cpu.redis,
        cpu.driver,
    ));
    if threads == 64 {
        let what = format!("supersteps at 64 threads, {passes} pass(es) a job");
        report.target(&what, Goal::AtLeast(20_000.0), rate, "/s");
        report.target(format!("{what}, to a bare insert"), Goal::AtLeast(0.8), rate / bare, "");
    }
    json!({
        "threads": threads, "passes": passes, "supersteps": steps, "supersteps_per_second": rate,
        "commits_per_statement": batch, "rows_per_commit": rows, "bytes_per_commit": bytes,
        "bare_insert_supersteps_per_second": bare, "ratio": rate / bare, "cpu_us_per_superstep": cpu.json(),
    })
}

/// Ten transforms in a row, each with a value of its own, gone through `passes` times.
fn chain(passes: usize) -> Json {
    let name = |nth: usize| format!("n{nth}");
    let node = |nth: usize| {
        let writes = match nth {
            0 => json!({ "passes": "1" }),
            _ => json!({ "note": format!("'what node {nth} leaves behind'") }),
        };
        json!({ "id": name(nth), "type": "transform", "writes": writes })
    };
    let mut edges: Vec<Json> =
        (1..NODES).map(|nth| json!({ "from": name(nth - 1), "to": name(nth) })).collect();
    let last = name(NODES - 1);
    edges.push(json!({ "from": "START", "to": name(0) }));
    edges.push(json!({ "from": last, "to": name(0), "when": format!("passes < {passes}") }));
    edges.push(json!({ "from": last, "to": "END", "otherwise": true }));
    json!({
        "name": "chain",
        "recursion_limit": NODES * passes,
        "channels": {
            "messages": { "reducer": "messages" },
            "passes": { "reducer": "add" },
            "note": { "reducer": "last_value" },
        },
        "nodes": (0..NODES).map(node).collect::<Vec<_>>(),
        "edges": edges,
        "output": ["passes"],
    })
}
