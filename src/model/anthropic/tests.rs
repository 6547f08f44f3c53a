//! The adapter against servers on this machine.

mod cases;
mod recordings;
mod requests;

use std::sync::Arc;

use super::super::{Config, Error, Models, Provider, Reply, Request};
use crate::{
    graph::ModelSettings,
    model::tests::{collect, server::Server},
    value::{Message, Role},
};

const KEY: &str = "prov_0123456789abcdefXYZ";

fn request() -> Request {
    Request {
        settings: Arc::new(ModelSettings::parse("anthropic:m")),
        system_prompt: None,
        messages: vec![Arc::new(Message::new("h1", Role::Human, "Tell me about the weather in Paris."))],
        tools: Vec::new(),
        output_schema: None,
        retry: 0,
    }
}

/// Asks, and collects the answer; checks what every stream of chunks promises.
async fn call(server: &Server, request: Request) -> (Vec<String>, Result<Reply, Error>) {
    let provider = Provider::anthropic(Some(KEY.to_owned().into()), Some(server.url.clone()));
    let config = Config { providers: [("anthropic".to_owned(), provider)].into(), ..Config::default() };
    let model = Models::new(config).and_then(|models| models.provider("anthropic")).expect("configured");
    collect(model.call(request.into()).await).await
}
