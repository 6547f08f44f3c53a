//! Expressions and prompt templates over the state: minijinja, strict about names, with fuel.
//!
//! **Invariant:** neither can run for long or grow without bound, whatever its source says.

use std::{fmt, sync::Arc};

use crate::value::{State, Value};

/// Why an expression or template is wrong, or failed on this state.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// A parsed expression.
#[derive(Clone)]
pub struct Expression {
    source: Arc<str>,
}

/// A parsed template.
#[derive(Clone)]
pub struct Template {
    source: Arc<str>,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.source).finish()
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Template").field(&self.source).finish()
    }
}

impl Expression {
    /// Parses `source`.
    pub fn parse(_source: &str) -> Result<Self, Error> {
        todo!("owner: graph helper")
    }

    /// The value of the expression over `state`; an undefined name is an error.
    pub fn eval(&self, _state: &State) -> Result<Value, Error> {
        todo!("owner: graph helper")
    }
}

impl Template {
    /// Parses `source`.
    pub fn parse(_source: &str) -> Result<Self, Error> {
        todo!("owner: graph helper")
    }

    /// The text of the template over `state`; an undefined name is an error.
    pub fn render(&self, _state: &State) -> Result<String, Error> {
        todo!("owner: graph helper")
    }
}
