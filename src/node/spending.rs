//! What a job spends on models, and the budget it must stay in.

use std::{
    collections::BTreeMap,
    sync::{Mutex, OnceLock, PoisonError},
    time::Instant,
};

use super::Error;
use crate::{graph::CallLimits, job::Spent, value::Usage};

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
    /// What the job's definition allows; known once it is compiled.
    limits: OnceLock<CallLimits>,
    counts: Mutex<Counts>,
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
    first_token_seen: bool,
}

impl Spending {
    /// Nothing spent yet.
    pub fn new(budget: Budget) -> Self {
        Self { budget, started: Instant::now(), limits: OnceLock::new(), counts: Mutex::default() }
    }

    /// Refuses the next model call when the budget is used up.
    pub fn check(&self) -> Result<(), Error> {
        let Some(limit) = self.budget.max_tokens else { return Ok(()) };
        let spent = self.spent().by_model.values().map(|usage| usage.total_tokens).sum();
        if spent >= limit { Err(Error::Budget { limit, spent }) } else { Ok(()) }
    }

    /// Says how often the job may call; the first limits count.
    pub fn limit(&self, limits: CallLimits) {
        self.limits.get_or_init(|| limits);
    }

    fn limits(&self) -> CallLimits {
        self.limits.get().copied().unwrap_or_default()
    }

    /// Counts one request to a model, or refuses it.
    pub fn model_call(&self) -> Result<(), Error> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match self.limits().model_calls {
            Some(limit) if counts.calls.model >= limit => Err(Error::ModelCalls(limit)),
            _ => {
                counts.calls.model += 1;
                Ok(())
            }
        }
    }

    /// Counts the calls of tools that one superstep is about to make, or refuses all of them.
    pub fn tool_calls(&self, more: u64) -> Result<(), Error> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = counts.calls.tool.saturating_add(more);
        match self.limits().tool_calls {
            Some(limit) if more > 0 && asked > limit => Err(Error::ToolCalls { limit, asked }),
            _ => {
                counts.calls.tool = asked;
                Ok(())
            }
        }
    }

    /// Calls of the job so far, when the definition limits them.
    pub fn limited_calls(&self) -> Option<Calls> {
        let is_limited = self.limits() != CallLimits::default();
        is_limited.then(|| self.counts.lock().unwrap_or_else(PoisonError::into_inner).calls)
    }

    /// Takes over what a checkpoint of an earlier attempt says the job had called by then; as
    /// [`Spending::restore`], the greatest counts.
    pub fn restore_calls(&self, calls: Calls) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Calls { model, tool } = counts.calls;
        counts.calls = Calls { model: model.max(calls.model), tool: tool.max(calls.tool) };
    }

    /// Adds the tokens of one call to `provider:model` that `node` made.
    pub fn add(&self, model: String, node: String, usage: &Usage) {
        let now = &mut self.counts.lock().unwrap_or_else(PoisonError::into_inner).now;
        for (sums, key) in [(&mut now.by_model, model), (&mut now.by_node, node)] {
            let sum = sums.entry(key).or_default();
            *sum = combine(sum, usage, u64::saturating_add);
        }
    }

    /// Takes over what a checkpoint of an earlier attempt says the job had spent by then. Checkpoints of
    /// graphs that ran side by side say overlapping sums: the greatest counts.
    pub fn restore(&self, spent: &Spent) {
        let before = &mut self.counts.lock().unwrap_or_else(PoisonError::into_inner).before;
        merge(&mut before.by_model, &spent.by_model, u64::max);
        merge(&mut before.by_node, &spent.by_node, u64::max);
    }

    /// Tokens of the job so far.
    pub fn spent(&self) -> Spent {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sums = counts.before.clone();
        merge(&mut sums.by_model, &counts.now.by_model, u64::saturating_add);
        merge(&mut sums.by_node, &counts.now.by_node, u64::saturating_add);
        sums
    }

    /// Seconds from the start of the attempt, the first time this is called; `None` afterwards.
    pub fn first_token(&self) -> Option<f64> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let first = !std::mem::replace(&mut counts.first_token_seen, true);
        first.then(|| self.started.elapsed().as_secs_f64())
    }
}

fn merge(into: &mut BTreeMap<String, Usage>, from: &BTreeMap<String, Usage>, with: fn(u64, u64) -> u64) {
    for (key, usage) in from {
        let sum = into.entry(key.clone()).or_default();
        *sum = combine(sum, usage, with);
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
        spending.add("p:m".into(), "n".into(), &Usage { total_tokens: 10, ..Usage::default() });
        let refused = spending.check().expect_err("all is spent");
        assert_eq!(refused.to_string(), "the budget of 10 tokens is exhausted (10 spent)");
        Spending::new(Budget::default()).check().expect("no budget, no limit");
    }

    #[test]
    fn overlapping_sums_of_earlier_attempts_count_once() {
        let total = |total_tokens| Usage { total_tokens, ..Usage::default() };
        let spending = Spending::new(Budget { max_tokens: Some(25) });
        for sum in [10, 15, 12] {
            let by_model = BTreeMap::from([("p:m".to_owned(), total(sum))]);
            let by_node = BTreeMap::from([("n".to_owned(), total(sum))]);
            spending.restore(&Spent { by_model, by_node });
        }
        spending.add("p:m".into(), "n".into(), &total(5));
        spending.check().expect("20 of 25 are spent");
        assert_eq!(spending.spent().by_model["p:m"].total_tokens, 20);
        assert_eq!(spending.spent().by_node["n"].total_tokens, 20);
        spending.add("p:other".into(), "n".into(), &total(5));
        spending.check().expect_err("all is spent");
    }

    #[test]
    fn calls_beyond_a_limit_are_refused_and_not_counted() {
        let spending = Spending::new(Budget::default());
        assert_eq!(spending.limited_calls(), None);
        spending.limit(CallLimits { model_calls: Some(2), tool_calls: Some(3) });
        spending.restore_calls(Calls { model: 1, tool: 1 });
        spending.model_call().expect("the second");
        assert!(matches!(spending.model_call(), Err(Error::ModelCalls(2))));
        assert!(matches!(spending.tool_calls(3), Err(Error::ToolCalls { limit: 3, asked: 4 })));
        spending.tool_calls(2).expect("three in all");
        spending.tool_calls(0).expect("none is no call");
        assert_eq!(spending.limited_calls(), Some(Calls { model: 2, tool: 3 }));
    }

    #[test]
    fn only_the_first_token_of_an_attempt_is_timed() {
        let spending = Spending::new(Budget::default());
        assert!(spending.first_token().is_some());
        assert!(spending.first_token().is_none());
    }
}
