//! What the tests of all dialects share, and tests against servers that others wrote.

mod classes;
mod mocks;
pub(in crate::model) mod recordings;
pub(in crate::model) mod server;
