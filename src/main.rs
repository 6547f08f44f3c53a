//! The executable: an allocator, a TLS provider, a runtime, and the command line.

use std::process::ExitCode;

/// Long runs allocate many small values on many threads; this one stays flat where the system's grows.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.install_default().expect("nothing has installed a TLS provider before main");
    agent_executor::cli::run(std::env::args_os()).await
}
