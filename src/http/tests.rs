//! The doors from outside, with the in-memory twins behind them.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode, header::CONTENT_TYPE},
};
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{State, router};
use crate::{
    graph,
    ids::{JobId, SystemClock, ThreadId},
    job,
    queue::{self, Queue},
    store::{
        Finish, JobState, Jobs, NextJob, Offer, StoredResult, Upkeep, Verdict,
        memory::{self, MemoryStore},
    },
    stream, telemetry,
};

struct House {
    state: State,
    queue: Arc<queue::memory::Memory>,
    store: Arc<MemoryStore>,
}

fn house() -> House {
    let queue = Arc::new(queue::memory::Memory::new());
    let store = Arc::new(MemoryStore::new(Arc::new(SystemClock), memory::Config::default(), "test"));
    let state = State {
        queue: queue.clone(),
        jobs: store.clone(),
        records: store.clone(),
        job_timeout: Duration::from_secs(1800),
        sink: Arc::new(stream::memory::Memory::default()),
        metrics: telemetry::metrics(),
        draining: CancellationToken::new(),
        job: job::Config::default(),
        limits: graph::Limits::default(),
        max_body_bytes: 10_000,
    };
    House { state, queue, store }
}

impl House {
    async fn ask(&self, request: Request<Body>) -> (StatusCode, Json) {
        let response = router(self.state.clone()).oneshot(request).await.expect("the router cannot fail");
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.expect("a small body");
        let text = String::from_utf8_lossy(&body).into_owned();
        (status, serde_json::from_slice(&body).unwrap_or(Json::String(text)))
    }

    async fn get(&self, path: &str) -> (StatusCode, Json) {
        self.ask(Request::get(path).body(Body::empty()).expect("a request")).await
    }

    async fn post(&self, headers: &[(&str, &str)], body: impl Into<Body>) -> (StatusCode, Json) {
        let request =
            headers.iter().fold(Request::post("/"), |request, (name, value)| request.header(*name, *value));
        self.ask(request.body(body.into()).expect("a request")).await
    }
}

fn request() -> Json {
    json!({
        "job_id": "j1",
        "thread_id": "t1",
        "agent_definition": {"nodes": [{
            "type": "orchestrator", "name": "main", "tools": [],
            "model": {"provider": "scripted", "model": "m", "script": {"replies": [{"text": "hi"}]}},
        }], "edges": []},
        "input": {"messages": [{"role": "user", "content": "hello"}]},
    })
}

#[tokio::test]
async fn health_asks_nobody() {
    let house = house();
    house.queue.stop();
    let (status, body) = house.get("/health").await;
    assert_eq!((status, &body["status"]), (StatusCode::OK, &json!("healthy")));
}

#[tokio::test]
async fn readiness_follows_the_queue_and_the_drain() {
    let house = house();
    let services = json!({"postgres": true, "dragonfly": true, "nats": true});
    assert_eq!(house.get("/ready").await, (StatusCode::OK, json!({"status": "ready", "services": services})));
    house.queue.stop();
    let (status, body) = house.get("/ready").await;
    assert_eq!((status, &body["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("not_ready")));
    assert_eq!(body["services"], json!({"postgres": true, "dragonfly": true, "nats": false}));
    house.queue.start();
    house.state.draining.cancel();
    let (status, body) = house.get("/ready").await;
    assert_eq!((status, &body["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("draining")));
    assert_eq!(body["services"], services);
}

#[tokio::test]
async fn a_dead_database_makes_the_process_unready() {
    let house = house();
    house.store.die_at_write(1, memory::CrashPoint::Before);
    let claim = accept(&house.store).await;
    assert!(claim.is_none(), "the database is dead");
    let (status, body) = house.get("/ready").await;
    assert_eq!((status, &body["services"]["postgres"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(false)));
}

#[tokio::test]
async fn a_request_is_stored_as_it_came_in_each_of_its_three_forms() {
    let event = json!({
        "specversion": "1.0", "id": "e1", "source": "s", "type": "dev.my-platform.agent.execute", "data": request(),
    });
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let binary = [
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "e1"),
        ("ce-source", "s"),
        ("ce-type", "dev.my-platform.agent.execute"),
        ("traceparent", traceparent),
        ("authorization", "Bearer hunter2"),
    ];
    let forms: [(&[(&str, &str)], String); 3] = [
        (&[("content-type", "application/cloudevents+json")], event.to_string()),
        (&binary, request().to_string()),
        (&[], request().to_string()),
    ];
    for (headers, body) in forms {
        let house = house();
        let (status, answer) = house.post(headers, body.clone()).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
        assert_eq!(answer, json!({"job_id": "j1", "thread_id": "t1", "status": "queued"}));
        let stored = house.queue.next(10).await.expect("the queue is up");
        assert_eq!(stored.len(), 1);
        assert_eq!(stored[0].payload, body.as_bytes());
        let has = |name: &str| stored[0].headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
        assert!(!has("authorization"), "what is for us alone does not travel on");
        for (name, _) in headers.iter().filter(|(name, _)| *name != "authorization") {
            assert!(has(name), "{name} is missing in {:?}", stored[0].headers);
        }
    }
}

#[tokio::test]
async fn a_wrong_request_is_told_all_its_mistakes_and_stored_nowhere() {
    let house = house();
    for (body, pointer) in [
        ("{", None),
        ("{}", None),
        (r#"{"job_id": "j", "thread_id": 7}"#, Some("/thread_id")),
        (
            r#"{"job_id": "j", "input": {}, "agent_definition": {"nodes": 7}}"#,
            Some("/agent_definition/nodes"),
        ),
    ] {
        let (status, answer) = house.post(&[], body).await;
        assert_eq!(
            (status, &answer["error"]["code"]),
            (StatusCode::BAD_REQUEST, &json!("BAD_REQUEST")),
            "{body}"
        );
        assert!(answer["error"]["message"].is_string() && answer["error"]["details"].is_array(), "{answer}");
        let details = answer["error"]["details"].as_array().expect("a list");
        assert!(
            pointer.is_none_or(|pointer| details.iter().any(|detail| detail["pointer"] == pointer)),
            "{pointer:?} is missing in {answer}"
        );
    }
    assert_eq!(house.queue.unsettled(), 0);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let house = house();
    let (status, answer) = house.post(&[], "x".repeat(10_001)).await;
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("BODY_TOO_LARGE")));
}

#[tokio::test]
async fn a_request_that_cannot_be_stored_is_not_accepted() {
    let house = house();
    house.queue.stop();
    let (status, answer) = house.post(&[], request().to_string()).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("QUEUE_UNAVAILABLE")),
        "{answer}"
    );
}

#[tokio::test]
async fn wrong_doors_and_wrong_ways_have_the_same_shape() {
    let house = house();
    let (status, answer) = house.get("/nowhere").await;
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::NOT_FOUND, &json!("NOT_FOUND")));
    let (status, answer) = house.get("/").await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (StatusCode::METHOD_NOT_ALLOWED, &json!("METHOD_NOT_ALLOWED"))
    );
}

#[tokio::test]
async fn metrics_are_text_for_prometheus() {
    let house = house();
    let request = Request::get("/metrics").body(Body::empty()).expect("a request");
    let response = router(house.state.clone()).oneshot(request).await.expect("the router cannot fail");
    assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    let (_, text) = house.get("/metrics").await;
    assert!(text.as_str().is_some_and(|text| text.contains("agent_executor_jobs_in_flight")), "{text}");
}

#[tokio::test]
async fn the_full_result_of_a_job_can_be_fetched_once_it_has_ended() {
    let house = house();
    let (status, answer) = house.get("/jobs/j1/result").await;
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::NOT_FOUND, &json!("NOT_FOUND")));
    let claim = accept(&house.store).await.expect("a new job runs");
    assert_eq!(house.get("/jobs/j1/result").await.0, StatusCode::NOT_FOUND, "it has not ended");
    let result = StoredResult {
        job_id: claim.job_id.clone(),
        event_id: "j1:result".into(),
        subject: "agent.status.completed".into(),
        event: r#"{"dataref": "here"}"#.into(),
    };
    let finish = Finish {
        claim,
        state: JobState::Succeeded,
        result,
        body: Some(r#"{"data": "all of it"}"#.into()),
        error: None,
        next: NextJob::Leave,
        last: None,
        undo: false,
    };
    house.store.finish(&finish).await.expect("the claim stands");
    assert_eq!(house.get("/jobs/j1/result").await, (StatusCode::OK, json!({"data": "all of it"})));
}

async fn accept(store: &MemoryStore) -> Option<crate::store::Claim> {
    let job = job::Job::nameless(JobId::parse("j1").expect("an id"), ThreadId::parse("t1").expect("an id"));
    match store.accept(&Offer::of(&job, 1, Duration::from_secs(60))).await {
        Ok(Verdict::Run(claim)) => Some(claim),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_ends_does_not_hold_the_process() {
    let house = house();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let shutdown = CancellationToken::new();
    let (ended, mut end) = watch::channel(false);
    let served = async {
        super::serve(listener, house.state.clone(), shutdown.clone()).await.expect("the port stays open");
        ended.send_replace(true);
    };
    let client = async {
        let mut half = tokio::net::TcpStream::connect(address).await.expect("the door is open");
        half.write_all(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{").await.expect("it takes bytes");
        shutdown.cancel();
        end.wait_for(|ended| *ended).await.expect("the server tells");
    };
    tokio::join!(served, client);
}

#[tokio::test]
async fn while_the_process_connects_it_lives_and_takes_nothing() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let start = async {
        let answers = [ask(address, "GET /health").await, ask(address, "GET /ready").await];
        (answers, ask(address, "POST /").await)
    };
    let (listener, ([health, ready], post)) =
        super::meanwhile(listener, telemetry::metrics(), start).await.expect("the port stays open");
    assert!(health.starts_with("HTTP/1.1 200 "), "{health}");
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("\"not_ready\""), "{ready}");
    assert!(post.starts_with("HTTP/1.1 503 ") && post.contains("\"QUEUE_UNAVAILABLE\""), "{post}");
    // The same port leads to the real doors afterwards.
    let house = house();
    let shutdown = CancellationToken::new();
    let client = async {
        let ready = ask(address, "GET /ready").await;
        shutdown.cancel();
        ready
    };
    let (served, ready) = tokio::join!(super::serve(listener, house.state.clone(), shutdown.clone()), client);
    served.expect("the port stays open");
    assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
}

/// The whole answer to a request without a body.
async fn ask(address: std::net::SocketAddr, line: &str) -> String {
    let mut connection = tokio::net::TcpStream::connect(address).await.expect("the door is open");
    let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    connection.write_all(request.as_bytes()).await.expect("it takes bytes");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("it answers in text");
    answer
}

async fn is_recorded(house: &House, id: &str) -> bool {
    let id = JobId::parse(id).expect("an id");
    !house.store.known(&[id]).await.expect("the twin answers").is_empty()
}

#[tokio::test]
async fn a_request_is_recorded_unless_the_broker_refuses_it() {
    let house = house();
    house.queue.stop();
    let (status, _) = house.post(&[], request().to_string()).await;
    assert_eq!((status, is_recorded(&house, "j1").await), (StatusCode::SERVICE_UNAVAILABLE, false));
    house.queue.start();
    for _ in 0..2 {
        let (status, _) = house.post(&[], request().to_string()).await;
        assert_eq!((status, is_recorded(&house, "j1").await), (StatusCode::ACCEPTED, true));
    }
    // A repeat that fails takes nothing back of the first.
    house.queue.stop();
    let (status, _) = house.post(&[], request().to_string()).await;
    assert_eq!((status, is_recorded(&house, "j1").await), (StatusCode::SERVICE_UNAVAILABLE, true));
    house.queue.start();
    let delivered = house.queue.next(10).await.expect("the broker answers");
    assert_eq!(delivered.len(), 1, "its message gives the job its place");
    assert!(accept(&house.store).await.is_some_and(|claim| claim.attempt == 1));
}

#[tokio::test]
async fn a_request_is_taken_while_the_database_is_away() {
    let house = house();
    house.store.die_at_write(1, memory::CrashPoint::Before);
    let (status, _) = house.post(&[], request().to_string()).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(house.queue.unsettled(), 1);
}
