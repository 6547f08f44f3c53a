//! The servers of recorded transcripts, played again.

use super::*;
use crate::{graph::Effect, value::ToolStatus};

fn recorded(file: &str) -> Toolbox {
    let path = root().join("../shared/fixtures/mcp-transcripts").join(file).display().to_string();
    toolbox([("played", python(&["--play", &path], &[]))])
}

#[tokio::test]
async fn the_recorded_everything_server_is_understood() {
    let toolbox = recorded("everything-stdio.jsonl");
    let tools = listed(&named(&toolbox, "mcp:played")).await;
    let echo = find(&tools, "played__echo");
    assert_eq!(echo.spec().description, "Echoes back the input string");
    assert_eq!(echo.effect(), Effect::Read);
    assert!(problems(echo.spec(), json!({"message": 1})).contains("message"));
    assert_eq!(problems(echo.spec(), json!({"message": "hi"})), "");
    assert_eq!(call(&echo, json!({"message": "hi"})).await, Answer::success("Echo: hi"));
    let sum = find(&tools, "played__get-sum");
    assert_eq!(call(&sum, json!({"a": 2, "b": 3})).await.content, "The sum of 2 and 3 is 5.");
    let long = find(&tools, "played__trigger-long-running-operation");
    let (answer, told) = heard(&long, json!({"duration": 2, "steps": 4})).await;
    assert!(answer.content.starts_with("Long running operation completed"), "{answer:?}");
    assert!(told.iter().all(|progress| progress.total == Some(4.0)) && !told.is_empty(), "{told:?}");
    let wrong = call(&sum, json!({"a": "x"})).await;
    assert_eq!((wrong.status, wrong.code), (ToolStatus::Error, Some("TOOL_FAILED")));
    assert!(wrong.content.starts_with("TOOL_FAILED: MCP error -32602: Input validation error"), "{wrong:?}");
    toolbox.close().await;
}

#[tokio::test]
async fn the_recorded_filesystem_server_is_understood() {
    let toolbox = recorded("filesystem-stdio.jsonl");
    let tools = listed(&named(&toolbox, "mcp:played")).await;
    let effect = |name: &str| find(&tools, name).effect();
    assert_eq!(effect("played__read_text_file"), Effect::Read);
    assert_eq!(effect("played__edit_file"), Effect::Irreversible);
    let folders = call(&find(&tools, "played__list_allowed_directories"), json!({})).await;
    assert_eq!(folders, Answer::success("Allowed directories:\n/data"));
    let denied = call(&find(&tools, "played__read_text_file"), json!({"path": "/etc/shadow"})).await;
    assert!(denied.content.starts_with("TOOL_FAILED: Access denied"), "{denied:?}");
    toolbox.close().await;
}
