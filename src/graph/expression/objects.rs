//! The state as minijinja objects, converted only where an expression looks, and results back into values.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "plain values have no parts, and kinds of the engine that are no values are refused"
)]

use std::{fmt, sync::Arc};

use minijinja::{
    Error, ErrorKind, Value as Jinja,
    value::{Enumerator, Object, ObjectRepr, ValueKind},
};
use serde_json::Number;

use super::meter;
use crate::value::{Map, Message, Name, State, Value};

/// Deepest nesting of a result; JSON readers of ours stop at 128 levels.
const MAX_DEPTH: usize = 64;

/// A value of the state that an expression can look into.
#[derive(Debug)]
struct Wrapped(Value);

/// The state itself: names are channels, behind those that are fixed.
#[derive(Debug)]
struct Root(State, Arc<State>);

/// The object whose fields are the channels of `state`.
pub(super) fn root(state: &State) -> Jinja {
    root_with(state, &Arc::default())
}

/// The same with `fixed` names besides.
pub(super) fn root_with(state: &State, fixed: &Arc<State>) -> Jinja {
    Jinja::from_object(Root(state.clone(), Arc::clone(fixed)))
}

/// Whether the texts in `value` are charged when they are read.
pub(super) fn is_from_state(value: &Jinja) -> bool {
    value.downcast_object_ref::<Wrapped>().is_some()
}

impl Object for Root {
    fn get_value(self: &Arc<Self>, key: &Jinja) -> Option<Jinja> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Jinja> {
        self.1.get(key).or_else(|| self.0.get(key)).map(wrap)
    }
}

impl Object for Wrapped {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        match &self.0 {
            Value::List(_) | Value::Set(_) => ObjectRepr::Seq,
            Value::Map(_) | Value::Message(_) => ObjectRepr::Map,
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Bytes(_)
            | Value::Send(_)
            | Value::Interrupt(_)
            | Value::Opaque(_) => ObjectRepr::Plain,
        }
    }

    fn get_value(self: &Arc<Self>, key: &Jinja) -> Option<Jinja> {
        match &self.0 {
            Value::List(items) | Value::Set(items) => items.get(key.as_usize()?).map(wrap),
            Value::Map(map) => map.get(key.as_str()?).map(wrap),
            Value::Message(message) => field(message, key.as_str()?).as_ref().map(wrap),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let keys = |map: &Map| Enumerator::Values(map.keys().map(|key| Jinja::from(key.clone())).collect());
        match &self.0 {
            Value::List(items) | Value::Set(items) => Enumerator::Seq(items.len()),
            Value::Map(map) => keys(map),
            Value::Message(message) => keys(&message.fields()),
            _ => Enumerator::NonEnumerable,
        }
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        match &self.0 {
            Value::List(items) | Value::Set(items) => Some(items.len()),
            Value::Map(map) => Some(map.len()),
            Value::Message(message) => Some(message.fields().len()),
            _ => None,
        }
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `format!` panics when this fails, so an exhausted budget ends the evaluation a little later.
        if meter::charge(size(&self.0)).is_err() {
            return f.write_str("…");
        }
        // The same text `tojson` gives: what a model reads is JSON, not a debug form.
        match serde_json::to_string(&self.0) {
            Ok(json) => f.write_str(&json),
            Err(_) => f.write_str("…"),
        }
    }
}

/// Bytes of text in `value`, items counted as they are charged; stops soon after the budget is passed.
pub(super) fn size(value: &Value) -> u64 {
    let mut total = 0;
    add_size(value, meter::left(), &mut total);
    total
}

fn add_size(value: &Value, limit: u64, total: &mut u64) {
    *total += meter::ITEM;
    match value {
        Value::String(text) => *total += meter::bytes(text.len()),
        Value::Bytes(bytes) | Value::Opaque(bytes) => *total += meter::bytes(bytes.len()),
        Value::List(items) | Value::Set(items) => {
            items.iter().for_each(|item| bounded(item, limit, total));
        }
        Value::Map(map) => map.values().for_each(|item| bounded(item, limit, total)),
        Value::Message(message) => message.fields().values().for_each(|item| bounded(item, limit, total)),
        Value::Send(send) => bounded(&send.arg, limit, total),
        Value::Interrupt(interrupt) => bounded(&interrupt.value, limit, total),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn bounded(value: &Value, limit: u64, total: &mut u64) {
    if *total <= limit {
        add_size(value, limit, total);
    }
}

/// One field of a message, without making the others where that is easy.
fn field(message: &Message, name: &str) -> Option<Value> {
    match name {
        "content" => Some(message.content.to_value()),
        "type" => Some(message.type_name().into()),
        "id" => Some(Value::String(message.id.clone())),
        _ => message.fields().swap_remove(name),
    }
}

/// A value as the engine sees it; reading it is charged.
fn wrap(value: &Value) -> Jinja {
    let cost = match value {
        Value::String(text) => meter::bytes(text.len()),
        _ => meter::ITEM,
    };
    if let Err(error) = meter::charge(cost) {
        return Jinja::from(error);
    }
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(value) => Jinja::from(*value),
        Value::Number(number) => number_to_jinja(number),
        Value::String(text) => Jinja::from(text.clone()),
        Value::Bytes(_)
        | Value::List(_)
        | Value::Map(_)
        | Value::Message(_)
        | Value::Set(_)
        | Value::Send(_)
        | Value::Interrupt(_)
        | Value::Opaque(_) => Jinja::from_object(Wrapped(value.clone())),
    }
}

fn number_to_jinja(number: &Number) -> Jinja {
    let integer = number.as_i64().map(Jinja::from).or_else(|| number.as_u64().map(Jinja::from));
    integer.unwrap_or_else(|| Jinja::from(number.as_f64().unwrap_or(f64::NAN)))
}

/// The value of a result. What came from the state comes back as it was.
pub(super) fn to_value(value: &Jinja) -> Result<Value, Error> {
    unwrap(value, 0)
}

fn unwrap(value: &Jinja, depth: usize) -> Result<Value, Error> {
    if let Some(wrapped) = value.downcast_object_ref::<Wrapped>() {
        return Ok(wrapped.0.clone());
    }
    if depth > MAX_DEPTH {
        return Err(invalid("the result is nested too deeply"));
    }
    match value.kind() {
        ValueKind::None => Ok(Value::Null),
        ValueKind::Bool => Ok(Value::Bool(value.is_true())),
        ValueKind::Number => number_from_jinja(value),
        ValueKind::String => {
            meter::charge(1)?;
            Ok(Value::String(value.to_str().ok_or_else(|| invalid("the result is no text"))?))
        }
        ValueKind::Bytes => Ok(Value::Bytes(value.as_bytes().unwrap_or_default().to_vec().into())),
        ValueKind::Seq | ValueKind::Iterable => {
            meter::charge_value(value)?;
            let items = value.try_iter()?.map(|item| unwrap(&item, depth + 1));
            Ok(Value::list(items.collect::<Result<_, _>>()?))
        }
        ValueKind::Map => {
            meter::charge_value(value)?;
            let mut map = Map::new();
            for key in value.try_iter()? {
                let name = Name::from(key.as_str().ok_or_else(|| invalid("a key is no text"))?);
                map.insert(name, unwrap(&value.get_item(&key)?, depth + 1)?);
            }
            Ok(Value::Map(Arc::new(map)))
        }
        ValueKind::Undefined => Err(invalid("the result is undefined")),
        _ => Err(invalid("the result is no value")),
    }
}

fn number_from_jinja(value: &Jinja) -> Result<Value, Error> {
    if !value.is_integer() {
        let number = f64::try_from(value.clone())?;
        return Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| invalid("the result is no finite number"));
    }
    if let Ok(number) = i64::try_from(value.clone()) {
        return Ok(number.into());
    }
    let number = u64::try_from(value.clone()).map_err(|_| invalid("the result does not fit in 64 bits"))?;
    Ok(Value::Number(number.into()))
}

fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}
