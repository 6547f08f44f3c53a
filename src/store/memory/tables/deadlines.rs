//! Deadlines of questions.

use std::{sync::Arc, time::Duration};

use super::{Claimant, Tables};
use crate::{
    ids::{ThreadId, UnixNanos},
    store::Deadline,
};

/// A deadline and when it passes.
pub(super) struct Due {
    at: UnixNanos,
    deadline: Deadline,
}

impl Tables {
    pub(in crate::store::memory) fn set_deadline(
        &mut self,
        deadline: &Deadline,
        after: Duration,
        by: &Claimant<'_>,
    ) {
        let key = (deadline.thread_id.clone(), deadline.interrupt_id.clone());
        let due = || Due { at: by.after(after), deadline: deadline.clone() };
        self.deadlines.entry(key).or_insert_with(due);
    }

    pub(in crate::store::memory) fn passed(&self, limit: usize, by: &Claimant<'_>) -> Vec<Deadline> {
        let is_idle = |thread_id: &ThreadId| self.open(thread_id).next().is_none();
        let due = self.deadlines.values().filter(|due| due.at <= by.now);
        let mut due: Vec<_> = due.filter(|due| is_idle(&due.deadline.thread_id)).collect();
        due.sort_by_key(|due| due.at);
        due.into_iter().take(limit).map(|due| due.deadline.clone()).collect()
    }

    pub(in crate::store::memory) fn clear_deadline(&mut self, thread_id: &ThreadId, interrupt_id: &str) {
        self.deadlines.remove(&(thread_id.clone(), Arc::from(interrupt_id)));
    }
}
