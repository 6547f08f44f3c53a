//! The tools a definition brings along, checked.

use std::{sync::LazyLock, time::Duration};

use indexmap::IndexMap;
use regex::Regex;
use serde_json::Value as Json;

use super::{
    definition::{HeaderValue, HttpTool, NatsTool, RetryDefinition, RetryOn, ToolDefinition},
    diagnostic::Diagnostic,
    expression::Template,
    json_schema::Schema,
    lower::{BUILTIN_TOOLS, TASK_TOOL, compiled_retry},
    mcp,
    pointer::escape,
    policy::{Retry, seconds},
    read::{Parts, Placed},
};
use crate::value::Name;

/// The one way to write a secret: whole and unchanged, so that it is recognised when a server sends it back.
pub static SECRET: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\{\{-?\s*secrets\.([A-Za-z0-9_]+)\s*-?\}\}").expect("the pattern is constant and tested")
});

/// Longest subject of a tool; far longer ones are mistakes, and brokers refuse lines of 4 KiB.
const MAX_SUBJECT_BYTES: usize = 255;

/// The names of the secrets that the template of a header inserts.
pub fn secret_names(template: &str) -> Vec<String> {
    SECRET.captures_iter(template).map(|found| found[1].to_owned()).collect()
}

/// The names of the secrets that a header names.
pub(super) fn secrets_of(value: &HeaderValue) -> Vec<String> {
    match value {
        HeaderValue::Template(template) => secret_names(template),
        HeaderValue::Secret(named) => vec![named.secret.clone()],
    }
}

/// The tools of the definition in `parts`, by name.
pub(super) fn read(parts: &Parts, mistakes: &mut Vec<Diagnostic>) -> IndexMap<Name, ToolDefinition> {
    let mut tools = IndexMap::new();
    for tool in &parts.tools {
        check(tool, mistakes);
        let name = Name::from(tool.value.name.as_str());
        if tools.contains_key(&name) {
            mistakes.push(Diagnostic::new(tool.place("/name"), format!("a second tool is called `{name}`")));
            continue;
        }
        tools.insert(name, tool.value.clone());
    }
    tools
}

fn check(tool: &Placed<ToolDefinition>, mistakes: &mut Vec<Diagnostic>) {
    let mut wrong = |part: &str, message: String| mistakes.push(Diagnostic::new(tool.place(part), message));
    let ToolDefinition { name, parameters, http, nats, runtime, .. } = &tool.value;
    if BUILTIN_TOOLS.contains(&name.as_str()) || name == TASK_TOOL {
        wrong("/name", format!("`{name}` is the name of a built-in tool"));
    }
    if let Some(parameters) = parameters {
        let of_objects = parameters.get("type").is_none_or(|kind| kind == "object");
        match Schema::compile(parameters) {
            Err(message) => wrong("/parameters", message),
            Ok(_) if !of_objects => wrong("/parameters/type", "the arguments of a tool are an object".into()),
            Ok(_) => {}
        }
    }
    match [http.is_some(), nats.is_some(), runtime.is_some()].into_iter().filter(|there| *there).count() {
        0 => wrong(
            "",
            "needs the field `http` or `nats`, a request, or `runtime`, a script or an MCP server".into(),
        ),
        1 => {}
        _ => wrong("", "a tool has one of `http`, `nats` and `runtime`".into()),
    }
    for (pointer, source) in http.iter().flat_map(templates) {
        if let Err(error) = Template::parse(source) {
            wrong(&format!("/http{pointer}"), format!("template: {error}"));
        }
    }
    if let Some(message) = nats.as_ref().and_then(check_subject) {
        wrong("/nats/subject", message);
    }
    for (part, message) in runtime.iter().flat_map(|runtime| mcp::mistakes(&tool.value, runtime)) {
        wrong(&format!("/runtime{part}"), message);
    }
}

/// What is wrong with a tool's subject, whatever the operator allows.
pub fn check_subject(nats: &NatsTool) -> Option<String> {
    let subject = nats.subject.as_str();
    if subject.is_empty() || subject.len() > MAX_SUBJECT_BYTES {
        return Some(format!("must have 1 to {MAX_SUBJECT_BYTES} bytes"));
    }
    if subject.split('.').any(str::is_empty)
        || subject.contains(|c: char| c.is_control() || c.is_whitespace())
    {
        return Some("must be words joined by dots, without white space".into());
    }
    if subject.contains(['*', '>']) {
        return Some("must not have wildcards: a tool is one subject".into());
    }
    let reserved = subject.starts_with('$') || subject == "_INBOX" || subject.starts_with("_INBOX.");
    reserved.then(|| "must not be a subject of NATS itself (`$…`, `_INBOX.…`)".into())
}

impl ToolDefinition {
    /// When its calls are made again; `None` leaves it to the node.
    pub fn retry(&self) -> Option<Retry> {
        let retry = self.retry.as_ref()?;
        let retry_on = retry.retry_on.clone().unwrap_or_else(|| vec![RetryOn::Timeout, RetryOn::ToolError]);
        Some(compiled_retry(&RetryDefinition { retry_on: Some(retry_on), ..retry.clone() }))
    }

    /// The longest that one of its calls may take.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout_seconds.map(seconds)
    }
}

/// Every template of a request, with its pointer.
fn templates(http: &HttpTool) -> Vec<(String, &str)> {
    let mut found = vec![("/url".to_owned(), http.url.as_str())];
    found.extend(http.headers.iter().filter_map(|(name, value)| match value {
        HeaderValue::Template(template) => Some((format!("/headers/{}", escape(name)), template.as_str())),
        HeaderValue::Secret(_) => None,
    }));
    if let Some(body) = &http.body {
        collect("/body", body, &mut found);
    }
    found
}

fn collect<'a>(pointer: &str, json: &'a Json, found: &mut Vec<(String, &'a str)>) {
    match json {
        Json::String(text) => found.push((pointer.to_owned(), text)),
        Json::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, item)| collect(&format!("{pointer}/{index}"), item, found));
        }
        Json::Object(map) => {
            map.iter().for_each(|(key, value)| collect(&format!("{pointer}/{}", escape(key)), value, found));
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}
