//! OpenAI's Chat Completions and Responses, and the many servers that speak the same.

mod assembly;
mod request;
mod responses;
mod schema;
#[cfg(test)]
mod tests;
mod wire;

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::time::Instant;

use super::{
    ChatModel, Chunk, Error, Provider, Quirk, Request, Timeouts,
    address::AllowedHosts,
    remote::{Call, Remote},
};
use crate::graph::ModelApi;

/// The host whose newer models refuse `max_tokens`, and that never answers without a key.
const OPENAI_HOST: &str = "api.openai.com";

/// An OpenAI-compatible provider.
pub(super) struct OpenAi {
    remote: Remote,
    api: ModelApi,
    quirks: BTreeSet<Quirk>,
}

impl OpenAi {
    /// The provider at its configured address, spoken to by `api` unless a definition says otherwise; asks
    /// nobody yet.
    pub(super) fn new(
        name: &str,
        (provider, api): (Provider, ModelApi),
        allowed: Arc<AllowedHosts>,
        timeouts: Timeouts,
    ) -> Result<Self, Error> {
        let quirks = provider.quirks.clone();
        Ok(Self { remote: Remote::new(name, provider, allowed, timeouts)?, api, quirks })
    }

    fn prepare(&self, request: Arc<Request>) -> Result<Call, Error> {
        let api = request.settings.api.unwrap_or(self.api);
        let path = match api {
            ModelApi::ChatCompletions => "/chat/completions",
            ModelApi::Responses => "/responses",
        };
        let url = self.remote.endpoint(&request, path, OPENAI_HOST)?;
        let mut quirks = self.quirks.clone();
        if url.host_str() == Some(OPENAI_HOST) {
            quirks.extend([Quirk::MaxCompletionTokens, Quirk::StrictTools]);
        }
        let (body, assembly): (_, Box<dyn super::answer::Assemble>) = match api {
            ModelApi::ChatCompletions => {
                (request::body(&request, &quirks)?, Box::new(assembly::Assembly::default()))
            }
            ModelApi::Responses => {
                (responses::body(&request, &quirks)?, Box::new(responses::Assembly::default()))
            }
        };
        Ok(Call { request, url, headers: Vec::new(), body, assembly })
    }
}

#[async_trait]
impl ChatModel for OpenAi {
    async fn call(&self, request: Arc<Request>) -> Result<BoxStream<'static, Result<Chunk, Error>>, Error> {
        let start = Instant::now();
        self.remote.send(start, self.prepare(request)?).await
    }
}
