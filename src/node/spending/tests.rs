//! How budgets are kept and sums are counted.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::timeout;

use super::*;
use crate::value::Usage;

const MODEL: &str = "p:m";

fn tokens(total_tokens: u64) -> Expense {
    Expense::of_call(Usage { total_tokens, ..Usage::default() }, Some(Cost::from_picos(total_tokens)))
}

fn need(tokens: u64) -> Need {
    Need { tokens, cost: Some(Cost::from_picos(tokens)) }
}

fn spend(spending: &Spending, total: u64) {
    spending.add(MODEL.into(), "n".into(), &tokens(total));
}

fn refused(spending: &Spending, need: Need) -> String {
    spending.try_admit(need, MODEL).expect_err("refused").to_string()
}

#[test]
fn a_call_that_would_break_the_budget_is_refused() {
    let spending = Spending::new(Budget { max_tokens: Some(10), ..Budget::default() });
    assert!(spending.try_admit(need(10), MODEL).expect("it just fits").is_some());
    spend(&spending, 4);
    assert!(spending.try_admit(need(6), MODEL).expect("it just fits").is_some());
    assert_eq!(
        refused(&spending, need(7)),
        "the next model call may take 7 tokens, and 4 of the budget of 10 are spent"
    );
    spend(&spending, 6);
    assert_eq!(refused(&spending, need(1)), "the budget of 10 tokens is exhausted (10 spent)");
    assert!(Spending::new(Budget::default()).try_admit(need(u64::MAX), MODEL).expect("no budget").is_some());
}

#[test]
fn a_budget_of_dollars_is_kept_to_the_last_picodollar() {
    let spending = Spending::new(Budget { max_cost: Some(Cost::from_picos(10)), ..Budget::default() });
    spend(&spending, 4);
    assert!(spending.try_admit(need(6), MODEL).expect("it just fits").is_some());
    assert_eq!(
        refused(&spending, need(7)),
        "the next model call may cost 0.000000000007 dollars, and 0.000000000004 of the budget of 0.00000000001 are spent"
    );
    spend(&spending, 6);
    assert!(refused(&spending, need(1)).ends_with("is exhausted (0.00000000001 spent)"));
    let free = Need { tokens: 5, cost: Some(Cost::ZERO) };
    assert!(spending.try_admit(free, MODEL).expect("what costs nothing breaks nothing").is_some());
    let unknown = spending.try_admit(Need { tokens: 1, cost: None }, MODEL).expect_err("no price");
    assert_eq!(unknown.code(), "MODEL_PRICE_UNKNOWN");
}

#[test]
fn a_budget_of_calls_counts_every_request() {
    let spending = Spending::new(Budget { max_model_calls: Some(2), ..Budget::default() });
    spending.restore_calls(Calls { model: 1, tool: 0 });
    assert!(spending.try_admit(Need::default(), MODEL).expect("the second").is_some());
    assert_eq!(refused(&spending, Need::default()), "the budget of 2 model calls is exhausted");
    assert_eq!(spending.limited_calls(), Some(Calls { model: 2, tool: 0 }));
}

/// Waits until the call may be made.
async fn admit(spending: &Spending) -> Result<Admitted<'_>, Error> {
    loop {
        spending.room(need(6), MODEL).await?;
        if let Some(admitted) = spending.try_admit(need(6), MODEL)? {
            return Ok(admitted);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_calls_under_way_may_take_is_waited_for() {
    let spending = Spending::new(Budget { max_tokens: Some(10), ..Budget::default() });
    let first = admit(&spending).await.expect("there is room");
    let second = admit(&spending);
    tokio::pin!(second);
    assert!(timeout(Duration::from_secs(60), &mut second).await.is_err(), "both could take 12");
    spend(&spending, 3);
    drop(first);
    let second = timeout(Duration::from_secs(60), second).await.expect("9 of 10").expect("there is room");
    let third = admit(&spending);
    tokio::pin!(third);
    assert!(timeout(Duration::from_secs(60), &mut third).await.is_err(), "the second is under way");
    spend(&spending, 6);
    drop(second);
    let third = timeout(Duration::from_secs(60), third).await.expect("nothing is under way");
    assert!(
        matches!(third, Err(Error::Budget(Exhausted::NextTokens { spent: 9, need: 6, limit: 10 }))),
        "{third:?}"
    );
}

#[test]
fn overlapping_sums_of_earlier_attempts_count_once() {
    let spending = Spending::new(Budget { max_tokens: Some(25), ..Budget::default() });
    for sum in [10, 15, 12] {
        let by_model = BTreeMap::from([(MODEL.to_owned(), tokens(sum))]);
        let by_node = BTreeMap::from([("n".to_owned(), tokens(sum))]);
        spending.restore(&Spent { by_model, by_node });
    }
    spend(&spending, 5);
    assert!(spending.try_admit(need(5), MODEL).expect("20 of 25 are spent").is_some());
    assert_eq!(spending.spent().by_model[MODEL].usage.total_tokens, 20);
    assert_eq!(spending.spent().by_node["n"].cost, Cost::from_picos(20));
    spending.add("p:other".into(), "n".into(), &tokens(5));
    refused(&spending, need(0));
}

#[test]
fn calls_beyond_a_limit_are_refused_and_not_counted() {
    let spending = Spending::new(Budget::default());
    assert_eq!(spending.limited_calls(), None);
    spending.limit(CallLimits { model_calls: Some(2), tool_calls: Some(3) });
    spending.restore_calls(Calls { model: 1, tool: 1 });
    assert!(spending.try_admit(Need::default(), MODEL).expect("the second").is_some());
    assert!(matches!(spending.try_admit(Need::default(), MODEL), Err(Error::ModelCalls(2))));
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
