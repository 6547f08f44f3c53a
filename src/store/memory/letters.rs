//! Dead letters.

use async_trait::async_trait;
use serde_json::{Value as Json, json};

use super::{
    MemoryStore, count,
    tables::{Claimant, Tables},
};
use crate::{
    ids::UnixNanos,
    store::{DeadLetter, Error, Letter, LetterFilter, Letters, Replayed, WholeLetter},
};

/// A letter and what became of it.
pub(super) struct Kept {
    id: i64,
    at: UnixNanos,
    message: DeadLetter,
    detail: Json,
    replays: u32,
    replayed_at: Option<UnixNanos>,
    replay_job_id: Option<String>,
    discarded_at: Option<UnixNanos>,
}

impl Kept {
    pub(super) fn is_open(&self) -> bool {
        self.replayed_at.is_none() && self.discarded_at.is_none()
    }

    pub(super) fn at(&self) -> UnixNanos {
        self.at
    }

    pub(super) fn reason(&self) -> &'static str {
        self.message.reason
    }

    fn listed(&self) -> Letter {
        let DeadLetter { reason, error, job_id, thread_id, deliveries, .. } = &self.message;
        Letter {
            id: self.id,
            kept_at: self.at,
            reason: (*reason).to_owned(),
            error: error.clone(),
            job_id: job_id.clone(),
            thread_id: thread_id.clone(),
            deliveries: *deliveries,
            replays: self.replays,
            replayed_at: self.replayed_at,
            replay_job_id: self.replay_job_id.clone(),
            discarded_at: self.discarded_at,
        }
    }

    fn matches(&self, filter: &LetterFilter, now: UnixNanos) -> bool {
        let age = now.since(self.at);
        let message = &self.message;
        filter.reason.as_ref().is_none_or(|reason| reason == message.reason)
            && (filter.job_id.is_none() || filter.job_id == message.job_id)
            && (filter.thread_id.is_none() || filter.thread_id == message.thread_id)
            && filter.newer_than.is_none_or(|limit| age <= limit)
            && filter.older_than.is_none_or(|limit| age >= limit)
            && filter.below.is_none_or(|id| self.id < id)
            && (filter.dealt_with || self.is_open())
    }
}

#[async_trait]
impl Letters for MemoryStore {
    async fn bury(&self, letter: &DeadLetter) -> Result<bool, Error> {
        self.write(|tables| Ok(tables.bury(letter, &self.claimant())))
    }

    async fn letters(&self, filter: &LetterFilter, limit: u32) -> Result<Vec<Letter>, Error> {
        Ok(self.tables()?.list_letters(filter, count(limit), &self.claimant()))
    }

    async fn letter(&self, id: i64) -> Result<Option<WholeLetter>, Error> {
        Ok(self.tables()?.letter(id))
    }

    async fn mark_replayed(&self, replayed: &Replayed) -> Result<bool, Error> {
        self.write(|tables| Ok(tables.mark_replayed(replayed, &self.claimant())))
    }

    async fn discard(&self, ids: &[i64]) -> Result<u64, Error> {
        self.write(|tables| Ok(tables.discard(ids, &self.claimant())))
    }
}

impl Tables {
    fn bury(&mut self, letter: &DeadLetter, by: &Claimant<'_>) -> bool {
        let place = (letter.stream.clone(), letter.stream_seq);
        if self.letters.contains_key(&place) {
            return false;
        }
        let mut detail = json!({ "error": letter.error });
        if let Some((job_id, view)) = letter.job_id.as_ref().and_then(|id| Some((id, self.view(id)?))) {
            let last = self.trail(&view.thread_id, job_id).last;
            detail["job"] = json!({
                "state": view.state, "attempts": view.attempts, "crashes": view.crashes, "error": view.error,
                "checkpoint_id": last,
            });
        }
        self.last_letter += 1;
        let kept = Kept {
            id: self.last_letter,
            at: by.now,
            message: letter.clone(),
            detail,
            replays: 0,
            replayed_at: None,
            replay_job_id: None,
            discarded_at: None,
        };
        self.letters.insert(place, kept);
        true
    }

    /// All messages, in the order of stream and sequence.
    pub(super) fn letters(&self) -> Vec<DeadLetter> {
        self.letters.values().map(|kept| kept.message.clone()).collect()
    }

    fn list_letters(&self, filter: &LetterFilter, limit: usize, by: &Claimant<'_>) -> Vec<Letter> {
        let matching = self.letters.values().filter(|kept| kept.matches(filter, by.now));
        let mut letters: Vec<Letter> = matching.map(Kept::listed).collect();
        letters.sort_by_key(|letter| std::cmp::Reverse(letter.id));
        letters.truncate(limit);
        letters
    }

    fn letter(&self, id: i64) -> Option<WholeLetter> {
        let kept = self.letters.values().find(|kept| kept.id == id)?;
        let DeadLetter { stream, stream_seq, subject, headers, payload, .. } = kept.message.clone();
        let detail = kept.detail.clone();
        Some(WholeLetter { letter: kept.listed(), stream, stream_seq, subject, headers, payload, detail })
    }

    fn mark_replayed(&mut self, replayed: &Replayed, by: &Claimant<'_>) -> bool {
        let this = self.letters.values_mut().find(|kept| kept.id == replayed.id);
        let Some(this) = this.filter(|kept| kept.replays + 1 == replayed.number) else { return false };
        this.replays = replayed.number;
        this.replayed_at = Some(by.now);
        this.replay_job_id.clone_from(&replayed.job_id);
        let Some(job_id) = this.message.job_id.clone() else { return true };
        let of_job = |kept: &&mut Kept| kept.message.job_id.as_ref() == Some(&job_id) && kept.is_open();
        for other in self.letters.values_mut().filter(of_job) {
            other.replayed_at = Some(by.now);
            other.replay_job_id.clone_from(&replayed.job_id);
        }
        true
    }

    fn discard(&mut self, ids: &[i64], by: &Claimant<'_>) -> u64 {
        let mut discarded = 0;
        for kept in self.letters.values_mut().filter(|kept| ids.contains(&kept.id) && kept.is_open()) {
            kept.discarded_at = Some(by.now);
            discarded += 1;
        }
        discarded
    }
}
