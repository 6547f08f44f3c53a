//! Files that are looked for.

use expect_test::expect;
use serde_json::json;

use super::{check, run};
use crate::value::State;

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
