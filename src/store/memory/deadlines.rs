//! Deadlines of questions.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{
    MemoryStore, count,
    tables::{Claimant, Tables},
};
use crate::{
    ids::{ThreadId, UnixNanos},
    store::{Deadline, Deadlines, Error},
};

/// A deadline and when it passes.
pub(super) struct Due {
    at: UnixNanos,
    deadline: Deadline,
}

#[async_trait]
impl Deadlines for MemoryStore {
    async fn set_deadline(&self, deadline: &Deadline, after: Duration) -> Result<(), Error> {
        self.write(|tables| {
            tables.set_deadline(deadline, after, &self.claimant());
            Ok(())
        })
    }

    async fn passed(&self, limit: u32) -> Result<Vec<Deadline>, Error> {
        Ok(self.tables()?.passed(count(limit), &self.claimant()))
    }

    async fn clear_deadline(&self, thread_id: &ThreadId, interrupt_id: &str) -> Result<(), Error> {
        self.write(|tables| {
            tables.clear_deadline(thread_id, interrupt_id);
            Ok(())
        })
    }
}

impl Tables {
    fn set_deadline(&mut self, deadline: &Deadline, after: Duration, by: &Claimant<'_>) {
        let key = (deadline.thread_id.clone(), deadline.interrupt_id.clone());
        let due = || Due { at: by.after(after), deadline: deadline.clone() };
        self.deadlines.entry(key).or_insert_with(due);
    }

    fn passed(&self, limit: usize, by: &Claimant<'_>) -> Vec<Deadline> {
        let is_idle = |thread_id: &ThreadId| self.open(thread_id).next().is_none();
        let due = self.deadlines.values().filter(|due| due.at <= by.now);
        let mut due: Vec<_> = due.filter(|due| is_idle(&due.deadline.thread_id)).collect();
        due.sort_by_key(|due| due.at);
        due.into_iter().take(limit).map(|due| due.deadline.clone()).collect()
    }

    fn clear_deadline(&mut self, thread_id: &ThreadId, interrupt_id: &str) {
        self.deadlines.remove(&(thread_id.clone(), Arc::from(interrupt_id)));
    }
}
