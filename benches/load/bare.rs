//! What the servers do with nothing between: the same rows in multi-row inserts, the same messages published.
//!
//! **Invariant:** bare inserts write the very rows that ours left, into tables with the same columns and indexes, in
//! statements of as many commits as ours had, on as many connections as ours uses.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::StreamExt;
use futures::future::try_join_all;
use sqlx::{Connection, PgConnection, Row};

use crate::{executor::Executor, servers::Postgres};

const TABLES: &str = "create table if not exists bare_checkpoints (like checkpoints including all); \
    create table if not exists bare_blobs (like checkpoint_blobs including all); \
    create table if not exists bare_writes (like checkpoint_writes including all); \
    create table if not exists bare_jobs (job_id text primary key, thread_id text, request bytea, result bytea)";

const EMPTY: &str = "truncate bare_checkpoints, bare_blobs, bare_writes, bare_jobs";

const INSERT: &str = "with b as (insert into bare_blobs (thread_id, checkpoint_ns, channel, version, type, blob) \
        select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[])), \
    w as (insert into bare_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path) \
        select * from unnest($7::text[], $8::text[], $9::text[], $10::text[], $11::int[], $12::text[], $13::text[], \
                             $14::bytea[], $15::text[])), \
    j as (insert into bare_jobs (job_id, thread_id, request, result) \
        select * from unnest($16::text[], $17::text[], $18::bytea[], $19::bytea[])) \
    insert into bare_checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata) \
        select t, n, i, p, c::jsonb, m::jsonb \
        from unnest($20::text[], $21::text[], $22::text[], $23::text[], $24::text[], $25::text[]) as u (t, n, i, p, c, m)";

/// Rows of some jobs, in about the order in which they were written.
pub(crate) struct Rows {
    checkpoints: Vec<[Option<String>; 6]>,
    blobs: Vec<([String; 5], Option<Vec<u8>>)>,
    writes: Vec<([String; 7], i32, Vec<u8>)>,
    jobs: Vec<(String, String, Vec<u8>, Vec<u8>)>,
    /// Commits that wrote them.
    commits: usize,
}

/// How ours wrote its rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batching {
    /// Commits in one statement, on average.
    pub(crate) commits: f64,
    /// Statements at a time.
    pub(crate) connections: usize,
}

impl Rows {
    /// What `ids` left: threads named like their one job each. With `jobs`, their requests and results too.
    pub(crate) async fn of(postgres: &Postgres, ids: &[String], commits: usize, jobs: bool) -> Result<Self> {
        let mut connection = PgConnection::connect(&postgres.url()).await?;
        let checkpoints = sqlx::query(
            "select thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint::text, metadata::text \
             from checkpoints where thread_id = any($1) order by checkpoint_id",
        );
        let blobs = sqlx::query(
            "select thread_id, checkpoint_ns, channel, version, type, blob \
             from checkpoint_blobs where thread_id = any($1) order by version, thread_id",
        );
        let writes = sqlx::query(
            "select thread_id, checkpoint_ns, checkpoint_id, task_id, channel, type, task_path, idx, blob \
             from checkpoint_writes where thread_id = any($1) order by checkpoint_id, idx",
        );
        let finished = sqlx::query(
            "select job_id, thread_id, coalesce(request, ''), coalesce(result, '') \
             from executor_job where job_id = any($1) order by accepted_at",
        );
        let checkpoints = checkpoints.bind(ids).fetch_all(&mut connection).await?;
        let blobs = blobs.bind(ids).fetch_all(&mut connection).await?;
        let writes = writes.bind(ids).fetch_all(&mut connection).await?;
        let ids = if jobs { ids } else { &[] };
        let finished = finished.bind(ids).fetch_all(&mut connection).await?;
        ensure!(!checkpoints.is_empty(), "the jobs left no checkpoint");
        Ok(Self {
            checkpoints: checkpoints.iter().map(|row| std::array::from_fn(|at| row.get(at))).collect(),
            blobs: blobs.iter().map(|row| (std::array::from_fn(|at| row.get(at)), row.get(5))).collect(),
            writes: writes
                .iter()
                .map(|row| (std::array::from_fn(|at| row.get(at)), row.get(7), row.get(8)))
                .collect(),
            jobs: finished.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect(),
            commits,
        })
    }

    /// Rows and bytes of one commit, on average.
    pub(crate) fn per_commit(&self) -> (f64, f64) {
        let rows = self.checkpoints.len() + self.blobs.len() + self.writes.len() + self.jobs.len();
        let checkpoints = self.checkpoints.iter().flatten().flatten().map(String::len);
        let blobs = self.blobs.iter().map(|(names, blob)| {
            names.iter().map(String::len).sum::<usize>() + blob.as_ref().map_or(0, Vec::len)
        });
        let writes = self
            .writes
            .iter()
            .map(|(names, _, blob)| names.iter().map(String::len).sum::<usize>() + 4 + blob.len());
        let jobs = self
            .jobs
            .iter()
            .map(|(job, thread, request, result)| job.len() + thread.len() + request.len() + result.len());
        let bytes: usize = checkpoints.chain(blobs).chain(writes).chain(jobs).sum();
        let commits = self.commits as f64;
        (rows as f64 / commits, bytes as f64 / commits)
    }

    /// Bytes of a stored result, on average.
    pub(crate) fn mean_result_bytes(&self) -> usize {
        let all: usize = self.jobs.iter().map(|(.., result)| result.len()).sum();
        all / self.jobs.len().max(1)
    }

    /// Commits per second that the database takes when it is handed nothing but these rows.
    pub(crate) async fn rate(&self, postgres: &Postgres, batching: Batching, time: Duration) -> Result<f64> {
        postgres.sql("postgres", TABLES).await?;
        let batch = (batching.commits.round() as usize).clamp(1, self.commits);
        let url = postgres.url();
        let mut connections =
            try_join_all((0..batching.connections).map(|_| PgConnection::connect(&url))).await?;
        let (mut commits, mut spent) = (0, Duration::ZERO);
        // A first pass that does not count: statements are prepared, files are as long as they get.
        for counts in [false, true] {
            let mut left = if counts { time } else { time / 4 };
            while !left.is_zero() {
                postgres.sql("postgres", EMPTY).await?;
                let began = Instant::now();
                let deadline = began + left;
                let count = connections.len();
                let all = connections.iter_mut().enumerate();
                let done = all.map(|(at, connection)| {
                    self.pass(connection, (at * batch, count * batch, batch), deadline)
                });
                let done: usize = try_join_all(done).await?.into_iter().sum();
                let elapsed = began.elapsed();
                left = left.saturating_sub(elapsed);
                if counts {
                    commits += done;
                    spent += elapsed;
                }
            }
        }
        Ok(commits as f64 / spent.as_secs_f64())
    }

    /// Writes every `stride`-th batch from `first` on; how many commits those were.
    async fn pass(
        &self,
        connection: &mut PgConnection,
        (first, stride, batch): (usize, usize, usize),
        deadline: Instant,
    ) -> Result<usize> {
        let mut done = 0;
        for from in (first..self.commits).step_by(stride) {
            if Instant::now() >= deadline {
                break;
            }
            let to = (from + batch).min(self.commits);
            self.insert(connection, from..to).await?;
            done += to - from;
        }
        Ok(done)
    }

    async fn insert(&self, connection: &mut PgConnection, commits: Range<usize>) -> Result<()> {
        let blobs = part(&self.blobs, &commits, self.commits);
        let writes = part(&self.writes, &commits, self.commits);
        let jobs = part(&self.jobs, &commits, self.commits);
        let checkpoints = part(&self.checkpoints, &commits, self.commits);
        let mut statement = sqlx::query(INSERT);
        for column in 0..5 {
            statement = statement.bind(column_of(blobs, |row| row.0[column].as_str()));
        }
        statement = statement.bind(column_of(blobs, |row| row.1.as_deref()));
        for column in 0..4 {
            statement = statement.bind(column_of(writes, |row| row.0[column].as_str()));
        }
        statement = statement.bind(column_of(writes, |row| row.1));
        for column in 4..6 {
            statement = statement.bind(column_of(writes, |row| row.0[column].as_str()));
        }
        statement = statement.bind(column_of(writes, |row| row.2.as_slice()));
        statement = statement.bind(column_of(writes, |row| row.0[6].as_str()));
        statement = statement.bind(column_of(jobs, |row| row.0.as_str()));
        statement = statement.bind(column_of(jobs, |row| row.1.as_str()));
        statement = statement.bind(column_of(jobs, |row| row.2.as_slice()));
        statement = statement.bind(column_of(jobs, |row| row.3.as_slice()));
        for column in 0..6 {
            statement = statement.bind(column_of(checkpoints, |row| row[column].as_deref()));
        }
        statement.execute(connection).await?;
        Ok(())
    }
}

/// The share of `rows` that these of `all` commits wrote.
fn part<'a, T>(rows: &'a [T], commits: &Range<usize>, all: usize) -> &'a [T] {
    &rows[rows.len() * commits.start / all..rows.len() * commits.end / all]
}

fn column_of<'a, T, C>(rows: &'a [T], column: impl Fn(&'a T) -> C) -> Vec<C> {
    rows.iter().map(column).collect()
}

/// Commits and the statements they were in, as the executor has counted them so far.
#[derive(Clone, Copy)]
pub(crate) struct Counted {
    commits: f64,
    statements: f64,
}

impl Counted {
    pub(crate) async fn by(executor: &Executor) -> Result<Self> {
        let (status, metrics) = executor.get("/metrics").await?;
        ensure!(status == 200, "/metrics answers {status}");
        let name = agent_executor::telemetry::metric::COMMIT_BATCH;
        let value = |suffix: &str| {
            let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(suffix));
            lines.find_map(|rest| rest.trim().parse().ok()).unwrap_or(0.0)
        };
        Ok(Self { commits: value("_sum"), statements: value("_count") })
    }

    pub(crate) fn commits_since(self, earlier: Self) -> f64 {
        self.commits - earlier.commits
    }

    /// How the commits since then were gathered, with at most `in_flight` threads at a time.
    pub(crate) fn batching_since(self, earlier: Self, in_flight: usize) -> Batching {
        let statements = (self.statements - earlier.statements).max(1.0);
        let commits = ((self.commits - earlier.commits) / statements).max(1.0);
        let ours = agent_executor::store::postgres::Config::default().commit_connections;
        Batching { commits, connections: ours.min(in_flight).max(1) }
    }
}

/// Requests and results per second that JetStream stores and confirms when nobody works on them: a pair of
/// messages of these sizes per job, `in_flight` pairs at a time.
pub(crate) async fn publish_pairs(
    client: &async_nats::Client,
    (request, result): (usize, usize),
    in_flight: usize,
    time: Duration,
) -> Result<f64> {
    let jetstream = async_nats::jetstream::new(client.clone());
    let config = async_nats::jetstream::stream::Config {
        name: "BENCH".to_owned(),
        subjects: vec!["bench.alone".to_owned()],
        ..Default::default()
    };
    jetstream.get_or_create_stream(config).await?.purge().await?;
    let (request, result) = (bytes::Bytes::from(vec![b'x'; request]), bytes::Bytes::from(vec![b'x'; result]));
    let began = Instant::now();
    let pair = |_| {
        let (jetstream, request, result) = (&jetstream, request.clone(), result.clone());
        async move {
            for payload in [request, result] {
                jetstream.publish("bench.alone", payload).await?.await?;
            }
            anyhow::Ok(())
        }
    };
    let pairs =
        futures::stream::iter(0..).take_while(|_| std::future::ready(began.elapsed() < time)).map(pair);
    let mut pairs = std::pin::pin!(pairs.buffer_unordered(in_flight));
    let mut done = 0_u32;
    while let Some(pair) = pairs.next().await {
        pair?;
        done += 1;
    }
    Ok(f64::from(done) / began.elapsed().as_secs_f64())
}
