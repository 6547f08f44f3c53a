//! A server at an address that sends back the headers it gets, in every way it has.

use super::*;
use crate::{
    secrets::{self, Given, Secrets},
    telemetry::scrub::Scrubber,
    tool::http::tests::{Server, serve_posted},
};

/// Too short to be looked for in all texts.
const SECRET: &str = "z7";

fn config() -> Config {
    let given = IndexMap::from([("KEY".to_owned(), Given::Value(SECRET.into()))]);
    let secrets = secrets::Config { open: vec!["KEY".to_owned()], given, ..secrets::Config::default() };
    Config { secrets: Secrets::new(secrets, &Scrubber::default()), ..local() }
}

fn offer(toolbox: &Toolbox, server: &Server) -> SharedOffer {
    let runtime = json!({"type": "mcp", "url": format!("http://127.0.0.1:{}/", server.port),
        "headers": {"x-key": {"secret": "KEY"}}});
    defined(toolbox, json!({"name": "back", "runtime": runtime}))
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
    let toolbox = with_config([], config());
    let kind = server(true).await;
    let tools = listed(&offer(&toolbox, &kind)).await;
    is_clean(&call(&find(&tools, "back__say"), json!({})).await.content);
    is_clean(&call(&find(&tools, "back__fail"), json!({})).await.content);
    let unkind = server(false).await;
    is_clean(&refused(&offer(&toolbox, &unkind)).await);
    toolbox.close().await;
}
