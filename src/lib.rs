//! Runs agent graphs: execution messages from NATS JetStream in, checkpoints in Postgres, live events to a
//! Redis-protocol server, CloudEvent results out.
//!
//! Modules are listed in call order; imports only point down the list (`tests/it/tidy.rs` checks it).

pub mod cli;
pub mod app;
pub mod config;
pub mod http;
pub mod embedded;
pub mod worker;
pub mod queue;
pub mod run;
pub mod node;
pub mod tool;
pub mod model;
pub mod secrets;
pub mod stream;
pub mod store;
pub mod job;
pub mod pregel;
pub mod graph;
pub mod value;
pub mod ids;
pub mod telemetry;
pub mod encoding;

#[cfg(test)]
#[path = "../dev/packages.rs"]
mod packages;
