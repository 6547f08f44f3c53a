//! Definitions → plain nodes: an agent becomes a model node and a tools node, a deep agent's specialists become
//! graphs of their own.
//!
//! **Invariant:** every name a plain node carries (tool, channel, model) exists.

mod arguments;
mod map;
mod people;
mod policy;
mod subgraph;
mod summary;

pub(super) use policy::{Policies, compiled as compiled_retry, limits, read as policies};

use std::{collections::BTreeSet, sync::Arc};

use indexmap::IndexMap;

use super::{
    channels::Channels,
    compiled::{ModelNode, NodeKind, Pauses, SummaryNode, ToolsNode, TransformNode},
    definition::{
        AgentNode, CallNode, DEFAULT_MODEL, Effect, ExpressionsNode, ModelSettings, NodeDefinition, NodeWork,
        ToolDefinition,
    },
    diagnostic::Diagnostic,
    expression::{Expression, Template},
    json_schema::SharedSchema,
    mcp::McpName,
    nested::Nesting,
    read::{Parts, Placed},
    variables::Variables,
};
pub(super) use map::{ItemNode, targets};
use serde_json::Value as Json;

use crate::value::Name;
pub(super) use summary::node_name as summary_name;

/// Built-in tools on the run's virtual files and todos, in the order models see them.
pub const BUILTIN_TOOLS: [&str; 7] =
    ["write_todos", "ls", "read_file", "write_file", "edit_file", "glob", "grep"];
/// Built-in tools that only those agents have that name them: what they do depends on the operator.
pub const OFFERED_TOOLS: [&str; 1] = ["web_search"];
/// What stands before an effect class that names all tools of that class; no tool's name has a colon.
pub const EFFECT_CLASS: &str = "effect:";
/// The built-in tool that delegates to specialists; only orchestrators have it.
pub const TASK_TOOL: &str = "task";
/// The specialist every deep agent has beside its own.
pub const GENERAL_PURPOSE: &str = "general-purpose";

const GENERAL_PURPOSE_DESCRIPTION: &str = "For tasks of several steps that fit no other specialist. It has the same tools as you, and none of your \
     conversation: tell it everything it needs.";
const GENERAL_PURPOSE_PROMPT: &str = "You are given one task. Work on it on your own, with the tools you have, until it is done. Whoever gave it to \
     you reads nothing but your last message, so put everything they need to know into it.";

/// How often a model is told what is wrong with an answer: most models need one hint, and each costs a call.
const SCHEMA_RETRIES: u32 = 2;

/// A node of the flow, with the nodes behind it.
#[derive(Debug)]
pub(super) struct PlainNode {
    pub(super) name: Name,
    /// The author's pointer to it.
    pub(super) place: String,
    pub(super) kind: NodeKind,
    pub(super) tools: Option<(Name, ToolsNode)>,
    pub(super) summary: Option<(Name, SummaryNode)>,
    pub(super) pauses: Pauses,
}

impl PlainNode {
    /// A node without tools at which no run pauses.
    pub(super) fn new(name: Name, place: String, kind: NodeKind) -> Self {
        Self { name, place, kind, tools: None, summary: None, pauses: Pauses::default() }
    }
}

/// A specialist: a graph of one agent.
#[derive(Debug)]
pub(super) struct Specialist {
    pub(super) description: String,
    pub(super) node: PlainNode,
}

/// Whether `name` stands for all tools that change something in one way.
fn is_class(name: &str) -> bool {
    let class = name.strip_prefix(EFFECT_CLASS).and_then(Effect::parse);
    class.is_some_and(Effect::changes_something)
}

/// What a definition comes to.
#[derive(Debug)]
pub(super) struct Lowered {
    /// Nodes of the flow, in the order of the definition; their index is their place in it.
    pub(super) nodes: Vec<PlainNode>,
    /// What runs for the items of maps.
    pub(super) items: Vec<ItemNode>,
    pub(super) specialists: Vec<Specialist>,
}

/// Whether the definition is a deep agent: it has an orchestrator or specialists.
pub(super) fn is_deep(parts: &Parts) -> bool {
    let is_deep = |node: &Placed<NodeDefinition>| {
        matches!(node.value.work, NodeWork::Orchestrator(_) | NodeWork::Specialist(_))
    };
    parts.nodes.iter().any(is_deep)
}

/// Whether the nodes of type `specialist` are delegated to; without an orchestrator they are agents of the flow.
pub(super) fn delegates(parts: &Parts) -> bool {
    parts.nodes.iter().any(|node| matches!(node.value.work, NodeWork::Orchestrator(_)))
}

/// Whether a node is part of the flow.
pub(super) fn is_in_flow(node: &NodeDefinition, delegates: bool) -> bool {
    !(delegates && matches!(node.work, NodeWork::Specialist(_)))
}

/// Tools an agent has beside those it names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extras {
    None,
    Builtins,
    BuiltinsAndTask,
}

/// What nodes may name.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) tools: &'a IndexMap<Name, ToolDefinition>,
    pub(super) channels: &'a Channels,
    pub(super) variables: &'a Variables,
    pub(super) nesting: &'a Nesting<'a>,
}

/// Lowers the nodes of `parts`.
pub(super) fn lower(parts: &Parts, known: Known<'_>, mistakes: &mut Vec<Diagnostic>) -> Lowered {
    let Known { tools, channels, variables, nesting } = known;
    let mut lowering = Lowering { parts, tools, channels, variables, nesting, locals: &[], mistakes };
    let (delegates, targets) = (delegates(parts), targets(parts));
    let mut lowered = Lowered { nodes: Vec::new(), items: Vec::new(), specialists: Vec::new() };
    for node in parts.nodes.iter().filter(|node| !targets.contains(node.value.id())) {
        let place = |pointer: &str| node.place(pointer);
        let common = &node.value.common;
        let pauses = Pauses { before: common.interrupt_before, after: common.interrupt_after };
        let plain = match &node.value.work {
            NodeWork::Orchestrator(agent) => {
                lowering.agent(agent, &common.id, &place, Extras::BuiltinsAndTask)
            }
            NodeWork::Specialist(agent) if delegates => {
                let plain = lowering.agent(agent, &common.name, &place, Extras::Builtins);
                let description = common.description.clone().unwrap_or_else(|| common.name.clone());
                let node = PlainNode { pauses, ..plain };
                lowered.specialists.push(Specialist { description, node });
                continue;
            }
            NodeWork::Specialist(agent) => lowering.agent(agent, &common.id, &place, Extras::Builtins),
            NodeWork::Agent(agent) => lowering.agent(agent, &common.id, &place, Extras::None),
            NodeWork::Model(call) => lowering.call(call, &common.id, &place),
            NodeWork::Transform(node) => lowering.expressions(node, &common.id, &place),
            NodeWork::Router(node) => lowering.router(node, &common.id, &place),
            NodeWork::Approval(node) => lowering.approval(node, &common.id, &place),
            NodeWork::Fail(node) => lowering.fail(node, &common.id, &place),
            NodeWork::Map(map) => {
                let (plain, item) = lowering.map((map, lowered.nodes.len()), &common.id, &place);
                lowered.items.extend(item);
                plain
            }
            NodeWork::Subgraph(node) => lowering.subgraph(node, &common.id, &place),
            NodeWork::Tool(node) => lowering.tool(node, &common.id, &place),
        };
        lowered.nodes.push(PlainNode { pauses, ..plain });
    }
    let is_taken = lowered.specialists.iter().any(|specialist| &*specialist.node.name == GENERAL_PURPOSE);
    if delegates && !is_taken {
        lowered.specialists.extend(lowering.general_purpose());
    }
    lowered
}

type Place<'a> = &'a dyn Fn(&str) -> String;

struct Lowering<'a> {
    parts: &'a Parts,
    tools: &'a IndexMap<Name, ToolDefinition>,
    channels: &'a Channels,
    variables: &'a Variables,
    nesting: &'a Nesting<'a>,
    /// Names that are no channels but may be read all the same.
    locals: &'static [&'static str],
    mistakes: &'a mut Vec<Diagnostic>,
}

impl Lowering<'_> {
    fn wrong(&mut self, place: String, message: impl Into<String>) {
        self.mistakes.push(Diagnostic::new(place, message));
    }

    fn model(&self, own: Option<&ModelSettings>) -> Arc<ModelSettings> {
        let default =
            self.parts.definition.value.defaults.as_ref().and_then(|defaults| defaults.model.as_ref());
        Arc::new(own.or(default).cloned().unwrap_or_else(|| ModelSettings::parse(DEFAULT_MODEL)))
    }

    fn agent(&mut self, agent: &AgentNode, name: &str, place: Place<'_>, extras: Extras) -> PlainNode {
        let tools = self.agent_tools(&agent.tools, place, extras);
        let approvals = self.approvals(&agent.requires_approval, &tools, place);
        let is_literal = extras != Extras::None;
        let system_prompt = match &agent.system_prompt {
            // Prompts of deep agents may hold any text, code in braces included.
            Some(prompt) if is_literal => Some(Template::literal(prompt)),
            Some(prompt) => self.template(prompt, place("/system_prompt")),
            None => None,
        };
        let output_schema = self.answer(agent.output_schema.as_ref(), agent.writes.as_deref(), place);
        let mut model = ModelNode {
            model: self.model(agent.model.as_ref()),
            system_prompt,
            prompt: None,
            tools: Vec::new(),
            tools_node: None,
            summary: None,
            output_schema,
            schema_retries: agent.schema_retries.unwrap_or(SCHEMA_RETRIES),
            writes: agent.writes.as_deref().map(Name::from),
            keeps_answer: true,
        };
        let summary = self.summary(agent.summarize.as_ref(), &mut model, (name, place, extras));
        PlainNode { summary, ..plain_agent((name, place("")), model, tools, approvals) }
    }

    /// The orchestrator's model and tools, under a prompt of ours.
    fn general_purpose(&mut self) -> Option<Specialist> {
        let parts = self.parts;
        let (orchestrator, node) = parts.nodes.iter().find_map(|node| {
            let NodeWork::Orchestrator(agent) = &node.value.work else { return None };
            Some((agent, node))
        })?;
        let mut tools: Vec<Name> = Vec::new();
        let named = orchestrator.tools.iter().map(String::as_str).filter(|name| *name != TASK_TOOL);
        for name in named.chain(BUILTIN_TOOLS) {
            if !tools.iter().any(|known| **known == *name) {
                tools.push(name.into());
            }
        }
        let mut model = ModelNode {
            model: self.model(orchestrator.model.as_ref()),
            system_prompt: Some(Template::literal(GENERAL_PURPOSE_PROMPT)),
            prompt: None,
            tools: Vec::new(),
            tools_node: None,
            summary: None,
            output_schema: None,
            schema_retries: 0,
            writes: None,
            keeps_answer: true,
        };
        // What its orchestrator may not do alone it may not either; mistakes are those of the orchestrator.
        let named = orchestrator.requires_approval.iter().map(|name| Name::from(name.as_str()));
        let holds =
            |name: &Name| tools.contains(name) || is_class(name) || one_of_a_server(name, &tools).is_some();
        let approvals = named.filter(holds).chain(self.guarded(&tools)).collect();
        let place = |pointer: &str| node.place(pointer);
        let summary = orchestrator.summarize.as_ref();
        let summary = self.summary(summary, &mut model, (GENERAL_PURPOSE, &place, Extras::Builtins));
        let node =
            PlainNode { summary, ..plain_agent((GENERAL_PURPOSE, place("")), model, tools, approvals) };
        Some(Specialist { description: GENERAL_PURPOSE_DESCRIPTION.into(), node })
    }

    /// The tools an agent names, then those it has anyway; each once.
    fn agent_tools(&mut self, named: &[String], place: Place<'_>, extras: Extras) -> Vec<Name> {
        let mut tools: Vec<Name> = Vec::new();
        for (index, name) in named.iter().enumerate() {
            let is_known = self.tools.contains_key(name.as_str())
                || BUILTIN_TOOLS.contains(&name.as_str())
                || OFFERED_TOOLS.contains(&name.as_str())
                || self.parts.unread_tools.contains(name)
                || McpName::parse(name).is_some()
                || (name == TASK_TOOL && extras == Extras::BuiltinsAndTask);
            if !is_known {
                let mut known: BTreeSet<&str> = self.tools.keys().map(|name| &**name).collect();
                known.extend(BUILTIN_TOOLS);
                known.extend(OFFERED_TOOLS);
                known.extend((extras == Extras::BuiltinsAndTask).then_some(TASK_TOOL));
                let known = Vec::from_iter(known).join(", ");
                self.wrong(
                    place(&format!("/tools/{index}")),
                    format!("unknown tool `{name}`; known: {known}"),
                );
            } else if !tools.iter().any(|known| **known == **name) {
                tools.push(name.as_str().into());
            }
        }
        let builtins = if extras == Extras::None { &[][..] } else { &BUILTIN_TOOLS[..] };
        let task = (extras == Extras::BuiltinsAndTask).then_some(TASK_TOOL);
        for name in builtins.iter().copied().chain(task) {
            if !tools.iter().any(|known| **known == *name) {
                tools.push(name.into());
            }
        }
        tools
    }

    /// Which of an agent's `tools` a person must approve of: those it names, and those whose definition says so.
    fn approvals(&mut self, named: &[String], tools: &[Name], place: Place<'_>) -> Vec<Name> {
        let mut approvals = self.guarded(tools);
        for (index, name) in named.iter().enumerate() {
            let known = tools.iter().find(|tool| ***tool == **name).cloned();
            match known.or_else(|| one_of_a_server(name, tools)) {
                Some(tool) if !approvals.contains(&tool) => approvals.push(tool),
                Some(_) => {}
                None if is_class(name) => approvals.push(name.as_str().into()),
                None => {
                    let known = tools.iter().map(|name| &**name).collect::<Vec<_>>().join(", ");
                    let message = format!("`{name}` is no tool of this agent; its tools: {known}");
                    self.wrong(place(&format!("/requires_approval/{index}")), message);
                }
            }
        }
        approvals
    }

    fn guarded(&self, tools: &[Name]) -> Vec<Name> {
        let is_guarded = |name: &&Name| self.tools.get(*name).is_some_and(|tool| tool.requires_approval);
        tools.iter().filter(is_guarded).cloned().collect()
    }

    fn call(&mut self, call: &CallNode, id: &str, place: Place<'_>) -> PlainNode {
        let mut template = |text: &Option<String>, field: &str| {
            text.as_ref().and_then(|text| self.template(text, place(field)))
        };
        let system_prompt = template(&call.system_prompt, "/system_prompt");
        let prompt = template(&call.prompt, "/prompt");
        let output_schema = self.answer(call.output_schema.as_ref(), call.writes.as_deref(), place);
        let model = ModelNode {
            model: self.model(call.model.as_ref()),
            system_prompt,
            prompt,
            tools: Vec::new(),
            tools_node: None,
            summary: None,
            output_schema,
            schema_retries: call.schema_retries.unwrap_or(SCHEMA_RETRIES),
            writes: call.writes.as_deref().map(Name::from),
            keeps_answer: false,
        };
        let kind = NodeKind::Model(Box::new(model));
        PlainNode::new(id.into(), place(""), kind)
    }

    /// The schema of an answer; it and the channel that gets the answer are checked.
    fn answer(
        &mut self,
        schema: Option<&Json>,
        writes: Option<&str>,
        place: Place<'_>,
    ) -> Option<SharedSchema> {
        let schema = schema.cloned().map(SharedSchema::from);
        if let Some(Err(message)) = schema.as_ref().map(SharedSchema::compiled) {
            self.wrong(place("/output_schema"), message.to_owned());
        }
        self.check_channel(writes, place("/writes"));
        schema
    }

    fn check_channel(&mut self, name: Option<&str>, place: String) {
        if let Some(message) = name.and_then(|name| self.channels.check(name)) {
            self.wrong(place, message);
        }
    }

    fn expressions(&mut self, node: &ExpressionsNode, id: &str, place: Place<'_>) -> PlainNode {
        let mut writes = Vec::new();
        for (channel, source) in &node.writes {
            let place = place(&format!("/writes/{}", super::pointer::escape(channel)));
            self.check_channel(Some(channel), place.clone());
            let expression = self.expression(source, place);
            writes.extend(expression.map(|expression| (channel.as_str().into(), expression)));
        }
        PlainNode::new(id.into(), place(""), NodeKind::Transform(TransformNode { writes }))
    }

    /// Parses an expression over the state.
    fn expression(&mut self, source: &str, place: String) -> Option<Expression> {
        match Expression::parse(source) {
            Ok(expression) => {
                self.check_names(expression.names(), &place);
                Some(expression)
            }
            Err(error) => {
                self.wrong(place, format!("expression: {error}"));
                None
            }
        }
    }

    fn template(&mut self, source: &str, place: String) -> Option<Template> {
        match Template::parse(source) {
            Ok(template) => {
                let variables = self.variables;
                self.check_names(template.names().filter(|name| !variables.has(name)), &place);
                Some(template.with(&variables.values))
            }
            Err(error) => {
                self.wrong(place, format!("template: {error}"));
                None
            }
        }
    }

    fn check_names<'n>(&mut self, names: impl Iterator<Item = &'n str>, place: &str) {
        let names = names.filter(|name| !self.locals.contains(name));
        let wrong = names.filter_map(|name| self.channels.check(name)).collect::<Vec<_>>();
        self.mistakes.extend(wrong.into_iter().map(|message| Diagnostic::new(place, message)));
    }
}

/// The name of a server's tool, when `tools` has all tools of that server.
fn one_of_a_server(name: &str, tools: &[Name]) -> Option<Name> {
    let named = McpName::parse(name)?;
    let has_it = |tool: &Name| McpName::parse(tool).is_some_and(|tool| tool.covers(&named));
    tools.iter().any(has_it).then(|| name.into())
}

/// A model node, and the tools node behind it when it has tools.
fn plain_agent(
    (name, place): (&str, String),
    mut model: ModelNode,
    tools: Vec<Name>,
    approvals: Vec<Name>,
) -> PlainNode {
    let name = Name::from(name);
    let tools_node = (!tools.is_empty()).then(|| Name::from(format!("{name}.tools")));
    model.tools.clone_from(&tools);
    model.tools_node.clone_from(&tools_node);
    let tools = tools_node.map(|node| (node, ToolsNode { agent: Arc::clone(&name), tools, approvals }));
    PlainNode { tools, ..PlainNode::new(name, place, NodeKind::Model(Box::new(model))) }
}
