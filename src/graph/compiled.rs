//! The compiled graph: a petgraph of plain nodes with the channels they read and write.

use std::{collections::HashMap, sync::Arc};

use indexmap::IndexMap;
use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::Value as Json;

use super::{
    definition::{ModelSettings, ToolDefinition},
    expression::{Expression, Template},
};
use crate::value::{Name, Value};

/// A graph without mistakes, ready to run; shared by all runs of the same definition.
#[derive(Debug)]
pub struct CompiledGraph {
    /// The name of the definition, or of the specialist this graph is.
    pub name: Name,
    /// SHA-256 of the definition's canonical JSON, in hex.
    pub hash: Arc<str>,
    /// The declared channels: those of the definition and the built-in `messages`, `files`, `todos` where used.
    pub channels: IndexMap<Name, ChannelSpec>,
    /// Nodes and edges. START and END are not in it; what START leads to is in `start`.
    pub topology: DiGraph<Node, Edge>,
    /// Where START leads.
    pub start: Routes,
    /// Every node by name.
    pub by_name: HashMap<Name, NodeIndex>,
    /// Graphs that tools of this graph may delegate to, by the name the model uses.
    pub subagents: IndexMap<Name, Subagent>,
    /// Tools the definition brings along, by name.
    pub tools: Arc<IndexMap<Name, ToolDefinition>>,
    /// Most supersteps of one job; a job may ask for another number.
    pub recursion_limit: u32,
    /// Channels whose values are the output; empty means the text of the last AI message.
    pub output: Vec<Name>,
}

impl CompiledGraph {
    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.by_name.get(name).map(|index| &self.topology[*index])
    }

    /// All nodes, in the order of the definition.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.topology.node_weights()
    }
}

/// A channel of the state.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelSpec {
    /// How several writes become one value.
    pub reducer: Reducer,
    /// The value before the first write; `None` leaves the channel empty.
    pub default: Option<Value>,
}

/// How writes of a superstep are folded into a channel's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reducer {
    /// The write replaces the value; two writes in one superstep are an error.
    LastValue,
    /// The write replaces the value; of several in one superstep the last in task order stays.
    Replace,
    /// A list is appended item by item, another value as one item.
    Append,
    /// An object is merged key by key; a null value removes its key.
    Merge,
    /// Numbers are added.
    Add,
    /// The greatest number stays.
    Max,
    /// The least number stays.
    Min,
    /// LangGraph's `add_messages`: same id replaces, `remove` removes, others are appended.
    Messages,
}

/// A plain node.
#[derive(Debug)]
pub struct Node {
    /// Unique in its graph.
    pub name: Name,
    /// What running it means.
    pub kind: NodeKind,
    /// Channels whose news run the node: `branch:to:<node>` and one `join:<a>+<b>:<node>` per join, sorted.
    pub triggers: Vec<Name>,
    /// Where it leads when it has finished without sends.
    pub routes: Routes,
}

/// Where a node leads.
#[derive(Debug, Default)]
pub struct Routes {
    /// Trigger channels written whenever the node finishes: `branch:to:<target>`, or `join:…` with the
    /// node's own name as the value.
    pub always: Vec<Name>,
    /// Conditional edges; the first case that holds decides.
    pub branch: Option<Branch>,
}

/// The conditional edges that leave one node.
#[derive(Debug)]
pub struct Branch {
    /// Cases in the order of the definition.
    pub cases: Vec<Case>,
    /// The trigger channel written when no case holds; `None` leads to END.
    pub otherwise: Option<Name>,
}

/// One conditional edge.
#[derive(Debug)]
pub struct Case {
    /// When it is taken.
    pub when: Condition,
    /// The trigger channel it writes; `None` leads to END.
    pub target: Option<Name>,
}

/// When a conditional edge is taken.
#[derive(Debug)]
pub enum Condition {
    /// An expression over the state.
    Expression(Expression),
    /// `{"path","op","value"}`: one comparison.
    Compare {
        /// JSON pointer into the state.
        path: String,
        /// `eq`, `ne`, `lt`, `le`, `gt`, `ge`, `contains`, `exists`.
        op: Comparison,
        /// What is compared with.
        value: Value,
    },
    /// Every condition holds.
    All(Vec<Condition>),
    /// One condition holds.
    Any(Vec<Condition>),
    /// The condition does not hold.
    Not(Box<Condition>),
}

/// The comparison of a typed condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Comparison {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less than; numbers and texts.
    Lt,
    /// At most.
    Le,
    /// Greater than.
    Gt,
    /// At least.
    Ge,
    /// A list has the item, a text has the part, an object has the key.
    Contains,
    /// The path leads to a value that is not null.
    Exists,
}

/// An edge of the drawn graph; what runs is in [`Node::routes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Always taken.
    Static,
    /// Taken when its condition holds; the label is the condition's source, or `otherwise`.
    Conditional(String),
    /// Taken once all sources of the join have finished.
    Join,
    /// From a model to its tools, for each call it asks for.
    ToolCalls,
}

/// What running a node means.
#[derive(Debug)]
pub enum NodeKind {
    /// One model call; for agents, the half of the loop that asks for tools.
    Model(Box<ModelNode>),
    /// One tool call per task; the half of an agent's loop that answers.
    Tools(ToolsNode),
    /// Expressions that write channels.
    Transform(TransformNode),
}

/// One model call.
#[derive(Debug)]
pub struct ModelNode {
    /// Which model.
    pub model: Arc<ModelSettings>,
    /// Instructions, rendered over the state.
    pub system_prompt: Option<Template>,
    /// The user's turn, rendered over the state; when absent the channel `messages` is the conversation.
    pub prompt: Option<Template>,
    /// Tools the model may ask for, by name.
    pub tools: Vec<Name>,
    /// The node that answers its tool calls; `None` when it has no tools.
    pub tools_node: Option<Name>,
    /// JSON Schema the answer must satisfy; the answer is then a JSON value.
    pub output_schema: Option<Json>,
    /// The channel that gets the answer; `None` appends it to `messages`.
    pub writes: Option<Name>,
    /// Seconds one call may take.
    pub timeout_seconds: Option<f64>,
}

/// Tool calls of one agent; each task runs one of them.
#[derive(Debug)]
pub struct ToolsNode {
    /// The agent the calls come from; events carry its name.
    pub agent: Name,
    /// Tools that may be called, by name; `task` delegates to [`CompiledGraph::subagents`].
    pub tools: Vec<Name>,
}

/// Expressions that write channels.
#[derive(Debug)]
pub struct TransformNode {
    /// Channel and the expression whose value is written to it, in the order of the definition.
    pub writes: Vec<(Name, Expression)>,
}

/// A graph that a tool call may delegate to.
#[derive(Debug)]
pub struct Subagent {
    /// What the model is told about it.
    pub description: String,
    /// The graph that runs.
    pub graph: Arc<CompiledGraph>,
}
