//! Checkpoints: read in one round trip each, stored by the commit task.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Row, postgres::PgRow};

use super::{
    PostgresStore,
    commit::Entry,
    effect,
    link::{Link, Statement},
};
use crate::{
    ids::{CheckpointId, Namespace, TaskId, ThreadId},
    pregel::SENDS,
    store::{
        Checkpoints, Commit, EffectRow, Error, Saved,
        langgraph::{self, Rows, Sends, StoredBlob, StoredRow, StoredWrite},
    },
};

/// The values of the channels of checkpoint `c`. Blobs of type `empty` stand for no value.
macro_rules! blobs {
    () => {
        "SELECT array_agg(bl.channel) AS channels, array_agg(bl.type) AS types, array_agg(bl.blob) AS blobs \
         FROM jsonb_each_text(c.checkpoint -> 'channel_versions') v \
         JOIN checkpoint_blobs bl ON bl.thread_id = c.thread_id AND bl.checkpoint_ns = c.checkpoint_ns \
             AND bl.channel = v.key AND bl.version = v.value \
         WHERE bl.type <> 'empty' AND bl.blob IS NOT NULL"
    };
}
pub(super) use blobs;

/// The writes on checkpoint `c` in the order in which they are applied; `"C"` is the order of code points.
macro_rules! writes {
    () => {
        "SELECT * FROM checkpoint_writes cw \
         WHERE cw.thread_id = c.thread_id AND cw.checkpoint_ns = c.checkpoint_ns \
             AND cw.checkpoint_id = c.checkpoint_id \
         ORDER BY cw.task_path COLLATE \"C\", cw.task_id COLLATE \"C\", cw.idx"
    };
}
pub(super) use writes;

/// Joins blobs and writes to the chosen checkpoints.
macro_rules! select {
    ($chosen:literal) => {
        concat!(
            "SELECT c.checkpoint::text, c.metadata::text, c.parent_checkpoint_id, \
                    b.channels, b.types, b.blobs, \
                    w.task_ids, w.task_paths, w.idxs, w.channels, w.types, w.blobs \
             FROM (SELECT * FROM checkpoints WHERE thread_id = $1 AND checkpoint_ns = $2",
            $chosen,
            ") c \
             LEFT JOIN LATERAL (",
            blobs!(),
            ") b ON true \
             LEFT JOIN LATERAL ( \
                 SELECT array_agg(s.task_id) AS task_ids, array_agg(s.task_path) AS task_paths, \
                        array_agg(s.idx) AS idxs, array_agg(s.channel) AS channels, \
                        array_agg(coalesce(s.type, 'null')) AS types, array_agg(s.blob) AS blobs \
                 FROM (",
            writes!(),
            ") s) w ON true \
             ORDER BY c.checkpoint_id DESC"
        )
    };
}

const ONE: &str = select!(" AND checkpoint_id = $3");
const NEWEST: &str = select!(" ORDER BY checkpoint_id DESC LIMIT $3");

const PARENT_SENDS: &str = "SELECT type, blob FROM checkpoint_writes \
    WHERE thread_id = $1 AND checkpoint_ns = $2 AND checkpoint_id = $3 AND channel = $4 \
    ORDER BY task_path COLLATE \"C\", task_id COLLATE \"C\", idx";

#[async_trait]
impl Checkpoints for PostgresStore {
    async fn load(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        id: Option<&CheckpointId>,
    ) -> Result<Option<Saved>, Error> {
        let (thread, space, wanted) = (thread_id.clone(), ns.clone(), id.cloned());
        let rows = self
            .link
            .rows(move || {
                let statement = |sql| sqlx::query(sql).bind(thread.as_str()).bind(space.as_str());
                match &wanted {
                    Some(id) => statement(ONE).bind(id.as_str()),
                    None => statement(NEWEST).bind(1_i64),
                }
            })
            .await?;
        match rows.first() {
            Some(row) => saved(&self.link, thread_id, ns, row).await.map(Some),
            None => Ok(None),
        }
    }

    async fn commit(&self, commit: Commit) -> Result<(), Error> {
        let rows = Rows::encode(&commit, self.max_state_bytes)?;
        let (entry, answered) = Entry::new(commit, rows);
        self.hand_in(entry, answered).await.map(drop)
    }

    fn lease(&self) -> Duration {
        self.claimant.lease
    }

    async fn effects(
        &self,
        thread_id: &ThreadId,
        ns: &Namespace,
        task_id: &TaskId,
    ) -> Result<Vec<EffectRow>, Error> {
        effect::of_task(&self.link, thread_id, ns, task_id).await
    }

    async fn history(&self, thread_id: &ThreadId, ns: &Namespace, limit: u32) -> Result<Vec<Saved>, Error> {
        let (thread, space) = (thread_id.clone(), ns.clone());
        let statement =
            move || sqlx::query(NEWEST).bind(thread.as_str()).bind(space.as_str()).bind(i64::from(limit));
        let rows = self.link.rows(statement).await?;
        let mut all = Vec::with_capacity(rows.len());
        for row in &rows {
            all.push(saved(&self.link, thread_id, ns, row).await?);
        }
        Ok(all)
    }
}

async fn saved(link: &Link, thread_id: &ThreadId, ns: &Namespace, row: &PgRow) -> Result<Saved, Error> {
    let stored = stored(row).map_err(|error| Error::Corrupt {
        thread_id: thread_id.to_string(),
        what: "checkpoint",
        reason: error.to_string(),
    })?;
    let (mut saved, sends) = stored.into_saved(thread_id)?;
    if let (Sends::WithParent, Some(parent)) = (sends, &saved.parent) {
        let sends = parent_sends(link, thread_id, ns, parent).await?;
        if !sends.is_empty() {
            langgraph::adopt_sends(&mut saved.checkpoint, sends);
        }
    }
    Ok(saved)
}

fn stored(row: &PgRow) -> Result<StoredRow, sqlx::Error> {
    let texts = |index: usize| row.try_get::<Option<Vec<String>>, _>(index).map(Option::unwrap_or_default);
    let bytes = |index: usize| row.try_get::<Option<Vec<Vec<u8>>>, _>(index).map(Option::unwrap_or_default);
    let blobs = texts(3)?.into_iter().zip(texts(4)?).zip(bytes(5)?);
    let writes = texts(6)?
        .into_iter()
        .zip(texts(7)?)
        .zip(row.try_get::<Option<Vec<i32>>, _>(8)?.unwrap_or_default().into_iter().zip(texts(9)?));
    let writes = writes.zip(texts(10)?.into_iter().zip(bytes(11)?));
    Ok(StoredRow {
        checkpoint: row.try_get(0)?,
        metadata: row.try_get(1)?,
        parent: row.try_get(2)?,
        blobs: blobs.map(|((channel, kind), blob)| StoredBlob { channel, kind, blob }).collect(),
        writes: writes
            .map(|(((task_id, task_path), (idx, channel)), (kind, blob))| StoredWrite {
                task_id,
                task_path,
                idx,
                channel,
                kind,
                blob,
            })
            .collect(),
    })
}

async fn parent_sends(
    link: &Link,
    thread_id: &ThreadId,
    ns: &Namespace,
    parent: &CheckpointId,
) -> Result<Vec<crate::value::Value>, Error> {
    let (thread, space, id) = (thread_id.clone(), ns.clone(), parent.clone());
    let statement = move || -> Statement {
        sqlx::query(PARENT_SENDS).bind(thread.as_str()).bind(space.as_str()).bind(id.as_str()).bind(SENDS)
    };
    let rows = link.rows(statement).await?;
    let corrupt = |reason: String| Error::Corrupt { thread_id: thread_id.to_string(), what: "write", reason };
    let decode = |row: &PgRow| {
        let kind: Option<String> = row.try_get(0).map_err(|error| corrupt(error.to_string()))?;
        let blob = row.try_get(1).map_err(|error| corrupt(error.to_string()))?;
        langgraph::typed(kind.as_deref().unwrap_or("null"), blob).map_err(|error| corrupt(error.to_string()))
    };
    rows.iter().map(decode).collect()
}
