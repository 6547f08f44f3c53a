//! How long a job stands still when its owner is killed: from the signal to the next attempt's first event.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fred::prelude::{Builder, Client, ClientLike, Config as RedisConfig, StreamsInterface};
use serde_json::json;

use crate::{
    Servers,
    driver::{request, slow},
    report::{Goal, Report},
    servers::Nats,
};

/// Kills, as far as the time allows.
const ROUNDS: usize = 5;
/// No further round starts after this.
const TIME: Duration = Duration::from_secs(60);
/// No recovery takes this long unless something is broken.
const WITHIN: Duration = Duration::from_secs(90);
/// Time between two tokens of the job that is interrupted.
const TOKEN: Duration = Duration::from_millis(500);
/// How often the stream is looked at; the error of the measurement.
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub(crate) async fn measure(servers: &Servers, report: &mut Report) -> Result<()> {
    let began = Instant::now();
    let mut waits = Vec::new();
    while waits.len() < ROUNDS && (waits.is_empty() || began.elapsed() < TIME) {
        waits.push(round(servers, waits.len()).await?);
    }
    waits.sort_unstable();
    let seconds: Vec<f64> = waits.iter().map(Duration::as_secs_f64).collect();
    let (median, most) = (seconds[(seconds.len() - 1) / 2], seconds[seconds.len() - 1]);
    report.line(format!(
        "\nRecovery: kill -9 of the owner until the first event of the next attempt, by a second executor that was idle;\n\
         default settings.\n\n\
         rounds   p50 s   max s\n{:>6} {median:>7.2} {most:>7.2}",
        seconds.len()
    ));
    report.target("kill -9 to running again, slowest", Goal::AtMost(5.0), most, "s");
    report.json("recovery", json!({ "seconds": seconds, "p50": median, "max": most }));
    Ok(())
}

async fn round(servers: &Servers, nth: usize) -> Result<Duration> {
    let nats = Nats::start().await?;
    let database = servers.postgres.fresh_database().await?;
    let owner = crate::executor(&database, &nats, &servers.redis).await?;
    let client = async_nats::connect(nats.url()).await?;
    let redis = Builder::from_config(RedisConfig::from_url(&servers.redis.url())?).build()?;
    redis.init().await?;
    let id = format!("killed-{nth}");
    client.publish("agent.execute.load", request(&id, &slow(TOKEN).to_string()).into()).await?;
    client.flush().await?;
    first_of(&redis, &id, 1).await?;
    let successor = crate::executor(&database, &nats, &servers.redis).await?;
    owner.kill()?;
    let killed = Instant::now();
    first_of(&redis, &id, 2).await.with_context(|| successor.log_tail())?;
    let waited = killed.elapsed();
    redis.quit().await?;
    successor.kill()?;
    Ok(waited)
}

/// Waits until the stream of the job's thread has an event of this attempt.
async fn first_of(redis: &Client, id: &str, attempt: u32) -> Result<()> {
    let key = format!("langgraph:stream:{id}");
    let mark = format!(r#""attempt":{attempt}"#);
    let told = async {
        loop {
            let last: Vec<(String, HashMap<String, String>)> =
                redis.xrevrange_values(&key, "+", "-", Some(1)).await?;
            if last.iter().any(|(_, fields)| fields.values().any(|event| event.contains(&mark))) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(WITHIN, told).await.with_context(|| format!("no event of attempt {attempt}"))?
}
