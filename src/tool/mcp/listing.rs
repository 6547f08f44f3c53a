//! The tools a server lists, as far as they can be called.
//!
//! **Invariant:** nothing of a listing has a secret in it that the server was given.

use std::{collections::HashSet, sync::Arc};

use rmcp::model::{Tool, ToolAnnotations};
use serde_json::Value as Json;

use crate::{
    graph::{Effect, SharedSchema},
    tool::{http::Redaction, shorten},
};

/// Most tools of one server. Models choose badly among a hundred; this is where a list is a mistake.
pub(super) const MAX_TOOLS: usize = 500;

/// Largest schema of one tool's arguments in bytes; it goes along with every call of the model.
const MAX_SCHEMA_BYTES: usize = 64 << 10;

/// Characters of what a model is told about one tool.
const MAX_DESCRIPTION_CHARS: usize = 8_000;

/// Tools that are named to whoever asks for one that is not there.
const MAX_NAMED: usize = 50;

/// What a server listed.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Listing {
    pub(super) tools: Vec<Arc<Listed>>,
    /// Names of those that cannot be called, without secrets, and why.
    unusable: Vec<(String, String)>,
}

/// A tool of a server.
#[derive(Debug, PartialEq)]
pub(super) struct Listed {
    /// The server's name for it.
    pub(super) name: String,
    pub(super) description: String,
    /// JSON Schema of its arguments.
    pub(super) parameters: SharedSchema,
    /// What a repeated call would do, as the server hints.
    pub(super) hinted: Effect,
}

impl Listing {
    /// What `tools` come to, of which only `allowed` may be used, or all if that is empty. A server may say a secret
    /// here as well.
    pub(super) fn of(tools: Vec<Tool>, allowed: &[String], redaction: &Redaction) -> Self {
        let mut listing = Self::default();
        let mut met = HashSet::new();
        for tool in tools {
            let name = tool.name.to_string();
            let is_allowed = allowed.is_empty() || allowed.contains(&name);
            if !is_allowed || !met.insert(name.clone()) {
                continue;
            }
            match listed(&tool, redaction) {
                Ok(tool) => listing.tools.push(Arc::new(tool)),
                Err(why) => {
                    let (name, why) = (redaction.apply(name), redaction.apply(why));
                    tracing::warn!(
                        tool = name,
                        why,
                        "a tool of an MCP server cannot be called and is left out"
                    );
                    listing.unusable.push((name, why));
                }
            }
        }
        listing
    }

    /// The tool that the server calls `name`.
    pub(super) fn get(&self, name: &str) -> Option<&Arc<Listed>> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    /// Why there is no tool called `name`, behind a sentence that says so.
    pub(super) fn why_not(&self, name: &str) -> String {
        if let Some((_, why)) = self.unusable.iter().find(|(unusable, _)| unusable == name) {
            return format!(": {why}");
        }
        let known: Vec<_> = self.tools.iter().take(MAX_NAMED).map(|tool| tool.name.as_str()).collect();
        let more = if self.tools.len() > MAX_NAMED { ", …" } else { "" };
        format!("; its tools: {}{more}", known.join(", "))
    }
}

/// A tool without secrets; fails with why it cannot be called.
fn listed(tool: &Tool, redaction: &Redaction) -> Result<Listed, String> {
    let has_secret = |text: &str| redaction.apply(text.to_owned()) != text;
    // Without the secret it would be another name, which the server does not know.
    if has_secret(&tool.name) {
        return Err("its name has a secret in it".to_owned());
    }
    let parameters = Json::Object((*tool.input_schema).clone());
    let text = parameters.to_string();
    let size = text.len();
    if size > MAX_SCHEMA_BYTES {
        return Err(format!(
            "the schema of its arguments has {size} bytes, at most {MAX_SCHEMA_BYTES} are allowed"
        ));
    }
    if has_secret(&text) {
        return Err("the schema of its arguments has a secret in it".to_owned());
    }
    let parameters = SharedSchema::from(parameters);
    parameters.compiled().map_err(|why| format!("the schema of its arguments {why}"))?;
    let described = tool.description.as_deref().filter(|text| !text.trim().is_empty());
    let described = described.or(tool.title.as_deref()).unwrap_or_default();
    Ok(Listed {
        name: tool.name.to_string(),
        description: shorten(redaction.apply(described.to_owned()), MAX_DESCRIPTION_CHARS),
        parameters,
        hinted: hinted(tool.annotations.as_ref()),
    })
}

/// What the hints come to; without any a call may do everything, as the protocol says.
fn hinted(annotations: Option<&ToolAnnotations>) -> Effect {
    let says = |hint: fn(&ToolAnnotations) -> Option<bool>| annotations.and_then(hint) == Some(true);
    if says(|hints| hints.read_only_hint) {
        Effect::Read
    } else if says(|hints| hints.idempotent_hint) {
        Effect::Idempotent
    } else {
        Effect::Irreversible
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tool(json: Json) -> Tool {
        serde_json::from_value(json).expect("a tool")
    }

    #[test]
    fn hints_say_what_a_call_does_and_silence_is_everything() {
        let effect = |annotations: Json| {
            let tool =
                tool(json!({"name": "t", "inputSchema": {"type": "object"}, "annotations": annotations}));
            hinted(tool.annotations.as_ref())
        };
        assert_eq!(effect(json!({"readOnlyHint": true})), Effect::Read);
        assert_eq!(effect(json!({"readOnlyHint": false, "idempotentHint": true})), Effect::Idempotent);
        assert_eq!(effect(json!({"destructiveHint": false})), Effect::Irreversible);
        assert_eq!(effect(Json::Null), Effect::Irreversible);
    }

    #[test]
    fn what_cannot_be_called_is_left_out_and_says_why() {
        let schema = |schema: Json| json!({"name": "bad", "inputSchema": schema});
        let good = json!({"name": "good", "title": "Good", "inputSchema": {"type": "object"}});
        let none = Redaction::with(None);
        let why = |bad: Json| {
            let listing = Listing::of(vec![tool(good.clone()), tool(bad)], &[], &none);
            assert_eq!(listing.tools.len(), 1);
            assert_eq!(listing.get("good").map(|tool| tool.description.as_str()), Some("Good"));
            listing.why_not("bad")
        };
        let large = json!({"type": "object", "description": "x".repeat(MAX_SCHEMA_BYTES)});
        assert!(why(schema(large)).contains("at most 65536"));
        assert!(
            why(schema(json!({"type": 1})))
                .starts_with(": the schema of its arguments is no valid JSON Schema")
        );
        let again = json!({"name": "good", "title": "Again", "inputSchema": {"type": "object"}});
        assert_eq!(why(again), "; its tools: good");
        let allowed = Listing::of(vec![tool(good.clone())], &["other".into()], &none);
        assert_eq!(allowed, Listing::default());
    }
}
