use std::sync::Mutex;

use serde_json::{Value as Json, json};

use super::*;
use crate::{
    ids::UnixNanos,
    telemetry::Limited,
    tool::CallOutcome,
    value::{State, ToolStatus, Value},
};

/// A broker that answers every request with the same, and keeps the last one.
struct Broker {
    reply: Result<Incoming, Unanswered>,
    last: Mutex<Option<Outgoing>>,
}

#[async_trait]
impl Requester for Broker {
    async fn request(&self, request: Outgoing) -> Result<Incoming, Unanswered> {
        *self.last.lock().expect("nobody panics with it") = Some(request);
        self.reply.clone()
    }
}

struct Called {
    answer: Answer,
    sent: Option<Outgoing>,
}

async fn call(subject: &str, args: Json, reply: Result<Incoming, Unanswered>) -> Called {
    let broker = Arc::new(Broker { reply, last: Mutex::default() });
    let allowed = AllowedSubjects::new(vec!["tools.>".into()], vec!["tools.own.>".into()]).expect("patterns");
    let subjects = Subjects {
        requester: broker.clone(),
        config: NatsConfig { subjects: allowed, timeout: Duration::from_secs(30) },
        calls: Gate::new(Limited::ToolCalls, 1),
    };
    let spec = ToolSpec { name: "get".into(), description: String::new(), parameters: json!({}).into() };
    let definition = Definition { subject: subject.into() };
    let tool = SubjectTool::new(spec, Effect::Irreversible, &definition, subjects);
    let (args, state) = (Value::from(args), State::new());
    let args = args.as_map().expect("an object");
    let limit = Some(Duration::from_secs(2));
    let asked = Call { id: "c\n1", args, state: &state, now: UnixNanos(0), idempotency_key: "key-1", limit };
    let answer = tool.call(asked).await;
    let sent = broker.last.lock().expect("nobody panics with it").take();
    Called { answer, sent }
}

fn reply(headers: &[(&str, &str)], payload: &str) -> Result<Incoming, Unanswered> {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Ok(Incoming { headers, payload: Bytes::copy_from_slice(payload.as_bytes()) })
}

#[tokio::test]
async fn a_call_is_its_arguments_as_json_with_its_key() {
    let Called { answer, sent } =
        call("tools.weather", json!({"city": "Graz"}), reply(&[], r#"{"c":21}"#)).await;
    assert_eq!(answer, Answer::success(r#"{"c":21}"#));
    let sent = sent.expect("it was sent");
    assert_eq!((sent.subject.as_str(), &*sent.payload), ("tools.weather", &br#"{"city":"Graz"}"#[..]));
    assert_eq!(sent.timeout, Duration::from_secs(2), "whoever calls lowers the operator's limit");
    let expected = [(IDEMPOTENCY_KEY, "key-1"), (TOOL, "get"), (TOOL_CALL_ID, "c 1")];
    assert_eq!(sent.headers, expected.map(|(name, value)| (name, value.to_owned())));
}

#[tokio::test]
async fn a_service_that_fails_says_so_to_the_model() {
    let headers = [("Nats-Service-Error", "no such city"), ("Nats-Service-Error-Code", "404")];
    let answer = call("tools.weather", json!({}), reply(&headers, "Grz")).await.answer;
    assert_eq!(answer.status, ToolStatus::Error);
    assert_eq!(answer.content, "TOOL_FAILED: the service answered an error: 404 no such city\nGrz");
    assert_eq!(answer.outcome, CallOutcome::Known);
    let empty = call("tools.weather", json!({}), reply(&[], "")).await.answer;
    assert_eq!(empty, Answer::success("done, without content"));
}

#[tokio::test]
async fn what_is_known_of_a_call_depends_on_how_far_it_got() {
    for (error, code, outcome) in [
        (Unanswered::NoResponders, "TOOL_NO_RESPONDERS", CallOutcome::NotMade),
        (Unanswered::NotSent("away".into()), "TOOL_FAILED", CallOutcome::NotMade),
        (Unanswered::TimedOut, "TOOL_TIMEOUT", CallOutcome::Unknown),
        (Unanswered::Lost("cut".into()), "TOOL_FAILED", CallOutcome::Unknown),
    ] {
        let answer = call("tools.weather", json!({}), Err(error.clone())).await.answer;
        assert_eq!((answer.code, answer.outcome), (Some(code), outcome), "{error:?}");
        assert!(answer.content.starts_with(code), "{}", answer.content);
    }
}

#[tokio::test]
async fn nothing_goes_to_a_subject_that_is_not_allowed() {
    for (subject, reason) in [
        ("orders.place", "NATS_TOOL_SUBJECTS does not name it"),
        ("tools.own.x", "it is one of the executor's own"),
    ] {
        let Called { answer, sent } = call(subject, json!({}), reply(&[], "x")).await;
        let expected = format!("TOOL_SUBJECT_NOT_ALLOWED: the subject '{subject}' is not allowed: {reason}");
        assert_eq!((answer.content, sent), (expected, None));
    }
    let large = json!({"text": "x".repeat(MAX_PAYLOAD_BYTES)});
    let Called { answer, sent } = call("tools.weather", large, reply(&[], "x")).await;
    assert!(answer.content.starts_with("TOOL_ARGUMENTS: "), "{}", answer.content);
    assert_eq!(sent, None);
}

#[tokio::test]
async fn a_long_answer_is_cut_and_says_so() {
    let answer = call("tools.weather", json!({}), reply(&[], &"é".repeat(MAX_RESULT_CHARS * 3))).await.answer;
    assert!(answer.content.ends_with("[cut after 100000 characters; ask for less to see the rest]"));
    let binary =
        reply(&[], "a\0b").map(|reply| Incoming { payload: Bytes::from_static(b"a\0b\xff"), ..reply });
    assert_eq!(call("tools.weather", json!({}), binary).await.answer.content, "a\u{FFFD}b\u{FFFD}");
}
