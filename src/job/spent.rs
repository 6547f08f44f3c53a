//! What a job has spent on models, by model and by node; as results tell it and as checkpoints keep it.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map as JsonMap, Value as Json, json};

use crate::value::{Cost, Map, Usage, Value};

/// Where a checkpoint keeps the exact cost.
const PICODOLLARS: &str = "cost_picodollars";
/// Where a checkpoint keeps how many calls have no price.
const UNPRICED: &str = "unpriced_calls";
/// Where checkpoints and results say how many calls were counted by estimates.
const ESTIMATED: &str = "estimated_calls";

/// Tokens of some calls, and what they cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expense {
    /// Tokens.
    pub usage: Usage,
    /// Of the calls whose price is known.
    pub cost: Cost,
    /// Calls whose price is not known.
    pub unpriced: u64,
    /// Calls whose provider has not counted the tokens; they are estimates.
    pub estimated: u64,
}

/// What a job has spent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spent {
    /// By `provider:model`.
    pub by_model: BTreeMap<String, Expense>,
    /// By node; one inside a nested graph has the names of the nodes around it in front, `outer/inner`.
    pub by_node: BTreeMap<String, Expense>,
}

impl Expense {
    /// One call; `cost` is `None` when nobody knows its price.
    pub fn of_call(usage: Usage, cost: Option<Cost>) -> Self {
        Self { usage, cost: cost.unwrap_or_default(), unpriced: u64::from(cost.is_none()), estimated: 0 }
    }

    /// What it cost; `None` when that is not known of all calls.
    pub fn whole_cost(&self) -> Option<Cost> {
        (self.unpriced == 0).then_some(self.cost)
    }

    /// Takes in `other`, number by number.
    fn combine(&mut self, other: &Self, with: fn(u64, u64) -> u64) {
        let (left, right) = (&mut self.usage, &other.usage);
        left.input_tokens = with(left.input_tokens, right.input_tokens);
        left.output_tokens = with(left.output_tokens, right.output_tokens);
        left.total_tokens = with(left.total_tokens, right.total_tokens);
        combine_details(&mut left.input_token_details, &right.input_token_details, with);
        combine_details(&mut left.output_token_details, &right.output_token_details, with);
        self.cost = Cost::from_picos(with(self.cost.picos(), other.cost.picos()));
        self.unpriced = with(self.unpriced, other.unpriced);
        self.estimated = with(self.estimated, other.estimated);
    }

    /// As results show it: LangChain's `usage_metadata` with `cost_usd`, which is null when it is not known.
    fn to_json(&self) -> Json {
        let mut json = self.counted();
        json["cost_usd"] = self.whole_cost().map_or(Json::Null, Cost::to_json);
        json
    }

    fn counted(&self) -> Json {
        let mut json = Value::Map(Arc::new(self.usage.to_map())).to_json();
        if self.estimated > 0 {
            json[ESTIMATED] = self.estimated.into();
        }
        json
    }

    fn to_stored(&self) -> Json {
        let mut json = self.counted();
        json[PICODOLLARS] = self.cost.picos().into();
        if self.unpriced > 0 {
            json[UNPRICED] = self.unpriced.into();
        }
        json
    }

    fn from_stored(json: &Json) -> Option<Self> {
        let count = |key: &str| json.get(key).and_then(Json::as_u64).unwrap_or_default();
        Some(Self {
            usage: Usage::from_map(Value::from(json.clone()).as_map()?),
            cost: Cost::from_picos(count(PICODOLLARS)),
            unpriced: count(UNPRICED),
            estimated: count(ESTIMATED),
        })
    }
}

/// Details that only one of the two has stand for themselves.
fn combine_details(left: &mut Map, right: &Map, with: fn(u64, u64) -> u64) {
    for (key, value) in right {
        let Value::Number(more) = value else { continue };
        let so_far = match left.get(key) {
            Some(Value::Number(number)) => number.as_u64().unwrap_or_default(),
            Some(_) | None => 0,
        };
        let sum = with(so_far, more.as_u64().unwrap_or_default());
        left.insert(key.clone(), Value::Number(sum.into()));
    }
}

impl Spent {
    /// Adds one call.
    pub fn add(&mut self, model: String, node: String, expense: &Expense) {
        self.by_model.entry(model).or_default().combine(expense, u64::saturating_add);
        self.by_node.entry(node).or_default().combine(expense, u64::saturating_add);
    }

    /// Adds what was spent elsewhere.
    pub fn add_all(&mut self, other: &Self) {
        self.merge(other, u64::saturating_add);
    }

    /// Takes over what is greater there: sums that overlap count once.
    pub fn at_least(&mut self, other: &Self) {
        self.merge(other, u64::max);
    }

    fn merge(&mut self, other: &Self, with: fn(u64, u64) -> u64) {
        let pairs = [(&mut self.by_model, &other.by_model), (&mut self.by_node, &other.by_node)];
        for (into, from) in pairs {
            for (key, expense) in from {
                into.entry(key.clone()).or_default().combine(expense, with);
            }
        }
    }

    /// All tokens, read and written.
    pub fn total_tokens(&self) -> u64 {
        self.sum(|expense| expense.usage.total_tokens)
    }

    /// Dollars, of the calls whose price is known.
    pub fn cost(&self) -> Cost {
        self.by_model.values().map(|expense| expense.cost).sum()
    }

    fn sum(&self, count: fn(&Expense) -> u64) -> u64 {
        self.by_model.values().map(count).fold(0, u64::saturating_add)
    }

    /// `usage` of a result. `cost_usd` is always a number; `unpriced_models` names what is missing from it.
    pub(super) fn to_json(&self) -> Json {
        let by = |sums: &BTreeMap<String, Expense>| {
            sums.iter().map(|(key, expense)| (key.clone(), expense.to_json())).collect::<JsonMap<_, _>>()
        };
        let mut json = json!({
            "input_tokens": self.sum(|expense| expense.usage.input_tokens),
            "output_tokens": self.sum(|expense| expense.usage.output_tokens),
            "total_tokens": self.total_tokens(),
            "cost_usd": self.cost().to_json(),
            "by_model": by(&self.by_model),
            "by_node": by(&self.by_node),
        });
        let unpriced = self.by_model.iter().filter(|(_, expense)| expense.unpriced > 0);
        let unpriced: Vec<&String> = unpriced.map(|(model, _)| model).collect();
        if !unpriced.is_empty() {
            json["unpriced_models"] = json!(unpriced);
        }
        json
    }
}

/// Sums as the metadata of a checkpoint keeps them; `None` when there are none.
pub fn stored(sums: &BTreeMap<String, Expense>) -> Option<Json> {
    let sums = sums.iter().map(|(key, expense)| (key.clone(), expense.to_stored()));
    let sums: JsonMap<String, Json> = sums.collect();
    (!sums.is_empty()).then_some(Json::Object(sums))
}

/// Reads what [`stored`] wrote; what cannot be read counts as nothing.
pub fn restored(sums: Option<&Json>) -> BTreeMap<String, Expense> {
    let sums = sums.and_then(Json::as_object).into_iter().flatten();
    sums.filter_map(|(key, json)| Some((key.clone(), Expense::from_stored(json)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(tokens: u64, cached: u64, cost: Option<f64>) -> Expense {
        let details = Map::from_iter([(Arc::from("cache_read"), Value::Number(cached.into()))]);
        let usage = Usage {
            input_tokens: tokens,
            output_tokens: 1,
            total_tokens: tokens + 1,
            input_token_details: details,
            ..Usage::default()
        };
        Expense::of_call(usage, cost.map(Cost::from_dollars))
    }

    fn spent() -> Spent {
        let mut spent = Spent::default();
        spent.add("p:m".into(), "a".into(), &call(10, 4, Some(0.1)));
        spent.add("p:m".into(), "b".into(), &call(20, 6, Some(0.2)));
        spent.add("p:new".into(), "b".into(), &Expense { estimated: 1, ..call(5, 0, None) });
        spent
    }

    #[test]
    fn results_name_what_has_no_price() {
        let json = spent().to_json();
        assert_eq!(json["cost_usd"], json!(0.3));
        assert_eq!(json["unpriced_models"], json!(["p:new"]));
        assert_eq!(
            json["by_model"]["p:m"],
            json!({"input_tokens": 30, "output_tokens": 2, "total_tokens": 32,
                "input_token_details": {"cache_read": 10}, "cost_usd": 0.3})
        );
        let new = &json["by_model"]["p:new"];
        assert_eq!((&new["cost_usd"], &new["estimated_calls"]), (&Json::Null, &json!(1)));
        assert_eq!(
            (&json["by_node"]["a"]["cost_usd"], &json["by_node"]["b"]["cost_usd"]),
            (&json!(0.1), &Json::Null)
        );
        assert_eq!(Spent::default().to_json().get("unpriced_models"), None);
    }

    #[test]
    fn what_a_checkpoint_keeps_is_read_back() {
        let spent = spent();
        assert_eq!(restored(stored(&spent.by_model).as_ref()), spent.by_model);
        assert_eq!(stored(&BTreeMap::new()), None);
        assert!(restored(Some(&json!({"p:m": 7}))).is_empty());
        // As versions before this one wrote it.
        let older = restored(Some(&json!({"p:m": {"total_tokens": 7}})));
        assert_eq!((older["p:m"].usage.total_tokens, older["p:m"].whole_cost()), (7, Some(Cost::ZERO)));
    }

    #[test]
    fn overlapping_sums_count_once_and_others_add_up() {
        let (mut greatest, mut both) = (spent(), spent());
        greatest.at_least(&spent());
        assert_eq!(greatest, spent());
        both.add_all(&spent());
        assert_eq!((both.total_tokens(), both.cost()), (76, Cost::from_dollars(0.6)));
        assert_eq!(both.by_model["p:new"].unpriced, 2);
    }
}
