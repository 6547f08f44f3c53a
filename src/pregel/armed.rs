//! What a checkpoint is about to run, as far as can be told without its graph.

use std::collections::BTreeSet;

use super::{Checkpoint, SENDS, START};
use crate::{
    graph::Trigger,
    value::{Name, Value},
};

/// The nodes that `checkpoint` leads to: those whose trigger has been written and not consumed, joins that wait for
/// others included, and the targets of its sends.
pub fn armed(checkpoint: &Checkpoint) -> BTreeSet<Name> {
    let mut nodes = BTreeSet::new();
    for (channel, value) in &checkpoint.values {
        match Trigger::of(channel) {
            Some(Trigger::Branch(node)) => nodes.extend([Name::from(node)]),
            Some(Trigger::Join { node, .. }) => {
                // A join that was consumed keeps an empty set.
                let arrived = !matches!(value, Value::Set(names) if names.is_empty());
                nodes.extend(arrived.then(|| Name::from(node)));
            }
            None if &**channel == SENDS => {
                let sends = value.as_list().unwrap_or_default().iter();
                nodes.extend(sends.filter_map(|send| {
                    let Value::Send(send) = send else { return None };
                    Some(send.node.clone())
                }));
            }
            None if &**channel == START => nodes.extend([Name::from(START)]),
            None => {}
        }
    }
    nodes
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::value::Send;

    #[test]
    fn triggers_joins_and_sends_lead_somewhere_and_values_do_not() {
        let send = Value::Send(Arc::new(Send { node: "tools".into(), arg: Value::Null }));
        let values = [
            ("branch:to:a", Value::Null),
            ("join:a+b:c", Value::Set(Arc::new(vec!["a".into()]))),
            ("join:a+b:d", Value::Set(Arc::new(Vec::new()))),
            (SENDS, Value::list(vec![send])),
            ("log", Value::Null),
        ];
        let values = values.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let nodes = armed(&Checkpoint { values, ..Checkpoint::empty() });
        assert_eq!(nodes.iter().map(|node| &**node).collect::<Vec<_>>(), ["a", "c", "tools"]);
    }
}
