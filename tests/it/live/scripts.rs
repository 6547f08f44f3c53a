//! Script tools in real sandboxes: what scripts see, what they answer, and what they cannot do.

use std::{io::Write as _, ops::Range, os::unix::fs::MetadataExt as _, process::Stdio, time::Duration};

use agent_executor::{
    graph::ToolDefinition,
    ids::UnixNanos,
    tool::{self, Answer, Call, ScriptConfig, SharedTool, Toolbox},
    value::{State, ToolStatus, Value},
};
use anyhow::{Context, Result, ensure};
use indexmap::IndexMap;
use serde_json::{Value as Json, json};

use super::{
    interop,
    world::{WITHIN, World, of_type, program, request},
};
use crate::servers;

/// Time of a script in tests of the limits, and memory.
const SECONDS: u64 = 5;
const MEMORY: u64 = 256 << 20;

fn toolbox() -> Toolbox {
    toolbox_from(ScriptConfig::default().first_user)
}

/// A toolbox whose scripts run under users from `first_user` on.
fn toolbox_from(first_user: u32) -> Toolbox {
    let scripts = ScriptConfig {
        python: true,
        program: Some(program().to_owned()),
        timeout: Duration::from_secs(SECONDS),
        memory_bytes: MEMORY,
        first_user,
        ..ScriptConfig::default()
    };
    Toolbox::new(tool::Config { scripts, ..tool::Config::default() }).expect("a toolbox")
}

fn tool(toolbox: &Toolbox, definition: Json) -> SharedTool {
    let definition: ToolDefinition = serde_json::from_value(definition).expect("a definition");
    let name = definition.name.clone();
    let definitions = IndexMap::from([(name.as_str().into(), definition)]);
    toolbox.resolve(&name, &definitions).expect("it is defined")
}

async fn call(tool: &SharedTool, args: Json, state: Json) -> Answer {
    let args = Value::from(args);
    let state: State = Value::from(state).as_map().expect("an object").clone().into_iter().collect();
    let args = args.as_map().expect("an object");
    tool.call(Call { id: "c1", args, state: &state, now: UnixNanos(0), idempotency_key: "k", limit: None })
        .await
}

/// What a Python script answers whose tool has this body.
async fn python(body: &str) -> Answer {
    python_in(&toolbox(), body).await
}

async fn python_in(toolbox: &Toolbox, body: &str) -> Answer {
    let body: String = body.lines().map(|line| format!("    {line}\n")).collect();
    let script = format!(
        "from langchain_core.tools import tool\n@tool\ndef t() -> str:\n    \"\"\"Tries.\"\"\"\n{body}"
    );
    call(&tool(toolbox, json!({"name": "t", "runtime": {"script": script}})), json!({}), json!({})).await
}

/// A script as publishers write them for the Python service.
const NOTES: &str = r#"
from typing import Annotated, Literal
from langchain.tools import ToolRuntime
from langchain_core.messages import ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.prebuilt import InjectedState
from langgraph.types import Command

@tool
def note(
    text: str,
    level: Literal["low", "high"],
    state: Annotated[dict, InjectedState],
    first: Annotated[list, InjectedState("notes")],
    tool_call_id: Annotated[str, InjectedToolCallId],
    runtime: ToolRuntime,
    times: Annotated[int, "how often"] = 1,
) -> Command:
    """Notes a text."""
    print("this is no answer")
    assert state["messages"][0].content == runtime.state["messages"][0].content == "hi"
    assert first == state["notes"] and runtime.tool_call_id == tool_call_id
    return Command(update={
        "notes": first + [text] * times,
        "messages": [ToolMessage(f"noted {level}", tool_call_id=tool_call_id)],
    })

@tool
async def look(x: int) -> dict:
    """Looks."""
    return {"x": x, "who": "ä"}

@tool("broken")
def anything(x: int) -> str:
    """Breaks."""
    raise ValueError(f"no {x}")
"#;

fn notes_state() -> Json {
    let message = json!({"type": "human", "content": "hi", "id": "m1", "name": null, "additional_kwargs": {}, "response_metadata": {}});
    json!({"notes": ["a"], "messages": [message]})
}

#[tokio::test]
async fn scripts_of_the_python_service_run_as_they_are() {
    let toolbox = toolbox();
    let tool = |name: &str| tool(&toolbox, json!({"name": name, "runtime": {"script": NOTES}}));
    let note = tool("note");
    note.prepare().await;
    assert_eq!(note.spec().description, "Notes a text.");
    assert_eq!(
        *note.spec().parameters.json(),
        json!({"type": "object", "required": ["level", "text"], "properties": {"text": {"type": "string"},
            "level": {"enum": ["low", "high"]}, "times": {"type": "integer", "description": "how often", "default": 1}}})
    );
    let answer = call(&note, json!({"text": "b", "level": "high", "times": 2}), notes_state()).await;
    assert!(answer.is_command, "{answer:?}");
    let command: Json = serde_json::from_str(&answer.content).expect("JSON");
    assert_eq!(command["update"], json!({"notes": ["a", "b", "b"]}));
    assert_eq!(command["messages"][0]["content"], "noted high");

    let look = call(&tool("look"), json!({"x": 1}), json!({})).await;
    assert_eq!((look.status, &*look.content), (ToolStatus::Success, r#"{"x": 1, "who": "ä"}"#));
    let broken = call(&tool("broken"), json!({"x": 1}), json!({})).await;
    assert_eq!(
        (broken.status, &*broken.content),
        (ToolStatus::Error, "TOOL_SCRIPT: the script failed: ValueError: no 1 (line 36 of the script)")
    );
    let absent = call(&tool("absent"), json!({}), json!({})).await;
    assert!(absent.content.contains("no tool 'absent'; its tools are: broken, look, note"), "{absent:?}");
}

/// The host without its sandbox, in the Python that has LangGraph's packages; that one lies in a home.
async fn real_host(request: Json) -> Result<Json> {
    let work = move || -> Result<Json> {
        let host = concat!(env!("CARGO_MANIFEST_DIR"), "/tool-hosts/python/host.py");
        let mut child = interop::start(host)?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        writeln!(child.stdin.take().context("standard input")?, "{request}")?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8(output.stdout)?;
        let reply = text.strip_prefix("ready\n").context("it says that it is ready")?;
        Ok(serde_json::from_str(reply)?)
    };
    tokio::task::spawn_blocking(work).await?
}

#[tokio::test]
async fn the_same_script_runs_with_the_real_packages() -> Result<()> {
    let asked = |op: &str, name: &str, args: Json| {
        json!({"op": op, "script": NOTES, "name": name, "dependencies": ["langchain-core>=1", "langgraph"],
            "args": args, "tool_call_id": "c1", "state": notes_state(), "limit": 100, "seconds": 30})
    };
    let described = real_host(asked("describe", "note", json!({}))).await?;
    let properties = described["parameters"]["properties"].as_object().context("properties")?;
    assert_eq!(properties.keys().collect::<Vec<_>>(), ["text", "level", "times"], "{described}");
    let command = real_host(asked("call", "note", json!({"text": "b", "level": "low"}))).await?;
    assert_eq!(command["update"], json!({"notes": ["a", "b"]}), "{command}");
    assert_eq!(command["messages"][0]["content"], "noted low");
    let look = real_host(asked("call", "look", json!({"x": 1}))).await?;
    assert_eq!(look["content"], r#"{"x": 1, "who": "ä"}"#, "{look}");
    let broken = real_host(asked("call", "broken", json!({"x": 1}))).await?;
    assert_eq!(broken["error"], "ValueError: no 1 (line 36 of the script)");
    Ok(())
}

#[tokio::test]
async fn a_fork_bomb_an_endless_loop_and_ten_gigabytes_hit_their_limits() -> Result<()> {
    let bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass";
    let counted = "import os, time\nn = 0\ntry:\n    while n < 1000:\n        if os.fork() == 0:\n            os.setsid()\n            time.sleep(600)\n        n += 1\nexcept OSError:\n    pass\nreturn str(n)";
    let toolbox = toolbox_from(LIMITED_USERS.start);
    let (bomb, counted, looped, memory) = tokio::join!(
        python_in(&toolbox, bomb),
        python_in(&toolbox, counted),
        python_in(&toolbox, "while True:\n    pass"),
        python_in(&toolbox, "return str(len(bytearray(10 * 2**30)))"),
    );
    for answer in [&bomb, &looped] {
        assert_eq!(answer.content, "TOOL_TIMEOUT: no complete answer within 5.0 seconds");
    }
    let forks: u32 = counted.content.parse().unwrap_or_else(|_| panic!("{counted:?}"));
    assert!((1..=16).contains(&forks), "{forks} processes");
    assert!(memory.content.starts_with("TOOL_SCRIPT: the script failed: MemoryError"), "{memory:?}");
    drop(toolbox);
    let nobody_is_left = || async { processes_of(LIMITED_USERS) == 0 };
    servers::until("the processes of all scripts have ended", WITHIN, nobody_is_left).await
}

/// Users of the scripts that run into limits; nobody else has these.
const LIMITED_USERS: Range<u32> = 65_100..65_200;

fn processes_of(users: Range<u32>) -> usize {
    let user = |entry: std::fs::DirEntry| {
        let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        line.split_whitespace().next()?.parse::<u32>().ok()
    };
    let entries = std::fs::read_dir("/proc").expect("/proc can be listed").flatten();
    entries.filter_map(user).filter(|user| users.contains(user)).count()
}

#[tokio::test]
async fn a_script_sees_no_secret_no_network_and_no_other_process() {
    let shadow = python("return open('/etc/shadow').read()").await;
    assert!(shadow.content.contains("PermissionError"), "{shadow:?}");
    let environment = python("import os\nreturn ' '.join(sorted(os.environ))").await;
    let allowed = [
        "HOME",
        "LANG",
        "LC_CTYPE",
        "OLDPWD",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "PATH",
        "PWD",
        "SHLVL",
        "TOKIO_WORKER_THREADS",
        "_",
    ];
    assert!(environment.content.split(' ').all(|name| allowed.contains(&name)), "{environment:?}");
    let network = python("import socket\nsocket.create_connection(('127.0.0.1', 1), 1)").await;
    assert!(network.content.contains("OSError: [Errno 101] Network is unreachable"), "{network:?}");
    let processes =
        python("import os\nreturn str(sum(name.isdigit() for name in os.listdir('/proc')))").await;
    assert!(processes.content.parse::<u32>().is_ok_and(|count| count <= 4), "{processes:?}");
    let homes = python("import os\nreturn str(os.listdir('/root'))").await;
    assert!(homes.content.contains("PermissionError"), "{homes:?}");
    let user = python("import os\nreturn f'{os.getuid()} {os.getcwd()}'").await;
    // Without root's rights a script is root of its own namespace, which is the user that runs these tests.
    let expected = if is_root() { "641" } else { "0 " };
    assert!(user.content.starts_with(expected) && user.content.ends_with(" /tmp"), "{user:?}");
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|folder| folder.uid() == 0)
}

#[tokio::test]
async fn limits_and_another_user_hold_without_namespaces_too() {
    let sandbox = tool::Sandboxing::Limits;
    let scripts = ScriptConfig { python: true, sandbox, first_user: 65_300, ..ScriptConfig::default() };
    let toolbox = Toolbox::new(tool::Config { scripts, ..tool::Config::default() }).expect("a toolbox");
    let user = python_in(&toolbox, "import os\nreturn str(os.getuid())").await;
    assert!(!is_root() || user.content.starts_with("653"), "{user:?}");
    let shadow = python_in(&toolbox, "return open('/etc/shadow').read()").await;
    assert!(shadow.content.contains("PermissionError"), "{shadow:?}");
    let memory = python_in(&toolbox, "return str(len(bytearray(10 * 2**30)))").await;
    assert!(memory.content.contains("MemoryError"), "{memory:?}");
}

#[tokio::test]
async fn nothing_of_one_call_is_there_in_the_next_and_large_answers_are_cut() {
    let toolbox = toolbox();
    let script = "import os\ndef t():\n    there = os.path.exists('/tmp/x') or hasattr(os, 'left')\n    open('/tmp/x', 'w').write('x')\n    os.left = True\n    return str(there)";
    let once = tool(&toolbox, json!({"name": "t", "runtime": {"script": script}}));
    for _ in 0..3 {
        assert_eq!(call(&once, json!({}), json!({})).await.content, "False");
    }
    let long = python("return 'x' * 5_000_000").await;
    assert!(long.content.ends_with("[cut after 100000 characters; ask for less to see the rest]"));
    let flood = python("import os\nfor fd in range(3, 20):\n    try:\n        os.write(fd, b'x' * 3_000_000)\n    except OSError:\n        pass\nreturn 'x'").await;
    assert_eq!(flood.content, "TOOL_LIMIT: the script was stopped: its answer is larger than 1048576 bytes");
}

#[tokio::test]
async fn javascript_runs_in_a_process_of_its_own_that_can_be_killed() {
    let toolbox = toolbox();
    let js = |script: &str| {
        tool(&toolbox, json!({"name": "t", "runtime": {"language": "javascript", "script": script}}))
    };
    let sum =
        js("function t({a, b}, call) { return {sum: a + b, from: call.state.x, id: call.tool_call_id} }");
    let answer = call(&sum, json!({"a": 1, "b": 2}), json!({"x": "state"})).await;
    assert_eq!(answer.content, r#"{"sum":3,"from":"state","id":"c1"}"#);
    let endless = call(&js("function t() { for (;;) {} }"), json!({}), json!({})).await;
    assert_eq!(endless.content, "TOOL_TIMEOUT: no complete answer within 5.0 seconds");
    let greedy = call(
        &js("function t() { const a = []; for (;;) a.push(new Uint8Array(1 << 26)) }"),
        json!({}),
        json!({}),
    )
    .await;
    assert!(greedy.content.starts_with("TOOL_SCRIPT: the script failed: "), "{greedy:?}");
    assert!(greedy.content.contains("memory"), "{greedy:?}");
    let needy = tool(
        &toolbox,
        json!({"name": "t", "runtime": {"language": "js", "script": "", "dependencies": ["left-pad"]}}),
    );
    assert!(call(&needy, json!({}), json!({})).await.content.contains("missing packages: left-pad"));
}

#[tokio::test]
async fn without_a_sandbox_nothing_is_run() {
    let scripts =
        ScriptConfig { python: true, interpreter: "/nowhere/python".into(), ..ScriptConfig::default() };
    let toolbox = Toolbox::new(tool::Config { scripts, ..tool::Config::default() }).expect("a toolbox");
    let answer = call(
        &tool(&toolbox, json!({"name": "t", "runtime": {"script": "def t(): return 1"}})),
        json!({}),
        json!({}),
    )
    .await;
    assert!(answer.content.starts_with("TOOL_SANDBOX: the script was not run: "), "{answer:?}");
    assert!(answer.content.contains("/nowhere/python"), "{answer:?}");
}

#[tokio::test]
async fn a_job_with_both_kinds_of_scripts_completes_and_validate_names_missing_packages() -> Result<()> {
    let world = World::start().await?;
    let _executor = world.executor_with(&[("PYTHON_TOOLS", "enabled")]).await?;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/graph-definitions/script-tools.json");
    let mut definition: Json = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let result = world.run(&request("scripts", &definition, "book")).await?;
    ensure!(result["data"]["result"]["status"] == "completed", "{result}");
    let events = world.events_to_the_end("scripts").await?;
    let outputs: Vec<_> =
        of_type(&events, "on_tool_end").iter().map(|event| event["data"]["tool_output"].clone()).collect();
    assert!(outputs.contains(&json!("1 items are booked")), "{outputs:?}");
    assert!(outputs.contains(&json!(r#"{"net":200,"gross":238}"#)), "{outputs:?}");

    definition["tool_definitions"][0]["dependencies"] = json!(["langgraph", "no-such-package>=2"]);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("definition.json");
    std::fs::write(&file, definition.to_string())?;
    let file = file.to_str().context("a path in UTF-8")?;
    let validate = ["--set", "PYTHON_TOOLS=enabled", "validate", file];
    let (code, said, _) = world.run_command(&validate).await?;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("/tool_definitions/0/runtime/dependencies: not installed: no-such-package>=2"),
        "{said}"
    );
    let (code, said, _) = world.run_command(&["validate", file]).await?;
    assert_eq!(code, Some(0), "where Python is off, nothing is asked of it: {said}");
    Ok(())
}
