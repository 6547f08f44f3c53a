//! A server that shows what it is sent, changes, is silent, and dies.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::*;
use crate::{graph::Effect, tool::CallOutcome, value::ToolStatus};

/// How long something that has been begun may take; the machine may be busy.
const WITHIN: Duration = Duration::from_secs(60);

fn odd() -> (Toolbox, SharedOffer) {
    let toolbox = toolbox([("odd", python(&[], &[("TOKEN", "hunter2-hunter2")]))]);
    let offer = named(&toolbox, "mcp:odd");
    (toolbox, offer)
}

#[tokio::test]
async fn all_pages_are_listed_and_what_cannot_be_called_is_left_out() {
    let (toolbox, offer) = odd();
    let tools = listed(&offer).await;
    let names = names(&tools);
    assert_eq!(
        names[..5],
        ["environment", "request", "change", "hang", "die"].map(|name| format!("odd__{name}"))
    );
    assert!(names[6].starts_with("odd__files_read_") && names.len() == 7, "{names:?}");
    assert_eq!(call(&tools[6], json!({})).await.content, "files.read");
    let effects: Vec<_> = tools.iter().take(3).map(|tool| tool.effect()).collect();
    assert_eq!(effects, [Effect::Read, Effect::Idempotent, Effect::Irreversible]);
    assert_eq!(
        refused(&named(&toolbox, "mcp:odd/nope")).await,
        "TOOL_MCP_TOOL: the MCP server 'odd' has no tool 'nope' that can be called; its tools: environment, request, \
         change, hang, die, huge, files.read"
    );
    let broken = refused(&named(&toolbox, "mcp:odd/broken")).await;
    assert!(broken.contains("'broken' that can be called: the schema of its arguments"), "{broken}");
    toolbox.close().await;
}

#[tokio::test]
async fn a_program_gets_its_own_environment_and_no_answer_shows_a_secret() {
    let (toolbox, offer) = odd();
    let answer = call(&find(&listed(&offer).await, "odd__environment"), json!({})).await;
    let environment: Json = serde_json::from_str(&answer.content).expect("JSON");
    // Python and what starts it add some of their own; what cargo gave this process is not among them.
    assert!(environment["PATH"].is_string(), "{environment}");
    assert!(environment.get("CARGO_MANIFEST_DIR").is_none(), "{environment}");
    assert_eq!(environment["TOKEN"], "***REDACTED***");
    toolbox.close().await;
}

#[tokio::test]
async fn a_call_carries_its_key_and_a_place_for_progress() {
    let (toolbox, offer) = odd();
    let answer = call(&find(&listed(&offer).await, "odd__request"), json!({"a": [1, {"b": null}]})).await;
    let request: Json = serde_json::from_str(&answer.content).expect("JSON");
    assert_eq!(request["name"], "request");
    assert_eq!(request["arguments"], json!({"a": [1, {"b": null}]}));
    assert_eq!(request["_meta"]["agent-executor/idempotency-key"], "key-1");
    assert!(request["_meta"].get("progressToken").is_some(), "{request}");
    toolbox.close().await;
}

#[tokio::test]
async fn tools_are_listed_again_once_they_have_changed() {
    let (toolbox, offer) = odd();
    let before = listed(&offer).await;
    assert!(Arc::ptr_eq(&before, &listed(&offer).await), "nothing has changed yet");
    assert_eq!(call(&find(&before, "odd__change"), json!({"name": "new"})).await.content, "changed");
    let until = Instant::now() + WITHIN;
    let after = loop {
        // The word on it comes beside the answer.
        let tools = listed(&offer).await;
        if names(&tools).contains(&"odd__new".to_owned()) {
            break tools;
        }
        assert!(Instant::now() < until, "{:?}", names(&tools));
        tokio::task::yield_now().await;
    };
    assert_eq!(call(&find(&after, "odd__new"), json!({})).await.content, "new");
    toolbox.close().await;
}

#[tokio::test]
async fn a_definition_has_the_last_word_and_then_the_operator() {
    let server = McpServer { effect: Some(Effect::Idempotent), ..python(&[], &[]) };
    let server = McpServer { tools: vec!["die".into(), "huge".into()], ..server };
    let toolbox = toolbox([("odd", server)]);
    let all = listed(&named(&toolbox, "mcp:odd")).await;
    assert_eq!(names(&all), ["odd__die", "odd__huge"]);
    assert_eq!(all[0].effect(), Effect::Idempotent);
    let runtime = json!({"type": "mcp", "server": "odd", "tool": "huge"});
    let one = defined(
        &toolbox,
        json!({"name": "much", "effect": "irreversible", "runtime": runtime,
        "description": "Says much.", "parameters": {"type": "object", "additionalProperties": false}}),
    );
    let one = listed(&one).await;
    assert_eq!((names(&one), one[0].effect()), (vec!["much".to_owned()], Effect::Irreversible));
    assert_eq!(one[0].spec().description, "Says much.");
    assert_ne!(problems(one[0].spec(), json!({"x": 1})), "", "the definition's own schema allows nothing");
    let answer = call(&one[0], json!({})).await;
    assert!(answer.content.ends_with("ask for less to see the rest]"), "{}", answer.content.len());
    let set = json!({"name": "docs", "runtime": {"type": "mcp", "server": "odd", "tools": ["huge"]}});
    assert_eq!(names(&listed(&defined(&toolbox, set)).await), ["docs__huge"]);
    toolbox.close().await;
}

#[tokio::test]
async fn a_server_that_dies_in_a_call_leaves_its_fate_open_and_is_started_again() {
    let (toolbox, offer) = odd();
    let tools = listed(&offer).await;
    let lost = call(&find(&tools, "odd__die"), json!({})).await;
    assert_eq!(
        (lost.status, lost.outcome, lost.code),
        (ToolStatus::Error, CallOutcome::Unknown, Some("TOOL_FAILED"))
    );
    assert_eq!(
        lost.content,
        "TOOL_FAILED: the connection was closed before the answer came; among its last words: SystemError: no room \
         for ***REDACTED***"
    );
    let again = call(&find(&tools, "odd__request"), json!({})).await;
    assert_eq!(again.status, ToolStatus::Success, "{again:?}");
    assert!(!Arc::ptr_eq(&tools, &listed(&offer).await), "another program may have other tools");
    toolbox.close().await;
}

#[tokio::test]
async fn a_call_that_takes_too_long_or_that_nobody_waits_for_is_cancelled() {
    let folder = tempfile::tempdir().expect("a folder");
    let record = folder.path().join("cancelled").display().to_string();
    let server = python(&[], &[("RECORD", &record)]);
    let slow = McpServer { timeout: Duration::from_millis(300), ..server.clone() };
    let toolbox = toolbox([("slow", slow), ("odd", server)]);
    let cancelled = || fs::read_to_string(&record).unwrap_or_default().lines().count();
    let late = call(&find(&listed(&named(&toolbox, "mcp:slow")).await, "slow__hang"), json!({})).await;
    assert_eq!((late.outcome, late.code), (CallOutcome::Unknown, Some("TOOL_TIMEOUT")));
    wait_for(|| cancelled() == 1).await;

    let hang = find(&listed(&named(&toolbox, "mcp:odd")).await, "odd__hang");
    let told = tokio::sync::Notify::new();
    let said = Mutex::new(None);
    let tell = |progress: Progress| {
        *said.lock().expect("nobody panics") = Some(progress);
        told.notify_one();
    };
    tokio::select! {
        answer = call_with(&hang, json!({}), &tell) => panic!("it does not answer: {answer:?}"),
        () = told.notified() => {}
    }
    let progress = Progress { done: 1.0, total: Some(2.0), message: Some("half of it".into()) };
    assert_eq!(*said.lock().expect("nobody panics"), Some(progress));
    wait_for(|| cancelled() == 2).await;
    toolbox.close().await;
}

#[tokio::test]
async fn a_program_that_lets_the_limits_of_callers_pass_is_started_again() {
    let (toolbox, offer) = odd();
    let tools = listed(&offer).await;
    let hang = find(&tools, "odd__hang");
    assert!(hang.keeps_limit(), "who drops a call cannot count it");
    for _ in 0..3 {
        let limit = Some(Duration::from_millis(100));
        let late = call_within(limit, (&hang, json!({"deaf": true})), &|_| {}).await;
        assert_eq!(late.content, "TOOL_TIMEOUT: no complete answer within 0.1 seconds");
        assert_eq!(late.outcome, CallOutcome::Unknown);
    }
    let again = call_within(Some(WITHIN), (&find(&tools, "odd__request"), json!({})), &|_| {}).await;
    assert_eq!(again.status, ToolStatus::Success, "{again:?}");
    toolbox.close().await;
}

#[tokio::test]
async fn the_limit_of_a_caller_holds_while_a_program_begins_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let mark = folder.path().join("begun").display().to_string();
    let script = root().join("tests/fixtures/mcp/server.py").display().to_string();
    // It begins once; then it starts, and says nothing.
    let once = r#"[ ! -e "$MARK" ] || exec sleep 600; touch "$MARK"; exec python3 -B "$SCRIPT""#;
    let toolbox = toolbox([("odd", program("sh", &["-c", once], &[("MARK", &mark), ("SCRIPT", &script)]))]);
    let tools = listed(&named(&toolbox, "mcp:odd")).await;
    assert_eq!(call(&find(&tools, "odd__die"), json!({})).await.outcome, CallOutcome::Unknown);
    let limit = Some(Duration::from_millis(100));
    let call = call_within(limit, (&find(&tools, "odd__request"), json!({})), &|_| {}).await;
    assert_eq!(
        call.content,
        "TOOL_MCP_UNAVAILABLE: the MCP server 'odd' is not available: no session has begun in time"
    );
    assert_eq!(call.outcome, CallOutcome::NotMade);
    toolbox.close().await;
}

async fn wait_for(holds: impl Fn() -> bool) {
    let until = Instant::now() + WITHIN;
    while !holds() {
        assert!(Instant::now() < until, "it did not come to pass");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_says_so() {
    let dies =
        "import sys; sys.stderr.write('starting\\nConfigError: no such folder hunter2-hunter2\\nbye\\n')";
    let toolbox = toolbox([
        ("none", program("/no/such/program", &[], &[])),
        ("dies", program("python3", &["-c", dies], &[("API_KEY", "hunter2-hunter2")])),
        ("silent", program("cat", &[], &[])),
    ]);
    let text = refused(&named(&toolbox, "mcp:none")).await;
    assert!(
        text.starts_with("TOOL_MCP_UNAVAILABLE: the MCP server 'none' is not available: '/no/such"),
        "{text}"
    );
    let text = refused(&named(&toolbox, "mcp:dies/x")).await;
    assert!(text.contains("closed the connection"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let text = refused(&named(&toolbox, "mcp:other")).await;
    assert_eq!(text, "TOOL_MCP_SERVER: there is no MCP server 'other'; MCP_SERVERS names none, dies, silent");
}

#[tokio::test]
async fn what_a_program_has_started_ends_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let pid = folder.path().join("pid");
    let script = root().join("tests/fixtures/mcp/server.py").display().to_string();
    // A grandchild that ignores that its input ends.
    let line = format!("sleep 1000 & echo $! > '{}'; python3 -B '{script}'", pid.display());
    let toolbox = toolbox([("nested", program("sh", &["-c", &line], &[]))]);
    listed(&named(&toolbox, "mcp:nested")).await;
    let pid = fs::read_to_string(&pid).expect("it was started").trim().to_owned();
    let runs = || {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = state.rsplit(')').next().unwrap_or_default().trim_start().chars().next();
        state.is_some_and(|state| state != 'Z' && state != 'X')
    };
    assert!(runs());
    drop(toolbox);
    wait_for(|| !runs()).await;
}
