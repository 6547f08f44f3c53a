//! What others ask of a node's kind, answered once for all kinds.

use super::{compiled::NodeKind, definition::ModelSettings};
use crate::value::Name;

impl NodeKind {
    /// The agent whose loop the node is a part of, behind the agent's model; events carry the agent's name.
    pub fn agent(&self) -> Option<&Name> {
        match self {
            Self::Tools(tools) => Some(&tools.agent),
            Self::Summary(summary) => Some(&summary.agent),
            Self::Model(_)
            | Self::Transform(_)
            | Self::Router(_)
            | Self::Approval(_)
            | Self::Fail(_)
            | Self::Map(_)
            | Self::Gather
            | Self::Subgraph(_)
            | Self::Tool(_) => None,
        }
    }

    /// The model that its tasks ask.
    pub(super) fn model(&self) -> Option<&ModelSettings> {
        match self {
            Self::Model(call) => Some(&call.model),
            Self::Router(router) => Some(&router.call.model),
            Self::Summary(summary) => Some(&summary.model),
            Self::Tools(_)
            | Self::Transform(_)
            | Self::Approval(_)
            | Self::Fail(_)
            | Self::Map(_)
            | Self::Gather
            | Self::Subgraph(_)
            | Self::Tool(_) => None,
        }
    }

    /// Tools that its model may ask for, or that it calls by itself. Calls of an agent are made by another node; the
    /// agent's model has their tools.
    pub fn tools(&self) -> &[Name] {
        match self {
            Self::Model(call) => &call.tools,
            Self::Router(router) => &router.call.tools,
            Self::Tool(call) => std::slice::from_ref(&call.tool),
            Self::Tools(_)
            | Self::Transform(_)
            | Self::Summary(_)
            | Self::Approval(_)
            | Self::Fail(_)
            | Self::Map(_)
            | Self::Gather
            | Self::Subgraph(_) => &[],
        }
    }

    /// Whether each of its tasks is one call of a tool.
    pub fn is_call(&self) -> bool {
        match self {
            Self::Tools(_) | Self::Tool(_) => true,
            Self::Model(_)
            | Self::Transform(_)
            | Self::Summary(_)
            | Self::Router(_)
            | Self::Approval(_)
            | Self::Fail(_)
            | Self::Map(_)
            | Self::Gather
            | Self::Subgraph(_) => false,
        }
    }
}
