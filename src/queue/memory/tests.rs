use futures::StreamExt;

use super::*;
use crate::ids::JobId;

fn message(text: &'static str) -> (Vec<(String, String)>, Bytes) {
    (Vec::new(), Bytes::from_static(text.as_bytes()))
}

fn push(queue: &Memory, text: &'static str) -> u64 {
    let (headers, payload) = message(text);
    queue.push(headers, payload)
}

async fn one(queue: &Memory) -> Delivery {
    queue.next(1).await.expect("no outage").pop().expect("a message is there")
}

#[tokio::test(start_paused = true)]
async fn no_more_than_asked_for_is_delivered_and_in_order() {
    let queue = Memory::new();
    for text in ["a", "b", "c"] {
        push(&queue, text);
    }
    let two = queue.next(2).await.expect("no outage");
    assert_eq!(two.iter().map(|delivery| delivery.stream_seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(one(&queue).await.payload, "c");
    assert!(queue.next(9).await.expect("no outage").is_empty(), "delivered messages are not delivered again");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_pull_gets_a_message_that_comes_later() {
    let queue = Memory::new();
    let (delivered, ()) = tokio::join!(queue.next(5), async {
        tokio::task::yield_now().await;
        push(&queue, "late");
    });
    assert_eq!(delivered.expect("no outage").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stale_ack_removes_the_message_under_its_successor() {
    let queue = Memory::new();
    push(&queue, "a");
    let stale = one(&queue).await;
    queue.expire();
    let fresh = one(&queue).await;
    assert_eq!((stale.deliveries, fresh.deliveries), (1, 2));
    assert_ne!(stale.receipt, fresh.receipt);
    queue.settle(&stale.receipt, Settlement::Ack).await.expect("no outage");
    assert_eq!(queue.unsettled(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_nak_with_a_delay_waits_for_its_end_and_abandon_for_the_expiry() {
    let queue = Memory::new();
    push(&queue, "a");
    let delivery = one(&queue).await;
    queue.settle(&delivery.receipt, Settlement::Nak(WAIT)).await.expect("no outage");
    assert!(queue.next(1).await.expect("no outage").is_empty());
    queue.wake();
    let delivery = one(&queue).await;
    queue.settle(&delivery.receipt, Settlement::Abandon).await.expect("no outage");
    queue.wake();
    assert!(queue.next(1).await.expect("no outage").is_empty());
    queue.expire();
    let delivery = one(&queue).await;
    queue.settle(&delivery.receipt, Settlement::Nak(Duration::ZERO)).await.expect("no outage");
    assert_eq!(one(&queue).await.deliveries, 4);
}

#[tokio::test(start_paused = true)]
async fn repeats_are_dropped_and_an_outage_loses_nothing() {
    let queue = Memory::new();
    let (headers, payload) = message("a");
    let request = Submission { job_id: "j".into(), headers, payload };
    assert_eq!(queue.submit(&request).await.expect("no outage"), 1);
    assert_eq!(queue.submit(&request).await.expect("no outage"), 1);
    let result = StoredResult {
        job_id: JobId::parse("j").expect("valid"),
        event_id: "j:result".into(),
        subject: "agent.status.completed".into(),
        event: Bytes::new(),
    };
    queue.stop();
    assert!(queue.publish(&result).await.is_err());
    assert!(queue.next(1).await.is_err() && !queue.ping().await);
    queue.start();
    for _ in 0..2 {
        queue.publish(&result).await.expect("no outage");
    }
    assert_eq!(queue.results(), [result]);
    assert_eq!(one(&queue).await.payload, "a");
}

#[tokio::test(start_paused = true)]
async fn a_message_delivered_too_often_stays_stored_and_is_advised_of() {
    let queue = Memory::giving_up_after(2);
    push(&queue, "a");
    queue.settle(&one(&queue).await.receipt, Settlement::Nak(Duration::ZERO)).await.expect("no outage");
    one(&queue).await;
    assert!(queue.advisories(9).await.expect("no outage").is_empty());
    queue.expire();
    assert!(queue.next(1).await.expect("no outage").is_empty(), "it had its deliveries");
    assert_eq!(queue.unsettled(), 1);
    let advisory = queue.advisories(9).await.expect("no outage").remove(0);
    assert_eq!(
        (advisory.kind, advisory.stream_seq, advisory.deliveries),
        (AdvisoryKind::MaxDeliveries, 1, 2)
    );
    assert_eq!(queue.advisories(9).await.expect("no outage").len(), 1, "it comes until it is settled");
    queue.settle(&advisory.receipt, Settlement::Ack).await.expect("no outage");
    assert!(queue.advisories(9).await.expect("no outage").is_empty());
    assert_eq!(queue.fetch(1).await.expect("no outage").expect("still stored").payload, "a");
    queue.discard(1).await.expect("no outage");
    queue.discard(1).await.expect("it may be gone");
    assert_eq!((queue.unsettled(), queue.fetch(1).await.expect("no outage")), (0, None));
}

#[tokio::test(start_paused = true)]
async fn a_terminated_message_is_advised_of_and_its_last_nak_too() {
    let queue = Memory::giving_up_after(1);
    push(&queue, "a");
    push(&queue, "b");
    let both = queue.next(2).await.expect("no outage");
    queue.settle(&both[0].receipt, Settlement::Term).await.expect("no outage");
    queue.settle(&both[1].receipt, Settlement::Nak(Duration::ZERO)).await.expect("no outage");
    let kinds: Vec<_> = queue.advisories(9).await.expect("no outage");
    let kinds: Vec<_> = kinds.iter().map(|advisory| (advisory.kind, advisory.stream_seq)).collect();
    assert_eq!(kinds, [(AdvisoryKind::Terminated, 1), (AdvisoryKind::MaxDeliveries, 2)]);
}

#[tokio::test(start_paused = true)]
async fn what_lingers_was_delivered_and_is_old_whether_it_comes_again_or_not() {
    let queue = Memory::new();
    for text in ["acked", "stranded", "held", "young", "never delivered"] {
        push(&queue, text);
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    let deliveries = queue.next(2).await.expect("no outage");
    queue.settle(&deliveries[0].receipt, Settlement::Ack).await.expect("no outage");
    queue.strand();
    queue.expire();
    assert_eq!(queue.next(2).await.expect("no outage").len(), 2, "the stranded one does not come again");
    let old = Duration::from_secs(130);
    let lingering = queue.lingering(0, old, 9).await.expect("no outage");
    assert_eq!(lingering.iter().map(|message| message.stream_seq).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(lingering[0].payload, "stranded");
    assert_eq!(queue.lingering(2, old, 9).await.expect("no outage").len(), 1);
    assert_eq!(queue.lingering(0, old, 1).await.expect("no outage").len(), 1);
    let all = queue.lingering(0, Duration::ZERO, 9).await.expect("no outage");
    assert_eq!(all.len(), 3, "what was never delivered does not linger");
    assert!(queue.lingering(9, old, 9).await.expect("no outage").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_comes_back_once_with_its_own_headers() {
    let queue = Memory::new();
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let replay = Replay {
        subject: "agent.execute.other".into(),
        headers: vec![
            header("x-tenant", "blue"),
            header("Nats-Msg-Id", "old"),
            header("NATS-Expected-Stream", "gone"),
            header("Executor-Replay-Of", "older"),
        ],
        payload: Bytes::from_static(b"a"),
        msg_id: "dlq:7:1".into(),
        replay_of: "AGENT_EXECUTION:3".into(),
    };
    assert_eq!(queue.resubmit(&replay).await.expect("no outage"), 1);
    assert_eq!(queue.resubmit(&replay).await.expect("no outage"), 1, "a repeat is dropped");
    let delivery = one(&queue).await;
    assert_eq!(delivery.subject, "agent.execute.other");
    assert_eq!(
        delivery.headers,
        [
            header("Executor-Replay-Of", "AGENT_EXECUTION:3"),
            header("Nats-Msg-Id", "dlq:7:1"),
            header("x-tenant", "blue")
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_reaches_one_listener_and_a_notice_all() {
    let queue = Memory::new();
    assert!(queue.ask("agent.control.j", b"").is_none(), "nobody listens");
    let gone = queue.control().await.expect("no outage");
    let mut listener = queue.control().await.expect("no outage");
    drop(gone);
    let answered = queue.ask("agent.control.a%2Eb", br#"{"reason":"why"}"#).expect("somebody listens");
    let request = listener.next().await.expect("a request");
    assert_eq!((request.cancel.target.as_str(), request.cancel.reason.as_deref()), ("a.b", Some("why")));
    queue.answer(&request.reply.expect("somebody waits"), &serde_json::json!({"ok": 1})).await;
    assert_eq!(answered.await.expect("answered"), serde_json::json!({"ok": 1}));
    let refused = queue.ask("agent.control.a", b"?").expect("somebody listens").await.expect("answered");
    assert_eq!(refused["error"]["code"], "BAD_REQUEST");

    let mut ears = [queue.notices().await.expect("no outage"), queue.notices().await.expect("no outage")];
    let threads = vec![ThreadId::parse("t").expect("valid")];
    queue.notice(&threads).await;
    for ear in &mut ears {
        assert_eq!(ear.next().await, Some(threads.clone()));
    }
}
