//! Tests against real servers, started by the tests themselves. They always run; a missing server is a failure.

pub(crate) mod interop;
mod library;
mod limits;
mod throw_away;
mod bad_input;
mod broker_upkeep;
mod cancel;
mod cluster;
mod commands;
mod dlq;
mod doctor;
mod double_text;
mod drain;
mod effects;
mod langgraph;
mod main_job;
mod neighbours;
mod outages;
mod proxy;
mod queue;
mod recovery;
mod scripts;
mod stream;
pub(crate) mod world;
