//! The one test binary beside the tests in `src/`: whole graphs, the architecture, and real servers.

#[path = "../../dev/executor.rs"]
mod executor;
#[path = "../../dev/servers.rs"]
mod servers;

mod cases;
mod crash_points;
mod live;
mod stage;
mod stores;
mod tidy;
mod worker;
