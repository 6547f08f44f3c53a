//! Files that are changed.

use expect_test::expect;
use serde_json::{Value as Json, json};

use super::{check, files, run, state};
use crate::{tool::builtin::files::MAX_FILE_BYTES, value::ToolStatus};

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
    let args = json!({"file_path": "/b", "content": "b".repeat(MAX_FILE_BYTES + 1)});
    assert_eq!(run("write_file", &state, args).status, ToolStatus::Error);
}
