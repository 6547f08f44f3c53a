//! What a definition's name stands for among a server's tools, and each of them as a tool.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{
    Naming,
    listing::{Listed, Listing},
    server::Server,
};
use crate::{
    graph::{Effect, McpName, SharedSchema, ToolDefinition},
    model::ToolSpec,
    telemetry::Pass,
    tool::{Answer, Call, CallPolicy, Error, Offer, SharedTool, Tell, Tool},
    value::map_to_json,
};

/// Which tools a name stands for, and what the definition says of them itself.
pub(super) struct Wanted {
    naming: Naming,
    /// By the server's names; empty is all.
    picked: Vec<String>,
    effect: Option<Effect>,
    description: String,
    parameters: Option<SharedSchema>,
    policy: CallPolicy,
}

impl Wanted {
    /// What `mcp:…` stands for.
    pub(super) fn named(name: &McpName<'_>) -> Self {
        Self {
            naming: Naming::Prefixed(name.server.to_owned()),
            picked: name.tool.map(str::to_owned).into_iter().collect(),
            effect: None,
            description: String::new(),
            parameters: None,
            policy: CallPolicy::default(),
        }
    }

    /// What a definition stands for; `None` when it is not of an MCP server.
    pub(super) fn defined(definition: &ToolDefinition) -> Option<Self> {
        let runtime = definition.mcp()?;
        let (naming, picked) = match &runtime.tool {
            Some(tool) => (Naming::As(definition.name.clone()), vec![tool.clone()]),
            None => (Naming::Prefixed(definition.name.clone()), runtime.tools.clone()),
        };
        let description = if runtime.tool.is_some() { definition.description.clone() } else { String::new() };
        let (effect, parameters) = (definition.effect, definition.parameters.clone().map(Into::into));
        let policy = CallPolicy::of(definition);
        Some(Self { naming, picked, effect, description, parameters, policy })
    }
}

type Found = (Arc<Listing>, Arc<[SharedTool]>);

/// Tools of a server that can be reached.
pub(super) struct McpOffer {
    server: Arc<Server>,
    wanted: Wanted,
    /// The list that was read last, and what it came to.
    found: Mutex<Option<Found>>,
}

impl McpOffer {
    pub(super) fn new(server: Arc<Server>, wanted: Wanted) -> Self {
        Self { server, wanted, found: Mutex::default() }
    }

    fn pick(&self, listing: &Listing) -> Result<Arc<[SharedTool]>, Error> {
        if self.wanted.picked.is_empty() {
            return Ok(listing.tools.iter().map(|tool| self.tool(tool)).collect());
        }
        let one = |name: &String| {
            let tool = listing.get(name).ok_or_else(|| self.server.missing(name, listing))?;
            Ok(self.tool(tool))
        };
        self.wanted.picked.iter().map(one).collect()
    }

    fn tool(&self, listed: &Arc<Listed>) -> SharedTool {
        let wanted = &self.wanted;
        let description =
            if wanted.description.is_empty() { &listed.description } else { &wanted.description };
        let spec = ToolSpec {
            name: wanted.naming.name(&listed.name).as_str().into(),
            description: description.clone(),
            parameters: wanted.parameters.clone().unwrap_or_else(|| listed.parameters.clone()),
        };
        let effect = wanted.effect.or(self.server.effect).unwrap_or(listed.hinted);
        let (own_name, server) = (listed.name.clone(), self.server.clone());
        Arc::new(McpTool { spec, effect, policy: wanted.policy.clone(), own_name, server })
    }
}

#[async_trait]
impl Offer for McpOffer {
    async fn list(&self) -> Result<(), Error> {
        let listing = self.server.listing().await?;
        let found = || self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = found().as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, &listing));
        if !is_known {
            let tools = self.pick(&listing)?;
            *found() = Some((listing, tools));
        }
        Ok(())
    }

    fn known(&self) -> Arc<[SharedTool]> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.as_ref().map_or_else(|| Arc::from([]), |(_, tools)| tools.clone())
    }
}

/// A name behind which there is no server.
pub(super) enum Nowhere {
    /// The operator has none of that name.
    Server(String),
    /// The definition has these mistakes.
    Definition(Vec<String>),
}

#[async_trait]
impl Offer for Nowhere {
    async fn list(&self) -> Result<(), Error> {
        Err(match self {
            Self::Server(message) => Error::McpServer(message.clone()),
            Self::Definition(mistakes) => Error::Definition(mistakes.clone()),
        })
    }

    fn known(&self) -> Arc<[SharedTool]> {
        Arc::from([])
    }
}

/// One tool of a server.
struct McpTool {
    spec: ToolSpec,
    effect: Effect,
    policy: CallPolicy,
    /// The server's name for it.
    own_name: String,
    server: Arc<Server>,
}

#[async_trait]
impl Tool for McpTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    fn effect(&self) -> Effect {
        self.effect
    }

    fn policy(&self) -> &CallPolicy {
        &self.policy
    }

    async fn turn(&self) -> Option<Pass> {
        Some(self.server.calls.enter().await)
    }

    fn keeps_limit(&self) -> bool {
        true
    }

    async fn call(&self, call: Call<'_>) -> Answer {
        self.call_telling(call, &|_| {}).await
    }

    async fn call_telling(&self, call: Call<'_>, tell: Tell<'_>) -> Answer {
        let serde_json::Value::Object(arguments) = map_to_json(call.args) else {
            unreachable!("a map is an object")
        };
        let answer = self.server.call((&self.own_name, arguments), &call, tell).await;
        tracing::debug!(tool = &*self.spec.name, status = answer.status.as_str(), "mcp tool answered");
        answer
    }
}
