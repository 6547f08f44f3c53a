//! What the executor asks of a real nats-server beside its messages: requests to cancel, notices, messages that
//! linger, advisories, replays.

use std::{cell::RefCell, time::Duration};

use agent_executor::{
    ids::ThreadId,
    queue::{
        AdvisoryKind, Delivery, Error, Queue, Receipt, Replay, Settlement,
        control::{Cancel, ControlRequest, Kind},
        nats::{Config, Nats, Patience, Provision},
    },
};
use async_nats::{
    Client, HeaderMap,
    jetstream::{self, Context, consumer, stream},
};
use futures::{FutureExt, StreamExt, stream::BoxStream};
use serde_json::{Value as Json, json};
use tokio::time::timeout;

use crate::servers::{self, until};

/// For what takes a second at most on a quiet machine.
const SOON: Duration = Duration::from_secs(30);

async fn connect(server: &servers::Nats) -> Nats {
    let config = Config { urls: vec![server.url()], ..Config::default() };
    Nats::connect(config, Patience::For(SOON)).await.expect("the server is up")
}

async fn outside(server: &servers::Nats) -> (Client, Context) {
    let client = async_nats::connect(server.url()).await.expect("the server is up");
    (client.clone(), jetstream::new(client))
}

async fn push(context: &Context, text: &'static str) -> u64 {
    let ack = context.publish("agent.execute.test", text.into()).await.expect("the server is up");
    ack.await.expect("the stream takes it").sequence
}

/// Pulls until so many have come.
async fn pulled(queue: &Nats, count: usize) -> Vec<Delivery> {
    let all = RefCell::new(Vec::new());
    until("messages are delivered", SOON, async || {
        let missing = count - all.borrow().len();
        let deliveries = queue.next(missing).await.unwrap_or_default();
        all.borrow_mut().extend(deliveries);
        all.borrow().len() == count
    })
    .await
    .expect("they come");
    all.into_inner()
}

fn wish(target: &str) -> Cancel {
    Cancel { target: target.into(), kind: None, reason: Some("no need".into()), by: Some("ann".into()) }
}

/// The next request, when there is one already.
fn waiting(requests: &mut BoxStream<'static, ControlRequest>) -> Option<ControlRequest> {
    requests.next().now_or_never().flatten()
}

/// Answers the next request with the id it asks about.
async fn answer_one(queue: &Nats, requests: &mut BoxStream<'static, ControlRequest>) -> ControlRequest {
    let request = timeout(SOON, requests.next()).await.expect("a request in time").expect("it goes on");
    let reply = request.reply.as_ref().expect("somebody waits");
    queue.answer(reply, &json!({ "target": request.cancel.target })).await;
    request
}

#[tokio::test]
async fn a_request_to_cancel_is_answered_by_one_executor_whatever_the_id() {
    let server = servers::Nats::start().await.unwrap();
    let (one, other, client) = (connect(&server).await, connect(&server).await, connect(&server).await);
    let nobody = client.cancel(&wish("j")).await.unwrap_err();
    assert!(matches!(nobody, Error::NoExecutor), "{nobody}");

    let mut requests = [one.control().await.unwrap(), other.control().await.unwrap()];
    for target in ["j", "a.b c*>%é", "pod.7"] {
        let cancel = Cancel { kind: Some(Kind::Thread), ..wish(target) };
        let [first, second] = &mut requests;
        let answering = async {
            tokio::select! {
                request = answer_one(&one, first) => request,
                request = answer_one(&other, second) => request,
            }
        };
        let (answer, request) = tokio::join!(client.cancel(&cancel), answering);
        assert_eq!(answer.unwrap(), json!({ "target": target }));
        assert_eq!(request.cancel, cancel);
    }
    assert!(requests.iter_mut().all(|requests| waiting(requests).is_none()), "each goes to one only");
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_answered_with_its_mistake() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    let mut requests = queue.control().await.unwrap();
    let (client, _) = outside(&server).await;
    let ask = async |body: &str| {
        let answer = client.request("agent.control.j", body.to_owned().into()).await.unwrap();
        serde_json::from_slice::<Json>(&answer.payload).unwrap()
    };
    let asked = async {
        let refused = ask("cancel it").await;
        assert_eq!(refused["error"]["code"], "BAD_REQUEST", "{refused}");
        let long = ask(&json!({ "reason": "x".repeat(1001) }).to_string()).await;
        assert!(long["error"]["message"].as_str().unwrap().contains("at most 1000"), "{long}");
        ask("").await
    };
    let (answer, request) = tokio::join!(asked, answer_one(&queue, &mut requests));
    assert_eq!((answer, request.cancel.reason), (json!({ "target": "j" }), None));

    // Without anybody who waits for an answer.
    client.publish("agent.control.k", "".into()).await.unwrap();
    let request = timeout(SOON, requests.next()).await.unwrap().unwrap();
    assert_eq!((request.cancel.target.as_str(), request.reply), ("k", None));
}

#[tokio::test]
async fn requests_and_notices_come_again_after_a_restart_of_the_server() {
    let server = servers::Nats::start().await.unwrap();
    let (queue, other) = (connect(&server).await, connect(&server).await);
    let mut requests = queue.control().await.unwrap();
    let mut notices = queue.notices().await.unwrap();
    let threads: Vec<ThreadId> = (0..1200).map(|n| ThreadId::parse(&format!("t.{n}")).unwrap()).collect();
    let mut heard = Vec::new();
    other.notice(&threads).await;
    while heard.len() < threads.len() {
        heard.extend(timeout(SOON, notices.next()).await.unwrap().unwrap());
    }
    assert_eq!(heard, threads);
    let (client, _) = outside(&server).await;
    client.publish("agent.notice.cancel", "no list".into()).await.unwrap();

    server.kill().unwrap();
    assert!(matches!(other.cancel(&wish("j")).await, Err(Error::Unavailable(_))));
    other.notice(&threads[..1]).await;
    server.start_again().await.unwrap();
    let answered = RefCell::new(false);
    let asking = until("a request is answered", SOON, async || {
        *answered.borrow_mut() = other.cancel(&wish("j")).await.is_ok();
        *answered.borrow()
    });
    let (asked, _) = tokio::join!(asking, answer_one(&queue, &mut requests));
    asked.unwrap();
    let noticed = async {
        loop {
            other.notice(&threads[7..8]).await;
            if let Ok(Some(heard)) = timeout(Duration::from_millis(200), notices.next()).await {
                return heard;
            }
        }
    };
    assert_eq!(timeout(SOON, noticed).await.expect("notices go on"), threads[7..8]);
}

#[tokio::test]
async fn what_was_delivered_and_is_not_settled_lingers_until_it_is_discarded() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    let (_, context) = outside(&server).await;
    let mut headers = HeaderMap::new();
    headers.append("x-tag", "one");
    headers.append("x-tag", "two: three");
    headers.insert("a", "é");
    let ack = context.publish_with_headers("agent.execute.test", headers, "first".into()).await.unwrap();
    ack.await.unwrap();
    for text in ["acked", "third", "fourth", "waits"] {
        push(&context, text).await;
    }
    assert!(queue.lingering(0, Duration::ZERO, 9).await.unwrap().is_empty(), "nothing was delivered");
    let deliveries = pulled(&queue, 4).await;
    queue.settle(&deliveries[1].receipt, Settlement::Ack).await.unwrap();

    let places = async |after, limit| {
        let lingering = queue.lingering(after, Duration::ZERO, limit).await.unwrap();
        lingering.iter().map(|message| message.stream_seq).collect::<Vec<_>>()
    };
    assert_eq!(places(0, 9).await, [1, 3, 4], "neither the settled nor the waiting one");
    assert_eq!(
        (places(1, 9).await, places(0, 2).await, places(4, 9).await),
        (vec![3, 4], vec![1, 3], vec![])
    );
    assert!(queue.lingering(0, Duration::from_secs(600), 9).await.unwrap().is_empty(), "all are young");
    let first = queue.lingering(0, Duration::ZERO, 1).await.unwrap().remove(0);
    assert_eq!((&first.headers, &first.subject), (&deliveries[0].headers, &deliveries[0].subject));
    assert_eq!(first.headers.len(), 3);
    assert_eq!((first.stream.as_str(), first.payload.as_ref()), ("AGENT_EXECUTION", &b"first"[..]));
    assert!(first.age < SOON, "{:?}", first.age);

    let fetched = queue.fetch(3).await.unwrap().unwrap();
    assert_eq!(fetched.payload, "third");
    assert_eq!(queue.fetch(2).await.unwrap(), None);
    for place in [3, 3, 2, 999] {
        queue.discard(place).await.unwrap();
    }
    assert_eq!((places(0, 9).await, queue.fetch(3).await.unwrap()), (vec![1, 4], None));
    assert_eq!(pulled(&queue, 1).await[0].payload, "waits", "the consumer goes on");

    server.kill().unwrap();
    for error in [
        queue.lingering(0, Duration::ZERO, 9).await.unwrap_err(),
        queue.discard(1).await.unwrap_err(),
        queue.advisories(9).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
    }
    server.start_again().await.unwrap();
    // The killed server may have forgotten what it delivered, and that two are gone.
    until("every message lingers again", SOON, async || {
        drop(queue.next(9).await);
        let lingering = queue.lingering(0, Duration::ZERO, 9).await.unwrap_or_default();
        [1, 4, 5].iter().all(|place| lingering.iter().any(|message| message.stream_seq == *place))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_stream_that_keeps_what_is_settled_says_nothing_of_what_lingers() {
    let server = servers::Nats::start().await.unwrap();
    let (_, context) = outside(&server).await;
    let limits = stream::Config {
        name: "AGENT_EXECUTION".into(),
        subjects: vec!["agent.execute.>".into()],
        ..stream::Config::default()
    };
    context.create_stream(limits).await.unwrap();
    let queue = connect(&server).await;
    push(&context, "a").await;
    let delivery = pulled(&queue, 1).await.remove(0);
    queue.settle(&delivery.receipt, Settlement::Ack).await.unwrap();
    assert!(queue.fetch(1).await.unwrap().is_some());
    assert!(queue.lingering(0, Duration::ZERO, 9).await.unwrap().is_empty());
}

/// A queue whose messages are given up after two deliveries; such a consumer is refused, so it is made so later.
async fn giving_up(server: &servers::Nats, context: &Context) -> Nats {
    let queue = connect(server).await;
    let stream = context.get_stream("AGENT_EXECUTION").await.expect("it exists");
    let consumer = stream.get_consumer("agent-executor-workers").await;
    let consumer: consumer::PullConsumer = consumer.expect("it exists");
    let mut config = consumer.cached_info().config.clone();
    config.max_deliver = 2;
    let request = json!({ "stream_name": "AGENT_EXECUTION", "config": config });
    let subject = "CONSUMER.DURABLE.CREATE.AGENT_EXECUTION.agent-executor-workers";
    let changed: jetstream::response::Response<consumer::Info> =
        context.request(subject, &request).await.expect("the server is up");
    assert!(matches!(changed, jetstream::response::Response::Ok(info) if info.config.max_deliver == 2));
    queue
}

#[tokio::test]
async fn messages_that_the_server_gives_up_are_told_of_until_they_are_settled() {
    let server = servers::Nats::start().await.unwrap();
    let (_, context) = outside(&server).await;
    let queue = giving_up(&server, &context).await;
    assert!(queue.advisories(9).await.unwrap().is_empty());
    push(&context, "terminated").await;
    push(&context, "given up").await;
    let deliveries = pulled(&queue, 2).await;
    queue.settle(&deliveries[0].receipt, Settlement::Term).await.unwrap();
    queue.settle(&deliveries[1].receipt, Settlement::Nak(Duration::ZERO)).await.unwrap();
    let last = pulled(&queue, 1).await.remove(0);
    assert_eq!((last.stream_seq, last.deliveries), (2, 2));
    queue.settle(&last.receipt, Settlement::Nak(Duration::ZERO)).await.unwrap();

    let told = RefCell::new(Vec::new());
    until("both are told of", SOON, async || {
        // The server notices at a pull that it may not deliver it any more.
        assert!(queue.next(1).await.unwrap().is_empty());
        let advisories = queue.advisories(9).await.unwrap();
        told.borrow_mut().extend(advisories);
        told.borrow().len() == 2
    })
    .await
    .unwrap();
    let told = told.into_inner();
    let seen: Vec<_> = told.iter().map(|told| (told.kind, told.stream_seq, told.deliveries)).collect();
    assert_eq!(seen, [(AdvisoryKind::Terminated, 1, 1), (AdvisoryKind::MaxDeliveries, 2, 2)]);
    assert_eq!(queue.fetch(2).await.unwrap().unwrap().payload, "given up", "it is stored still");
    for advisory in &told {
        queue.settle(&advisory.receipt, Settlement::Ack).await.unwrap();
    }
    let left = context.get_stream("AGENT_ADVISORIES").await.unwrap().cached_info().state.messages;
    assert_eq!(left, 0);

    // Somebody removes the stream: it is made again, and messages go on meanwhile.
    context.delete_stream("AGENT_ADVISORIES").await.unwrap();
    push(&context, "next").await;
    assert_eq!(pulled(&queue, 1).await[0].payload, "next");
    until("the stream is back", SOON, async || {
        queue.advisories(9).await.unwrap();
        context.get_stream("AGENT_ADVISORIES").await.is_ok()
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn advisories_in_an_operators_stream_are_read_and_a_missing_one_stops_nothing() {
    let server = servers::Nats::start().await.unwrap();
    let (_, context) = outside(&server).await;
    let theirs = stream::Config {
        name: "THEIRS".into(),
        subjects: vec!["$JS.EVENT.ADVISORY.>".into()],
        ..stream::Config::default()
    };
    context.create_stream(theirs).await.unwrap();
    // Ours would overlap with it.
    let without = connect(&server).await;
    assert!(without.advisories(9).await.unwrap().is_empty());
    let config = Config {
        urls: vec![server.url()],
        advisories_stream: "THEIRS".into(),
        provision: Provision::Create,
        ..Config::default()
    };
    let queue = Nats::connect(config, Patience::For(SOON)).await.unwrap();
    push(&context, "a").await;
    push(&context, "b").await;
    let deliveries = pulled(&queue, 2).await;
    // An advisory of another kind.
    queue.settle(&deliveries[0].receipt, Settlement::Nak(Duration::from_secs(60))).await.unwrap();
    queue.settle(&deliveries[1].receipt, Settlement::Term).await.unwrap();
    let told = RefCell::new(Vec::new());
    until("one is told of", SOON, async || {
        let advisories = queue.advisories(9).await.unwrap();
        told.borrow_mut().extend(advisories);
        !told.borrow().is_empty()
    })
    .await
    .unwrap();
    let seen: Vec<_> = told.borrow().iter().map(|told| (told.kind, told.stream_seq)).collect();
    assert_eq!(seen, [(AdvisoryKind::Terminated, 2)]);
}

#[tokio::test]
async fn a_replay_is_a_new_message_once_with_the_old_headers() {
    let server = servers::Nats::start().await.unwrap();
    let queue = connect(&server).await;
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let replay = Replay {
        subject: "agent.execute.other".into(),
        headers: vec![header("x-tag", "one"), header("x-tag", "two"), header("Nats-Msg-Id", "old")],
        payload: "a".into(),
        msg_id: "dlq:7:1".into(),
        replay_of: "AGENT_EXECUTION:3".into(),
    };
    assert_eq!(queue.resubmit(&replay).await.unwrap(), 1);
    assert_eq!(queue.resubmit(&replay).await.unwrap(), 1, "a repeat is dropped");
    let delivery = pulled(&queue, 1).await.remove(0);
    assert_eq!((delivery.subject.as_str(), delivery.payload.as_ref()), ("agent.execute.other", &b"a"[..]));
    for expected in [
        header("Executor-Replay-Of", "AGENT_EXECUTION:3"),
        header("Nats-Msg-Id", "dlq:7:1"),
        header("x-tag", "one"),
        header("x-tag", "two"),
    ] {
        assert!(delivery.headers.contains(&expected), "{expected:?}: {:?}", delivery.headers);
    }
    // A subject that has become another stream's.
    let misled = Replay { subject: "agent.status.completed".into(), msg_id: "2".into(), ..replay };
    let error = queue.resubmit(&misled).await.unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error}");
    assert_eq!(queue.settle(&Receipt("nobody.there".into()), Settlement::Abandon).await.ok(), Some(()));
}
