//! What a job spends on models, and the budget it must stay in.
//!
//! **Invariant:** calls that run side by side never hold more of the budget than is left of it.

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use super::Error;
use crate::{
    graph::CallLimits,
    job::{Expense, Spent},
    value::Cost,
};

/// What a job may spend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    /// Most tokens, read and written together.
    pub max_tokens: Option<u64>,
    /// Most dollars.
    pub max_cost: Option<Cost>,
    /// Most requests to models.
    pub max_model_calls: Option<u64>,
}

/// What is missing of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// All tokens are spent.
    #[error("the budget of {limit} tokens is exhausted ({spent} spent)")]
    Tokens {
        /// Tokens allowed.
        limit: u64,
        /// Tokens spent.
        spent: u64,
    },
    /// The next call may take more tokens than are left.
    #[error("the next model call may take {need} tokens, and {spent} of the budget of {limit} are spent")]
    NextTokens {
        /// Tokens allowed.
        limit: u64,
        /// Tokens spent.
        spent: u64,
        /// Estimate of the prompt and the longest answer.
        need: u64,
    },
    /// All dollars are spent.
    #[error("the budget of {limit} dollars is exhausted ({spent} spent)")]
    Cost {
        /// Dollars allowed.
        limit: Cost,
        /// Dollars spent.
        spent: Cost,
    },
    /// The next call may cost more than is left.
    #[error("the next model call may cost {need} dollars, and {spent} of the budget of {limit} are spent")]
    NextCost {
        /// Dollars allowed.
        limit: Cost,
        /// Dollars spent.
        spent: Cost,
        /// Estimate of the prompt and the longest answer.
        need: Cost,
    },
    /// Models have been asked as often as they may be.
    #[error("the budget of {0} model calls is exhausted")]
    Calls(u64),
}

/// What a call may take of a budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// Tokens, read and written together.
    pub(super) tokens: u64,
    /// Dollars; `None` when nobody knows.
    pub(super) cost: Option<Cost>,
}

/// A call that is under way; what it may take is held back until this is dropped.
#[derive(Debug)]
pub(super) struct Admitted<'a> {
    spending: &'a Spending,
    need: Need,
}

/// Counts what one job spends.
#[derive(Debug)]
pub struct Spending {
    budget: Budget,
    started: Instant,
    /// What the job's definition allows; known once it is compiled.
    limits: OnceLock<CallLimits>,
    counts: Mutex<Counts>,
    /// Tells those that wait that a call has ended.
    ended: Notify,
}

/// Calls of one job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Requests to models.
    pub model: u64,
    /// Calls of tools.
    pub tool: u64,
}

#[derive(Debug, Default)]
struct Counts {
    /// Of this attempt.
    now: Spent,
    /// Of earlier attempts of the job.
    before: Spent,
    /// Calls, earlier attempts included.
    calls: Calls,
    /// What calls under way may take.
    held_tokens: u64,
    held_cost: Cost,
    first_token_seen: bool,
}

impl Counts {
    fn spent(&self) -> Spent {
        let mut sums = self.before.clone();
        sums.add_all(&self.now);
        sums
    }
}

impl Spending {
    /// Nothing spent yet.
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            started: Instant::now(),
            limits: OnceLock::new(),
            counts: Mutex::default(),
            ended: Notify::new(),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what a call may take must be known before it.
    pub(super) fn has_budget(&self) -> bool {
        self.budget.max_tokens.is_some() || self.budget.max_cost.is_some()
    }

    /// Waits while only the calls under way leave too little for one more: they may take less than they may. Holds back
    /// nothing, so that whoever waits for its turn afterwards keeps no other call of the job waiting.
    pub(super) async fn room(&self, need: Need, model: &str) -> Result<(), Error> {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // From now on no end is missed.
            ended.as_mut().enable();
            if self.fits(&self.counts(), need, model)? {
                return Ok(());
            }
            ended.await;
        }
    }

    /// Counts one request to a model, and holds back what it may take; or refuses it because that would break the budget.
    /// `None` while only the calls under way leave too little.
    pub(super) fn try_admit(&self, need: Need, model: &str) -> Result<Option<Admitted<'_>>, Error> {
        let mut counts = self.counts();
        if !self.fits(&counts, need, model)? {
            return Ok(None);
        }
        counts.calls.model += 1;
        counts.held_tokens = counts.held_tokens.saturating_add(need.tokens);
        counts.held_cost = counts.held_cost.plus(need.cost.unwrap_or_default());
        Ok(Some(Admitted { spending: self, need }))
    }

    /// Whether one more call fits beside those under way. Fails when it would not fit even without them.
    fn fits(&self, counts: &Counts, need: Need, model: &str) -> Result<bool, Error> {
        self.check_calls(counts.calls.model)?;
        if !self.has_budget() {
            return Ok(true);
        }
        let spent = counts.spent();
        let tokens_left = self.check_tokens(spent.total_tokens(), (need.tokens, counts.held_tokens))?;
        let cost_left = self.check_cost(spent.cost(), (need.cost, counts.held_cost), model)?;
        Ok(tokens_left && cost_left)
    }

    fn check_calls(&self, made: u64) -> Result<(), Error> {
        if let Some(limit) = self.limits().model_calls.filter(|limit| made >= *limit) {
            return Err(Error::ModelCalls(limit));
        }
        match self.budget.max_model_calls {
            Some(limit) if made >= limit => Err(Exhausted::Calls(limit).into()),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the call fits beside those under way. Fails when it would not fit even without them.
    fn check_tokens(&self, spent: u64, (need, held): (u64, u64)) -> Result<bool, Error> {
        let Some(limit) = self.budget.max_tokens else { return Ok(true) };
        let after = spent.saturating_add(need);
        if spent >= limit {
            return Err(Exhausted::Tokens { limit, spent }.into());
        }
        if after > limit {
            return Err(Exhausted::NextTokens { limit, spent, need }.into());
        }
        Ok(after.saturating_add(held) <= limit)
    }

    fn check_cost(
        &self,
        spent: Cost,
        (need, held): (Option<Cost>, Cost),
        model: &str,
    ) -> Result<bool, Error> {
        let Some(limit) = self.budget.max_cost else { return Ok(true) };
        // A budget that cannot be kept must not look as if it were.
        let need = need.ok_or_else(|| Error::Unpriced(model.to_owned()))?;
        let after = spent.plus(need);
        if spent >= limit && need > Cost::ZERO {
            return Err(Exhausted::Cost { limit, spent }.into());
        }
        if after > limit && need > Cost::ZERO {
            return Err(Exhausted::NextCost { limit, spent, need }.into());
        }
        Ok(need == Cost::ZERO || after.plus(held) <= limit)
    }

    /// Says how often the job may call; the first limits count.
    pub fn limit(&self, limits: CallLimits) {
        self.limits.get_or_init(|| limits);
    }

    fn limits(&self) -> CallLimits {
        self.limits.get().copied().unwrap_or_default()
    }

    /// Counts the calls of tools that one superstep is about to make, or refuses all of them.
    pub fn tool_calls(&self, more: u64) -> Result<(), Error> {
        let mut counts = self.counts();
        let asked = counts.calls.tool.saturating_add(more);
        match self.limits().tool_calls {
            Some(limit) if more > 0 && asked > limit => Err(Error::ToolCalls { limit, asked }),
            _ => {
                counts.calls.tool = asked;
                Ok(())
            }
        }
    }

    /// Calls of the job so far, when something limits them.
    pub fn limited_calls(&self) -> Option<Calls> {
        let is_limited = self.limits() != CallLimits::default() || self.budget.max_model_calls.is_some();
        is_limited.then(|| self.counts().calls)
    }

    /// Takes over what a checkpoint of an earlier attempt says the job had called by then; as
    /// [`Spending::restore`], the greatest counts.
    pub fn restore_calls(&self, calls: Calls) {
        let mut counts = self.counts();
        let Calls { model, tool } = counts.calls;
        counts.calls = Calls { model: model.max(calls.model), tool: tool.max(calls.tool) };
    }

    /// Adds one call to `provider:model` that `node` made.
    pub fn add(&self, model: String, node: String, expense: &Expense) {
        self.counts().now.add(model, node, expense);
    }

    /// Takes over what a checkpoint of an earlier attempt says the job had spent by then. Checkpoints of
    /// graphs that ran side by side say overlapping sums: the greatest counts.
    pub fn restore(&self, spent: &Spent) {
        self.counts().before.at_least(spent);
    }

    /// What the job has spent so far.
    pub fn spent(&self) -> Spent {
        self.counts().spent()
    }

    /// Seconds from the start of the attempt, the first time this is called; `None` afterwards.
    pub fn first_token(&self) -> Option<f64> {
        let first = !std::mem::replace(&mut self.counts().first_token_seen, true);
        first.then(|| self.started.elapsed().as_secs_f64())
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let mut counts = self.spending.counts();
        counts.held_tokens = counts.held_tokens.saturating_sub(self.need.tokens);
        counts.held_cost = counts.held_cost.minus(self.need.cost.unwrap_or_default());
        drop(counts);
        self.spending.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
