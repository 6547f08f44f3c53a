//! Tools every deep agent has: the virtual files and the todo list of the run.
//!
//! **Invariant:** they read the state and answer with writes; nothing outside the run is touched.
//! **Invariant:** whatever a model sends as arguments is an answer, never a panic.

mod edit;
mod files;
mod search;
mod todos;

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use serde_json::{Value as Json, json};

use super::{Answer, Call, SharedTool, Tool};
use crate::{
    graph::Effect,
    model::ToolSpec,
    value::{Map, Value},
};

/// The names of the built-in tools, in the order models are told of them.
pub const BUILTINS: &[&str] = &["write_todos", "ls", "read_file", "write_file", "edit_file", "glob", "grep"];

type Run = fn(&Call<'_>) -> Result<Answer, String>;

struct Builtin {
    spec: ToolSpec,
    run: Run,
}

#[async_trait]
impl Tool for Builtin {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    fn effect(&self) -> Effect {
        Effect::Pure
    }

    async fn call(&self, call: Call<'_>) -> Answer {
        (self.run)(&call).unwrap_or_else(|problem| Answer::error(format!("Error: {problem}")))
    }
}

/// The tools themselves. Nearly every graph has some: they are made once, and their schemas are compiled once.
static ALL: LazyLock<[SharedTool; 7]> = LazyLock::new(|| {
    [
        tool("write_todos", todos::write_todos, WRITE_TODOS, todos_parameters()),
        tool("ls", search::ls, LS, object(json!({"path": text_property(DIRECTORY)}), &[])),
        tool("read_file", edit::read_file, READ_FILE, read_parameters()),
        tool("write_file", edit::write_file, WRITE_FILE, write_parameters()),
        tool("edit_file", edit::edit_file, EDIT_FILE, edit_parameters()),
        tool("glob", search::glob, GLOB, glob_parameters()),
        tool("grep", search::grep, GREP, grep_parameters()),
    ]
});

fn tool(name: &str, run: Run, description: &str, parameters: Json) -> SharedTool {
    let spec = ToolSpec { name: name.into(), description: description.into(), parameters: parameters.into() };
    Arc::new(Builtin { spec, run })
}

/// The built-in tool called `name`; `None` when [`BUILTINS`] has no such name.
pub fn builtin(name: &str) -> Option<SharedTool> {
    ALL.iter().find(|tool| *tool.spec().name == *name).cloned()
}

const WRITE_TODOS: &str = "Saves the list of what is to be done for this task, replacing the former list. Use it \
    for work of three or more steps: write the plan first, keep the step you work on in_progress, and mark a step \
    completed as soon as it is done. Call it at most once per turn.";
const LS: &str = "Lists the files and directories directly in a directory, one path per line; directories end with a \
    slash.";
const READ_FILE: &str = "Shows a text file with line numbers. Reads 2000 lines from the start unless offset and limit \
    say otherwise; for long files read part by part.";
const WRITE_FILE: &str =
    "Creates a new text file. Fails when the file exists: change an existing file with edit_file.";
const EDIT_FILE: &str = "Replaces a text in a file. old_string must match the file exactly, white space included and \
    without the line numbers read_file shows, and must occur once unless replace_all is true. Read the file first.";
const GLOB: &str = "Finds files by a pattern such as *.md, **/*.py or /notes/**; * stays within a directory, ** crosses \
    directories. Answers with paths, last changed first.";
const GREP: &str =
    "Finds files whose text contains the pattern. The pattern is plain text, not a regular expression.";

const DIRECTORY: &str = "Absolute path of the directory; / when left out.";
const FILE: &str = "Absolute path of the file, like /notes/plan.md.";

fn object(properties: Json, required: &[&str]) -> Json {
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// A text that may be left out; models also say so with null.
fn text_property(description: &str) -> Json {
    json!({"type": ["string", "null"], "description": description})
}

fn todos_parameters() -> Json {
    let item = json!({
        "type": "object",
        "properties": {
            "content": {"type": "string", "description": "What is to be done."},
            "status": {"type": "string", "enum": todos::STATUSES}
        },
        "required": ["content", "status"]
    });
    object(json!({"todos": {"type": "array", "items": item, "description": "The whole list."}}), &["todos"])
}

fn read_parameters() -> Json {
    let properties = json!({
        "file_path": {"type": "string", "description": FILE},
        "offset": {"type": "integer", "minimum": 0, "default": 0, "description": "Lines to skip."},
        "limit": {"type": "integer", "minimum": 1, "default": edit::DEFAULT_READ_LINES, "description": "Most lines to show."}
    });
    object(properties, &["file_path"])
}

fn write_parameters() -> Json {
    let properties = json!({
        "file_path": {"type": "string", "description": FILE},
        "content": {"type": "string", "description": "The whole text of the file."}
    });
    object(properties, &["file_path", "content"])
}

fn edit_parameters() -> Json {
    let properties = json!({
        "file_path": {"type": "string", "description": FILE},
        "old_string": {"type": "string", "description": "The text to replace."},
        "new_string": {"type": "string", "description": "The text that takes its place."},
        "replace_all": {"type": "boolean", "default": false, "description": "Replace every occurrence."}
    });
    object(properties, &["file_path", "old_string", "new_string"])
}

fn glob_parameters() -> Json {
    let pattern =
        json!({"type": "string", "description": "The pattern; relative to path unless it starts with /."});
    object(json!({"pattern": pattern, "path": text_property(DIRECTORY)}), &["pattern"])
}

fn grep_parameters() -> Json {
    let properties = json!({
        "pattern": {"type": "string", "description": "The text to look for."},
        "path": text_property(DIRECTORY),
        "glob": text_property("Only files whose name matches, like *.py."),
        "output_mode": {
            "type": "string",
            "enum": ["files_with_matches", "content", "count"],
            "default": "files_with_matches",
            "description": "Show the paths, the matching lines, or how many lines match in each file."
        }
    });
    object(properties, &["pattern"])
}

fn text<'a>(args: &'a Map, key: &str) -> Result<&'a str, String> {
    optional_text(args, key)?.ok_or_else(|| format!("{key} is missing."))
}

fn optional_text<'a>(args: &'a Map, key: &str) -> Result<Option<&'a str>, String> {
    match args.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or_else(|| format!("{key} must be a text.")),
    }
}

fn integer(args: &Map, key: &str) -> Result<Option<u64>, String> {
    match args.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) if number.as_u64().is_some() => Ok(number.as_u64()),
        // Some models write 10.0; JSON Schema calls that an integer too.
        Some(Value::Number(number)) if number.as_f64().is_some_and(|n| n >= 0.0 && n.fract() == 0.0) => {
            Ok(number.as_f64().map(|n| n as u64))
        }
        Some(_) => Err(format!("{key} must be a whole number that is not negative.")),
    }
}

fn flag(args: &Map, key: &str) -> Result<bool, String> {
    match args.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(format!("{key} must be true or false.")),
    }
}

fn list<'a>(args: &'a Map, key: &str) -> Result<&'a [Value], String> {
    args.get(key).and_then(Value::as_list).ok_or_else(|| format!("{key} must be a list."))
}

#[cfg(test)]
mod tests;
