use expect_test::{Expect, expect};
use serde_json::json;

use super::*;
use crate::{ids::UnixNanos, tool::validate_args, value::State, value::ToolStatus};

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
        let properties = spec.parameters["properties"].as_object().expect("an object");
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
fn a_file_is_shown_with_line_numbers() {
    check(
        "read_file",
        json!({"file_path": "notes/a.md"}),
        expect![[r#"
        success
             1	alpha
             2	beta
             3	alpha beta
    "#]],
    );
}

#[test]
fn a_part_of_a_file_says_how_to_go_on() {
    check(
        "read_file",
        json!({"file_path": "/notes/a.md", "offset": 1.0, "limit": 1}),
        expect![[r#"
        success
             2	beta
        [lines 2-2 of 3; go on with offset=2]
    "#]],
    );
}

#[test]
fn reading_past_the_end_nothing_and_no_file_is_said() {
    check(
        "read_file",
        json!({"file_path": "/notes/a.md", "offset": 3}),
        expect![[r#"
        error
        Error: offset 3 is past the end: the file has 3 lines.
    "#]],
    );
    check(
        "read_file",
        json!({"file_path": "/empty.txt"}),
        expect![[r#"
        success
        File '/empty.txt' exists but is empty.
    "#]],
    );
    check(
        "read_file",
        json!({"file_path": "/nope.txt"}),
        expect![[r#"
        error
        Error: File '/nope.txt' not found. Use ls or glob to see which files exist, or write_file to create it.
    "#]],
    );
    check(
        "read_file",
        json!({"file_path": "/a/../nope.txt"}),
        expect![[r#"
        error
        Error: '/a/../nope.txt' climbs out with '..': write the path from the root, like /notes/a.md.
    "#]],
    );
}

#[test]
fn a_long_line_goes_on_in_rows_of_its_own_and_a_long_file_stops_at_the_limit() {
    let text = vec!["x".repeat(5_001); 30].join("\n");
    let state = state(json!({"files": {"/long": text}}));
    let answer = run("read_file", &state, json!({"file_path": "/long"}));
    assert!(answer.content.starts_with("     1\txxx") && answer.content.contains("\n   1.1\tx\n"));
    assert!(
        answer.content.ends_with("[output limit reached; go on with offset=19]"),
        "{}",
        &answer.content[99_000..]
    );
    assert!(answer.content.chars().count() < super::super::MAX_RESULT_CHARS + 100);
}

#[test]
fn a_new_file_is_written_alone() {
    check(
        "write_file",
        json!({"file_path": "out//b.txt", "content": "one\ntwo\n"}),
        expect![[r#"
        success
        Wrote '/out/b.txt'.
        files <- {"/out/b.txt":{"content":["one","two",""],"created_at":"2027-01-15T08:00:00.000000+00:00","modified_at":"2027-01-15T08:00:00.000000+00:00"}}
    "#]],
    );
}

#[test]
fn an_existing_file_is_not_overwritten() {
    check(
        "write_file",
        json!({"file_path": "readme.md", "content": "x"}),
        expect![[r#"
        error
        Error: Cannot write to '/readme.md' because it already exists. Read it and change it with edit_file, or write to a new path.
    "#]],
    );
}

#[test]
fn an_edit_keeps_the_time_of_creation() {
    check(
        "edit_file",
        json!({"file_path": "/readme.md", "old_string": "# Title\n", "new_string": "# New\nline\n"}),
        expect![[r##"
            success
            Replaced the text in 1 place of '/readme.md'.
            files <- {"/readme.md":{"content":["# New","line","","see notes (draft)"],"created_at":"2026-01-01","modified_at":"2027-01-15T08:00:00.000000+00:00"}}
        "##]],
    );
}

#[test]
fn an_edit_must_be_unambiguous() {
    let args = |extra: Json| {
        let mut args = json!({"file_path": "/notes/a.md", "old_string": "alpha", "new_string": "gamma"});
        args.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        args
    };
    check(
        "edit_file",
        args(json!({})),
        expect![[r#"
        error
        Error: old_string appears 2 times in '/notes/a.md'. Set replace_all to true to replace all of them, or give more of the text around the one you mean: 'alpha'
    "#]],
    );
    check(
        "edit_file",
        args(json!({"replace_all": true})),
        expect![[r#"
        success
        Replaced the text in 2 places of '/notes/a.md'.
        files <- {"/notes/a.md":{"content":["gamma","beta","gamma beta",""],"created_at":"2026-01-01","modified_at":"2027-01-15T08:00:00.000000+00:00"}}
    "#]],
    );
    check(
        "edit_file",
        args(json!({"old_string": "delta"})),
        expect![[r#"
        error
        Error: old_string was not found in the file; it must match exactly, without line numbers: 'delta'
    "#]],
    );
    check(
        "edit_file",
        args(json!({"old_string": "gamma"})),
        expect![[r#"
        error
        Error: old_string and new_string are the same; nothing would change.
    "#]],
    );
    check(
        "edit_file",
        args(json!({"old_string": ""})),
        expect![[r#"
        error
        Error: old_string must not be empty.
    "#]],
    );
    check(
        "edit_file",
        args(json!({"file_path": "/nope"})),
        expect![[r#"
        error
        Error: File '/nope' not found. Use ls or glob to see which files exist, or write_file to create it.
    "#]],
    );
}

#[test]
fn an_empty_file_can_be_filled() {
    let answer =
        run("edit_file", &files(), json!({"file_path": "/empty.txt", "old_string": "", "new_string": "x"}));
    assert_eq!(answer.status, ToolStatus::Success);
    assert_eq!(answer.writes[0].1.to_json()["/empty.txt"]["content"], json!(["x"]));
}

#[test]
fn an_edit_changes_the_file_under_the_key_and_in_the_form_the_state_has() {
    let state = state(json!({"files": {
        "old.txt": "a b",
        "/whole.txt": {"content": "a b", "encoding": "utf-8"},
    }}));
    let edit = |path: &str| {
        let args = json!({"file_path": path, "old_string": "a", "new_string": "c"});
        run("edit_file", &state, args).writes[0].1.to_json()
    };
    assert_eq!(edit("/old.txt")["old.txt"]["content"], json!(["c b"]));
    assert_eq!(edit("/whole.txt")["/whole.txt"]["content"], json!("c b"));
}

#[test]
fn a_file_cannot_grow_past_its_limit() {
    let state = state(json!({"files": {"/a": "a".repeat(2_000)}}));
    let args =
        json!({"file_path": "/a", "old_string": "a", "new_string": "b".repeat(10_000), "replace_all": true});
    let answer = run("edit_file", &state, args);
    assert_eq!((answer.status, answer.writes.len()), (ToolStatus::Error, 0));
    let args = json!({"file_path": "/b", "content": "b".repeat(files::MAX_FILE_BYTES + 1)});
    assert_eq!(run("write_file", &state, args).status, ToolStatus::Error);
}

#[test]
fn a_listing_shows_files_and_directories_of_one_level() {
    check(
        "ls",
        json!({"path": "/"}),
        expect![[r#"
        success
        /empty.txt
        /notes/
        /readme.md
    "#]],
    );
    check(
        "ls",
        json!({"path": "/notes/"}),
        expect![[r#"
        success
        /notes/a.md
        /notes/deep/
    "#]],
    );
    check(
        "ls",
        json!({"path": "/nowhere"}),
        expect![[r#"
        success
        No files found in '/nowhere'.
    "#]],
    );
    assert_eq!(run("ls", &State::new(), json!({})).content, "No files found in '/'.");
}

#[test]
fn globs_match_paths_last_changed_first() {
    check(
        "glob",
        json!({"pattern": "**/*.{md,py}"}),
        expect![[r#"
        success
        /notes/a.md
        /notes/deep/b.py
        /readme.md
    "#]],
    );
    check(
        "glob",
        json!({"pattern": "*.md"}),
        expect![[r#"
        success
        /readme.md
    "#]],
    );
    check(
        "glob",
        json!({"pattern": "*.md", "path": "notes"}),
        expect![[r#"
        success
        /notes/a.md
    "#]],
    );
    check(
        "glob",
        json!({"pattern": "/notes/**", "path": null}),
        expect![[r#"
        success
        /notes/a.md
        /notes/deep/b.py
    "#]],
    );
    check(
        "glob",
        json!({"pattern": "[", "path": "/"}),
        expect![[r#"
        error
        Error: The glob pattern is not valid: error parsing glob '[': unclosed character class; missing ']'
    "#]],
    );
}

#[test]
fn grep_searches_plain_text_in_three_modes() {
    check(
        "grep",
        json!({"pattern": "alpha"}),
        expect![[r#"
        success
        /notes/a.md
        /notes/deep/b.py
    "#]],
    );
    check(
        "grep",
        json!({"pattern": "alpha", "output_mode": "content", "path": "/notes"}),
        expect![[r#"
        success
        /notes/a.md:
          1: alpha
          3: alpha beta
        /notes/deep/b.py:
          2: print('alpha')
    "#]],
    );
    check(
        "grep",
        json!({"pattern": "alpha", "output_mode": "count"}),
        expect![[r#"
        success
        /notes/a.md: 2
        /notes/deep/b.py: 1
    "#]],
    );
    check(
        "grep",
        json!({"pattern": "alpha", "glob": "*.py"}),
        expect![[r#"
        success
        /notes/deep/b.py
    "#]],
    );
    check(
        "grep",
        json!({"pattern": "alpha", "glob": "deep/*.py", "path": "/notes"}),
        expect![[r#"
        success
        /notes/deep/b.py
    "#]],
    );
    check(
        "grep",
        json!({"pattern": "(draft)", "glob": null}),
        expect![[r#"
        success
        /readme.md
    "#]],
    );
    check(
        "grep",
        json!({"pattern": "al.ha"}),
        expect![[r#"
        success
        No matches found.
    "#]],
    );
}

#[test]
fn todos_are_replaced_as_a_whole() {
    let todos = json!([
        {"content": "read", "status": "completed", "id": 7},
        {"content": "write", "status": "in_progress"},
    ]);
    check(
        "write_todos",
        json!({"todos": todos}),
        expect![[r#"
        success
        Saved the todo list: 1 completed, 1 in progress, 0 pending.
        todos <- [{"content":"read","status":"completed"},{"content":"write","status":"in_progress"}]
    "#]],
    );
    check(
        "write_todos",
        json!({"todos": [{"content": "x", "status": "done"}]}),
        expect![[r#"
        error
        Error: todos[0].status must be one of pending, in_progress, completed.
    "#]],
    );
    check(
        "write_todos",
        json!({"todos": []}),
        expect![[r#"
        success
        Saved the todo list: 0 completed, 0 in progress, 0 pending.
        todos <- []
    "#]],
    );
}

#[test]
fn arguments_of_any_type_are_answered() {
    let odd =
        [json!(null), json!(true), json!(-1), json!(1e300), json!("…"), json!([[1]]), json!({"a": null})];
    for name in BUILTINS {
        let properties = builtin(name).expect("listed").spec().parameters["properties"].clone();
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
