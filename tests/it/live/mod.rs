//! Tests against real servers, started by the tests themselves. They always run; a missing server is a failure.

mod interop;
mod throw_away;
mod bad_input;
mod commands;
mod main_job;
mod neighbours;
mod outages;
mod queue;
mod stream;
mod world;
