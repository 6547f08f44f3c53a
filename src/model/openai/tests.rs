//! The adapter against servers on this machine.

mod cases;
mod recordings;
mod responses;

use std::{collections::BTreeMap, sync::Arc};

use super::super::{Config, Error, Models, Provider, Reply, Request};
use crate::{
    graph::ModelSettings,
    model::tests::{collect, server::Server},
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
    collect(model.call(request.into()).await).await
}

async fn ask_in_pieces(server: &Server) -> (Vec<String>, Result<Reply, Error>) {
    call(config(&server.url), request(settings())).await
}

async fn ask(server: &Server) -> Result<Reply, Error> {
    ask_in_pieces(server).await.1
}
