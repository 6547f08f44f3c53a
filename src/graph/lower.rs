//! Definitions → plain nodes: an agent becomes a model node and a tools node, a deep agent's specialists become
//! graphs of their own.
//!
//! **Invariant:** every name a plain node carries (tool, channel, model) exists.

use std::{collections::BTreeSet, sync::Arc};

use indexmap::IndexMap;

use super::{
    channels::Channels,
    compiled::{ModelNode, NodeKind, ToolsNode, TransformNode},
    definition::{
        AgentNode, CallNode, DEFAULT_MODEL, ExpressionsNode, ModelSettings, NodeDefinition, ToolDefinition,
    },
    diagnostic::Diagnostic,
    expression::{Expression, Template},
    json_schema::Schema,
    read::{Parts, Placed},
};
use crate::value::Name;

/// Built-in tools on the run's virtual files and todos, in the order models see them.
pub const BUILTIN_TOOLS: [&str; 7] =
    ["write_todos", "ls", "read_file", "write_file", "edit_file", "glob", "grep"];
/// The built-in tool that delegates to specialists; only orchestrators have it.
pub const TASK_TOOL: &str = "task";
/// The specialist every deep agent has beside its own.
pub const GENERAL_PURPOSE: &str = "general-purpose";

const GENERAL_PURPOSE_DESCRIPTION: &str = "For tasks of several steps that fit no other specialist. It has the same tools as you, and none of your \
     conversation: tell it everything it needs.";
const GENERAL_PURPOSE_PROMPT: &str = "You are given one task. Work on it on your own, with the tools you have, until it is done. Whoever gave it to \
     you reads nothing but your last message, so put everything they need to know into it.";

/// A node of the flow, with the tools node behind it.
#[derive(Debug)]
pub(super) struct PlainNode {
    pub(super) name: Name,
    /// The author's pointer to it.
    pub(super) place: String,
    pub(super) kind: NodeKind,
    pub(super) tools: Option<(Name, ToolsNode)>,
}

/// A specialist: a graph of one agent.
#[derive(Debug)]
pub(super) struct Specialist {
    pub(super) description: String,
    pub(super) node: PlainNode,
}

/// What a definition comes to.
#[derive(Debug)]
pub(super) struct Lowered {
    /// Nodes of the flow, in the order of the definition; their index is their place in it.
    pub(super) nodes: Vec<PlainNode>,
    pub(super) specialists: Vec<Specialist>,
}

/// Whether the definition is a deep agent: it has an orchestrator or specialists.
pub(super) fn is_deep(parts: &Parts) -> bool {
    let is_deep = |node: &Placed<NodeDefinition>| {
        matches!(node.value, NodeDefinition::Orchestrator(_) | NodeDefinition::Specialist(_))
    };
    parts.nodes.iter().any(is_deep)
}

/// Whether the nodes of type `specialist` are delegated to; without an orchestrator they are agents of the flow.
pub(super) fn delegates(parts: &Parts) -> bool {
    parts.nodes.iter().any(|node| matches!(node.value, NodeDefinition::Orchestrator(_)))
}

/// Whether a node is part of the flow.
pub(super) fn is_in_flow(node: &NodeDefinition, delegates: bool) -> bool {
    !(delegates && matches!(node, NodeDefinition::Specialist(_)))
}

/// Tools an agent has beside those it names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extras {
    None,
    Builtins,
    BuiltinsAndTask,
}

/// Lowers the nodes of `parts`.
pub(super) fn lower(
    parts: &Parts,
    tools: &IndexMap<Name, ToolDefinition>,
    channels: &Channels,
    mistakes: &mut Vec<Diagnostic>,
) -> Lowered {
    let mut lowering = Lowering { parts, tools, channels, mistakes };
    let delegates = delegates(parts);
    let mut lowered = Lowered { nodes: Vec::new(), specialists: Vec::new() };
    for node in &parts.nodes {
        let place = |pointer: &str| node.place(pointer);
        match &node.value {
            NodeDefinition::Orchestrator(agent) => {
                lowered.nodes.push(lowering.agent(agent, &agent.id, &place, Extras::BuiltinsAndTask));
            }
            NodeDefinition::Specialist(agent) if delegates => {
                let plain = lowering.agent(agent, &agent.name, &place, Extras::Builtins);
                let description = agent.description.clone().unwrap_or_else(|| agent.name.clone());
                lowered.specialists.push(Specialist { description, node: plain });
            }
            NodeDefinition::Specialist(agent) => {
                lowered.nodes.push(lowering.agent(agent, &agent.id, &place, Extras::Builtins));
            }
            NodeDefinition::Agent(agent) => {
                lowered.nodes.push(lowering.agent(agent, &agent.id, &place, Extras::None));
            }
            NodeDefinition::Model(call) => lowered.nodes.push(lowering.call(call, &place)),
            NodeDefinition::Transform(node) => lowered.nodes.push(lowering.expressions(node, &place)),
        }
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
        let is_literal = extras != Extras::None;
        let system_prompt = match &agent.system_prompt {
            // Prompts of deep agents may hold any text, code in braces included.
            Some(prompt) if is_literal => Some(Template::literal(prompt)),
            Some(prompt) => self.template(prompt, place("/system_prompt")),
            None => None,
        };
        let model = ModelNode {
            model: self.model(agent.model.as_ref()),
            system_prompt,
            prompt: None,
            tools: Vec::new(),
            tools_node: None,
            output_schema: None,
            writes: None,
            timeout_seconds: agent.timeout_seconds,
        };
        plain_agent(name, place(""), model, tools)
    }

    /// The orchestrator's model and tools, under a prompt of ours.
    fn general_purpose(&mut self) -> Option<Specialist> {
        let parts = self.parts;
        let (orchestrator, node) = parts.nodes.iter().find_map(|node| match &node.value {
            NodeDefinition::Orchestrator(agent) => Some((agent, node)),
            NodeDefinition::Specialist(_)
            | NodeDefinition::Agent(_)
            | NodeDefinition::Model(_)
            | NodeDefinition::Transform(_) => None,
        })?;
        let mut tools: Vec<Name> = Vec::new();
        let named = orchestrator.tools.iter().map(String::as_str).filter(|name| *name != TASK_TOOL);
        for name in named.chain(BUILTIN_TOOLS) {
            if !tools.iter().any(|known| **known == *name) {
                tools.push(name.into());
            }
        }
        let model = ModelNode {
            model: self.model(orchestrator.model.as_ref()),
            system_prompt: Some(Template::literal(GENERAL_PURPOSE_PROMPT)),
            prompt: None,
            tools: Vec::new(),
            tools_node: None,
            output_schema: None,
            writes: None,
            timeout_seconds: orchestrator.timeout_seconds,
        };
        let node = plain_agent(GENERAL_PURPOSE, node.place(""), model, tools);
        Some(Specialist { description: GENERAL_PURPOSE_DESCRIPTION.into(), node })
    }

    /// The tools an agent names, then those it has anyway; each once.
    fn agent_tools(&mut self, named: &[String], place: Place<'_>, extras: Extras) -> Vec<Name> {
        let mut tools: Vec<Name> = Vec::new();
        for (index, name) in named.iter().enumerate() {
            let is_known = self.tools.contains_key(name.as_str())
                || BUILTIN_TOOLS.contains(&name.as_str())
                || self.parts.unread_tools.contains(name)
                || (name == TASK_TOOL && extras == Extras::BuiltinsAndTask);
            if !is_known {
                let mut known: BTreeSet<&str> = self.tools.keys().map(|name| &**name).collect();
                known.extend(BUILTIN_TOOLS);
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

    fn call(&mut self, call: &CallNode, place: Place<'_>) -> PlainNode {
        let mut template = |text: &Option<String>, field: &str| {
            text.as_ref().and_then(|text| self.template(text, place(field)))
        };
        let system_prompt = template(&call.system_prompt, "/system_prompt");
        let prompt = template(&call.prompt, "/prompt");
        if let Some(schema) = &call.output_schema
            && let Err(message) = Schema::compile(schema)
        {
            self.wrong(place("/output_schema"), message);
        }
        if let Some(message) = call.writes.as_deref().and_then(|name| self.channels.check(name)) {
            self.wrong(place("/writes"), message);
        }
        let model = ModelNode {
            model: self.model(call.model.as_ref()),
            system_prompt,
            prompt,
            tools: Vec::new(),
            tools_node: None,
            output_schema: call.output_schema.clone(),
            writes: call.writes.as_deref().map(Name::from),
            timeout_seconds: call.timeout_seconds,
        };
        PlainNode {
            name: call.id.as_str().into(),
            place: place(""),
            kind: NodeKind::Model(Box::new(model)),
            tools: None,
        }
    }

    fn expressions(&mut self, node: &ExpressionsNode, place: Place<'_>) -> PlainNode {
        let mut writes = Vec::new();
        for (channel, source) in &node.writes {
            let place = place(&format!("/writes/{}", super::json_schema::escape(channel)));
            if let Some(message) = self.channels.check(channel) {
                self.wrong(place.clone(), message);
            }
            match Expression::parse(source) {
                Ok(expression) => {
                    self.check_names(expression.names(), &place);
                    writes.push((channel.as_str().into(), expression));
                }
                Err(error) => self.wrong(place, format!("expression: {error}")),
            }
        }
        PlainNode {
            name: node.id.as_str().into(),
            place: place(""),
            kind: NodeKind::Transform(TransformNode { writes }),
            tools: None,
        }
    }

    fn template(&mut self, source: &str, place: String) -> Option<Template> {
        match Template::parse(source) {
            Ok(template) => {
                self.check_names(template.names(), &place);
                Some(template)
            }
            Err(error) => {
                self.wrong(place, format!("template: {error}"));
                None
            }
        }
    }

    fn check_names<'n>(&mut self, names: impl Iterator<Item = &'n str>, place: &str) {
        let wrong = names.filter_map(|name| self.channels.check(name)).collect::<Vec<_>>();
        self.mistakes.extend(wrong.into_iter().map(|message| Diagnostic::new(place, message)));
    }
}

/// A model node, and the tools node behind it when it has tools.
fn plain_agent(name: &str, place: String, mut model: ModelNode, tools: Vec<Name>) -> PlainNode {
    let name = Name::from(name);
    let tools_node = (!tools.is_empty()).then(|| Name::from(format!("{name}.tools")));
    model.tools.clone_from(&tools);
    model.tools_node.clone_from(&tools_node);
    let tools = tools_node.map(|node| (node, ToolsNode { agent: Arc::clone(&name), tools }));
    PlainNode { name, place, kind: NodeKind::Model(Box::new(model)), tools }
}
