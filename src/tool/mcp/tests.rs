//! Servers as they are: recorded, odd, and those of the protocol's authors from npm, which are installed in
//! the build folder the first time; that takes npm and its registry, `python3` and `node`.

mod npm;
mod odd;
mod recordings;
mod sent_back;

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use indexmap::IndexMap;
use serde_json::{Value as Json, json};

use super::*;
use crate::{
    ids::UnixNanos,
    model::ToolSpec,
    tool::{AllowedHosts, Answer, Call, Config, Progress, SharedTool, Toolbox, validate_args},
    value::{State, Value},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program with the environment that every one has.
fn program(command: &str, arguments: &[&str], environment: &[(&str, &str)]) -> McpServer {
    let path = std::env::var_os("PATH").and_then(|path| path.into_string().ok());
    let mut all = IndexMap::from([("PATH".to_owned(), path.unwrap_or_default().into())]);
    all.extend(environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned().into())));
    McpServer::new(McpLink::Process {
        command: command.into(),
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        environment: all,
    })
}

/// The server of `tests/fixtures/mcp`.
fn python(arguments: &[&str], environment: &[(&str, &str)]) -> McpServer {
    let script = root().join("tests/fixtures/mcp/server.py").display().to_string();
    let arguments: Vec<&str> = ["-B", &script].into_iter().chain(arguments.iter().copied()).collect();
    program("python3", &arguments, environment)
}

/// A toolbox with servers by their names.
fn toolbox<const N: usize>(servers: [(&str, McpServer); N]) -> Toolbox {
    with_config(servers, Config::default())
}

fn with_config<const N: usize>(servers: [(&str, McpServer); N], config: Config) -> Toolbox {
    let servers = servers.into_iter().map(|(name, server)| (name.to_owned(), server)).collect();
    // A busy machine takes its time to start a program.
    let mcp = McpConfig { servers, connect_timeout: Duration::from_secs(120) };
    Toolbox::new(Config { mcp, ..config }).expect("a toolbox")
}

/// A private address that HTTP tools may reach.
fn local() -> Config {
    let allowed_hosts = AllowedHosts::parse("127.0.0.1").expect("a list");
    Config { allowed_hosts, allow_private: true, ..Config::default() }
}

/// What a name that needs no definition stands for.
fn named(toolbox: &Toolbox, name: &str) -> SharedOffer {
    toolbox.offer(name, &IndexMap::new()).expect("a name of an MCP server")
}

/// What a definition of that runtime stands for.
fn defined(toolbox: &Toolbox, definition: Json) -> SharedOffer {
    let definition: ToolDefinition = serde_json::from_value(definition).expect("a definition");
    let name = definition.name.clone();
    let definitions = IndexMap::from([(name.as_str().into(), definition)]);
    toolbox.offer(&name, &definitions).expect("it is of an MCP server")
}

/// The tools that an offer stands for.
async fn listed(offer: &SharedOffer) -> Arc<[SharedTool]> {
    offer.list().await.expect("the server lists its tools");
    offer.known()
}

async fn refused(offer: &SharedOffer) -> String {
    let error = offer.list().await.expect_err("there is nothing to list");
    format!("{}: {error}", error.code())
}

fn names(tools: &[SharedTool]) -> Vec<String> {
    tools.iter().map(|tool| tool.spec().name.to_string()).collect()
}

fn find(tools: &[SharedTool], name: &str) -> SharedTool {
    let found = tools.iter().find(|tool| &*tool.spec().name == name);
    found.unwrap_or_else(|| panic!("{name} is not among {:?}", names(tools))).clone()
}

async fn call(tool: &SharedTool, args: Json) -> Answer {
    heard(tool, args).await.0
}

/// The answer of a tool, and what was told before it came.
async fn heard(tool: &SharedTool, args: Json) -> (Answer, Vec<Progress>) {
    let told = Mutex::new(Vec::new());
    let answer = call_with(tool, args, &|progress| told.lock().expect("nobody panics").push(progress)).await;
    (answer, told.into_inner().expect("nobody panics"))
}

async fn call_with(tool: &SharedTool, args: Json, tell: crate::tool::Tell<'_>) -> Answer {
    call_within(None, (tool, args), tell).await
}

async fn call_within(
    limit: Option<Duration>,
    (tool, args): (&SharedTool, Json),
    tell: crate::tool::Tell<'_>,
) -> Answer {
    let args = Value::from(args);
    let (args, state) = (args.as_map().expect("an object"), State::new());
    let call = Call { id: "c", args, state: &state, now: UnixNanos(0), idempotency_key: "key-1", limit };
    tool.call_telling(call, tell).await
}

fn problems(spec: &ToolSpec, args: Json) -> String {
    let args = Value::from(args);
    validate_args(spec, args.as_map().expect("an object")).err().unwrap_or_default()
}
