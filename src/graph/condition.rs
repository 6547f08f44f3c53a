//! Conditions of edges: read from a definition, decided over a state.

use std::{cmp::Ordering, fmt};

use serde_json::{Map as JsonMap, Value as Json};

use super::{
    compiled::{Comparison, Condition},
    diagnostic::Diagnostic,
    expression::{Error, Expression},
    json_schema::kind_of,
    pointer,
};
use crate::value::{State, Value};

const FORMS: &str = "a condition is an expression, or an object with `path`, `op` and `value`, or with one of `all`, \
                     `any` and `not`";
const COMPARISONS: &str = "`eq`, `ne`, `lt`, `le`, `gt`, `ge`, `contains` or `exists`";

impl Condition {
    /// Whether the condition holds over `state`.
    ///
    /// An expression holds by Jinja's rules, and fails on undefined names. A path that leads nowhere is null:
    /// it equals null, has no order and does not exist. Values of different types have no order.
    pub fn eval(&self, state: &State) -> Result<bool, Error> {
        match self {
            Self::Expression(expression) => expression.holds(state),
            Self::Compare { path, op, value } => Ok(compare(lookup(state, path).as_ref(), *op, value)),
            Self::All(all) => all.iter().try_fold(true, |held, next| Ok(held && next.eval(state)?)),
            Self::Any(any) => any.iter().try_fold(false, |held, next| Ok(held || next.eval(state)?)),
            Self::Not(inner) => Ok(!inner.eval(state)?),
        }
    }
}

/// The value a JSON pointer leads to; `-1` is the last item of a list.
fn lookup(state: &State, path: &str) -> Option<Value> {
    let mut parts = pointer::parts(path);
    let channel = state.get(&*parts.next()?)?.clone();
    parts.try_fold(channel, |value, part| match &value {
        Value::Map(map) => map.get(&*part).cloned(),
        Value::Message(message) => message.fields().swap_remove(&*part),
        Value::List(items) | Value::Set(items) => item(items, &part).cloned(),
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Bytes(_)
        | Value::Send(_)
        | Value::Interrupt(_)
        | Value::Opaque(_) => None,
    })
}

fn item<'a>(items: &'a [Value], part: &str) -> Option<&'a Value> {
    match part.strip_prefix('-') {
        Some(from_end) => items.len().checked_sub(from_end.parse().ok()?).and_then(|index| items.get(index)),
        None => items.get(part.parse::<usize>().ok()?),
    }
}

fn compare(found: Option<&Value>, op: Comparison, wanted: &Value) -> bool {
    let found = found.unwrap_or(&Value::Null);
    match op {
        Comparison::Eq => equal(found, wanted),
        Comparison::Ne => !equal(found, wanted),
        Comparison::Lt => order(found, wanted) == Some(Ordering::Less),
        Comparison::Le => order(found, wanted).is_some_and(Ordering::is_le),
        Comparison::Gt => order(found, wanted) == Some(Ordering::Greater),
        Comparison::Ge => order(found, wanted).is_some_and(Ordering::is_ge),
        Comparison::Contains => contains(found, wanted),
        Comparison::Exists => *found != Value::Null,
    }
}

/// Equality that does not tell `1` from `1.0`, as in JSON and Python.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => order(a, b) == Some(Ordering::Equal),
        (Value::List(a), Value::List(b)) => {
            a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| equal(a, b))
        }
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

fn order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
        },
        _ => None,
    }
}

fn contains(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::String(text), Value::String(part)) => text.contains(&**part),
        (Value::Map(map), Value::String(key)) => map.contains_key(key),
        (Value::List(items) | Value::Set(items), _) => items.iter().any(|item| equal(item, wanted)),
        _ => false,
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |conditions: &[Condition], word: &str| {
            let parts: Vec<_> = conditions.iter().map(|one| format!("({one})")).collect();
            parts.join(word)
        };
        match self {
            Self::Expression(expression) => f.write_str(expression.source()),
            Self::Compare { path, op: Comparison::Exists, .. } => write!(f, "{path} exists"),
            Self::Compare { path, op, value } => write!(f, "{path} {} {}", sign(*op), json(value)),
            Self::All(all) => f.write_str(&joined(all, " and ")),
            Self::Any(any) => f.write_str(&joined(any, " or ")),
            Self::Not(inner) => write!(f, "not ({inner})"),
        }
    }
}

fn json(value: &Value) -> String {
    value.to_json().to_string()
}

fn sign(comparison: Comparison) -> &'static str {
    match comparison {
        Comparison::Eq => "==",
        Comparison::Ne => "!=",
        Comparison::Lt => "<",
        Comparison::Le => "<=",
        Comparison::Gt => ">",
        Comparison::Ge => ">=",
        Comparison::Contains => "contains",
        Comparison::Exists => "exists",
    }
}

/// Reads a condition; `check_name` says what is wrong with the name of a channel, if anything.
///
/// `place` is the author's pointer to it. Every mistake is reported.
pub(super) fn read(
    json: &Json,
    place: &str,
    check_name: &dyn Fn(&str) -> Option<String>,
) -> Result<Condition, Vec<Diagnostic>> {
    let fail = |message: String| Err(vec![Diagnostic::new(place, message)]);
    match json {
        Json::String(source) => match Expression::parse(source) {
            Ok(expression) => {
                let wrong: Vec<_> = expression.names().filter_map(check_name).collect();
                if wrong.is_empty() {
                    return Ok(Condition::Expression(expression));
                }
                Err(wrong.into_iter().map(|message| Diagnostic::new(place, message)).collect())
            }
            Err(error) => fail(format!("expression: {error}")),
        },
        Json::Object(map) => read_object(map, place, check_name),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::Array(_) => {
            fail(format!("{FORMS}; this is {}", kind_of(json)))
        }
    }
}

fn read_object(
    map: &JsonMap<String, Json>,
    place: &str,
    check_name: &dyn Fn(&str) -> Option<String>,
) -> Result<Condition, Vec<Diagnostic>> {
    let fail = |message: &str| Err(vec![Diagnostic::new(place, message)]);
    let mut fields = map.iter();
    let (first, others) = (fields.next(), fields.next());
    match (first, others) {
        (Some((key, inner)), None) if key == "not" => {
            let inner = read(inner, &format!("{place}/not"), check_name)?;
            Ok(Condition::Not(Box::new(inner)))
        }
        (Some((key, Json::Array(items))), None) if key == "all" || key == "any" => {
            if items.is_empty() {
                return fail("needs at least one condition");
            }
            let (mut conditions, mut mistakes) = (Vec::new(), Vec::new());
            for (index, item) in items.iter().enumerate() {
                match read(item, &format!("{place}/{key}/{index}"), check_name) {
                    Ok(condition) => conditions.push(condition),
                    Err(more) => mistakes.extend(more),
                }
            }
            match (mistakes.is_empty(), key == "all") {
                (false, _) => Err(mistakes),
                (true, true) => Ok(Condition::All(conditions)),
                (true, false) => Ok(Condition::Any(conditions)),
            }
        }
        _ if map.contains_key("path") => read_comparison(map, place, check_name),
        _ => fail(FORMS),
    }
}

fn read_comparison(
    map: &JsonMap<String, Json>,
    place: &str,
    check_name: &dyn Fn(&str) -> Option<String>,
) -> Result<Condition, Vec<Diagnostic>> {
    let mut mistakes = Vec::new();
    let path = map.get("path").and_then(Json::as_str).unwrap_or_default();
    match pointer::parts(path).next() {
        None => mistakes.push(Diagnostic::new(
            format!("{place}/path"),
            "must be a JSON pointer such as `/channel/field`",
        )),
        Some(channel) => {
            let wrong = check_name(&channel);
            mistakes.extend(wrong.map(|message| Diagnostic::new(format!("{place}/path"), message)));
        }
    }
    let op = map.get("op").and_then(|op| serde_json::from_value::<Comparison>(op.clone()).ok());
    match map.get("op") {
        Some(_) if op.is_some() => {}
        Some(_) => mistakes.push(Diagnostic::new(format!("{place}/op"), format!("must be {COMPARISONS}"))),
        None => mistakes.push(Diagnostic::new(place, format!("needs the field `op`: {COMPARISONS}"))),
    }
    if !map.contains_key("value") && op.is_some_and(|op| op != Comparison::Exists) {
        mistakes.push(Diagnostic::new(place, "needs the field `value`"));
    }
    for key in map.keys().filter(|key| !["path", "op", "value"].contains(&key.as_str())) {
        mistakes.push(Diagnostic::new(
            format!("{place}/{key}"),
            format!("unknown field `{key}`; known: op, path, value"),
        ));
    }
    match op {
        Some(op) if mistakes.is_empty() => {
            let value = Value::from(map.get("value").cloned().unwrap_or_default());
            Ok(Condition::Compare { path: path.into(), op, value })
        }
        _ => Err(mistakes),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::value::{Message, Role};

    fn holds(condition: Json) -> Result<bool, String> {
        let Value::Map(map) = Value::from(json!({
            "n": 3, "f": 3.0, "name": "Ada", "none": null, "list": [1, {"a/b": "x"}],
        })) else {
            unreachable!("an object")
        };
        let mut state: State = (*map).clone();
        let message = Message::new("1", Role::Human, "hello");
        state.insert("messages".into(), Value::list(vec![message.into()]));
        let condition = read(&condition, "/when", &|_| None).map_err(|mistakes| mistakes[0].to_string())?;
        condition.eval(&state).map_err(|e| e.to_string())
    }

    #[test]
    fn typed_conditions_compare_what_pointers_lead_to() {
        for (condition, expected) in [
            (json!({"path": "/n", "op": "eq", "value": 3.0}), true),
            (json!({"path": "/f", "op": "eq", "value": 3}), true),
            (json!({"path": "/n", "op": "ne", "value": 3}), false),
            (json!({"path": "/n", "op": "lt", "value": 4}), true),
            (json!({"path": "/n", "op": "ge", "value": "3"}), false),
            (json!({"path": "/name", "op": "gt", "value": "AAA"}), true),
            (json!({"path": "/name", "op": "contains", "value": "d"}), true),
            (json!({"path": "/list", "op": "contains", "value": 1.0}), true),
            (json!({"path": "/list/-1/a~1b", "op": "eq", "value": "x"}), true),
            (json!({"path": "/list/9", "op": "exists"}), false),
            (json!({"path": "/none", "op": "exists"}), false),
            (json!({"path": "/missing/x", "op": "eq", "value": null}), true),
            (json!({"path": "/missing", "op": "le", "value": 1}), false),
            (json!({"path": "/messages/-1/content", "op": "eq", "value": "hello"}), true),
            (json!({"all": [{"path": "/n", "op": "exists"}, "n == 3"]}), true),
            (json!({"any": ["n == 4", {"not": "n == 4"}]}), true),
            (json!({"any": ["n == 4", "name == ''"]}), false),
        ] {
            assert_eq!(holds(condition.clone()), Ok(expected), "{condition}");
        }
    }

    #[test]
    fn conditions_that_are_none_say_why() {
        for (condition, part) in [
            (json!(7), "this is a number"),
            (json!({}), "a condition is"),
            (json!({"all": []}), "at least one"),
            (json!({"any": ["n ==", "n"]}), "/when/any/0: expression: does not parse"),
            (json!({"path": "n", "op": "eq", "value": 1}), "/when/path: must be a JSON pointer"),
            (json!({"path": "/n", "op": "is", "value": 1}), "/when/op: must be `eq`"),
            (json!({"path": "/n", "op": "eq"}), "needs the field `value`"),
            (json!({"path": "/n", "op": "exists", "x": 1}), "/when/x: unknown field"),
        ] {
            let error = holds(condition.clone()).expect_err("wrong");
            assert!(error.contains(part), "{condition}: {error}");
        }
    }
}
