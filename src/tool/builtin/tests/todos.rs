//! The list of what is to be done.

use expect_test::expect;
use serde_json::json;

use super::check;

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
