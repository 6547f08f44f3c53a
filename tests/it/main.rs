//! The one test binary beside the tests in `src/`: whole graphs, the architecture, and real servers.

#[path = "../../dev/executor.rs"]
mod executor;
#[path = "../../dev/proxy.rs"]
mod proxy;
#[path = "../../dev/servers.rs"]
mod servers;

mod cases;
mod chaos;
mod crash_points;
mod effects;
mod interrupts;
mod live;
mod model;
mod stage;
mod stores;
mod tidy;
mod worker;
