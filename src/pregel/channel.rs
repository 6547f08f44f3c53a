//! Channels: what kind one is, when it is available, and how writes become its value.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "one kind of value is asked for; all others are answered alike"
)]

use std::{cmp::Ordering, sync::Arc};

use serde_json::Number;

use super::{Checkpoint, Error, OVERWRITE, SENDS, START, Write, messages::add_messages};
use crate::{
    graph::{ChannelSpec, CompiledGraph, Reducer, Trigger},
    value::{Name, State, Value},
};

/// What kind of channel a name stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind<'g> {
    /// A channel of the state.
    State(&'g ChannelSpec),
    /// Available for one superstep: `__start__` and `branch:to:…`.
    Ephemeral,
    /// `join:<a>+<b>:<node>`: available once each of the names, `<a>+<b>`, has been written.
    Barrier(&'g str),
    /// `__pregel_tasks`: the sends of the last superstep.
    Sends,
    /// A channel of another program's graph; kept as it is.
    Foreign,
}

impl<'g> Kind<'g> {
    pub(super) fn of(graph: &'g CompiledGraph, name: &'g str) -> Self {
        if let Some(spec) = graph.channels.get(name) {
            return Self::State(spec);
        }
        match name {
            SENDS => Self::Sends,
            START => Self::Ephemeral,
            _ => match Trigger::of(name) {
                Some(Trigger::Branch(_)) => Self::Ephemeral,
                Some(Trigger::Join { names, .. }) => Self::Barrier(names),
                None => Self::Foreign,
            },
        }
    }

    /// Whether the channel has news for a node: a barrier only when it is complete, sends only when there are some.
    pub(super) fn is_available(self, value: Option<&Value>) -> bool {
        match (self, value) {
            (_, None) => false,
            (Self::Barrier(names), Some(seen)) => is_complete(names, seen),
            (Self::Sends, Some(sends)) => !sends.as_list().unwrap_or_default().is_empty(),
            (Self::State(_) | Self::Ephemeral | Self::Foreign, Some(_)) => true,
        }
    }

    /// The value after the channel was consumed by a superstep that did not write to it; `None` empties it.
    /// The outer `None` means that nothing changes.
    pub(super) fn after_consumption(self, value: &Value) -> Option<Option<Value>> {
        match self {
            Self::Ephemeral => Some(None),
            Self::Sends if self.is_available(Some(value)) => Some(Some(Value::list(Vec::new()))),
            Self::Barrier(_) | Self::Sends | Self::State(_) | Self::Foreign => None,
        }
    }

    /// The value after `writes`, in order. `seed` makes the ids of messages that come without one.
    pub(super) fn update(
        self,
        channel: &str,
        current: Option<Value>,
        writes: &[&Value],
        seed: &str,
    ) -> Result<Value, Error> {
        match self {
            Self::State(spec) => fold_all(spec, channel, current, writes, seed),
            Self::Ephemeral => Ok(writes.last().map_or(Value::Null, |value| (*value).clone())),
            Self::Foreign => Ok(writes.last().map_or(Value::Null, |value| (*value).clone())),
            Self::Sends => Ok(Value::list(writes.iter().map(|value| (*value).clone()).collect())),
            Self::Barrier(_) => {
                let mut seen = match current {
                    Some(Value::Set(seen)) => seen,
                    Some(_) | None => Arc::new(Vec::new()),
                };
                for name in writes {
                    if !seen.contains(name) {
                        Arc::make_mut(&mut seen).push((*name).clone());
                    }
                }
                Ok(Value::Set(seen))
            }
        }
    }
}

/// A join of `<a>+<b>` is complete when its set holds `a` and `b`.
fn is_complete(names: &str, seen: &Value) -> bool {
    let Value::Set(seen) = seen else { return false };
    names.split('+').all(|name| seen.iter().any(|held| held.as_str() == Some(name)))
}

fn fold_all(
    spec: &ChannelSpec,
    channel: &str,
    current: Option<Value>,
    writes: &[&Value],
    seed: &str,
) -> Result<Value, Error> {
    if spec.reducer == Reducer::LastValue {
        return match writes {
            [single] => Ok((*single).clone()),
            _ => Err(Error::SeveralValues(channel.into())),
        };
    }
    let unfoldable = |reason| Error::Unfoldable { channel: channel.into(), reason };
    let mut value = current.or_else(|| spec.default.clone());
    let mut is_overwritten = false;
    for (position, write) in writes.iter().enumerate() {
        let (held, write) = match overwriting(write) {
            Some(_) if is_overwritten => {
                return Err(unfoldable("two writes of one superstep replace it".into()));
            }
            Some(write) => {
                is_overwritten = true;
                (None, write)
            }
            // As in LangGraph: what its siblings wrote is replaced, too.
            None if is_overwritten => continue,
            None => (value.take(), *write),
        };
        let folded = fold_one(spec.reducer, held, write, &format!("{seed}|{position}"));
        value = Some(folded.map_err(unfoldable)?);
    }
    Ok(value.unwrap_or(Value::Null))
}

/// Whether `value` as a write would replace what a reducer holds; who is not trusted with that must not write it.
pub fn is_overwriting(value: &Value) -> bool {
    overwriting(value).is_some()
}

/// The value in a write that replaces what the reducer holds.
fn overwriting(write: &Value) -> Option<&Value> {
    let map = write.as_map().filter(|map| map.len() == 1)?;
    map.get(OVERWRITE)
}

fn fold_one(reducer: Reducer, current: Option<Value>, write: &Value, seed: &str) -> Result<Value, String> {
    match reducer {
        Reducer::LastValue | Reducer::Replace => Ok(write.clone()),
        Reducer::Messages => add_messages(current, write, seed),
        Reducer::Append => append(current, write),
        Reducer::Merge => merge(current, write),
        Reducer::Add => match current {
            None | Some(Value::Null) => number(write).map(|n| Value::Number(n.clone())),
            Some(current) => add(number(&current)?, number(write)?),
        },
        Reducer::Max => keep(current, write, Ordering::Less),
        Reducer::Min => keep(current, write, Ordering::Greater),
    }
}

fn append(current: Option<Value>, write: &Value) -> Result<Value, String> {
    let mut list = match current {
        None | Some(Value::Null) => Arc::new(Vec::new()),
        Some(Value::List(list)) => list,
        Some(_) => return Err("append needs a list in the channel".into()),
    };
    match write {
        Value::List(items) if list.is_empty() => return Ok(Value::List(items.clone())),
        Value::List(items) => Arc::make_mut(&mut list).extend(items.iter().cloned()),
        single => Arc::make_mut(&mut list).push(single.clone()),
    }
    Ok(Value::List(list))
}

fn merge(current: Option<Value>, write: &Value) -> Result<Value, String> {
    let updates = match write {
        Value::Map(updates) => updates,
        Value::Null => return Ok(current.unwrap_or(Value::Null)),
        _ => return Err("merge needs an object".into()),
    };
    let mut map = match current {
        None | Some(Value::Null) => Arc::default(),
        Some(Value::Map(map)) => map,
        Some(_) => return Err("merge needs an object in the channel".into()),
    };
    let held = Arc::make_mut(&mut map);
    for (key, value) in updates.iter() {
        if *value == Value::Null {
            held.shift_remove(key);
        } else {
            held.insert(key.clone(), value.clone());
        }
    }
    Ok(Value::Map(map))
}

fn number(value: &Value) -> Result<&Number, String> {
    match value {
        Value::Number(number) => Ok(number),
        _ => Err("a number is needed".into()),
    }
}

/// Integers stay integers while they fit 64 bits.
fn add(left: &Number, right: &Number) -> Result<Value, String> {
    if let (Some(left), Some(right)) = (left.as_i64(), right.as_i64()) {
        let sum = left.checked_add(right).ok_or("the sum does not fit 64 bits")?;
        return Ok(sum.into());
    }
    let sum = left.as_f64().unwrap_or_default() + right.as_f64().unwrap_or_default();
    Number::from_f64(sum).map(Value::Number).ok_or_else(|| "the sum is not a finite number".into())
}

/// The write replaces the current value when that compares to it as `replaced`.
fn keep(current: Option<Value>, write: &Value, replaced: Ordering) -> Result<Value, String> {
    let offered = number(write)?;
    let held = match &current {
        None | Some(Value::Null) => return Ok(write.clone()),
        Some(held) => number(held)?,
    };
    let order = match (held.as_i64(), offered.as_i64()) {
        (Some(held), Some(offered)) => held.cmp(&offered),
        _ => held.as_f64().unwrap_or_default().total_cmp(&offered.as_f64().unwrap_or_default()),
    };
    Ok(if order == replaced { write.clone() } else { current.unwrap_or(Value::Null) })
}

/// The state nodes see: declared channels with their values or defaults.
pub fn view(graph: &CompiledGraph, checkpoint: &Checkpoint) -> State {
    let channels = graph.channels.iter().filter_map(|(name, spec)| {
        let value = checkpoint.values.get(name).or(spec.default.as_ref())?;
        Some((name.clone(), value.clone()))
    });
    channels.collect()
}

/// The state a node sees right after its own `writes`; conditional edges decide on it.
pub fn fold(graph: &CompiledGraph, state: &State, writes: &[Write]) -> Result<State, Error> {
    let mut folded = state.clone();
    for (position, write) in writes.iter().enumerate() {
        let Some(spec) = graph.channels.get(&write.channel) else { continue };
        let current: Option<Value> = folded.get(&write.channel).cloned();
        let kind = Kind::State(spec);
        let value = kind.update(&write.channel, current, &[&write.value], &position.to_string())?;
        folded.insert(Name::clone(&write.channel), value);
    }
    Ok(folded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn folded(
        reducer: Reducer,
        current: serde_json::Value,
        writes: &[serde_json::Value],
    ) -> Result<serde_json::Value, Error> {
        let spec = ChannelSpec { reducer, default: None };
        let writes: Vec<Value> = writes.iter().cloned().map(Value::from).collect();
        let current = (!current.is_null()).then(|| Value::from(current));
        fold_all(&spec, "c", current, &writes.iter().collect::<Vec<_>>(), "s").map(|value| value.to_json())
    }

    #[test]
    fn each_reducer_folds_in_order() {
        use Reducer::{Add, Append, LastValue, Max, Merge, Min, Replace};
        assert_eq!(folded(LastValue, json!(1), &[json!(2)]), Ok(json!(2)));
        assert_eq!(folded(Replace, json!(1), &[json!(2), json!(3)]), Ok(json!(3)));
        assert_eq!(folded(LastValue, json!(1), &[json!(2), json!(3)]), Err(Error::SeveralValues("c".into())));
        assert_eq!(
            folded(Append, json!(["a"]), &[json!("b"), json!(["c", "d"])]),
            Ok(json!(["a", "b", "c", "d"]))
        );
        assert_eq!(
            folded(Merge, json!({"a": 1, "b": 1}), &[json!({"b": null, "c": 2})]),
            Ok(json!({"a": 1, "c": 2}))
        );
        assert_eq!(folded(Add, json!(1), &[json!(2), json!(0.5)]), Ok(json!(3.5)));
        assert_eq!(folded(Add, json!(null), &[json!(2)]), Ok(json!(2)));
        assert_eq!(folded(Max, json!(4), &[json!(2), json!(5)]), Ok(json!(5)));
        assert_eq!(folded(Min, json!(4), &[json!(2), json!(5)]), Ok(json!(2)));
        assert!(folded(Add, json!(1), &[json!("x")]).is_err());
        assert!(folded(Merge, json!(null), &[json!([1])]).is_err());
        assert!(folded(Add, json!(i64::MAX), &[json!(1)]).is_err());
    }

    #[test]
    fn a_write_that_overwrites_bypasses_the_reducer_and_its_siblings() {
        use Reducer::{Add, Append, Merge};
        let over = |value: serde_json::Value| json!({ "__overwrite__": value });
        let writes = [json!("b"), over(json!(["c"])), json!("d")];
        assert_eq!(folded(Append, json!(["a"]), &writes), Ok(json!(["c"])));
        assert_eq!(folded(Merge, json!({"a": 1}), &[over(json!({"b": 2}))]), Ok(json!({"b": 2})));
        assert_eq!(
            folded(Merge, json!({"a": 1}), &[json!({"b": 2, "__overwrite__": 3})]).expect("merged")["a"],
            1
        );
        assert_eq!(folded(Add, json!(1), &[over(json!(5))]), Ok(json!(5)));
        assert!(folded(Add, json!(1), &[over(json!("x"))]).is_err());
        assert!(folded(Append, json!([]), &[over(json!([])), over(json!([]))]).is_err());
    }

    #[test]
    fn a_join_is_complete_when_every_source_has_arrived() {
        let seen = |names: &[&str]| Value::Set(Arc::new(names.iter().map(|n| Value::from(*n)).collect()));
        assert!(!is_complete("a+b", &seen(&["a"])));
        assert!(is_complete("a+b", &seen(&["b", "a"])));
    }

    proptest! {
        #[test]
        fn appending_keeps_every_item_in_order(batches in prop::collection::vec(prop::collection::vec(0i64..100, 0..5), 0..6)) {
            let writes: Vec<_> = batches.iter().map(|batch| json!(batch)).collect();
            let flat: Vec<i64> = batches.concat();
            let result = folded(Reducer::Append, json!([]), &writes).expect("lists append");
            prop_assert_eq!(result, json!(flat));
        }
    }
}
