//! Stored definitions.

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{Row, postgres::PgRow};

use super::{PostgresStore, statement::plain};
use crate::{
    ids::{JobId, UnixNanos},
    store::{AgentFilter, AgentRef, AgentView, Agents, Error, NewAgent, PutAgent},
};

/// The second half does not see what the first inserts, and neither sees what another process inserts meanwhile.
const PUT: &str = "WITH new AS ( \
        INSERT INTO executor_agent (name, version, hash, definition) VALUES ($1, $2, $3, $4) \
        ON CONFLICT (name, version) DO NOTHING RETURNING hash) \
    SELECT true, hash FROM new \
    UNION ALL SELECT false, hash FROM executor_agent WHERE name = $1 AND version = $2";

/// Columns of a listed definition; the time is microseconds.
macro_rules! listed {
    ($versions:literal) => {
        concat!(
            "SELECT a.name, a.version, a.hash, octet_length(a.definition)::bigint, \
             (extract(epoch FROM a.created_at) * 1000000)::bigint, ",
            $versions
        )
    };
}

const NAMED: &str = concat!(
    listed!("(SELECT count(*) FROM executor_agent v WHERE v.name = a.name)"),
    ", a.definition FROM executor_agent a WHERE a.name = $1 AND ($2::text IS NULL OR a.version = $2) \
      ORDER BY a.id DESC LIMIT 1"
);

const HASHED: &str = concat!(
    listed!("(SELECT count(*) FROM executor_agent v WHERE v.name = a.name)"),
    ", a.definition FROM executor_agent a WHERE a.hash = $1 ORDER BY a.id DESC LIMIT 1"
);

const NEWEST: &str = concat!(
    listed!("n.versions"),
    " FROM (SELECT name, max(id) AS id, count(*) AS versions FROM executor_agent \
        WHERE starts_with(name, $1) AND name COLLATE \"C\" > $2 GROUP BY name) n \
      JOIN executor_agent a USING (name, id) ORDER BY a.name COLLATE \"C\" LIMIT $3"
);

const VERSIONS: &str = concat!(
    listed!("count(*) OVER ()"),
    " FROM executor_agent a WHERE a.name = $1 ORDER BY a.id DESC LIMIT $2"
);

const PIN: &str = "SELECT executor_pin_agent($1, $2, $3)";

#[async_trait]
impl Agents for PostgresStore {
    async fn put_agent(&self, agent: &NewAgent) -> Result<PutAgent, Error> {
        let new = agent.clone();
        let rows = self.link.rows(move || {
            sqlx::query(PUT)
                .bind(new.name.clone())
                .bind(new.version.clone())
                .bind(new.hash.clone())
                .bind(new.definition.to_vec())
        });
        let rows = rows.await?;
        // Without a row somebody else put the same version at this moment.
        let Some(row) = rows.first() else {
            return Err(Error::Unavailable("another process stores this version right now".into()));
        };
        let (is_new, hash): (bool, String) =
            (row.try_get(0).map_err(corrupt)?, row.try_get(1).map_err(corrupt)?);
        Ok(match is_new {
            true => PutAgent::New,
            false if hash == agent.hash => PutAgent::Known,
            false => PutAgent::Taken(hash),
        })
    }

    async fn agent(&self, agent: &AgentRef) -> Result<Option<(AgentView, Bytes)>, Error> {
        let agent = agent.clone();
        let rows = self.link.rows(move || match &agent {
            AgentRef::Named { name, version } => {
                sqlx::query(NAMED).bind(plain(name)).bind(version.as_deref().map(plain))
            }
            AgentRef::Hash(hash) => sqlx::query(HASHED).bind(plain(hash)),
        });
        let rows = rows.await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let definition: Vec<u8> = row.try_get(6).map_err(corrupt)?;
        Ok(Some((view(row)?, definition.into())))
    }

    async fn agents(&self, filter: &AgentFilter, limit: u32) -> Result<Vec<AgentView>, Error> {
        let filter = filter.clone();
        let rows = self.link.rows(move || match &filter.name {
            Some(name) => sqlx::query(VERSIONS).bind(plain(name)).bind(i64::from(limit)),
            None => sqlx::query(NEWEST)
                .bind(plain(&filter.prefix))
                .bind(plain(&filter.after))
                .bind(i64::from(limit)),
        });
        rows.await?.iter().map(view).collect()
    }

    async fn pin_agent(&self, job_id: &JobId, agent: &AgentRef) -> Result<Option<String>, Error> {
        let AgentRef::Named { name, version } = agent.clone() else {
            return Ok(self.agent(agent).await?.map(|(view, _)| view.hash));
        };
        let job_id = job_id.to_string();
        let rows = self.link.rows(move || {
            sqlx::query(PIN).bind(job_id.clone()).bind(plain(&name)).bind(version.as_deref().map(plain))
        });
        let rows = rows.await?;
        rows.first().map_or(Ok(None), |row| row.try_get(0).map_err(corrupt))
    }
}

fn corrupt(reason: impl ToString) -> Error {
    Error::Corrupt { thread_id: String::new(), what: "agent", reason: reason.to_string() }
}

fn view(row: &PgRow) -> Result<AgentView, Error> {
    let read = || {
        let count = |column: usize| row.try_get::<i64, _>(column).map(i64::unsigned_abs);
        Ok(AgentView {
            name: row.try_get(0)?,
            version: row.try_get(1)?,
            hash: row.try_get(2)?,
            bytes: count(3)?,
            stored_at: UnixNanos(count(4)? * 1_000),
            versions: count(5)?,
        })
    };
    read().map_err(|error: sqlx::Error| corrupt(error))
}
