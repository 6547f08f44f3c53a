//! The outside world in memory, for tests: answers the requests of HTTP and NATS tools and remembers them.
//!
//! The last word of a tool's address or subject decides: `lost` takes effect and its answer never comes; `lost-first`
//! is lost without effect the first time a key is seen; `nobody` and `nobody-first` reach nobody, always or the first
//! time; `slow` takes effect and never answers; anything else takes effect and answers, `echo` with the body.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{
    Answer, Call, Error, Offer, SharedOffer, SharedTool, Tool,
    mcp::Naming,
    nats::{IDEMPOTENCY_KEY, Incoming, Outgoing, Requester, TOOL, Unanswered},
};
use crate::{
    graph::{Effect, HttpTool as Definition, McpName, ToolDefinition},
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

/// A server that all HTTP and NATS tools of a toolbox reach.
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

    fn take(&self, request: Request, (word, body): (&str, Option<String>)) -> Fate {
        let mut requests = self.lock();
        let is_first = !requests.lost.contains(&request);
        if word == "nobody" || (word == "nobody-first" && is_first) {
            requests.lost.push(request);
            return Fate::Nobody;
        }
        if word == "lost-first" && is_first {
            requests.lost.push(request);
            return Fate::Lost;
        }
        let answer =
            body.filter(|_| word == "echo").unwrap_or_else(|| format!("{} took effect", request.tool));
        requests.done.push(request);
        if word == "lost" { Fate::Lost } else { Fate::Answered(answer) }
    }
}

/// What became of a request.
enum Fate {
    Answered(String),
    Lost,
    Nobody,
}

#[async_trait]
impl Requester for Outside {
    async fn request(&self, sent: Outgoing) -> Result<Incoming, Unanswered> {
        let header = |wanted: &str| {
            let found = sent.headers.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let word = sent.subject.rsplit('.').next().unwrap_or_default();
        let body = String::from_utf8_lossy(&sent.payload).into_owned();
        let fate =
            self.take(Request { tool: header(TOOL), key: header(IDEMPOTENCY_KEY) }, (word, Some(body)));
        if word == "slow" {
            tokio::time::sleep(sent.timeout).await;
            return Err(Unanswered::TimedOut);
        }
        match fate {
            Fate::Answered(text) => Ok(Incoming { headers: Vec::new(), payload: text.into() }),
            Fate::Lost => Err(Unanswered::Lost("connection reset".into())),
            Fate::Nobody => Err(Unanswered::NoResponders),
        }
    }
}

/// The tools that every MCP server in memory has, by what a call of them does: each takes effect at an address that ends
/// with its name.
const MCP_TOOLS: [(&str, Effect); 4] = [
    ("look", Effect::Read),
    ("note", Effect::Idempotent),
    ("send", Effect::Irreversible),
    ("lost", Effect::Irreversible),
];

/// What `name` stands for if it is of an MCP server.
pub(super) fn offer(
    name: &str,
    definition: Option<&ToolDefinition>,
    outside: &Arc<Outside>,
) -> Option<SharedOffer> {
    let (naming, picked, effect) = match definition {
        Some(definition) => {
            let runtime = definition.mcp()?;
            match &runtime.tool {
                Some(tool) => (Naming::As(name.into()), vec![tool.clone()], definition.effect),
                None => (Naming::Prefixed(name.into()), runtime.tools.clone(), definition.effect),
            }
        }
        None => {
            let name = McpName::parse(name)?;
            let picked = name.tool.map(str::to_owned).into_iter().collect();
            (Naming::Prefixed(name.server.into()), picked, None)
        }
    };
    let listed =
        MCP_TOOLS.iter().filter(|(name, _)| picked.is_empty() || picked.iter().any(|one| one == name));
    let tool = |(name, hinted): &(&str, Effect)| {
        let spec = ToolSpec {
            name: naming.name(name).as_str().into(),
            description: String::new(),
            parameters: serde_json::json!({"type": "object"}).into(),
        };
        let url = format!("mcp://twin/{name}");
        let http = Definition {
            url,
            method: None,
            headers: Default::default(),
            body: None,
            timeout_seconds: None,
            max_response_bytes: None,
            pagination: None,
            auth: None,
        };
        Arc::new(Twin::new(spec, effect.unwrap_or(*hinted), &http, outside.clone())) as SharedTool
    };
    Some(Arc::new(TwinOffer(listed.map(tool).collect())))
}

/// Tools of an MCP server that is [`Outside`].
struct TwinOffer(Arc<[SharedTool]>);

#[async_trait]
impl Offer for TwinOffer {
    async fn list(&self) -> Result<(), Error> {
        Ok(())
    }

    fn known(&self) -> Arc<[SharedTool]> {
        self.0.clone()
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
        let word = self.http.url.rsplit('/').next().unwrap_or_default();
        let fate = self.outside.take(request, (word, self.http.body.as_ref().map(ToString::to_string)));
        if word == "slow" {
            return std::future::pending().await;
        }
        match fate {
            Fate::Answered(text) => Answer::success(text),
            Fate::Lost => Error::Lost("the exchange broke off with 'twin': connection reset".into()).into(),
            Fate::Nobody => Error::NotSent("could not connect to 'twin': connection refused".into()).into(),
        }
    }
}
