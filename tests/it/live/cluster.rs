//! What a cluster asks of a pod: the metrics that alerts and panels name, the lag that KEDA scales by, the probe.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value as Json, json};

use super::{
    main_job::deep_agent,
    world::{WITHIN, World, orchestrator, request},
};
use crate::{executor::Executor, servers};

/// Requests per pod, as the chart asks KEDA for.
const LAG_THRESHOLD: &str = "5";

/// What the ScaledObject allows.
const PODS: std::ops::RangeInclusive<u64> = 1..=10;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every metric of ours that the text names, without what a histogram appends.
fn named(text: &str) -> BTreeSet<String> {
    let is_name = |letter: char| letter.is_ascii_lowercase() || letter == '_';
    let words = text.split(|letter| !is_name(letter)).filter(|word| word.starts_with("agent_executor_"));
    let suffixes = ["_bucket", "_count", "_sum"];
    let base = |word: &str| {
        let bare = suffixes.iter().find_map(|suffix| word.strip_suffix(suffix));
        bare.unwrap_or(word).to_owned()
    };
    words.map(base).collect()
}

/// The metrics that alerts and dashboards name.
fn watched() -> Result<BTreeSet<String>> {
    let chart = root().join("charts/agent-executor");
    let mut names = named(&fs::read_to_string(chart.join("alerts/alerts.yaml"))?);
    for entry in fs::read_dir(chart.join("dashboards"))? {
        names.append(&mut named(&fs::read_to_string(entry?.path())?));
    }
    Ok(names)
}

#[tokio::test]
async fn metrics_that_alerts_and_panels_name_are_exposed_after_a_run() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor_with(&[("OPENAI_RPM", "600")]).await?;
    world.run(&request("fine", &deep_agent(0), "go")).await?;
    let mut failing = orchestrator(json!([
        { "tool_calls": [{ "id": "c1", "name": "reach", "args": {} }] },
        { "text": "", "fail": { "times": 9, "status": 400, "message": "no" } }
    ]));
    failing["tool_definitions"] = json!([{ "name": "reach", "http": { "url": "http://127.0.0.1:1/" } }]);
    failing["nodes"][0]["tools"] = json!(["reach"]);
    let failed = world.run(&request("failing", &failing, "go")).await?;
    ensure!(failed["type"] == "dev.my-platform.agent.failed", "{failed}");
    // Limits are shared beside the jobs.
    let shared = || async {
        executor.get("/metrics").await.is_ok_and(|(_, text)| text.contains("llm_limits_shared{"))
    };
    servers::until("limits are shared", WITHIN, shared).await?;
    let (_, text) = executor.get("/metrics").await?;
    let exposed: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let watched = watched()?;
    assert!(watched.len() > 20, "{watched:?}");
    let missing: Vec<_> = watched.iter().filter(|name| !exposed.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?} are not among {exposed:?}");
    assert!(text.contains("agent_executor_job_failures_total{code=\"MODEL_"), "{text}");
    assert!(text.contains("agent_executor_node_seconds_count{node=\"main\"}"), "{text}");
    Ok(())
}

/// How many pods KEDA's formula asks for, within what the ScaledObject allows.
async fn pods(monitoring: u16) -> Result<u64> {
    let script = root().join("../shared/fixtures/k8s-schemas/keda_lag.py");
    ensure!(script.is_file(), "the formula is missing: {}", script.display());
    let mut command = tokio::process::Command::new("python3");
    command.arg(script).arg(format!("127.0.0.1:{monitoring}"));
    command.args(["AGENT_EXECUTION", "agent-executor-workers", "--lag-threshold", LAG_THRESHOLD]);
    let done = tokio::time::timeout(WITHIN, command.kill_on_drop(true).output()).await??;
    let answer: Json = serde_json::from_slice(&done.stdout)?;
    let wanted = answer["replicas_wanted"].as_u64().with_context(|| answer.to_string())?;
    Ok(wanted.clamp(*PODS.start(), *PODS.end()))
}

/// Three supersteps and more, each long enough to be told to go in the middle.
fn work() -> Json {
    let call = |id: &str| json!({ "id": id, "name": "ls", "args": { "path": "/" } });
    orchestrator(json!([
        { "text": "one", "delay_ms": 300, "tool_calls": [call("a")] },
        { "text": "two", "delay_ms": 300, "tool_calls": [call("b")] },
        { "text": "three", "delay_ms": 300 }
    ]))
}

async fn publish(world: &World, jobs: std::ops::Range<u32>) -> Result<()> {
    for job in jobs {
        world.publish(&request(&format!("job-{job}"), &work(), "go")).await?;
    }
    Ok(())
}

async fn in_flight(executor: &Executor) -> Option<u32> {
    let (_, text) = executor.get("/metrics").await.ok()?;
    text.lines().find_map(|line| line.strip_prefix("agent_executor_jobs_in_flight "))?.parse().ok()
}

#[tokio::test]
async fn the_lag_asks_for_pods_and_a_busy_pod_that_is_told_to_go_loses_no_job() -> Result<()> {
    let monitoring = servers::free_port()?;
    let world = World::start_with_nats(&format!("http: \"127.0.0.1:{monitoring}\"")).await?;
    // What the chart's Job does before there is a ScaledObject: the consumer that the scaler looks at.
    let (code, _, errors) = world.run_command(&["migrate", "--queue"]).await?;
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(pods(monitoring).await?, 1, "nothing waits");
    publish(&world, 0..6).await?;
    assert_eq!(pods(monitoring).await?, 2, "6 jobs wait");
    publish(&world, 6..10).await?;
    assert_eq!(pods(monitoring).await?, 2, "10 jobs wait");
    publish(&world, 10..50).await?;
    assert_eq!(pods(monitoring).await?, 10, "50 jobs wait");

    let told_to_go = world.executor_with(&[("SHUTDOWN_GRACE_SECONDS", "0")]).await?;
    let busy = || async { in_flight(&told_to_go).await.is_some_and(|jobs| jobs >= 10) };
    servers::until("the pod is busy", WITHIN, busy).await?;
    told_to_go.terminate().await?;
    assert!(pods(monitoring).await? > 1, "what it handed back still asks for pods");

    let _heir = world.executor().await?;
    world.all_settled().await?;
    for job in 0..50 {
        let results = world.results_of(&format!("job-{job}")).await?;
        assert_eq!(results.len(), 1, "job-{job}");
        assert_eq!(results[0].json["type"], "dev.my-platform.agent.completed", "{}", results[0].json);
    }
    assert_eq!(pods(monitoring).await?, 1, "all is done");
    Ok(())
}

#[tokio::test]
async fn the_probe_says_what_health_and_ready_say() -> Result<()> {
    let world = World::start().await?;
    let executor = world.executor().await?;
    let url = format!("http://127.0.0.1:{}", executor.port());
    for arguments in [&["probe", "--url", &url][..], &["probe", "--ready", "--url", &url]] {
        let (code, printed, errors) = world.run_command(arguments).await?;
        assert_eq!((code, printed.as_str(), errors.as_str()), (Some(0), "", ""));
    }
    world.nats.pause()?;
    let (code, _, errors) = world.run_command(&["probe", "--ready", "--url", &url]).await?;
    assert!(code == Some(1) && errors.contains("503") && errors.contains("\"nats\":false"), "{errors}");
    assert_eq!(world.run_command(&["probe", "--url", &url]).await?.0, Some(0), "it lives all the same");
    world.nats.resume()?;
    executor.terminate().await?;
    let (code, _, errors) = world.run_command(&["probe", "--url", &url]).await?;
    assert!(code == Some(1) && errors.contains("cannot be reached"), "{errors}");
    Ok(())
}
