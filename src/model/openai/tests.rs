//! The adapter against servers on this machine.

mod cases;
mod recordings;
mod responses;

use std::{collections::BTreeMap, sync::Arc};

use futures::StreamExt;

use super::super::{Chunk, Config, Error, Models, Provider, Reply, Request};
use crate::{
    graph::ModelSettings,
    model::tests::server::Server,
    value::{Message, Role},
};

const KEY: &str = "prov_0123456789abcdefXYZ";

fn config(base_url: &str) -> Config {
    let provider = Provider::openai(Some(KEY.to_owned().into()), Some(base_url.to_owned()));
    Config { providers: BTreeMap::from([("openai".to_owned(), provider)]), ..Config::default() }
}

fn settings() -> ModelSettings {
    serde_json::from_value(serde_json::json!({"provider": "openai", "model": "m"})).expect("valid")
}

fn request(settings: ModelSettings) -> Request {
    Request {
        settings: settings.into(),
        system_prompt: None,
        messages: vec![Arc::new(Message::new("h1", Role::Human, "Tell me about the weather in Paris."))],
        tools: Vec::new(),
        output_schema: None,
        retry: 0,
    }
}

/// Asks, and collects the answer; checks what every stream of chunks promises.
async fn call(config: Config, request: Request) -> (Vec<String>, Result<Reply, Error>) {
    let model = Models::new(config).and_then(|models| models.provider("openai")).expect("configured");
    let mut stream = match model.call(request).await {
        Ok(stream) => stream,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let mut pieces = Vec::new();
    let outcome = loop {
        match stream.next().await.expect("a stream ends with Done or an error") {
            Ok(Chunk::Text(text)) => pieces.push(text),
            Ok(Chunk::Done(reply)) => break Ok(*reply),
            Err(error) => break Err(error),
        }
    };
    assert!(stream.next().await.is_none(), "something came after the end");
    if let Ok(reply) = &outcome {
        assert_eq!(reply.text, pieces.concat());
    }
    (pieces, outcome)
}

async fn ask_in_pieces(server: &Server) -> (Vec<String>, Result<Reply, Error>) {
    call(config(&server.url), request(settings())).await
}

async fn ask(server: &Server) -> Result<Reply, Error> {
    ask_in_pieces(server).await.1
}
