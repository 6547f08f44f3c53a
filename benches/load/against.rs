//! Two builds of the program in turns on the same servers: what a change is worth. Processor time per job says more
//! than jobs per second where others use the machine too.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::{
    Plan, Servers,
    cpu::Cpu,
    driver::{Driver, Turn, Until, three_nodes},
    report::Report,
};

/// Pairs of turns. The order within a pair changes, so that neither build always runs on the larger tables.
const PAIRS: usize = 5;
/// Jobs of each start that do not count.
const WARM_UP: usize = 150;
/// Jobs at a time unless the plan says otherwise.
const IN_FLIGHT: usize = 64;

pub(crate) async fn measure(servers: &Servers, plan: &Plan, other: &Path, report: &mut Report) -> Result<()> {
    let ours = Path::new(env!("CARGO_BIN_EXE_agent-executor"));
    let in_flight = plan.in_flight.unwrap_or(IN_FLIGHT);
    let mut driver = Driver::new(&servers.nats.url(), "against").await?;
    let mut sums = [(Turn::default(), Cpu::default()), (Turn::default(), Cpu::default())];
    for pair in 0..PAIRS {
        let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
        for which in order {
            let program = [other, ours][which];
            let executor =
                crate::start(program, &servers.postgres.url(), &servers.nats, &servers.redis).await?;
            driver.run(&three_nodes(), in_flight, Until { time: plan.turn * 4, jobs: WARM_UP }).await?;
            let before = Cpu::now(servers, &executor);
            let until = Until { time: plan.turn, jobs: plan.jobs };
            let turn = driver.run(&three_nodes(), in_flight, until).await?;
            let spent = Cpu::now(servers, &executor).since(before);
            let status = executor.terminate().await?;
            ensure!(status.success(), "{} ended with {status}", program.display());
            let (sum, cpu) = &mut sums[which];
            sum.and(turn);
            *cpu = cpu.and(spent);
        }
    }
    report.line(format!("\n{in_flight} in flight, {PAIRS} turns each; CPU in ms per job\n\n        jobs/s   p50 ms     CPU   exec     pg   nats  redis"));
    let rows = sums.map(|(turn, cpu)| {
        let cpu = cpu.millis_per(turn.jobs());
        [
            turn.jobs() / turn.seconds,
            turn.percentile(50),
            cpu.total(),
            cpu.executor,
            cpu.postgres,
            cpu.nats,
            cpu.redis,
        ]
    });
    let ratio = std::array::from_fn(|at| rows[1][at] / rows[0][at]);
    for (name, row) in [("other", rows[0]), ("this", rows[1]), ("ratio", ratio)] {
        let [rate, p50, all, exec, pg, nats, redis] = row;
        let rate = if name == "ratio" { format!("{rate:8.2}") } else { format!("{rate:8.0}") };
        report.line(format!(
            "{name:<5} {rate} {p50:>8.2} {all:>7.3} {exec:>6.3} {pg:>6.3} {nats:>6.3} {redis:>6.3}"
        ));
    }
    Ok(())
}
