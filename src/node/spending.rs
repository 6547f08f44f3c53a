//! What a job spends on models, and the budget it must stay in.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::Error;
use crate::value::Usage;

/// What a job may spend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    /// Most tokens, read and written together.
    pub max_tokens: Option<u64>,
}

/// Counts the tokens of one job.
#[derive(Debug)]
pub struct Spending {
    budget: Budget,
    started: Instant,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Of this attempt.
    by_model: BTreeMap<String, Usage>,
    /// Of earlier attempts of the job.
    before: BTreeMap<String, Usage>,
    first_token_seen: bool,
}

impl Spending {
    /// Nothing spent yet.
    pub fn new(budget: Budget) -> Self {
        Self { budget, started: Instant::now(), counts: Mutex::default() }
    }

    /// Refuses the next model call when the budget is used up.
    pub fn check(&self) -> Result<(), Error> {
        let Some(limit) = self.budget.max_tokens else { return Ok(()) };
        let spent = self.by_model().values().map(|usage| usage.total_tokens).sum();
        if spent >= limit { Err(Error::Budget { limit, spent }) } else { Ok(()) }
    }

    /// Adds the tokens of one call to `provider:model`.
    pub fn add(&self, model: String, usage: &Usage) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = counts.by_model.entry(model).or_default();
        *sum = combine(sum, usage, u64::saturating_add);
    }

    /// Takes over what a checkpoint of an earlier attempt says the job had spent by then. Checkpoints of
    /// graphs that ran side by side say overlapping sums: the greatest counts.
    pub fn restore(&self, model: String, usage: &Usage) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = counts.before.entry(model).or_default();
        *sum = combine(sum, usage, u64::max);
    }

    /// Tokens of the job so far, by `provider:model`.
    pub fn by_model(&self) -> BTreeMap<String, Usage> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sums = counts.before.clone();
        for (model, usage) in &counts.by_model {
            let sum = sums.entry(model.clone()).or_default();
            *sum = combine(sum, usage, u64::saturating_add);
        }
        sums
    }

    /// Seconds from the start of the attempt, the first time this is called; `None` afterwards.
    pub fn first_token(&self) -> Option<f64> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let first = !std::mem::replace(&mut counts.first_token_seen, true);
        first.then(|| self.started.elapsed().as_secs_f64())
    }
}

fn combine(left: &Usage, right: &Usage, with: fn(u64, u64) -> u64) -> Usage {
    Usage {
        input_tokens: with(left.input_tokens, right.input_tokens),
        output_tokens: with(left.output_tokens, right.output_tokens),
        total_tokens: with(left.total_tokens, right.total_tokens),
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_up_budget_refuses_the_next_call() {
        let spending = Spending::new(Budget { max_tokens: Some(10) });
        spending.check().expect("nothing is spent");
        spending.add("p:m".into(), &Usage { total_tokens: 10, ..Usage::default() });
        let refused = spending.check().expect_err("all is spent");
        assert_eq!(refused.to_string(), "the budget of 10 tokens is exhausted (10 spent)");
        Spending::new(Budget::default()).check().expect("no budget, no limit");
    }

    #[test]
    fn overlapping_sums_of_earlier_attempts_count_once() {
        let total = |total_tokens| Usage { total_tokens, ..Usage::default() };
        let spending = Spending::new(Budget { max_tokens: Some(25) });
        for sum in [10, 15, 12] {
            spending.restore("p:m".into(), &total(sum));
        }
        spending.add("p:m".into(), &total(5));
        spending.check().expect("20 of 25 are spent");
        assert_eq!(spending.by_model()["p:m"].total_tokens, 20);
        spending.add("p:other".into(), &total(5));
        spending.check().expect_err("all is spent");
    }

    #[test]
    fn only_the_first_token_of_an_attempt_is_timed() {
        let spending = Spending::new(Budget::default());
        assert!(spending.first_token().is_some());
        assert!(spending.first_token().is_none());
    }
}
