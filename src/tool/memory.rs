//! The outside world in memory, for tests: answers the requests of HTTP tools and remembers them.
//!
//! The end of a tool's address decides: `/lost` takes effect and its answer never comes; `/lost-first` is lost
//! without effect the first time a key is seen; `/slow` takes effect and never answers; anything else takes effect and
//! answers, `/echo` with the body.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Answer, Call, Error, Tool};
use crate::{
    graph::{Effect, HttpTool as Definition},
    model::ToolSpec,
};

/// One request that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The tool.
    pub tool: String,
    /// The idempotency key it came with.
    pub key: String,
}

/// A server that all HTTP tools of a toolbox reach.
#[derive(Debug, Default)]
pub struct Outside {
    requests: Mutex<Requests>,
}

#[derive(Debug, Default)]
struct Requests {
    /// Those that took effect.
    done: Vec<Request>,
    /// Those that were lost on their way.
    lost: Vec<Request>,
}

impl Outside {
    /// The requests that took effect, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().done.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, request: Request, http: &Definition) -> Answer {
        let url = &http.url;
        let lost = || Error::Lost("the exchange broke off with 'twin': connection reset".into()).into();
        let mut requests = self.lock();
        if url.ends_with("/lost-first") && !requests.lost.contains(&request) {
            requests.lost.push(request);
            return lost();
        }
        let answer = match &http.body {
            Some(body) if url.ends_with("/echo") => Answer::success(body.to_string()),
            Some(_) | None => Answer::success(format!("{} took effect", request.tool)),
        };
        requests.done.push(request);
        if url.ends_with("/lost") { lost() } else { answer }
    }
}

/// An HTTP tool whose server is [`Outside`].
pub(super) struct Twin {
    pub(super) spec: ToolSpec,
    pub(super) effect: Effect,
    pub(super) http: Definition,
    pub(super) outside: Arc<Outside>,
}

impl Twin {
    pub(super) fn new(spec: ToolSpec, effect: Effect, http: &Definition, outside: Arc<Outside>) -> Self {
        Self { spec, effect, http: http.clone(), outside }
    }
}

#[async_trait]
impl Tool for Twin {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    fn effect(&self) -> Effect {
        self.effect
    }

    async fn call(&self, call: Call<'_>) -> Answer {
        let request = Request { tool: self.spec.name.to_string(), key: call.idempotency_key.to_owned() };
        let answer = self.outside.take(request, &self.http);
        if self.http.url.ends_with("/slow") {
            return std::future::pending().await;
        }
        answer
    }
}
