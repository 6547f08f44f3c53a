//! The one test binary beside the tests in `src/`: whole graphs, the architecture, and real servers.

#[path = "../../dev/doors.rs"]
mod doors;
#[path = "../../dev/executor.rs"]
mod executor;
#[path = "../../dev/packages.rs"]
mod packages;
#[path = "../../dev/proxy.rs"]
mod proxy;
#[path = "../../dev/servers.rs"]
mod servers;
#[path = "../../dev/vault.rs"]
mod vault;

mod agents;
mod cases;
mod chaos;
mod crash_points;
mod effects;
mod embedded;
mod gathered;
mod interrupts;
mod live;
mod model;
mod people;
mod policies;
mod secrets;
mod stage;
mod stores;
mod threads;
mod tidy;
mod worker;
