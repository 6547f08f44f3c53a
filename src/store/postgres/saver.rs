//! LangGraph's tables as one of its own checkpointers uses them: no jobs, no claims, no fence. Operators and tests
//! only; a run writes through the commit task.
//!
//! **Invariant:** types, bytes and JSON come back as they were given.

use std::sync::Arc;

use indexmap::IndexMap;
use sqlx::{Row, postgres::PgRow};

use super::{
    Config, PostgresStore,
    checkpoints::{blobs, writes},
    link::Link,
};
use crate::{
    pregel::{ERROR, INTERRUPT, RESUME},
    store::{
        Error,
        langgraph::{self, Typed},
    },
};

/// LangGraph's places for what is told of a task beside its writes; nothing writes the second any more.
const PLACES: [(&str, i32); 4] = [(ERROR, -1), ("__scheduled__", -2), (INTERRUPT, -3), (RESUME, -4)];

const PUT: &str = "WITH b AS ( \
        INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob) \
        SELECT $1, $2, u.* FROM unnest($7::text[], $8::text[], $9::text[], $10::bytea[]) AS u \
        ON CONFLICT DO NOTHING) \
    INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata) \
    VALUES ($1, $2, $3, $4, $5::jsonb, $6::jsonb) \
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id) \
        DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata";

const PUT_WRITES: &str = "INSERT INTO checkpoint_writes \
        (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob) \
    SELECT $1, $2, $3, $4, $5, u.* FROM unnest($6::int[], $7::text[], $8::text[], $9::bytea[]) AS u \
    ON CONFLICT DO NOTHING";

/// The same when all of them may be replaced; of several at one place the last one counts.
const REPLACE_WRITES: &str = "INSERT INTO checkpoint_writes \
        (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob) \
    SELECT DISTINCT ON (u.idx) $1, $2, $3, $4, $5, u.idx, u.channel, u.type, u.blob \
    FROM unnest($6::int[], $7::text[], $8::text[], $9::bytea[]) WITH ORDINALITY AS u (idx, channel, type, blob, nr) \
    ORDER BY u.idx, u.nr DESC \
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) \
        DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob";

const DELETE: &str = "WITH b AS (DELETE FROM checkpoint_blobs WHERE thread_id = $1), \
         w AS (DELETE FROM checkpoint_writes WHERE thread_id = $1) \
    DELETE FROM checkpoints WHERE thread_id = $1";

const SELECT: &str = concat!(
    "SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id, \
        c.checkpoint::text, c.metadata::text, b.channels, b.types, b.blobs, w.task_ids, w.channels, w.types, w.blobs \
     FROM (SELECT * FROM checkpoints \
           WHERE ($1::text IS NULL OR thread_id = $1) AND ($2::text IS NULL OR checkpoint_ns = $2) \
               AND ($3::text IS NULL OR checkpoint_id = $3) AND ($4::text IS NULL OR metadata @> $4::jsonb) \
               AND ($5::text IS NULL OR checkpoint_id < $5) \
           ORDER BY checkpoint_id DESC LIMIT $6) c \
     LEFT JOIN LATERAL (",
    blobs!(),
    ") b ON true \
     LEFT JOIN LATERAL ( \
         SELECT array_agg(s.task_id) AS task_ids, array_agg(s.channel) AS channels, \
                array_agg(coalesce(s.type, 'null')) AS types, array_agg(s.blob) AS blobs \
         FROM (",
    writes!(),
    ") s) w ON true \
     ORDER BY c.checkpoint_id DESC, c.thread_id, c.checkpoint_ns"
);

/// A checkpoint to store.
#[derive(Clone, Debug)]
pub struct GivenCheckpoint {
    /// Its thread.
    pub thread_id: String,
    /// Its graph within the thread.
    pub checkpoint_ns: String,
    /// Its id.
    pub checkpoint_id: String,
    /// The checkpoint before it.
    pub parent_checkpoint_id: Option<String>,
    /// JSON without the values of its channels.
    pub checkpoint: String,
    /// JSON.
    pub metadata: String,
    /// The values of its channels.
    pub channel_values: IndexMap<String, Typed>,
    /// The versions of the channels that are new with it.
    pub new_versions: IndexMap<String, String>,
}

/// Writes of a task.
#[derive(Clone, Debug)]
pub struct GivenWrites {
    /// The thread of the checkpoint they belong to.
    pub thread_id: String,
    /// Its graph within the thread.
    pub checkpoint_ns: String,
    /// The checkpoint.
    pub checkpoint_id: String,
    /// The task.
    pub task_id: String,
    /// Its path; writes are applied in the order of these texts.
    pub task_path: String,
    /// Channels and what is written to them.
    pub writes: Vec<(String, Typed)>,
}

/// Which checkpoints to read; what is `None` does not matter.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Of this thread.
    pub thread_id: Option<String>,
    /// Of this graph.
    pub checkpoint_ns: Option<String>,
    /// This one.
    pub checkpoint_id: Option<String>,
    /// JSON that their metadata contain.
    pub filter: Option<String>,
    /// Older than this one.
    pub before: Option<String>,
    /// At most so many, the newest.
    pub limit: Option<u32>,
}

/// A stored checkpoint.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its thread.
    pub thread_id: String,
    /// Its graph within the thread.
    pub checkpoint_ns: String,
    /// Its id.
    pub checkpoint_id: String,
    /// The checkpoint before it.
    pub parent_checkpoint_id: Option<String>,
    /// JSON; its `channel_values` are those that stand in it.
    pub checkpoint: String,
    /// JSON.
    pub metadata: String,
    /// The values of all channels that have one.
    pub values: IndexMap<String, Typed>,
    /// Task, channel and value of each write, in the order in which they are applied.
    pub writes: Vec<(String, String, Typed)>,
}

/// LangGraph's tables in one database.
#[derive(Debug)]
pub struct Saver {
    link: Link,
    config: Config,
}

impl Saver {
    /// Fails with [`Error::Unavailable`] when the database does not answer.
    pub async fn connect(config: Config) -> Result<Self, Error> {
        let link = Link::open(&config)?;
        link.ping().await?;
        Ok(Self { link, config })
    }

    /// Makes the tables, or brings them up to date.
    pub async fn set_up(&self) -> Result<(), Error> {
        PostgresStore::migrate(&self.config).await
    }

    /// Stores a checkpoint, or replaces its JSON. The value of a channel and a version is never replaced.
    pub async fn put(&self, given: GivenCheckpoint) -> Result<(), Error> {
        let GivenCheckpoint { checkpoint, channel_values, new_versions, .. } = &given;
        let divided = langgraph::divide(checkpoint, channel_values.clone()).map_err(refused)?;
        let checkpoint = divided.checkpoint;
        let new = divided.blobs.into_iter().filter_map(|(channel, value)| {
            let version = new_versions.get(&channel)?.clone();
            Some((channel, version, value.kind, value.bytes))
        });
        let (mut channels, mut versions, mut kinds, mut blobs) = (vec![], vec![], vec![], vec![]);
        for (channel, version, kind, blob) in new {
            channels.push(channel);
            versions.push(version);
            kinds.push(kind);
            blobs.push(blob);
        }
        let statement = move || {
            sqlx::query(PUT)
                .bind(given.thread_id.clone())
                .bind(given.checkpoint_ns.clone())
                .bind(given.checkpoint_id.clone())
                .bind(given.parent_checkpoint_id.clone())
                .bind(checkpoint.clone())
                .bind(given.metadata.clone())
                .bind(channels.clone())
                .bind(versions.clone())
                .bind(kinds.clone())
                .bind(blobs.clone())
        };
        self.link.rows(statement).await.map(drop)
    }

    /// Stores writes. Those that are there already stay, unless all of them are errors, questions or answers.
    pub async fn put_writes(&self, given: GivenWrites) -> Result<(), Error> {
        for (channel, value) in &given.writes {
            langgraph::check(channel, value).map_err(refused)?;
        }
        let place = |channel: &str| PLACES.iter().find(|(name, _)| *name == channel).map(|(_, place)| *place);
        let all_special = given.writes.iter().all(|(channel, _)| place(channel).is_some());
        let sql = if all_special { REPLACE_WRITES } else { PUT_WRITES };
        let in_order = |at: usize| i32::try_from(at).unwrap_or(i32::MAX);
        let places = given.writes.iter().enumerate();
        let places: Vec<i32> =
            places.map(|(at, (channel, _))| place(channel).unwrap_or(in_order(at))).collect();
        let statement = move || {
            let writes = || given.writes.iter();
            sqlx::query(sql)
                .bind(given.thread_id.clone())
                .bind(given.checkpoint_ns.clone())
                .bind(given.checkpoint_id.clone())
                .bind(given.task_id.clone())
                .bind(given.task_path.clone())
                .bind(places.clone())
                .bind(writes().map(|(channel, _)| channel.clone()).collect::<Vec<_>>())
                .bind(writes().map(|(_, value)| value.kind.clone()).collect::<Vec<_>>())
                .bind(writes().map(|(_, value)| value.bytes.clone()).collect::<Vec<_>>())
        };
        self.link.rows(statement).await.map(drop)
    }

    /// Reads checkpoints, newest first.
    pub async fn read(&self, wanted: Wanted) -> Result<Vec<Kept>, Error> {
        let wanted = Arc::new(wanted);
        let statement = move || {
            sqlx::query(SELECT)
                .bind(wanted.thread_id.clone())
                .bind(wanted.checkpoint_ns.clone())
                .bind(wanted.checkpoint_id.clone())
                .bind(wanted.filter.clone())
                .bind(wanted.before.clone())
                .bind(wanted.limit.map(i64::from))
        };
        let rows = self.link.rows(statement).await?;
        rows.iter().map(kept).collect()
    }

    /// Removes everything LangGraph stores of a thread.
    pub async fn delete_thread(&self, thread_id: &str) -> Result<(), Error> {
        let thread_id = thread_id.to_owned();
        self.link.rows(move || sqlx::query(DELETE).bind(thread_id.clone())).await.map(drop)
    }

    /// Closes the connections.
    pub async fn close(&self) {
        self.link.close().await;
    }
}

fn refused(error: langgraph::Error) -> Error {
    Error::Refused(error.to_string())
}

fn kept(row: &PgRow) -> Result<Kept, Error> {
    let unreadable = |reason: String| Error::Corrupt {
        thread_id: row.try_get(0).unwrap_or_default(),
        what: "checkpoint",
        reason,
    };
    let mut kept = columns(row).map_err(|error| unreadable(error.to_string()))?;
    let mut values = langgraph::inline(&kept.checkpoint).map_err(|error| unreadable(error.to_string()))?;
    values.append(&mut kept.values);
    Ok(Kept { values, ..kept })
}

fn columns(row: &PgRow) -> Result<Kept, sqlx::Error> {
    let texts = |index: usize| row.try_get::<Option<Vec<String>>, _>(index).map(Option::unwrap_or_default);
    let typed = |kinds: usize, blobs: usize| {
        let blobs = row.try_get::<Option<Vec<Vec<u8>>>, _>(blobs)?.unwrap_or_default();
        let pairs = texts(kinds)?.into_iter().zip(blobs);
        Ok::<_, sqlx::Error>(pairs.map(|(kind, bytes)| Typed { kind, bytes }))
    };
    let writes = texts(9)?.into_iter().zip(texts(10)?).zip(typed(11, 12)?);
    Ok(Kept {
        thread_id: row.try_get(0)?,
        checkpoint_ns: row.try_get(1)?,
        checkpoint_id: row.try_get(2)?,
        parent_checkpoint_id: row.try_get(3)?,
        checkpoint: row.try_get(4)?,
        metadata: row.try_get(5)?,
        values: texts(6)?.into_iter().zip(typed(7, 8)?).collect(),
        writes: writes.map(|((task_id, channel), value)| (task_id, channel, value)).collect(),
    })
}
