//! Limits of providers over several processes, and providers that fail, on real servers.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use agent_executor::{
    encoding::hex,
    ids::ThreadId,
    model::{
        Config, Models, Provider, Request, Turn,
        limit::{Draw, Limits, Pool, Rates, ServerPool},
    },
    stream::dragonfly,
};
use anyhow::{Context, Result};
use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use futures::{StreamExt as _, future::join_all, stream};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::timeout};

use super::{
    outages::metric,
    world::{WITHIN, World, of_type, request},
};
use crate::{
    doors::{Served, serve},
    servers::{self, Redis},
};

/// A provider of models: decides by the number of the call, from 0, and when each came.
struct Mock {
    served: Served,
    calls: Arc<Mutex<Vec<Instant>>>,
}

impl Mock {
    async fn start(answer: impl Fn(&[Instant]) -> Response + Clone + Send + Sync + 'static) -> Result<Self> {
        let calls: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let seen = calls.clone();
        let handle = move || {
            let answer = {
                let mut seen = seen.lock().expect("nobody panics with it");
                seen.push(Instant::now());
                answer(&seen)
            };
            async move { answer }
        };
        Ok(Self { served: serve(Router::new().fallback(handle)).await?, calls })
    }

    fn calls(&self) -> Vec<Instant> {
        self.calls.lock().expect("nobody panics with it").clone()
    }
}

fn answered(json: &Json) -> Response {
    (HeaderMap::from_iter([json_type()]), json.to_string()).into_response()
}

fn json_type() -> (axum::http::HeaderName, axum::http::HeaderValue) {
    (axum::http::header::CONTENT_TYPE, axum::http::HeaderValue::from_static("application/json"))
}

fn openai(text: &str) -> Response {
    answered(&json!({
        "id": "1", "object": "chat.completion", "model": "m",
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7 },
    }))
}

fn anthropic(text: &str) -> Response {
    answered(&json!({
        "id": "1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
        "content": [{ "type": "text", "text": text }], "usage": { "input_tokens": 5, "output_tokens": 2 },
    }))
}

/// Streamed: a thought at once, and the answer when `released` says so.
fn thoughtful(released: watch::Receiver<bool>) -> Response {
    let event = |event: Json| Ok::<_, std::convert::Infallible>(Bytes::from(format!("data: {event}\n\n")));
    let thought = event(json!({ "choices": [{ "index": 0, "delta": { "reasoning_content": "Hm" } }] }));
    let said = event(
        json!({ "choices": [{ "index": 0, "delta": { "content": "fine" }, "finish_reason": "stop" }] }),
    );
    let later = stream::once(async move {
        let mut released = released;
        // Nobody releases it any more once the test has ended.
        let _ = released.wait_for(|released| *released).await;
        said
    });
    let body = Body::from_stream(stream::iter([thought]).chain(later));
    ([("content-type", "text/event-stream")], body).into_response()
}

fn refused(status: StatusCode, retry_after: &str) -> Response {
    let body = json!({ "error": { "message": "not now", "type": "rate_limit_error" } }).to_string();
    (status, [("retry-after", retry_after), ("content-type", "application/json")], body).into_response()
}

fn definition(model: Json) -> Json {
    json!({ "nodes": [{ "type": "orchestrator", "name": "main", "tools": [], "model": model }], "edges": [] })
}

/// The models of one process that shares `limits` with others.
fn process(redis: &Redis, name: &str, limits: Limits) -> Result<Models> {
    let mut config = Config::default();
    let provider = Provider { limits, ..Provider::openai(Some("test".to_owned().into()), None) };
    config.providers.insert("openai".into(), provider);
    let models = Models::new(config)?;
    models.share(Arc::new(pool(redis, name)?));
    Ok(models)
}

fn pool(redis: &Redis, name: &str) -> Result<ServerPool> {
    Ok(ServerPool::open(&dragonfly::Config::new(redis.url().into()), name.to_owned())?)
}

async fn turn(models: &Models, thread: &str) -> Result<Turn> {
    let asked = Request {
        settings: Arc::new(serde_json::from_value(json!({ "provider": "openai", "model": "m" }))?),
        system_prompt: None,
        messages: Vec::new(),
        tools: Vec::new(),
        output_schema: None,
        retry: 0,
    };
    Ok(models.turn(&asked, &ThreadId::parse(thread)?).await?)
}

async fn soon(turn: impl Future<Output = Result<Turn>>, what: &str) -> Result<Turn> {
    timeout(WITHIN, turn).await.with_context(|| format!("waited in vain: {what}"))?
}

/// Waits until the pool knows `pods` processes of a lane without limits of its own.
async fn known(redis: &Redis, pods: u32) -> Result<()> {
    let watch = pool(redis, "watch")?;
    let there = || async {
        let drawn = watch.draw(&lane(), &nothing(0)).await;
        // The one that watches is seen as well.
        drawn.is_ok_and(|drawn| drawn.pods == pods + 1)
    };
    servers::until(&format!("{pods} processes share the limits"), WITHIN, there).await
}

/// The lane of the key that is used here.
fn lane() -> String {
    format!("openai:{}", &hex(Sha256::digest("test"))[..8])
}

fn nothing(held: usize) -> Draw {
    let limits = Limits { concurrent: Some(3), ..Limits::default() };
    Draw { held, pause: Duration::ZERO, settled: 0, rates: Rates::of(&limits, 1), calls: Vec::new() }
}

#[tokio::test]
async fn processes_share_calls_at_once_and_keep_to_their_share_while_the_server_is_away() -> Result<()> {
    /// Longer than a clerk takes who would give a place that is not there.
    const A_WHILE: Duration = Duration::from_secs(2);
    let redis = Redis::start().await?;
    let limits = Limits { concurrent: Some(3), ..Limits::default() };
    let (one, two) = (process(&redis, "one", limits)?, process(&redis, "two", limits)?);
    known(&redis, 2).await?;
    let held = join_all((0..3).map(|_| soon(turn(&one, "a"), "one of three"))).await;
    let held: Vec<Turn> = held.into_iter().collect::<Result<_>>()?;
    let mut first = Box::pin(soon(turn(&two, "b"), "its share of the three"));
    assert!(timeout(A_WHILE, &mut first).await.is_err(), "three calls are under way");

    redis.stop().await?;
    let first = first.await?;
    let mut second = Box::pin(soon(turn(&two, "b"), "a place that another process has left"));
    assert!(timeout(A_WHILE, &mut second).await.is_err(), "its share is used up");

    redis.start_again().await?;
    drop(held);
    drop((first, second.await?));
    Ok(())
}

#[tokio::test]
async fn processes_share_a_rate() -> Result<()> {
    const CALLS: usize = 30;
    let redis = Redis::start().await?;
    let limits = Limits { requests_per_minute: Some(600), ..Limits::default() };
    let (one, two) = (process(&redis, "one", limits)?, process(&redis, "two", limits)?);
    known(&redis, 2).await?;
    let (began, times) = (Instant::now(), Mutex::new(Vec::new()));
    let calls = (0..CALLS).flat_map(|_| [&one, &two]).map(async |models| {
        let turn = soon(turn(models, "t"), "a call within the rate").await?;
        times.lock().expect("unbroken").push(began.elapsed());
        turn.answered(None);
        Ok(())
    });
    join_all(calls).await.into_iter().collect::<Result<()>>()?;
    let mut times = times.into_inner()?;
    times.sort();
    assert_eq!(times.len(), 2 * CALLS);
    for (before, time) in times.iter().enumerate() {
        // Ten at once, then ten a second.
        let most = 10.0 + time.as_secs_f64() * 10.0;
        assert!(f64::from(u32::try_from(before)?) <= most, "{before} calls before {time:?}");
    }
    Ok(())
}

#[tokio::test]
async fn calls_of_a_process_that_died_are_forgotten() -> Result<()> {
    let redis = Redis::start().await?;
    let (dead, living) = (pool(&redis, "dead")?, pool(&redis, "living")?);
    let first = || async { dead.draw("p", &nothing(3)).await.is_ok() };
    servers::until("the server answers", WITHIN, first).await?;
    let wanted = Draw { calls: vec![0], ..nothing(0) };
    let at_first = living.draw("p", &wanted).await;
    assert!(at_first.is_ok_and(|drawn| (drawn.granted, drawn.pods) == (0, 2)));
    let free = || async { living.draw("p", &wanted).await.is_ok_and(|drawn| drawn.granted == 1) };
    servers::until("the places of the dead process are free", WITHIN, free).await
}

#[tokio::test]
async fn a_storm_of_refusals_ends_with_every_job_completed_and_the_rate_kept() -> Result<()> {
    const JOBS: usize = 200;
    const PER_SECOND: usize = 15;
    /// Calls at the start that the provider turns away, as if others had used up the limit.
    const TURNED_AWAY: usize = 30;
    let mock = Mock::start(|calls| {
        let now = calls[calls.len() - 1];
        let lately = calls.iter().filter(|call| now - **call < Duration::from_secs(1)).count();
        // What the network and a busy machine hold back comes at once: a provider bears some of that.
        match calls.len() <= TURNED_AWAY || lately > 4 * PER_SECOND {
            true => refused(StatusCode::TOO_MANY_REQUESTS, "2"),
            false => openai("fine"),
        }
    })
    .await?;
    let world = World::start().await?;
    let (base, limit) = (format!("{}/v1", mock.served.url), (60 * PER_SECOND).to_string());
    let settings =
        [("OPENAI_BASE_URL", base.as_str()), ("OPENAI_API_KEY", "test"), ("OPENAI_RPM", limit.as_str())];
    let (one, two) = (world.executor_with(&settings).await?, world.executor_with(&settings).await?);
    let model = definition(json!({ "provider": "openai", "model": "m" }));
    let began = Instant::now();
    for job in 0..JOBS {
        world.publish(&request(&format!("storm-{job}"), &model, "hi")).await?;
    }
    let ended = || async {
        let ended = world.sql("select count(*) from executor_job where published_at is not null").await;
        ended.is_ok_and(|ended| ended.trim() == JOBS.to_string())
    };
    servers::until("all jobs have ended", 2 * WITHIN, ended).await?;
    let completed = world.sql("select count(*) from executor_job where state = 'succeeded'").await?;
    assert_eq!(completed.trim(), JOBS.to_string());

    // A process that got no answer of the server in time kept to its own share, beside what the others drew.
    let alone: usize =
        [&one, &two].map(|one| one.log().matches("model limits are not shared").count()).iter().sum();
    let beside = alone * 10 * PER_SECOND;
    let calls = mock.calls();
    assert!(calls.len() >= JOBS + TURNED_AWAY, "{} calls", calls.len());
    // However late calls come, so many can have been let go until then: a second's worth at once, then the rate.
    for second in 1..=calls.last().map_or(0, |last| (*last - began).as_secs()) {
        let until = began + Duration::from_secs(second);
        let by_then = calls.iter().filter(|call| **call < until).count();
        let most = PER_SECOND * (usize::try_from(second)? + 1) + beside;
        assert!(by_then <= most, "{by_then} calls within {second} s, {most} were allowed");
    }
    for executor in [&one, &two] {
        let shared = metric(executor, "agent_executor_llm_limits_shared{provider=\"openai\"}").await?;
        assert!(shared > 0.5, "the limit is shared");
        assert!(metric(executor, "agent_executor_llm_wait_seconds_count{provider=\"openai\"}").await? > 0.0);
    }
    Ok(())
}

#[tokio::test]
async fn a_process_has_one_name_in_the_database_and_among_those_that_share_limits() -> Result<()> {
    let silent = |_: &[Instant]| Body::from_stream(stream::pending::<Result<Bytes>>()).into_response();
    let mock = Mock::start(silent).await?;
    let world = World::start().await?;
    let base = format!("{}/v1", mock.served.url);
    let settings = [("OPENAI_BASE_URL", base.as_str()), ("OPENAI_API_KEY", "test"), ("OPENAI_RPM", "600")];
    let _executor = world.executor_with(&settings).await?;
    let model = definition(json!({ "provider": "openai", "model": "m" }));
    world.publish(&request("asks", &model, "hi")).await?;
    servers::until("the model is asked", WITHIN, || async { mock.calls().len() == 1 }).await?;
    known(&world.redis, 1).await?;
    let owner = world.sql("select owner from executor_thread where thread_id = 'asks'").await?;
    let same = pool(&world.redis, owner.trim())?;
    let drawn = || async { same.draw(&lane(), &nothing(0)).await.ok() };
    servers::until("the server answers", WITHIN, || async { drawn().await.is_some() }).await?;
    let pods = drawn().await.context("it answered before")?.pods;
    assert_eq!(pods, 2, "the process that has the thread, and the one that watches");
    Ok(())
}

#[tokio::test]
async fn a_provider_that_fails_is_left_alone_and_its_fallback_speaks_another_dialect() -> Result<()> {
    let failing = Mock::start(|_| refused(StatusCode::BAD_GATEWAY, "0")).await?;
    let healthy = Mock::start(|_| anthropic("from the other one")).await?;
    let world = World::start().await?;
    let base = format!("{}/v1", failing.served.url);
    let settings = [
        ("OPENAI_BASE_URL", base.as_str()),
        ("OPENAI_API_KEY", "test"),
        ("ANTHROPIC_BASE_URL", healthy.served.url.as_str()),
        ("ANTHROPIC_API_KEY", "test"),
        ("MODEL_BREAKER_FAILURES", "5"),
        ("MODEL_BREAKER_SECONDS", "100"),
    ];
    let executor = world.executor_with(&settings).await?;
    let fallback = json!({ "provider": "anthropic", "model": "claude" });
    let model = definition(json!({ "provider": "openai", "model": "m", "fallbacks": [fallback] }));
    for job in ["opens", "passes-by"] {
        let result = world.run(&request(job, &model, "hi")).await?;
        assert_eq!(result["data"]["result"]["output"], "from the other one", "{result}");
        assert_eq!((failing.calls().len(), result["data"]["attempts"].as_u64()), (5, Some(1)), "{job}");
    }
    assert_eq!(healthy.calls().len(), 2);
    let events = world.events_to_the_end("passes-by").await?;
    let again = of_type(&events, "on_llm_retry");
    assert_eq!(again.len(), 1);
    assert_eq!(
        (&again[0]["data"]["reason"], &again[0]["data"]["provider"], &again[0]["data"]["had_text"]),
        (&json!("MODEL_BREAKER_OPEN"), &json!("anthropic"), &json!(false))
    );
    assert!(
        (metric(&executor, "agent_executor_llm_breaker_open{provider=\"openai\"}").await? - 1.0).abs() < 0.5
    );

    let mut alone = request("fails", &definition(json!({ "provider": "openai", "model": "m" })), "hi");
    alone["agent_definition"]["nodes"][0]["retry"] = json!({ "max_attempts": 1 });
    let result = world.run(&alone).await?;
    assert_eq!(result["data"]["error"]["type"], "MODEL_BREAKER_OPEN", "{result}");

    let patient = definition(json!({ "provider": "openai", "model": "m" }));
    world.publish(&request("waits", &patient, "hi")).await?;
    let told = || async {
        let events = world.events("waits").await.unwrap_or_default();
        events.iter().any(|(_, event)| {
            event["event_type"] == "on_custom"
                && (&event["data"]["kind"], &event["data"]["reason"])
                    == (&json!("model_wait"), &json!("breaker"))
        })
    };
    servers::until("readers are told that the job waits", WITHIN, told).await?;
    assert_eq!(failing.calls().len(), 5);
    Ok(())
}

#[tokio::test]
async fn a_probe_that_thinks_lets_the_others_through_before_its_answer() -> Result<()> {
    let (release, released) = watch::channel(false);
    let mock = Mock::start(move |calls| match calls.len() {
        1 => refused(StatusCode::BAD_GATEWAY, "0"),
        2 => thoughtful(released.clone()),
        _ => openai("fine"),
    })
    .await?;
    let world = World::start().await?;
    let base = format!("{}/v1", mock.served.url);
    let settings = [
        ("OPENAI_BASE_URL", base.as_str()),
        ("OPENAI_API_KEY", "test"),
        ("MODEL_BREAKER_FAILURES", "1"),
        ("MODEL_BREAKER_SECONDS", "0.1"),
        // Nothing but the probe's own words may end the test.
        ("MODEL_IDLE_TIMEOUT_SECONDS", "600"),
    ];
    let executor = world.executor_with(&settings).await?;
    let model = definition(json!({ "provider": "openai", "model": "m" }));
    world.publish(&request("thinks", &model, "hi")).await?;
    let is_closed = || async {
        let open = metric(&executor, "agent_executor_llm_breaker_open{provider=\"openai\"}").await;
        mock.calls().len() == 2 && open.is_ok_and(|open| open < 0.5)
    };
    servers::until("the probe closes the breaker", WITHIN, is_closed).await?;
    let result = world.run(&request("passes", &model, "hi")).await?;
    assert_eq!(result["data"]["result"]["output"], "fine", "{result}");
    assert!(world.results_of("thinks").await?.is_empty(), "the probe is still at it");
    release.send(true)?;
    assert_eq!(world.result_of("thinks").await?["data"]["result"]["output"], "fine");
    Ok(())
}
