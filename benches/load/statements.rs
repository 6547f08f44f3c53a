//! Where PostgreSQL's time goes, by statement: `STATEMENTS=1` adds it to the jobs section.

use anyhow::Result;

use crate::{report::Report, servers::Postgres};

/// Statements shown; the rest take next to nothing.
const SHOWN: usize = 12;

/// Loads the extension that counts, which needs a restart, and costs each statement a little.
pub(crate) async fn prepare(postgres: &Postgres) -> Result<()> {
    postgres.sql("postgres", "alter system set shared_preload_libraries = 'pg_stat_statements'").await?;
    postgres.stop().await?;
    postgres.start_again().await?;
    let extension = "create extension pg_stat_statements; select pg_stat_statements_reset()";
    postgres.sql("postgres", extension).await.map(drop)
}

pub(crate) async fn reset(postgres: &Postgres) -> Result<()> {
    postgres.sql("postgres", "select pg_stat_statements_reset()").await.map(drop)
}

/// Says which statements took how long since the last reset, in which `jobs` jobs ran.
pub(crate) async fn tell(postgres: &Postgres, jobs: f64, report: &mut Report) -> Result<()> {
    let jobs = format!("{jobs:.1}");
    let query = format!(
        "select round((calls / {jobs})::numeric, 2) as calls_per_job, round((rows / {jobs})::numeric, 2) as rows_per_job, \
         round((total_exec_time * 1000 / {jobs})::numeric) as us_per_job, round(mean_exec_time::numeric, 3) as mean_ms, \
         round((wal_bytes / {jobs})::numeric) as wal_per_job, \
         left(regexp_replace(query, '\\s+', ' ', 'g'), 70) as statement \
         from pg_stat_statements order by total_exec_time desc limit {SHOWN}"
    );
    let table = postgres.table("postgres", &query).await?;
    report.line(format!("\nPostgreSQL's time by statement (execution only)\n\n{table}\n"));
    Ok(())
}
