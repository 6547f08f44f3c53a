//! The tools a definition brings along, checked.

use std::sync::LazyLock;

use indexmap::IndexMap;
use regex::Regex;
use serde_json::Value as Json;

use super::{
    definition::{HttpTool, ToolDefinition},
    diagnostic::Diagnostic,
    expression::Template,
    json_schema::{Schema, escape},
    lower::{BUILTIN_TOOLS, TASK_TOOL},
    read::{Parts, Placed},
};
use crate::value::Name;

/// The one way to write a secret: whole and unchanged, so that it is recognised when a server sends it back.
pub static SECRET: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\{\{-?\s*secrets\.([A-Za-z0-9_]+)\s*-?\}\}").expect("the pattern is constant and tested")
});

/// The names of the secrets that the template of a header inserts.
pub fn secret_names(template: &str) -> Vec<String> {
    SECRET.captures_iter(template).map(|found| found[1].to_owned()).collect()
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
    let ToolDefinition { name, parameters, http, runtime, .. } = &tool.value;
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
    match (http, runtime) {
        (Some(_), Some(_)) => wrong("", "a tool has `http` or `runtime`, not both".into()),
        (None, None) => wrong("", "needs the field `http`, a request, or `runtime`, a script".into()),
        (Some(http), None) => {
            for (pointer, source) in templates(http) {
                if let Err(error) = Template::parse(source) {
                    wrong(&format!("/http{pointer}"), format!("template: {error}"));
                }
            }
        }
        (None, Some(_)) => {}
    }
}

/// Every template of a request, with its pointer.
fn templates(http: &HttpTool) -> Vec<(String, &str)> {
    let mut found = vec![("/url".to_owned(), http.url.as_str())];
    found.extend(
        http.headers.iter().map(|(name, value)| (format!("/headers/{}", escape(name)), value.as_str())),
    );
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
