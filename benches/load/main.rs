//! The load driver behind `make bench`: the program against real servers, beside what the same servers do with
//! nothing between, in one run on one machine. Prints tables and writes `target/bench/load.json`.
//!
//! **Invariant:** every figure of ours stands beside a baseline that was measured in the same run, taking turns with it.
//! **Invariant:** targets are compared and printed, never asserted: a busy machine is no failure.
//!
//! `ROWS=jobs,supersteps,tokens,memory,recovery` picks sections, `JOBS=n` ends a turn after that many jobs. For
//! profiles, `IN_FLIGHT=64` picks rows of the jobs, `SECONDS=30` lengthens their turns and `STATEMENTS=1` shows where
//! PostgreSQL spends its time. `AGAINST=path` runs another build of the program too, and nothing else is measured.

#[path = "../../dev/executor.rs"]
mod executor;
#[path = "../../dev/servers.rs"]
mod servers;

mod against;
mod bare;
mod cpu;
mod driver;
mod jobs;
mod memory;
mod raw_redis;
mod recovery;
mod report;
mod statements;
mod supersteps;
mod tokens;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use executor::Executor;
use report::Report;
use serde_json::json;
use servers::{Nats, Postgres, Redis};

/// How often ours and the baselines take turns within a row.
const TURNS: u32 = 2;
/// How long one turn of ours lasts.
const TURN: Duration = Duration::from_millis(2500);
/// How long one turn of a baseline lasts: it has no start to amortise.
const BARE_TURN: Duration = Duration::from_millis(1000);

/// The sections, in the order they run.
const SECTIONS: [&str; 5] = ["jobs", "supersteps", "tokens", "memory", "recovery"];

/// The neighbours of the executors under load.
struct Servers {
    postgres: Postgres,
    nats: Nats,
    redis: Redis,
}

/// What is to be measured, and how much of it.
struct Plan {
    sections: Vec<String>,
    /// Most jobs of one turn.
    jobs: usize,
    /// How long a turn with jobs lasts.
    turn: Duration,
    /// The only number of jobs in flight, if not all are wanted.
    in_flight: Option<usize>,
    /// Whether PostgreSQL counts by statement.
    statements: bool,
    /// Another build of the program.
    against: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let plan = plan()?;
    let (postgres, nats, redis) = tokio::try_join!(Postgres::start(), Nats::start(), Redis::start())?;
    let servers = Servers { postgres, nats, redis };
    if plan.statements {
        statements::prepare(&servers.postgres).await?;
    }
    let mut report = Report::default();
    machine(&servers, &mut report).await?;
    if let Some(other) = &plan.against {
        against::measure(&servers, &plan, other, &mut report).await?;
        print!("{}", report.text());
        return Ok(());
    }
    for section in SECTIONS.iter().filter(|section| plan.sections.iter().any(|wanted| wanted == *section)) {
        eprintln!("measuring {section} …");
        match *section {
            "jobs" => jobs::measure(&servers, &plan, &mut report).await,
            "supersteps" => supersteps::measure(&servers, &plan, &mut report).await,
            "tokens" => tokens::measure(&servers, &mut report).await,
            "memory" => memory::measure(&servers, &mut report).await,
            _ => recovery::measure(&servers, &mut report).await,
        }
        .with_context(|| format!("section {section}"))?;
    }
    let path = json_path()?;
    report.write(&path)?;
    print!("{}", report.text());
    println!("\nAs JSON: {}", path.display());
    Ok(())
}

fn plan() -> Result<Plan> {
    let rows = setting("ROWS");
    let sections: Vec<String> = match rows {
        Some(rows) => rows.split(',').map(str::to_owned).collect(),
        None => SECTIONS.map(str::to_owned).into(),
    };
    for section in &sections {
        ensure!(SECTIONS.contains(&section.as_str()), "ROWS may name {SECTIONS:?}, not {section:?}");
    }
    let seconds = number("SECONDS")?.and_then(|seconds| u64::try_from(seconds).ok());
    Ok(Plan {
        sections,
        jobs: number("JOBS")?.unwrap_or(usize::MAX),
        turn: seconds.map_or(TURN, Duration::from_secs),
        in_flight: number("IN_FLIGHT")?,
        statements: setting("STATEMENTS").is_some(),
        against: setting("AGAINST").map(PathBuf::from),
    })
}

fn setting(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.into_string().ok()?;
    (!value.is_empty()).then_some(value)
}

fn number(name: &str) -> Result<Option<usize>> {
    let Some(text) = setting(name) else { return Ok(None) };
    let number = text.parse().with_context(|| format!("{name} is a number"))?;
    ensure!(number > 0, "{name} must not be 0");
    Ok(Some(number))
}

/// What the figures depend on beside the program.
async fn machine(servers: &Servers, report: &mut Report) -> Result<()> {
    let settings = "select version(), current_setting('fsync'), current_setting('synchronous_commit'), \
                    current_setting('full_page_writes'), current_setting('shared_buffers')";
    let told = servers.postgres.sql("postgres", settings).await?;
    let told: Vec<&str> = told.split('|').collect();
    let [version, fsync, synchronous, pages, buffers] = told[..] else {
        anyhow::bail!("five settings were asked for: {told:?}")
    };
    let version = version.split(" on ").next().unwrap_or(version);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    report.line(format!(
        "{cores} cores, all servers and the load driver on them. {version} with fsync={fsync}, \
         synchronous_commit={synchronous}, full_page_writes={pages}, shared_buffers={buffers}:\n\
         commits do not wait for a disk here, so compare within this run only."
    ));
    report.json(
        "machine",
        json!({ "cores": cores, "postgres": version, "fsync": fsync, "synchronous_commit": synchronous,
                "full_page_writes": pages, "shared_buffers": buffers }),
    );
    Ok(())
}

/// `target/bench/load.json`, wherever the target folder is.
fn json_path() -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().context("the target folder")?;
    let folder = target.join("bench");
    std::fs::create_dir_all(&folder)?;
    Ok(folder.join("load.json"))
}

/// A ready executor with these neighbours and otherwise default settings.
async fn executor(database: &str, nats: &Nats, redis: &Redis) -> Result<Executor> {
    start(Path::new(env!("CARGO_BIN_EXE_agent-executor")), database, nats, redis).await
}

/// The same of another build of the program.
async fn start(program: &Path, database: &str, nats: &Nats, redis: &Redis) -> Result<Executor> {
    let (queue, stream) = (nats.url(), redis.url());
    let settings = [
        ("DATABASE_URL", database),
        ("NATS_URL", &queue),
        ("DRAGONFLY_URL", &stream),
        ("PUBLIC_URL", "http://localhost"),
        ("LOG_LEVEL", "warn"),
    ];
    Executor::start(program, &settings).await
}
