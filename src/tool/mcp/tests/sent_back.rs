//! A server at an address that sends back the headers it gets, in every way it has.

use super::*;
use crate::{
    secrets::{self, Given, Secrets},
    telemetry::scrub::Scrubber,
    tool::http::tests::{Server, serve_posted},
};

/// Too short to be looked for in all texts.
const SECRET: &str = "z7";

fn config(secret: &str) -> Config {
    let given = IndexMap::from([("KEY".to_owned(), Given::Value(secret.into()))]);
    let secrets = secrets::Config { open: vec!["KEY".to_owned()], given, ..secrets::Config::default() };
    Config { secrets: Secrets::new(secrets, &Scrubber::default()), ..local() }
}

fn offer(toolbox: &Toolbox, server: &Server) -> SharedOffer {
    let runtime = json!({"type": "mcp", "url": format!("http://127.0.0.1:{}/", server.port),
        "headers": {"x-key": {"secret": "KEY"}}});
    defined(toolbox, json!({"name": "back", "runtime": runtime}))
}

/// Longer than `SECRET`, and nothing of it stands in an honest text.
const LONG: &str = "QXQXQXQXQXQXQXQXQXQX";

/// How often an error repeats it, so that its 500th character is within one of them.
const REPEATS: usize = 40;

/// Characters of a description before it, so that the 8000th is within it.
const BEFORE_IN_DESCRIPTION: usize = 7_990;

/// A server that greets and gives `answer` to any other request: a result, or an error.
async fn answering(answer: impl Fn(&Json) -> Result<Json, Json> + Send + Sync + 'static) -> Server {
    serve_posted(move |request| {
        let (_, body) = request.split_once("\r\n\r\n")?;
        let said: Json = serde_json::from_str(body).ok()?;
        let id = said.get("id")?;
        let answered = match said["method"].as_str()? {
            "initialize" => Ok(json!({"protocolVersion": said["params"]["protocolVersion"],
                "capabilities": {"tools": {}}, "serverInfo": {"name": "back", "version": "1"}})),
            _ => answer(&said),
        };
        Some(match answered {
            Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
            Err(error) => json!({"jsonrpc": "2.0", "id": id, "error": error}),
        })
    })
    .await
}

/// A server that takes the key in its greeting, or answers with it.
async fn server(greets: bool) -> Server {
    serve_posted(move |request| {
        let (head, body) = request.split_once("\r\n\r\n")?;
        let said: Json = serde_json::from_str(body).ok()?;
        // A notification has no number, and no answer.
        let id = said.get("id")?;
        let refused =
            |code: i32| json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": head}});
        let result = match said["method"].as_str()? {
            "initialize" if greets => json!({"protocolVersion": said["params"]["protocolVersion"],
                "capabilities": {"tools": {}}, "serverInfo": {"name": "back", "version": "1"}}),
            "initialize" => return Some(refused(-32_603)),
            "tools/list" => {
                let tool = |name: &str| json!({"name": name, "inputSchema": {"type": "object"}});
                json!({"tools": [tool("say"), tool("fail")]})
            }
            _ if said["params"]["name"] == "fail" => return Some(refused(-32_602)),
            _ => json!({"content": [{"type": "text", "text": head}]}),
        };
        Some(json!({"jsonrpc": "2.0", "id": id, "result": result}))
    })
    .await
}

fn is_clean(text: &str) {
    assert!(text.contains("x-key: ***REDACTED***") && !text.contains(SECRET), "{text}");
}

#[tokio::test]
async fn no_text_of_a_server_shows_a_secret_of_a_definition_however_short_it_is() {
    let toolbox = with_config([], config(SECRET));
    let kind = server(true).await;
    let tools = listed(&offer(&toolbox, &kind)).await;
    is_clean(&call(&find(&tools, "back__say"), json!({})).await.content);
    is_clean(&call(&find(&tools, "back__fail"), json!({})).await.content);
    let unkind = server(false).await;
    is_clean(&refused(&offer(&toolbox, &unkind)).await);
    toolbox.close().await;
}

/// The error of a server that repeats the secret where texts are cut.
fn crossing() -> Json {
    json!({"code": -32_602, "message": format!("headers: {}", LONG.repeat(REPEATS))})
}

#[tokio::test]
async fn an_error_that_is_cut_within_a_secret_shows_nothing_of_it() {
    let is_clean = |text: &str| assert!(text.contains("***RED") && !text.contains("QX"), "{text}");
    let toolbox = with_config([], config(LONG));
    let failing = answering(|said| match said["method"].as_str() {
        Some("tools/list") => Ok(json!({"tools": [{"name": "fail", "inputSchema": {"type": "object"}}]})),
        _ => Err(crossing()),
    })
    .await;
    let tools = listed(&offer(&toolbox, &failing)).await;
    is_clean(&call(&find(&tools, "back__fail"), json!({})).await.content);
    let unlisted = answering(|_| Err(crossing())).await;
    is_clean(&refused(&offer(&toolbox, &unlisted)).await);
    toolbox.close().await;
}

#[tokio::test]
async fn a_cause_that_is_cut_within_a_secret_shows_nothing_of_it() {
    // An answer to another request is the cause of a connection that was lost.
    let astray = serve_posted(|request| {
        let is_greeted = request.contains("\"initialize\"");
        is_greeted.then(|| json!({"jsonrpc": "2.0", "id": "another", "error": crossing()}))
    })
    .await;
    let toolbox = with_config([], config(LONG));
    let text = refused(&offer(&toolbox, &astray)).await;
    assert!(text.contains("***RED") && !text.contains("QX"), "{text}");
    toolbox.close().await;
}

/// A server that says the key in all there is of a tool.
async fn indiscreet() -> Server {
    answering(|_| {
        let plain = || json!({"type": "object"});
        let filled = json!({"type": "object", "properties": {"a": {"type": "string", "default": LONG}}});
        let long = format!("{}{LONG}", "x".repeat(BEFORE_IN_DESCRIPTION));
        Ok(json!({"tools": [
            {"name": "told", "description": format!("key {LONG}"), "inputSchema": plain()},
            {"name": "titled", "title": LONG, "inputSchema": plain()},
            {"name": "long", "description": long, "inputSchema": plain()},
            {"name": format!("say-{LONG}"), "inputSchema": plain()},
            {"name": "filled", "inputSchema": filled},
            {"name": "broken", "inputSchema": {"type": LONG}},
        ]}))
    })
    .await
}

#[tokio::test]
async fn descriptions_of_tools_show_no_secret() {
    let (toolbox, server) = (with_config([], config(LONG)), indiscreet().await);
    let tools = listed(&offer(&toolbox, &server)).await;
    let description = |name: &str| find(&tools, name).spec().description.clone();
    assert_eq!(description("back__told"), "key ***REDACTED***");
    assert_eq!(description("back__titled"), "***REDACTED***");
    let long = description("back__long");
    assert!(long.contains("[cut after") && !long.contains("QX"), "{long}");
    toolbox.close().await;
}

#[tokio::test]
async fn a_tool_with_a_secret_in_its_name_or_its_schema_is_left_out() {
    let (toolbox, server) = (with_config([], config(LONG)), indiscreet().await);
    let tools = listed(&offer(&toolbox, &server)).await;
    assert_eq!(names(&tools), ["back__told", "back__titled", "back__long"]);
    let picked = |tool: &str| {
        let runtime = json!({"type": "mcp", "url": format!("http://127.0.0.1:{}/", server.port),
            "tool": tool, "headers": {"x-key": {"secret": "KEY"}}});
        defined(&toolbox, json!({"name": "back", "runtime": runtime}))
    };
    for tool in ["filled", "broken"] {
        let why = refused(&picked(tool)).await;
        assert!(why.ends_with(": the schema of its arguments has a secret in it"), "{why}");
    }
    let why = refused(&picked("other")).await;
    assert!(why.ends_with("; its tools: told, titled, long"), "{why}");
    toolbox.close().await;
}
