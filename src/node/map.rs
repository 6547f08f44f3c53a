//! The `map` node: one send for each item of a list.

use std::sync::Arc;

use super::{Error, TaskView};
use crate::{
    graph::MapNode,
    pregel::{SENDS, Write},
    value::{Map, Name, Send, Value},
};

/// The name of the item in what its task is sent.
const ITEM: &str = "item";
/// The name of its place in the list, from 0.
const INDEX: &str = "index";

pub(super) fn run(task: TaskView<'_>, node: &MapNode) -> Result<Vec<Write>, Error> {
    let wrong = |reason: String| Error::Expression { what: "items".into(), reason };
    let items = node.items.eval(task.state).map_err(|error| wrong(error.to_string()))?;
    let items = items.as_list().ok_or_else(|| wrong("the value is no list".into()))?;
    if items.len() > node.max_items {
        return Err(Error::TooManyItems { count: items.len(), limit: node.max_items });
    }
    let send = |(index, item): (usize, &Value)| {
        let index = Value::from(i64::try_from(index).unwrap_or(i64::MAX));
        let send = Send { node: node.node.clone(), arg: Value::map([(ITEM, item.clone()), (INDEX, index)]) };
        Write::new(SENDS, Value::Send(Arc::new(send)))
    };
    Ok(items.iter().enumerate().map(send).collect())
}

/// What stands in the channel of a map's errors for the item that `sent` names.
pub fn item_error(sent: Option<&Map>, code: &str, message: &str) -> Value {
    let part = |name: &str| sent.and_then(|sent| sent.get(name)).cloned().unwrap_or(Value::Null);
    let error = Value::map([("type", Value::from(code)), ("message", Value::from(message))]);
    let pairs: [(Name, Value); 3] =
        [(INDEX.into(), part(INDEX)), (ITEM.into(), part(ITEM)), ("error".into(), error)];
    Value::list(vec![Value::map(pairs)])
}
