//! The compiled graph: a petgraph of plain nodes with the channels they read and write.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use indexmap::IndexMap;
use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::Value as Json;

use super::{
    definition::{ModelSettings, ToolDefinition},
    expression::{Expression, Template},
    json_schema::SharedSchema,
    policy::{CallLimits, Policy},
};
use crate::value::{Name, State, Value};

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
    /// Variables of the definition that have a value; prompts hold them already.
    pub variables: Arc<State>,
    /// Variables that must be filled in before it can run.
    pub unset: BTreeSet<Name>,
    /// Most supersteps of one job; a job may ask for another number.
    pub recursion_limit: u32,
    /// What else one job may do.
    pub limits: CallLimits,
    /// The author's version of the definition.
    pub version: Option<Arc<str>>,
    /// Channels whose values are the output; empty means the text of the last AI message.
    pub output: Vec<Name>,
    /// What that text begins with when the run has failed, whatever else it did.
    pub failure_mark: Option<Name>,
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
    /// What every way to it passes, as people read it; checked when the graph was compiled.
    pub gates: Vec<String>,
    /// Whether runs stop at it.
    pub pauses: Pauses,
    /// How it runs for the items of a map; `None` when edges lead to it.
    pub items: Option<ItemRules>,
    /// What is done when it fails, and how long it may take.
    pub policy: Policy,
}

impl Node {
    /// A node that leads nowhere, has no gates and no policy, and at which no run pauses.
    pub(super) fn plain(name: Name, kind: NodeKind, triggers: Vec<Name>) -> Self {
        let (routes, gates, pauses) = (Routes::default(), Vec::new(), Pauses::default());
        Self { name, kind, triggers, routes, gates, pauses, items: None, policy: Policy::default() }
    }
}

/// Whether runs stop at a node until a job continues them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pauses {
    /// Before it runs.
    pub before: bool,
    /// After it has run.
    pub after: bool,
}

/// How a node runs for the items of a map.
#[derive(Debug)]
pub struct ItemRules {
    /// Tasks that run at the same time.
    pub max_concurrency: Option<usize>,
    /// The channel that collects failed items; a failure fails the run when there is none.
    pub errors: Option<Name>,
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
    /// What its author calls it, or else its condition.
    pub label: String,
}

/// When a conditional edge is taken.
#[derive(Clone, Debug)]
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
    /// From a map to the node that runs for each of its items.
    Items,
    /// Taken when the node has failed for good.
    OnError,
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
    /// A model call that replaces the older messages of an agent's conversation by a summary.
    Summary(Box<SummaryNode>),
    /// A model's choice of where to go on.
    Router(Box<RouterNode>),
    /// A person's answer.
    Approval(Box<ApprovalNode>),
    /// The end of the job as failed.
    Fail(FailNode),
    /// Sends the items of a list to a node.
    Map(MapNode),
    /// Where the items of a map come together; does nothing.
    Gather,
    /// A graph with a state of its own.
    Subgraph(SubgraphNode),
    /// One tool call without a model.
    Tool(ToolNode),
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
    /// Who shortens the conversation first when it has grown too long.
    pub summary: Option<Handover>,
    /// JSON Schema the answer must satisfy; the answer is then a JSON value.
    pub output_schema: Option<SharedSchema>,
    /// How often a wrong answer is corrected.
    pub schema_retries: u32,
    /// The channel that gets the answer; `None` appends it to `messages`.
    pub writes: Option<Name>,
    /// Whether the answer is appended to `messages` even if a channel gets it: the conversation of an agent.
    pub keeps_answer: bool,
}

/// To whom a model node hands over instead of calling its model.
#[derive(Clone, Debug)]
pub struct Handover {
    /// The node that summarises; it leads back.
    pub node: Name,
    /// When.
    pub limits: SummaryLimits,
}

/// When a conversation is summarised, and what stays of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SummaryLimits {
    /// Tokens of the conversation above which it is.
    pub trigger_tokens: u64,
    /// Newest messages that stay.
    pub keep_messages: usize,
}

/// One model call that summarises a conversation.
#[derive(Debug)]
pub struct SummaryNode {
    /// The agent whose conversation it is; its events carry this name.
    pub agent: Name,
    /// Which model.
    pub model: Arc<ModelSettings>,
    /// Instructions, rendered over the state.
    pub prompt: Template,
    /// What stays.
    pub limits: SummaryLimits,
}

/// Tool calls of one agent; each task runs one of them.
#[derive(Debug)]
pub struct ToolsNode {
    /// The agent the calls come from; events carry its name.
    pub agent: Name,
    /// Tools that may be called, by name; `task` delegates to [`CompiledGraph::subagents`].
    pub tools: Vec<Name>,
    /// Those whose calls a person must approve of.
    pub approvals: Vec<Name>,
}

/// Expressions that write channels.
#[derive(Debug)]
pub struct TransformNode {
    /// Channel and the expression whose value is written to it, in the order of the definition.
    pub writes: Vec<(Name, Expression)>,
}

/// A model's choice of where to go on. Where each choice leads is in the node's conditional edges.
#[derive(Debug)]
pub struct RouterNode {
    /// The call; its `output_schema` is that of a choice.
    pub call: ModelNode,
    /// What the model is told about the targets, beside the call's own instructions.
    pub instructions: String,
    /// Least confidence of a choice.
    pub min_confidence: f64,
    /// Whether the node leads somewhere without a choice; otherwise the job fails then.
    pub has_otherwise: bool,
    /// The channel that gets `{target, confidence, reasoning}`.
    pub writes: Name,
}

/// A person's answer.
#[derive(Debug)]
pub struct ApprovalNode {
    /// What is asked, rendered over the state.
    pub question: Template,
    /// What is shown beside it.
    pub details: Option<Expression>,
    /// JSON Schema of the answer.
    pub response_schema: Option<Json>,
    /// How long to wait, and the answer when nobody has given one by then.
    pub deadline: Option<(Duration, Json)>,
    /// The channel that gets the answer.
    pub writes: Name,
}

/// The end of the job as failed.
#[derive(Debug)]
pub struct FailNode {
    /// The `type` of the error.
    pub code: String,
    /// The error in words, rendered over the state.
    pub message: Template,
}

/// Sends the items of a list to a node.
#[derive(Debug)]
pub struct MapNode {
    /// The list.
    pub items: Expression,
    /// The node that runs for each item.
    pub node: Name,
    /// Most items.
    pub max_items: usize,
}

/// A graph with a state of its own.
#[derive(Debug)]
pub struct SubgraphNode {
    /// The graph that runs.
    pub graph: Arc<CompiledGraph>,
    /// Channels of that graph and expressions over this graph's state.
    pub input: Vec<(Name, Expression)>,
    /// Channels of this graph and expressions over that graph's last state.
    pub output: Vec<(Name, Expression)>,
    /// The author's pointer to the definition, or to the reference that names it.
    pub place: String,
}

/// One tool call without a model.
#[derive(Debug)]
pub struct ToolNode {
    /// The tool.
    pub tool: Name,
    /// Its arguments, in the order of the definition.
    pub arguments: Vec<(Name, Argument)>,
    /// The channel that gets the answer.
    pub writes: Option<Name>,
}

/// An argument of a tool call, made from the state.
#[derive(Debug)]
pub enum Argument {
    /// The value of an expression.
    Expression(Expression),
    /// The text of a template.
    Text(Template),
    /// A value without texts in it.
    Plain(Value),
    /// A list of arguments.
    List(Vec<Argument>),
    /// A map of arguments.
    Map(Vec<(Name, Argument)>),
}

/// A graph that a tool call may delegate to.
#[derive(Debug)]
pub struct Subagent {
    /// What the model is told about it.
    pub description: String,
    /// The graph that runs.
    pub graph: Arc<CompiledGraph>,
}
