//! The broker against a real nats-server: what is created, what is refused, who gets which message, what a crash
//! of the server leaves.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use agent_executor::{
    ids::JobId,
    queue::{
        Delivery, Error, PULL_BYTES, Queue, Settlement, Submission,
        nats::{Config, Nats, Needs, Patience, Provision},
    },
    store::{DeadLetter, StoredResult},
};
use async_nats::jetstream::{
    self, Context,
    consumer::{self, AckPolicy, PullConsumer},
    stream,
};
use bytes::Bytes;

use crate::servers::{self, until};

/// For what takes a second at most on a quiet machine.
const SOON: Duration = Duration::from_secs(30);

fn config(server: &servers::Nats) -> Config {
    Config { urls: vec![server.url()], ..Config::default() }
}

/// A queue whose unsettled messages come back after a second.
async fn impatient(server: &servers::Nats) -> Nats {
    let ack_wait = Duration::from_secs(1);
    let needs = Needs { ack_wait, ..Config::default().needs };
    let config = Config { ack_wait, needs, ..config(server) };
    Nats::connect(config, Patience::For(SOON)).await.expect("the server is up")
}

async fn connect(server: &servers::Nats) -> Nats {
    Nats::connect(config(server), Patience::For(SOON)).await.expect("the server is up")
}

/// A connection of a publisher or an operator.
async fn outside(server: &servers::Nats) -> Context {
    jetstream::new(async_nats::connect(server.url()).await.expect("the server is up"))
}

async fn push(context: &Context, text: &'static str) {
    let ack = context.publish("agent.execute.test", text.into()).await.expect("the server is up");
    ack.await.expect("the stream takes it");
}

/// Pulls until something comes.
async fn some(queue: &Nats, max: usize) -> Vec<Delivery> {
    let started = Instant::now();
    loop {
        // On a busy machine the answer to a pull may come too late.
        let deliveries = queue.next(max).await.unwrap_or_default();
        if !deliveries.is_empty() {
            return deliveries;
        }
        assert!(started.elapsed() < SOON, "no message came");
    }
}

async fn one(queue: &Nats) -> Delivery {
    some(queue, 1).await.remove(0)
}

async fn consumer_info(context: &Context) -> consumer::Info {
    let consumer: PullConsumer = context
        .get_consumer_from_stream("agent-executor-workers", "AGENT_EXECUTION")
        .await
        .expect("it exists");
    consumer.get_info().await.expect("it exists")
}

async fn messages(context: &Context, stream: &str) -> u64 {
    context.get_stream(stream).await.expect("it exists").cached_info().state.messages
}

fn result(job: &str) -> StoredResult {
    StoredResult {
        job_id: JobId::parse(job).expect("a short text"),
        event_id: format!("{job}:result"),
        subject: "agent.status.completed".into(),
        event: Bytes::from(format!(r#"{{"id":"{job}:result"}}"#)),
    }
}

fn letter(payload: Bytes) -> DeadLetter {
    DeadLetter {
        stream: "AGENT_EXECUTION".into(),
        stream_seq: 7,
        subject: "agent.execute.test".into(),
        headers: [("X-Tenant", "blue"), ("Nats-Msg-Id", "m1"), ("Nats-Expected-Stream", "AGENT_EXECUTION")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        payload,
        job_id: None,
        thread_id: None,
        reason: "not_json",
        error: "line one\nline two".into(),
        deliveries: 2,
    }
}

#[tokio::test]
async fn what_is_missing_is_created_and_found_good_by_the_next_process() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    connect(&server).await;
    assert!(queue.ping().await);
    assert_eq!(queue.ack_wait(), Duration::from_secs(30));
    let context = outside(&server).await;
    let execution = context.get_stream("AGENT_EXECUTION").await.unwrap().cached_info().config.clone();
    assert_eq!(execution.retention, stream::RetentionPolicy::WorkQueue);
    assert_eq!(execution.discard, stream::DiscardPolicy::New);
    assert_eq!((execution.max_age, execution.storage), (Duration::ZERO, stream::StorageType::File));
    let results = context.get_stream("AGENT_RESULTS").await.unwrap().cached_info().config.clone();
    assert_eq!(results.retention, stream::RetentionPolicy::Limits);
    assert_eq!(results.max_age, Duration::from_secs(7 * 86_400));
    assert_eq!(results.duplicate_window, Duration::from_secs(3600));
    let info = consumer_info(&context).await;
    assert_eq!((info.config.max_deliver, info.config.max_ack_pending), (100, 50_000));
}

#[tokio::test]
async fn a_consumer_that_cannot_work_is_refused_by_name() {
    let server = servers::Nats::start().await.unwrap();
    let context = outside(&server).await;
    let limits = stream::Config {
        name: "AGENT_EXECUTION".into(),
        subjects: vec!["agent.execute.>".into()],
        ..stream::Config::default()
    };
    let stream = context.create_stream(limits).await.unwrap();
    let fire_and_forget = consumer::pull::Config {
        durable_name: Some("agent-executor-workers".into()),
        ack_policy: AckPolicy::None,
        ..consumer::pull::Config::default()
    };
    stream.create_consumer(fire_and_forget).await.unwrap();
    let error = Nats::connect(config(&server), Patience::Forever).await.unwrap_err();
    assert!(matches!(error, Error::Unusable { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("consumer agent-executor-workers") && text.contains("ack_policy"), "{text}");

    // The limits stream itself is fine, and once the consumer is gone a good one is made.
    stream.delete_consumer("agent-executor-workers").await.unwrap();
    connect(&server).await;
}

#[tokio::test]
async fn streams_that_do_not_fit_or_are_missing_are_refused_by_name() {
    let server = servers::Nats::start().await.unwrap();
    let expecting = Config { provision: Provision::Expect, ..config(&server) };
    let error = Nats::connect(expecting, Patience::Forever).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "stream AGENT_EXECUTION cannot be used: it does not exist, and provisioning is off"
    );
    let other = stream::Config {
        name: "OTHER".into(),
        subjects: vec!["agent.status.>".into()],
        ..stream::Config::default()
    };
    outside(&server).await.create_stream(other).await.unwrap();
    let error = Nats::connect(config(&server), Patience::Forever).await.unwrap_err();
    assert!(
        error.to_string().contains("stream AGENT_RESULTS") && error.to_string().contains("overlap"),
        "{error}"
    );
}

#[tokio::test]
async fn a_start_without_an_answer_or_with_wrong_credentials_fails_clearly() {
    let nobody = Config { urls: vec!["nats://me:secret@127.0.0.1:1".into()], ..Config::default() };
    let error = Nats::connect(nobody.clone(), Patience::For(Duration::from_secs(2))).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)) && error.to_string().contains("refused"), "{error}");
    assert!(!format!("{nobody:?} {error}").contains("secret"));

    let server =
        servers::Nats::start_with("authorization { user: \"me\", password: \"right\" }").await.unwrap();
    let error = Nats::connect(config(&server), Patience::Forever).await.unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error}");
    let url = server.url().replace("nats://", "nats://me:right@");
    Nats::connect(Config { urls: vec![url], ..Config::default() }, Patience::For(SOON)).await.unwrap();
}

#[tokio::test]
async fn a_pull_takes_no_more_than_asked_for_and_leaves_none_behind() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    let context = outside(&server).await;
    for _ in 0..20 {
        push(&context, "{}").await;
    }
    let deliveries = some(&queue, 7).await;
    assert_eq!(deliveries.iter().map(|d| d.stream_seq).collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>());
    assert_eq!(consumer_info(&context).await.num_ack_pending, 7);
    assert_eq!(some(&queue, 100).await.len(), 13);
    assert!(queue.next(100).await.unwrap().is_empty());
    assert_eq!(consumer_info(&context).await.num_waiting, 0, "no request may stay open");
    assert!(queue.next(0).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_delivery_carries_what_the_publisher_sent() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    let request = Submission {
        job_id: "jöb 1".into(),
        headers: vec![("ce-id".into(), "1".into()), ("Nats-Expected-Stream".into(), "OTHER".into())],
        payload: Bytes::from_static(b"{}"),
    };
    assert_eq!(queue.submit(&request).await.unwrap(), 1);
    assert_eq!(queue.submit(&request).await.unwrap(), 1, "a repeat is dropped");
    let delivery = one(&queue).await;
    let expected = [("Nats-Msg-Id", "jöb 1"), ("ce-id", "1")];
    assert_eq!(delivery.headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!((delivery.stream.as_str(), delivery.stream_seq), ("AGENT_EXECUTION", 1));
    assert_eq!((delivery.subject.as_str(), delivery.deliveries), ("agent.execute.request", 1));
    assert_eq!(delivery.payload, "{}");
}

#[tokio::test]
async fn an_ack_is_confirmed_and_one_that_nobody_takes_is_an_error() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    let context = outside(&server).await;
    push(&context, "a").await;
    push(&context, "b").await;
    let deliveries = some(&queue, 2).await;
    queue.settle(&deliveries[0].receipt, Settlement::Ack).await.unwrap();
    queue.settle(&deliveries[1].receipt, Settlement::Term).await.unwrap();
    assert_eq!(messages(&context, "AGENT_EXECUTION").await, 0);

    push(&context, "c").await;
    let orphan = one(&queue).await;
    context.delete_consumer_from_stream("agent-executor-workers", "AGENT_EXECUTION").await.unwrap();
    let error = queue.settle(&orphan.receipt, Settlement::Ack).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert_eq!(messages(&context, "AGENT_EXECUTION").await, 1);
}

#[tokio::test]
async fn a_nak_brings_the_message_back_after_its_delay_and_abandon_after_ack_wait() {
    let server = servers::Nats::start().await.unwrap();
    let queue = impatient(&server).await;
    push(&outside(&server).await, "a").await;
    let delivery = one(&queue).await;
    let delay = Duration::from_secs(3);
    queue.settle(&delivery.receipt, Settlement::Nak(delay)).await.unwrap();
    let naked = Instant::now();
    let delivery = one(&queue).await;
    assert!(naked.elapsed() >= delay - Duration::from_millis(100), "came back after {:?}", naked.elapsed());
    assert_eq!(delivery.deliveries, 2);
    queue.settle(&delivery.receipt, Settlement::Abandon).await.unwrap();
    let delivery = one(&queue).await;
    assert_eq!(delivery.deliveries, 3);
    queue.settle(&delivery.receipt, Settlement::Nak(Duration::ZERO)).await.unwrap();
    assert_eq!(one(&queue).await.deliveries, 4);
}

#[tokio::test]
async fn progress_holds_a_message_beyond_ack_wait() {
    let server = servers::Nats::start().await.unwrap();
    let queue = impatient(&server).await;
    push(&outside(&server).await, "a").await;
    let held = one(&queue).await;
    let started = Instant::now();
    let progress = async {
        let mut pace = tokio::time::interval(Duration::from_millis(200));
        while started.elapsed() < Duration::from_secs(4) {
            pace.tick().await;
            queue.progress(std::slice::from_ref(&held.receipt)).await;
        }
    };
    let looked = async {
        while started.elapsed() < Duration::from_secs(3) {
            // A busy machine may be too late to answer.
            let deliveries = queue.next(1).await.unwrap_or_default();
            assert!(deliveries.is_empty(), "redelivered while being worked on");
        }
    };
    tokio::join!(progress, looked);
    // More than twice when an answer to a pull came too late on a busy machine.
    assert!(one(&queue).await.deliveries >= 2, "without progress it comes back");
}

#[tokio::test]
async fn a_result_is_stored_once_however_often_it_is_published() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    let context = outside(&server).await;
    for _ in 0..3 {
        queue.publish(&result("j1")).await.unwrap();
    }
    queue.publish(&result("j2")).await.unwrap();
    assert_eq!(messages(&context, "AGENT_RESULTS").await, 2);
    let stored = context.get_stream("AGENT_RESULTS").await.unwrap().get_raw_message(1).await.unwrap();
    assert_eq!(stored.subject.as_str(), "agent.status.completed");
    assert_eq!(stored.headers.get("Nats-Msg-Id").unwrap().as_str(), "j1:result");
    assert_eq!(stored.headers.get("Content-Type").unwrap().as_str(), "application/cloudevents+json");
    assert_eq!(stored.payload, result("j1").event);
}

#[tokio::test]
async fn a_dead_letter_keeps_what_came_and_says_why() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    let context = outside(&server).await;
    for _ in 0..2 {
        queue.bury(&letter(Bytes::from_static(b"not json"))).await.unwrap();
    }
    assert_eq!(messages(&context, "AGENT_DLQ").await, 1);
    let stream = context.get_stream("AGENT_DLQ").await.unwrap();
    let stored = stream.get_raw_message(1).await.unwrap();
    assert_eq!((stored.subject.as_str(), &stored.payload[..]), ("agent.dlq.not_json", &b"not json"[..]));
    for (name, value) in [
        ("X-Tenant", "blue"),
        ("Executor-Original-Msg-Id", "m1"),
        ("Executor-Original-Expected-Stream", "AGENT_EXECUTION"),
        ("Executor-Reason", "not_json"),
        ("Executor-Error", "line one line two"),
        ("Executor-Stream-Seq", "7"),
        ("Executor-Deliveries", "2"),
        ("Nats-Msg-Id", "AGENT_EXECUTION:7"),
    ] {
        assert_eq!(stored.headers.get(name).map(|found| found.as_str()), Some(value), "{name}");
    }
    // As large as the server takes at all: with our headers it is too large.
    let largest = DeadLetter { stream_seq: 8, ..letter(Bytes::from(vec![b'x'; 1 << 20])) };
    queue.bury(&largest).await.unwrap();
    let stored = stream.get_raw_message(2).await.unwrap();
    assert!(stored.payload.is_empty());
    assert_eq!(stored.headers.get("Executor-Payload-Bytes").unwrap().as_str(), "1048576");
}

#[tokio::test]
async fn a_killed_server_is_reported_and_loses_nothing_when_it_is_back() {
    let server = servers::Nats::start().await.unwrap();
    let queue = impatient(&server).await;
    let context = outside(&server).await;
    push(&context, "a").await;
    push(&context, "b").await;
    let held = one(&queue).await;
    server.kill().unwrap();
    for error in [
        queue.next(1).await.unwrap_err(),
        queue.publish(&result("j1")).await.unwrap_err(),
        queue.settle(&held.receipt, Settlement::Ack).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
    }
    assert!(!queue.ping().await);
    queue.progress(std::slice::from_ref(&held.receipt)).await;
    server.start_again().await.unwrap();

    until("the connection is back", SOON, || queue.ping()).await.unwrap();
    until("a result is stored", SOON, async || queue.publish(&result("j1")).await.is_ok()).await.unwrap();
    queue.publish(&result("j1")).await.unwrap();
    assert_eq!(messages(&outside(&server).await, "AGENT_RESULTS").await, 1);
    let seen = RefCell::new(Vec::new());
    until("both messages are delivered and acked", SOON, async || {
        for delivery in queue.next(5).await.unwrap_or_default() {
            queue.settle(&delivery.receipt, Settlement::Ack).await.unwrap();
            seen.borrow_mut().push(delivery.stream_seq);
        }
        seen.borrow().len() == 2
    })
    .await
    .unwrap();
    let mut seen = seen.into_inner();
    seen.sort_unstable();
    assert_eq!(seen, [1, 2]);
}

#[tokio::test]
async fn a_pull_that_waits_while_the_server_restarts_goes_on_by_itself() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    let (pulled, restarted) = tokio::join!(queue.next(1), async {
        server.stop().await?;
        server.start_again().await
    });
    restarted.unwrap();
    assert!(pulled.is_err() || pulled.unwrap().is_empty());
    until("the connection is back", SOON, || queue.ping()).await.unwrap();
    push(&outside(&server).await, "a").await;
    let got = RefCell::new(Vec::new());
    until("a message is delivered", SOON, async || {
        let deliveries = queue.next(1).await.unwrap_or_default();
        got.borrow_mut().extend(deliveries);
        !got.borrow().is_empty()
    })
    .await
    .unwrap();
    assert_eq!(got.borrow()[0].payload, "a");
}

#[tokio::test]
async fn a_frozen_server_holds_no_call_for_long() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    push(&outside(&server).await, "a").await;
    let held = one(&queue).await;
    server.pause().unwrap();
    // The signal is on its way to every thread of the server.
    until("the server is frozen", SOON, async || !queue.ping().await).await.unwrap();
    let started = Instant::now();
    assert!(queue.next(1).await.is_err());
    assert!(queue.publish(&result("j1")).await.is_err());
    assert!(queue.settle(&held.receipt, Settlement::Ack).await.is_err());
    queue.progress(std::slice::from_ref(&held.receipt)).await;
    assert!(started.elapsed() < SOON, "took {:?}", started.elapsed());
    server.resume().unwrap();
    until("the server answers", SOON, || queue.ping()).await.unwrap();
    until("a result is stored", SOON, async || queue.publish(&result("j1")).await.is_ok()).await.unwrap();
    assert_eq!(messages(&outside(&server).await, "AGENT_RESULTS").await, 1);
}

#[tokio::test]
async fn a_deleted_consumer_is_created_again() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    let context = outside(&server).await;
    push(&context, "a").await;
    one(&queue).await;
    context.delete_consumer_from_stream("agent-executor-workers", "AGENT_EXECUTION").await.unwrap();
    let again = one(&queue).await;
    assert_eq!((again.stream_seq, again.payload.as_ref()), (1, &b"a"[..]));
    context.delete_stream("AGENT_EXECUTION").await.unwrap();
    until("stream and consumer are back", SOON, async || {
        queue.next(1).await.is_ok() && context.get_stream("AGENT_EXECUTION").await.is_ok()
    })
    .await
    .unwrap();

    let expecting = Config { provision: Provision::Expect, ..config(&server) };
    let expecting = Nats::connect(expecting, Patience::For(SOON)).await.unwrap();
    context.delete_consumer_from_stream("agent-executor-workers", "AGENT_EXECUTION").await.unwrap();
    let error = expecting.next(1).await.unwrap_err();
    assert!(matches!(error, Error::Unusable { .. }), "{error}");
}

#[tokio::test]
async fn a_watcher_sees_the_results_that_come_after_it_and_survives_a_restart() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    queue.publish(&result("before")).await.unwrap();
    let mut results = queue.watch_results().await.unwrap();
    let nothing = tokio::time::timeout(Duration::from_millis(500), results.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    queue.publish(&result("after")).await.unwrap();
    let (subject, event) = results.next().await.unwrap();
    assert_eq!((subject.as_str(), event), ("agent.status.completed", result("after").event));

    server.stop().await.unwrap();
    server.start_again().await.unwrap();
    until("a result is stored", SOON, async || queue.publish(&result("later")).await.is_ok()).await.unwrap();
    let seen = tokio::time::timeout(SOON, async {
        loop {
            if let Ok((_, event)) = results.next().await {
                return event;
            }
        }
    });
    assert_eq!(seen.await.unwrap(), result("later").event);
}

#[tokio::test]
async fn a_closed_queue_answers_nothing_any_more() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    push(&outside(&server).await, "a").await;
    let delivery = one(&queue).await;
    queue.settle(&delivery.receipt, Settlement::Nak(Duration::ZERO)).await.unwrap();
    queue.close().await;
    until("the connection is closed", SOON, async || !queue.ping().await).await.unwrap();
    assert!(queue.next(1).await.is_err());
    assert_eq!(one(&connect(&server).await).await.deliveries, 2);
}

#[tokio::test]
async fn a_pull_of_large_messages_brings_a_bounded_number_of_bytes_and_leaves_the_rest_in_order() {
    let server = servers::Nats::start_with("max_payload: 8MB").await.unwrap();
    let queue = connect(&server).await;
    let outside = outside(&server).await;
    for _ in 0..10 {
        let large = Bytes::from(vec![b'x'; 5_000_000]);
        outside.publish("agent.execute.test", large).await.unwrap().await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 10 {
        let pulled = some(&queue, 64).await;
        let beside_first: usize = pulled.iter().skip(1).map(|delivery| delivery.payload.len()).sum();
        assert!(beside_first <= PULL_BYTES, "{beside_first}");
        seen.extend(pulled.iter().map(|delivery| (delivery.stream_seq, delivery.deliveries)));
    }
    assert_eq!(seen, (1..=10).map(|seq| (seq, 1)).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_message_that_jetstream_cannot_keep_is_refused_and_a_dead_letter_of_it_loses_its_payload_only() {
    let server = servers::Nats::start_with("max_payload: 64MB").await.unwrap();
    let queue = connect(&server).await;
    let context = outside(&server).await;
    let huge = Bytes::from(vec![b'x'; 40_000_000]);
    let published = context.publish("agent.execute.test", huge.clone()).await.unwrap().await;
    assert!(published.is_err(), "the stream says so");
    queue.bury(&letter(huge)).await.unwrap();
    let dlq = context.get_stream("AGENT_DLQ").await.unwrap();
    let kept = dlq.get_raw_message(1).await.unwrap();
    assert!(kept.payload.is_empty());
    assert_eq!(kept.headers.get("Executor-Payload-Bytes").unwrap().as_str(), "40000000");
    push(&context, "small").await;
    assert_eq!(some(&queue, 1).await[0].payload, "small");
}
