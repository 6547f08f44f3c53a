//! A `tool` node → its tool and its arguments, made of expressions and templates.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::{BUILTIN_TOOLS, Lowering, OFFERED_TOOLS, Place, PlainNode, TASK_TOOL};
use crate::{
    graph::{
        compiled::{Argument, NodeKind, ToolNode},
        definition::{ToolCallNode, ToolDefinition},
        expression::Expression,
        mcp::McpName,
        pointer::escape,
    },
    value::{Name, Value},
};

impl Lowering<'_> {
    pub(super) fn tool(&mut self, node: &ToolCallNode, id: &str, place: Place<'_>) -> PlainNode {
        self.check_tool(&node.tool, place("/tool"));
        self.check_channel(node.writes.as_deref(), place("/writes"));
        let mut arguments = Vec::new();
        for (name, json) in &node.arguments {
            let argument = self.argument(json, place(&format!("/arguments/{}", escape(name))));
            arguments.extend(argument.map(|argument| (Name::from(name.as_str()), argument)));
        }
        let (tool, writes) = (node.tool.as_str().into(), node.writes.as_deref().map(Name::from));
        let kind = NodeKind::Tool(ToolNode { tool, arguments, writes });
        PlainNode::new(id.into(), place(""), kind)
    }

    fn check_tool(&mut self, name: &str, place: String) {
        if name == TASK_TOOL && !self.tools.contains_key(name) {
            let message =
                "`task` is an orchestrator's way to delegate; to run another graph use a `subgraph`";
            self.wrong(place, message);
            return;
        }
        let is_set = self.tools.get(name).is_some_and(ToolDefinition::is_set);
        let mcp = McpName::parse(name);
        if is_set || mcp.is_some_and(|name| name.tool.is_none()) {
            let message =
                format!("`{name}` stands for the tools of a server; name one, as `mcp:server/tool`");
            self.wrong(place, message);
            return;
        }
        let is_known = mcp.is_some()
            || self.tools.contains_key(name)
            || BUILTIN_TOOLS.contains(&name)
            || OFFERED_TOOLS.contains(&name)
            || self.parts.unread_tools.iter().any(|unread| unread == name);
        if !is_known {
            let mut known: BTreeSet<&str> = self.tools.keys().map(|name| &**name).collect();
            known.extend(BUILTIN_TOOLS);
            known.extend(OFFERED_TOOLS);
            let known = Vec::from_iter(known).join(", ");
            self.wrong(place, format!("unknown tool `{name}`; known: {known}"));
        }
    }

    /// An argument, or a part of one. The depth of definitions is limited, and so is this.
    fn argument(&mut self, json: &Json, place: String) -> Option<Argument> {
        match json {
            Json::String(source) => match only_expression(source) {
                Some(expression) => {
                    self.check_names(expression.names(), &place);
                    Some(Argument::Expression(expression))
                }
                None => self.template(source, place).map(Argument::Text),
            },
            Json::Array(items) => {
                let items = items.iter().enumerate();
                let items = items.map(|(index, item)| self.argument(item, format!("{place}/{index}")));
                // Every part is looked at, so that all mistakes are found.
                items.collect::<Vec<_>>().into_iter().collect::<Option<_>>().map(Argument::List)
            }
            Json::Object(fields) => {
                let fields = fields.iter().map(|(name, field)| {
                    let argument = self.argument(field, format!("{place}/{}", escape(name)));
                    argument.map(|argument| (Name::from(name.as_str()), argument))
                });
                fields.collect::<Vec<_>>().into_iter().collect::<Option<_>>().map(Argument::Map)
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => Some(Argument::Plain(Value::from(json.clone()))),
        }
    }
}

/// The expression of a text that is nothing but `{{ expression }}`.
fn only_expression(source: &str) -> Option<Expression> {
    let inner = source.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    Expression::parse(inner).ok()
}
