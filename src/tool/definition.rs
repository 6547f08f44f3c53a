//! What a tool's definition means and promises, and whether a model's arguments keep to it.

use serde_json::Value as Json;

use super::{check_http, cut, mcp};
use crate::{
    graph::{self, Effect, Schema, ToolDefinition},
    model::ToolSpec,
    value::{Map, map_to_json},
};

/// Problems of one call that are listed; a model corrects a few at a time.
const MAX_PROBLEMS: usize = 20;

/// What a call of an HTTP tool does outside: as its author says, or else as its method promises.
pub(super) fn effect_of(definition: &ToolDefinition, http: &graph::HttpTool) -> Effect {
    let method = http.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
    let by_method = match &*method {
        "GET" | "HEAD" => Effect::Read,
        "POST" | "PATCH" => Effect::Irreversible,
        _ => Effect::Idempotent,
    };
    definition.effect.unwrap_or(by_method)
}

/// How many things of a definition could answer a call.
pub(super) fn answerers(definition: &ToolDefinition) -> usize {
    let ToolDefinition { http, nats, runtime, .. } = definition;
    [http.is_some(), nats.is_some(), runtime.is_some()].into_iter().filter(|there| *there).count()
}

/// Every mistake in a tool's definition, as sentences; empty when there is none.
///
/// What depends on the operator's settings (hosts, secrets) is only known when the tool is called.
pub fn check_definition(definition: &ToolDefinition) -> Vec<String> {
    let mut mistakes = Vec::new();
    match answerers(definition) {
        0 => mistakes.push("it has neither http, nats nor runtime, so nothing can answer it".into()),
        1 => mistakes.extend(definition.http.iter().flat_map(check_http)),
        _ => mistakes.push("it has several of http, nats and runtime; keep one".into()),
    }
    mistakes.extend(definition.runtime.iter().flat_map(mcp::check));
    let subject = definition.nats.as_ref().and_then(graph::check_subject);
    mistakes.extend(subject.map(|why| format!("subject {why}")));
    if definition.timeout_seconds.is_some_and(|seconds| seconds.is_nan() || seconds <= 0.0) {
        mistakes.push("timeout_seconds must be above 0".into());
    }
    match &definition.parameters {
        Some(parameters @ Json::Object(_)) => {
            mistakes.extend(Schema::compile(parameters).err().map(|why| format!("parameters {why}")));
        }
        Some(_) => mistakes.push("parameters must be a JSON Schema, an object".into()),
        None => {}
    }
    mistakes
}

/// Checks a model's arguments against the tool's schema; the error lists what is wrong, for the model.
pub fn validate_args(spec: &ToolSpec, args: &Map) -> Result<(), String> {
    let schema = spec.parameters.compiled();
    let schema = schema.map_err(|why| format!("the schema of the arguments of '{}' {why}", spec.name))?;
    let problems = schema.check(&map_to_json(args));
    if problems.is_empty() {
        return Ok(());
    }
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    let mut text = format!("the arguments of '{}' are not valid:", spec.name);
    for problem in problems.iter().take(MAX_PROBLEMS) {
        text.push_str("\n- ");
        text.push_str(problem);
    }
    if more > 0 {
        text.push_str(&format!("\n- and {more} more"));
    }
    Err(cut(text))
}
