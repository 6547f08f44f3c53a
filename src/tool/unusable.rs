//! Tools that are named in a definition and cannot answer here: they say why, each time they are called.

use async_trait::async_trait;

use super::{Answer, Call, Error, Tool};
use crate::{
    graph::{Effect, ToolDefinition, ToolRuntime},
    model::ToolSpec,
};

/// The language of a script that names none.
const DEFAULT_LANGUAGE: &str = "python";

/// A tool that answers every call with the same error.
pub(super) struct Unusable {
    spec: ToolSpec,
    reason: Reason,
}

enum Reason {
    RuntimeMissing { language: String },
    Mistakes(Vec<String>),
}

impl Unusable {
    /// A script, accepted in definitions and never run.
    pub(super) fn script(spec: ToolSpec, runtime: &ToolRuntime) -> Self {
        let language = runtime.language.as_deref().unwrap_or(DEFAULT_LANGUAGE).to_owned();
        Self { spec, reason: Reason::RuntimeMissing { language } }
    }

    /// A definition with mistakes.
    pub(super) fn mistaken(spec: ToolSpec, mistakes: Vec<String>) -> Self {
        Self { spec, reason: Reason::Mistakes(mistakes) }
    }
}

#[async_trait]
impl Tool for Unusable {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    fn effect(&self) -> Effect {
        Effect::Pure
    }

    async fn call(&self, _: Call<'_>) -> Answer {
        match &self.reason {
            Reason::RuntimeMissing { language } => {
                Error::RuntimeMissing { language: language.clone() }.into()
            }
            Reason::Mistakes(mistakes) => Error::Definition(mistakes.clone()).into(),
        }
    }
}

/// What the model is told of a defined tool; a definition without parameters takes any object.
pub(super) fn spec_of(definition: &ToolDefinition) -> ToolSpec {
    let any = || serde_json::json!({"type": "object", "properties": {}});
    ToolSpec {
        name: definition.name.as_str().into(),
        description: definition.description.clone(),
        parameters: definition.parameters.clone().unwrap_or_else(any).into(),
    }
}
