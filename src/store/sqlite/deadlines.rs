//! Deadlines of questions, as rows.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    SqliteStore,
    claims::Claimant,
    failure::Failure,
    rows::{self, stored_time},
};
use crate::{
    ids::ThreadId,
    store::{Deadline, Deadlines, Error},
};

const SET: &str = "INSERT INTO executor_interrupt_deadline (thread_id, interrupt_id, due_at, answer, request) \
    VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";

const PASSED: &str = "SELECT d.thread_id, d.interrupt_id, d.answer, d.request FROM executor_interrupt_deadline d \
    WHERE d.due_at <= ?1 AND NOT EXISTS ( \
        SELECT 1 FROM executor_job j WHERE j.thread_id = d.thread_id AND j.finished_at IS NULL) \
    ORDER BY d.due_at, d.thread_id, d.interrupt_id LIMIT ?2";

const CLEAR: &str = "DELETE FROM executor_interrupt_deadline WHERE thread_id = ? AND interrupt_id = ?";

#[async_trait]
impl Deadlines for SqliteStore {
    async fn set_deadline(&self, deadline: &Deadline, after: Duration) -> Result<(), Error> {
        let (deadline, by) = (deadline.clone(), self.claimant());
        self.link.write(move |db| Box::pin(async move { set(db, &deadline, after, &by).await })).await
    }

    async fn passed(&self, limit: u32) -> Result<Vec<Deadline>, Error> {
        let by = self.claimant();
        self.link.read(move |db| Box::pin(async move { passed(db, limit, &by).await })).await
    }

    async fn clear_deadline(&self, thread_id: &ThreadId, interrupt_id: &str) -> Result<(), Error> {
        let (thread_id, interrupt_id) = (thread_id.clone(), interrupt_id.to_owned());
        self.link.write(move |db| Box::pin(async move { clear(db, &thread_id, &interrupt_id).await })).await
    }
}

async fn set(
    db: &mut SqliteConnection,
    deadline: &Deadline,
    after: Duration,
    by: &Claimant,
) -> Result<(), Failure> {
    sqlx::query(SET)
        .bind(deadline.thread_id.as_str())
        .bind(&*deadline.interrupt_id)
        .bind(by.after(after))
        .bind(deadline.answer.to_string())
        .bind(&*deadline.request)
        .execute(db)
        .await?;
    Ok(())
}

async fn passed(db: &mut SqliteConnection, limit: u32, by: &Claimant) -> Result<Vec<Deadline>, Failure> {
    let rows = sqlx::query(PASSED).bind(stored_time(by.now)).bind(limit).fetch_all(db).await?;
    rows.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> Result<Deadline, Failure> {
    let thread_id: &str = row.try_get("thread_id")?;
    let corrupt = |error: crate::ids::Error| Error::Corrupt {
        thread_id: thread_id.to_owned(),
        what: "deadline",
        reason: error.to_string(),
    };
    Ok(Deadline {
        thread_id: ThreadId::parse(thread_id).map_err(corrupt)?,
        interrupt_id: row.try_get::<&str, _>("interrupt_id")?.into(),
        answer: rows::json(row, "answer")?.unwrap_or_default(),
        request: row.try_get::<Vec<u8>, _>("request")?.into(),
    })
}

async fn clear(db: &mut SqliteConnection, thread_id: &ThreadId, interrupt_id: &str) -> Result<(), Failure> {
    sqlx::query(CLEAR).bind(thread_id.as_str()).bind(interrupt_id).execute(db).await?;
    Ok(())
}
