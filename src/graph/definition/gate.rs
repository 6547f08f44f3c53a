//! Gates: what a run must have passed before it may come to a node.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A gate that every way from START to a node passes. It is a conditional edge, or several with one label, that
/// leave one node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct Requirement {
    /// The node that decides.
    pub(in crate::graph) node: String,
    /// The edge that is taken when it lets pass: its `label`, or else its `when` as it is written.
    pub(in crate::graph) when: String,
    /// Other gates; passing one of all of them is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::graph) or: Vec<Gate>,
}

/// A gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::graph) struct Gate {
    /// The node that decides.
    pub(in crate::graph) node: String,
    /// The edge that is taken when it lets pass.
    pub(in crate::graph) when: String,
}

impl Requirement {
    /// The gates one of which must be passed, with the pointer to each inside of the requirement.
    pub(in crate::graph) fn gates(&self) -> Vec<(String, Gate)> {
        let own = Gate { node: self.node.clone(), when: self.when.clone() };
        let others = self.or.iter().cloned().enumerate();
        let others = others.map(|(index, gate)| (format!("/or/{index}"), gate));
        [(String::new(), own)].into_iter().chain(others).collect()
    }
}
