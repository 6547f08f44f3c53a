//! Files that are shown and written.

use expect_test::expect;
use serde_json::json;

use super::{check, run, state};
use crate::tool::MAX_RESULT_CHARS;

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
    assert!(answer.content.chars().count() < MAX_RESULT_CHARS + 100);
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
