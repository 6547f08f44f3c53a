//! What the tools answer, over a few files.

mod edit;
mod files;
mod search;
mod todos;

use expect_test::{Expect, expect};
use serde_json::json;

use super::*;
use crate::{ids::UnixNanos, tool::validate_args, value::State};

const NOON: UnixNanos = UnixNanos(1_800_000_000_000_000_000);

fn state(json: Json) -> State {
    Value::from(json).as_map().expect("an object").clone()
}

fn files() -> State {
    let file = |lines: &[&str], day: u8| json!({"content": lines, "created_at": "2026-01-01", "modified_at": format!("2026-01-0{day}")});
    state(json!({"files": {
        "/readme.md": file(&["# Title", "", "see notes (draft)"], 3),
        "/notes/a.md": file(&["alpha", "beta", "alpha beta", ""], 5),
        "/notes/deep/b.py": file(&["import os", "print('alpha')"], 4),
        "/empty.txt": file(&[""], 1),
    }}))
}

fn run(name: &str, state: &State, args: Json) -> Answer {
    let args = Value::from(args).as_map().expect("an object").clone();
    let call = Call { id: "call_1", args: &args, state, now: NOON, idempotency_key: "key", limit: None };
    let tool = builtin(name).expect("a built-in tool");
    futures::executor::block_on(tool.call(call))
}

fn check(name: &str, args: Json, expected: Expect) {
    let answer = run(name, &files(), args);
    let mut text = format!("{}\n{}\n", answer.status.as_str(), answer.content);
    for (channel, value) in &answer.writes {
        text.push_str(&format!("{channel} <- {}\n", value.to_json()));
    }
    expected.assert_eq(&text);
}

#[test]
fn every_builtin_has_its_name_and_a_schema_of_exact_parameters() {
    let signature = |name: &str| {
        let tool = builtin(name).expect("listed");
        let spec = tool.spec();
        assert_eq!(&*spec.name, name);
        let properties = spec.parameters.json()["properties"].as_object().expect("an object");
        let names: Vec<&str> = properties.keys().map(String::as_str).collect();
        format!("{name}({})", names.join(", "))
    };
    let signatures: Vec<String> = BUILTINS.iter().map(|name| signature(name)).collect();
    expect![[r#"
        write_todos(todos)
        ls(path)
        read_file(file_path, offset, limit)
        write_file(file_path, content)
        edit_file(file_path, old_string, new_string, replace_all)
        glob(pattern, path)
        grep(pattern, path, glob, output_mode)"#]]
    .assert_eq(&signatures.join("\n"));
    assert!(builtin("task").is_none() && builtin("execute").is_none());
}

#[test]
fn arguments_of_any_type_are_answered() {
    let odd =
        [json!(null), json!(true), json!(-1), json!(1e300), json!("…"), json!([[1]]), json!({"a": null})];
    for name in BUILTINS {
        let properties = builtin(name).expect("listed").spec().parameters.json()["properties"].clone();
        for key in properties.as_object().expect("an object").keys() {
            for value in &odd {
                let mut args =
                    json!({"file_path": "/readme.md", "pattern": "*", "content": "", "old_string": "a"});
                args[key] = value.clone();
                run(name, &files(), args);
            }
        }
        assert_eq!(run(name, &state(json!({"files": [1], "todos": 1})), json!({})).writes, Vec::new());
    }
}

#[test]
fn schemas_refuse_what_is_wrong_and_name_all_of_it() {
    let problems = |name: &str, args: Json| {
        let tool = builtin(name).expect("listed");
        validate_args(tool.spec(), Value::from(args).as_map().expect("an object")).err()
    };
    assert_eq!(problems("glob", json!({"pattern": "*", "path": null})), None);
    assert_eq!(problems("read_file", json!({"file_path": "/a", "offset": 3.0})), None);
    let text = problems("edit_file", json!({"file_path": 1, "old_string": "a", "replace_all": "yes"}))
        .expect("problems");
    for part in ["edit_file", "file_path", "new_string", "replace_all"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
