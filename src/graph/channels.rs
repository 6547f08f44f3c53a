//! The channels of a graph: those it declares and those its form brings along.

use indexmap::IndexMap;
use serde_json::{Value as Json, json};

use super::{
    compiled::{ChannelSpec, Reducer},
    definition::{APPROVAL, ChannelDefinition, NodeWork, ROUTE},
    diagnostic::Diagnostic,
    json_schema::kind_of,
    lower::{self, BUILTIN_TOOLS},
    pointer::escape,
    read::Parts,
};
use crate::value::{MESSAGES, Name, Value};

/// The channel of a run's virtual files.
pub const FILES: &str = "files";
/// The channel of a run's list of what is left to do.
pub const TODOS: &str = "todos";

/// The channels of a graph by name.
#[derive(Debug)]
pub(super) struct Channels {
    pub(super) specs: IndexMap<Name, ChannelSpec>,
    /// Declared, but wrongly: other parts may name them.
    unread: Vec<String>,
}

impl Channels {
    /// The channels of those names; one that is not declared keeps one value.
    pub(super) fn only<'n>(&self, names: impl Iterator<Item = &'n str>) -> Self {
        let spec =
            |name: &str| self.specs.get(name).cloned().unwrap_or_else(|| spec(Reducer::LastValue, None));
        let messages = std::iter::once(MESSAGES);
        let specs = messages.chain(names).map(|name| (Name::from(name), spec(name)));
        Self { specs: specs.collect(), unread: Vec::new() }
    }

    /// What is wrong with `name` as the name of a channel, if anything.
    pub(super) fn check(&self, name: &str) -> Option<String> {
        if self.specs.contains_key(name) || self.unread.iter().any(|unread| unread == name) {
            return None;
        }
        let known = self.specs.keys().map(|name| &**name).chain(self.unread.iter().map(String::as_str));
        let known: Vec<_> = known.collect();
        Some(format!("unknown channel `{name}`; known: {}", known.join(", ")))
    }
}

/// The channels of the definition in `parts`.
pub(super) fn read(parts: &Parts, mistakes: &mut Vec<Diagnostic>) -> Channels {
    let mut specs = IndexMap::from_iter([(Name::from(MESSAGES), spec(Reducer::Messages, Some(json!([]))))]);
    let (has_files, has_todos) = uses_builtins(parts);
    if has_files {
        specs.insert(FILES.into(), spec(Reducer::Merge, Some(json!({}))));
    }
    if has_todos {
        // A model may write the list twice in one turn; that must not end the run.
        specs.insert(TODOS.into(), spec(Reducer::Replace, None));
    }
    for node in &parts.nodes {
        let brought = match &node.value.work {
            NodeWork::Router(router) if router.writes.is_none() => ROUTE,
            NodeWork::Approval(approval) if approval.writes.is_none() => APPROVAL,
            NodeWork::Router(_)
            | NodeWork::Approval(_)
            | NodeWork::Orchestrator(_)
            | NodeWork::Specialist(_)
            | NodeWork::Agent(_)
            | NodeWork::Model(_)
            | NodeWork::Transform(_)
            | NodeWork::Fail(_)
            | NodeWork::Map(_)
            | NodeWork::Subgraph(_)
            | NodeWork::Tool(_) => continue,
        };
        specs.insert(brought.into(), spec(Reducer::LastValue, None));
    }
    let mut unread = parts.unread_channels.clone();
    for (name, channel) in &parts.definition.value.channels {
        let pointer = format!("/channels/{}", escape(name));
        let place = |field: &str| parts.definition.place(&format!("{pointer}{field}"));
        match read_channel(name, channel, specs.get(name.as_str())) {
            Ok(spec) => {
                specs.insert(name.as_str().into(), spec);
            }
            Err((field, message)) => {
                unread.push(name.clone());
                mistakes.push(Diagnostic::new(place(field), message));
            }
        }
    }
    Channels { specs, unread }
}

fn spec(reducer: Reducer, default: Option<Json>) -> ChannelSpec {
    ChannelSpec { reducer, default: default.map(Value::from) }
}

/// Whether a node has tools that need the channel `files`, and `todos`.
fn uses_builtins(parts: &Parts) -> (bool, bool) {
    if lower::is_deep(parts) {
        return (true, true);
    }
    let works = || parts.nodes.iter().map(|node| &node.value.work);
    let of_agents = works().filter_map(NodeWork::agent).flat_map(|agent| &agent.tools).map(String::as_str);
    let by_themselves = works().filter_map(|work| {
        let NodeWork::Tool(node) = work else { return None };
        Some(node.tool.as_str())
    });
    let of_items = works().filter_map(|work| {
        let NodeWork::Map(map) = work else { return None };
        map.node.get("tool").or_else(|| map.node.pointer("/config/tool"))?.as_str()
    });
    let tools = of_agents.chain(by_themselves).chain(of_items);
    let (todos, files): (Vec<_>, Vec<_>) =
        tools.filter(|name| BUILTIN_TOOLS.contains(name)).partition(|name| *name == BUILTIN_TOOLS[0]);
    (!files.is_empty(), !todos.is_empty())
}

type Wrong = (&'static str, String);

fn read_channel(
    name: &str,
    channel: &ChannelDefinition,
    built_in: Option<&ChannelSpec>,
) -> Result<ChannelSpec, Wrong> {
    if let Some(message) = wrong_name(name) {
        return Err(("", message));
    }
    let wanted = match name {
        MESSAGES => Some(Reducer::Messages),
        FILES => Some(Reducer::Merge).filter(|_| built_in.is_some()),
        TODOS => Some(Reducer::Replace).filter(|_| built_in.is_some()),
        _ => None,
    };
    let reducer = channel.reducer.or(wanted).unwrap_or(Reducer::LastValue);
    if let Some(wanted) = wanted.filter(|wanted| *wanted != reducer) {
        return Err(("/reducer", format!("the channel `{name}` has the reducer {}", json!(wanted))));
    }
    let fits = |default: &Json| match reducer {
        Reducer::LastValue | Reducer::Replace => true,
        Reducer::Append => default.is_array(),
        Reducer::Merge => default.is_object(),
        Reducer::Add | Reducer::Max | Reducer::Min => default.is_number(),
        // Messages get their ids when a run begins, and a default has no run.
        Reducer::Messages => default.as_array().is_some_and(Vec::is_empty),
    };
    match &channel.default {
        Some(default) if !fits(default) => {
            let needed = match reducer {
                Reducer::LastValue | Reducer::Replace | Reducer::Append => "a list",
                Reducer::Merge => "an object",
                Reducer::Add | Reducer::Max | Reducer::Min => "a number",
                Reducer::Messages => "an empty list",
            };
            Err(("/default", format!("with this reducer it must be {needed}, is {}", kind_of(default))))
        }
        Some(default) => Ok(spec(reducer, Some(default.clone()))),
        None => Ok(spec(reducer, neutral(reducer))),
    }
}

/// What a channel starts with when its author says nothing: what changes no fold.
fn neutral(reducer: Reducer) -> Option<Json> {
    match reducer {
        Reducer::Append | Reducer::Messages => Some(json!([])),
        Reducer::Merge => Some(json!({})),
        Reducer::Add => Some(json!(0)),
        Reducer::LastValue | Reducer::Replace | Reducer::Max | Reducer::Min => None,
    }
}

/// What is wrong with a text as the name of a node or channel, if anything.
pub(super) fn wrong_name(name: &str) -> Option<String> {
    let reserved = name.starts_with("__") || ["START", "END"].contains(&name);
    if reserved {
        return Some(format!("the name `{name}` is reserved"));
    }
    if name.contains([':', '|']) {
        return Some(format!("the name `{name}` must not contain `:` or `|`"));
    }
    if name.is_empty() || name.trim() != name || name.chars().any(char::is_control) {
        return Some(
            "a name has at least one character, no control characters and no spaces at its ends".into(),
        );
    }
    None
}
