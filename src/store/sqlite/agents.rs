//! Stored definitions, as rows.

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    SqliteStore,
    claims::Claimant,
    failure::Failure,
    rows::{stored_time, time},
};
use crate::{
    ids::JobId,
    store::{AgentFilter, AgentRef, AgentView, Agents, Error, NewAgent, PutAgent},
};

const PUT: &str = "INSERT INTO executor_agent (name, version, hash, definition, created_at) \
    VALUES (?, ?, ?, ?, ?) ON CONFLICT (name, version) DO NOTHING";

const HASH: &str = "SELECT hash FROM executor_agent WHERE name = ? AND version = ?";

/// Columns of a listed definition.
macro_rules! listed {
    ($versions:literal) => {
        concat!("SELECT a.name, a.version, a.hash, length(a.definition), a.created_at, ", $versions)
    };
}

const NAMED: &str = concat!(
    listed!("(SELECT count(*) FROM executor_agent v WHERE v.name = a.name)"),
    ", a.definition FROM executor_agent a WHERE a.name = ?1 AND (?2 IS NULL OR a.version = ?2) \
      ORDER BY a.id DESC LIMIT 1"
);

const HASHED: &str = concat!(
    listed!("(SELECT count(*) FROM executor_agent v WHERE v.name = a.name)"),
    ", a.definition FROM executor_agent a WHERE a.hash = ? ORDER BY a.id DESC LIMIT 1"
);

const NEWEST: &str = concat!(
    listed!("n.versions"),
    " FROM (SELECT name, max(id) AS id, count(*) AS versions FROM executor_agent \
        WHERE substr(name, 1, length(?1)) = ?1 AND name > ?2 GROUP BY name) n \
      JOIN executor_agent a ON a.id = n.id ORDER BY a.name LIMIT ?3"
);

const VERSIONS: &str = concat!(
    listed!("count(*) OVER ()"),
    " FROM executor_agent a WHERE a.name = ? ORDER BY a.id DESC LIMIT ?"
);

const PIN: &str = "UPDATE executor_job SET agent_hash = ( \
        SELECT hash FROM executor_agent WHERE name = ?2 AND (?3 IS NULL OR version = ?3) ORDER BY id DESC LIMIT 1) \
    WHERE job_id = ?1 AND agent_hash IS NULL";

const PINNED: &str = "SELECT agent_hash FROM executor_job WHERE job_id = ?";

#[async_trait]
impl Agents for SqliteStore {
    async fn put_agent(&self, agent: &NewAgent) -> Result<PutAgent, Error> {
        let (agent, by) = (agent.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { put(db, &agent, &by).await })).await
    }

    async fn agent(&self, agent: &AgentRef) -> Result<Option<(AgentView, Bytes)>, Error> {
        let agent = agent.clone();
        self.link.read(move |db| Box::pin(async move { one(db, &agent).await })).await
    }

    async fn agents(&self, filter: &AgentFilter, limit: u32) -> Result<Vec<AgentView>, Error> {
        let filter = filter.clone();
        self.link.read(move |db| Box::pin(async move { list(db, &filter, limit).await })).await
    }

    async fn pin_agent(&self, job_id: &JobId, agent: &AgentRef) -> Result<Option<String>, Error> {
        let AgentRef::Named { name, version } = agent.clone() else {
            return Ok(self.agent(agent).await?.map(|(view, _)| view.hash));
        };
        let job_id = job_id.clone();
        self.link
            .write(move |db| Box::pin(async move { pin(db, &job_id, (&name, version.as_deref())).await }))
            .await
    }
}

fn view(row: &SqliteRow) -> Result<AgentView, Failure> {
    Ok(AgentView {
        name: row.try_get(0)?,
        version: row.try_get(1)?,
        hash: row.try_get(2)?,
        bytes: row.try_get::<i64, _>(3)?.unsigned_abs(),
        stored_at: time(row.try_get(4)?),
        versions: row.try_get::<i64, _>(5)?.unsigned_abs(),
    })
}

async fn put(db: &mut SqliteConnection, agent: &NewAgent, by: &Claimant) -> Result<PutAgent, Failure> {
    let put = sqlx::query(PUT)
        .bind(&agent.name)
        .bind(&agent.version)
        .bind(&agent.hash)
        .bind(&*agent.definition)
        .bind(stored_time(by.now))
        .execute(&mut *db)
        .await?;
    if put.rows_affected() > 0 {
        return Ok(PutAgent::New);
    }
    let hash: String = sqlx::query_scalar(HASH).bind(&agent.name).bind(&agent.version).fetch_one(db).await?;
    Ok(if hash == agent.hash { PutAgent::Known } else { PutAgent::Taken(hash) })
}

async fn one(db: &mut SqliteConnection, agent: &AgentRef) -> Result<Option<(AgentView, Bytes)>, Failure> {
    let query = match agent {
        AgentRef::Named { name, version } => sqlx::query(NAMED).bind(name).bind(version),
        AgentRef::Hash(hash) => sqlx::query(HASHED).bind(hash),
    };
    let Some(row) = query.fetch_optional(db).await? else { return Ok(None) };
    Ok(Some((view(&row)?, row.try_get::<Vec<u8>, _>(6)?.into())))
}

async fn list(
    db: &mut SqliteConnection,
    filter: &AgentFilter,
    limit: u32,
) -> Result<Vec<AgentView>, Failure> {
    let query = match &filter.name {
        Some(name) => sqlx::query(VERSIONS).bind(name),
        None => sqlx::query(NEWEST).bind(&filter.prefix).bind(&filter.after),
    };
    query.bind(limit).fetch_all(db).await?.iter().map(view).collect()
}

/// What was noted first stays; of a job that is not there nothing is noted.
async fn pin(
    db: &mut SqliteConnection,
    job_id: &JobId,
    (name, version): (&str, Option<&str>),
) -> Result<Option<String>, Failure> {
    sqlx::query(PIN).bind(job_id.as_str()).bind(name).bind(version).execute(&mut *db).await?;
    let pinned: Option<Option<String>> =
        sqlx::query_scalar(PINNED).bind(job_id.as_str()).fetch_optional(db).await?;
    Ok(pinned.flatten())
}
