//! Deadlines of questions, as rows.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{Row, postgres::PgRow};

use super::{PostgresStore, statement::millis};
use crate::{
    ids::ThreadId,
    store::{Deadline, Deadlines, Error},
};

const SET: &str = "INSERT INTO executor_interrupt_deadline (thread_id, interrupt_id, due_at, answer, request) \
    VALUES ($1, $2, clock_timestamp() + $3 * interval '1 millisecond', $4, $5) ON CONFLICT DO NOTHING";

const PASSED: &str = "SELECT d.thread_id, d.interrupt_id, d.answer, d.request FROM executor_interrupt_deadline d \
    WHERE d.due_at <= clock_timestamp() AND NOT EXISTS ( \
        SELECT 1 FROM executor_job j WHERE j.thread_id = d.thread_id AND j.state IN ('queued', 'running')) \
    ORDER BY d.due_at, d.thread_id, d.interrupt_id LIMIT $1";

const CLEAR: &str = "DELETE FROM executor_interrupt_deadline WHERE thread_id = $1 AND interrupt_id = $2";

#[async_trait]
impl Deadlines for PostgresStore {
    async fn set_deadline(&self, deadline: &Deadline, after: Duration) -> Result<(), Error> {
        let deadline = deadline.clone();
        let rows = self.link.rows(move || {
            sqlx::query(SET)
                .bind(deadline.thread_id.to_string())
                .bind(deadline.interrupt_id.to_string())
                .bind(millis(after))
                .bind(deadline.answer.to_string().into_bytes())
                .bind(deadline.request.to_vec())
        });
        rows.await.map(drop)
    }

    async fn passed(&self, limit: u32) -> Result<Vec<Deadline>, Error> {
        let rows = self.link.rows(move || sqlx::query(PASSED).bind(i64::from(limit))).await?;
        rows.iter().map(read).collect()
    }

    async fn clear_deadline(&self, thread_id: &ThreadId, interrupt_id: &str) -> Result<(), Error> {
        let (thread_id, interrupt_id) = (thread_id.to_string(), interrupt_id.to_owned());
        let clear = move || sqlx::query(CLEAR).bind(thread_id.clone()).bind(interrupt_id.clone());
        self.link.rows(clear).await.map(drop)
    }
}

fn read(row: &PgRow) -> Result<Deadline, Error> {
    let thread_id: &str = row.try_get(0).map_err(|error| corrupt("", error))?;
    let wrong = |error: sqlx::Error| corrupt(thread_id, error);
    let answer: Vec<u8> = row.try_get(2).map_err(wrong)?;
    let request: Vec<u8> = row.try_get(3).map_err(wrong)?;
    Ok(Deadline {
        thread_id: ThreadId::parse(thread_id).map_err(|error| corrupt(thread_id, error))?,
        interrupt_id: row.try_get::<&str, _>(1).map_err(wrong)?.into(),
        answer: serde_json::from_slice(&answer).map_err(|error| corrupt(thread_id, error))?,
        request: Bytes::from(request),
    })
}

fn corrupt(thread_id: &str, reason: impl ToString) -> Error {
    Error::Corrupt { thread_id: thread_id.to_owned(), what: "deadline", reason: reason.to_string() }
}
