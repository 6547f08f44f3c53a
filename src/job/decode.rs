//! From a message to a job: three forms told apart without guessing, every mistake reported at once.
//!
//! **Invariant:** whatever carries a readable job id becomes a job, so that its sender gets a result.

use super::{
    Config, Job, JobConfig, MultitaskStrategy, Task,
    envelope::{self, Envelope, RawObject},
    fields::Fields,
};
use crate::ids::{JobId, ThreadId};

/// Fields of a request that are read as JSON; the definition stays as it was written.
const FIELDS: [&str; 9] = [
    "agent",
    "input",
    "input_payload",
    "command",
    "checkpoint_id",
    "config",
    "multitask_strategy",
    "trace_id",
    "thread_id",
];

/// What a message turned out to be.
#[derive(Debug)]
pub enum Decoded {
    /// A job to run; its task is [`Task::Invalid`] when only the ids could be used.
    Job(Box<Job>),
    /// Not a job: no job id can be read.
    Unreadable {
        /// One word of [a-z_] for the dead letter: `not_json`, `not_an_object`, `no_job_id`, `unknown_type`
        /// or `bad_cloudevent`.
        reason: &'static str,
        /// A sentence.
        error: String,
    },
}

/// Reads a message: header names in any case, header values and payload as they came.
///
/// Problems of an invalid job start with a JSON pointer into the data, or name the CloudEvent attribute.
pub fn decode(headers: &[(String, String)], payload: &[u8], config: &Config) -> Decoded {
    let mut decoded = Vec::new();
    let envelope = match envelope::open(headers, payload, config, &mut decoded) {
        Ok(envelope) => envelope,
        Err((reason, error)) => {
            return Decoded::Unreadable { reason, error: format!("the message {error}") };
        }
    };
    let job_id = match job_id(&envelope.data) {
        Ok(job_id) => job_id,
        Err(problem) => {
            let error = if envelope.problems.is_empty() { problem } else { envelope.problems.join("; ") };
            return Decoded::Unreadable { reason: envelope.reason.unwrap_or("no_job_id"), error };
        }
    };
    Decoded::Job(Box::new(job(job_id, envelope, payload.len(), config)))
}

fn job_id(data: &RawObject<'_>) -> Result<JobId, String> {
    let raw = data.get("job_id").ok_or("/job_id: is required")?;
    let text: String = serde_json::from_str(raw.get()).map_err(|_| "/job_id: must be a text")?;
    JobId::parse(&text).map_err(|error| format!("/job_id: {error}"))
}

fn job(job_id: JobId, envelope: Envelope<'_>, size: usize, config: &Config) -> Job {
    let Envelope { data, traceparent, mut problems, .. } = envelope;
    let too_large = size > config.max_request_bytes;
    if too_large {
        problems.push(format!("payload is {size} bytes, limit {}", config.max_request_bytes));
    }
    // Of a payload that is refused for its size only the small fields are looked at.
    let names = if too_large { &FIELDS[7..] } else { &FIELDS[..] };
    let mut fields = Fields::of_request(&data, names, &mut problems);
    let thread_id = fields.take("thread_id", "a text", |value| value.as_str().map(str::to_owned));
    let trace_id = fields.trace_id();
    let mut job = Job {
        thread_id: ThreadId::parse(job_id.as_str()).expect("both kinds of id have the same limits"),
        job_id,
        task: Task::Invalid(Vec::new()),
        input: None,
        command: None,
        checkpoint_id: None,
        config: JobConfig::default(),
        multitask_strategy: MultitaskStrategy::default(),
        traceparent,
        trace_id,
    };
    if !too_large {
        let task = fields.task(data.get("agent_definition").copied());
        job.task = task.unwrap_or(Task::Invalid(Vec::new()));
        job.command = fields.command();
        job.input = fields.input(job.command.as_ref());
        job.checkpoint_id = fields.checkpoint_id();
        job.config = fields.config();
        let words = "enqueue, reject, interrupt or rollback";
        job.multitask_strategy = fields.word("multitask_strategy", words).unwrap_or_default();
    }
    match thread_id.as_deref().map(ThreadId::parse).transpose() {
        Ok(thread_id) => job.thread_id = thread_id.unwrap_or(job.thread_id),
        Err(error) => problems.push(format!("/thread_id: {error}")),
    }
    if !problems.is_empty() {
        // Nothing of a wrong request is run, so nothing but what its result needs is kept.
        job.task = Task::Invalid(problems);
        (job.input, job.command, job.checkpoint_id) = (None, None, None);
        (job.config, job.multitask_strategy) = Default::default();
    }
    job
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value as Json, json};

    use super::*;

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn bare() -> Json {
        json!({"job_id": "j1", "agent_definition": {"nodes": []}, "input": {"messages": []}})
    }

    fn with(extra: Json) -> Json {
        let mut data = bare();
        for (name, value) in extra.as_object().expect("an object") {
            data[name] = value.clone();
        }
        data
    }

    fn event(data: Json) -> Json {
        json!({"specversion": "1.0", "id": "e1", "source": "/me", "type": "dev.my-platform.agent.execute",
            "data": data})
    }

    fn read(headers: &[(&str, &str)], payload: &[u8]) -> Decoded {
        let headers: Vec<_> = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        decode(&headers, payload, &Config::default())
    }

    fn job_of(headers: &[(&str, &str)], body: &Json) -> Job {
        match read(headers, body.to_string().as_bytes()) {
            Decoded::Job(job) => *job,
            Decoded::Unreadable { reason, error } => panic!("{reason}: {error}"),
        }
    }

    fn problems(body: &Json) -> Vec<String> {
        match job_of(&[], body).task {
            Task::Invalid(problems) => problems,
            Task::Inline(_) | Task::Stored(_) => Vec::new(),
        }
    }

    fn check_problems(body: &Json, expected: &Expect) {
        expected.assert_eq(&problems(body).join("\n"));
    }

    fn reason(headers: &[(&str, &str)], payload: &str) -> &'static str {
        match read(headers, payload.as_bytes()) {
            Decoded::Unreadable { reason, .. } => reason,
            Decoded::Job(job) => panic!("a job was read: {job:?}"),
        }
    }

    fn attributes(kind: &str) -> Vec<(&str, &str)> {
        vec![
            ("CE-SpecVersion", "1.0"),
            ("ce-id", "e%201"),
            ("ce-source", "/me"),
            ("ce-type", kind),
            ("ce-traceparent", TRACE),
        ]
    }

    #[test]
    fn the_same_data_in_three_forms_is_the_same_job() {
        let expected = serde_json::to_value(job_of(&[("traceparent", TRACE)], &bare())).expect("a job");
        let mut structured = event(bare());
        structured["traceparent"] = TRACE.into();
        let by_header = [("content-TYPE", "Application/CloudEvents+JSON; charset=utf-8")];
        for (headers, body) in [
            (&by_header[..], &structured),
            (&[][..], &structured),
            (&attributes("dev.my-platform.agent.execute")[..], &bare()),
        ] {
            assert_eq!(serde_json::to_value(job_of(headers, body)).expect("a job"), expected);
        }
    }

    #[test]
    fn the_trace_of_the_event_wins_over_that_of_the_message() {
        let mut structured = event(bare());
        structured["traceparent"] = TRACE.into();
        let other = TRACE.replace("4bf9", "0000");
        assert_eq!(job_of(&[("Traceparent", &other)], &structured).traceparent.as_deref(), Some(TRACE));
        assert_eq!(job_of(&[("Traceparent", &other)], &event(bare())).traceparent, Some(other));
        assert_eq!(job_of(&[("traceparent", "garbage")], &bare()).traceparent, None);
    }

    #[test]
    fn base64_data_is_decoded() {
        let mut structured = event(Json::Null);
        structured["data_base64"] = "eyJqb2JfaWQiOiJqMSIsImFnZW50IjoiYSIsImlucHV0Ijp7fX0=".into();
        let job = job_of(&[], &structured);
        assert!(matches!(job.task, Task::Stored(ref name) if name == "a"), "{:?}", job.task);
        structured["data_base64"] = "***".into();
        assert_eq!(reason(&[], &structured.to_string()), "bad_cloudevent");
    }

    #[test]
    fn an_unknown_type_is_a_problem_of_the_job_when_there_is_one() {
        let mut structured = event(bare());
        structured["type"] = "dev.my-platform.agent.other".into();
        structured["source"] = " ".into();
        check_problems(
            &structured,
            &expect![[r#"
                CloudEvent attribute type must be "dev.my-platform.agent.execute"
                CloudEvent attribute source must not be empty"#]],
        );
        let job = job_of(&attributes("x"), &bare());
        assert!(matches!(job.task, Task::Invalid(ref problems) if problems.len() == 1), "{:?}", job.task);
        structured["data"] = json!({});
        assert_eq!(reason(&[], &structured.to_string()), "unknown_type");
    }

    #[test]
    fn messages_without_a_job_id_have_a_reason() {
        let no_data = r#"{"specversion": "1.0", "id": "1", "source": "s",
            "type": "dev.my-platform.agent.execute"}"#;
        let structured = [("Content-Type", "application/cloudevents+json")];
        let batch = [("Content-Type", "application/cloudevents-batch+json")];
        for (expected, headers, payload) in [
            ("not_json", &[][..], ""),
            ("not_json", &[], "{\"job_id\": \"j1\""),
            ("not_json", &[], "{} trailing"),
            ("not_an_object", &[], "[]"),
            ("not_an_object", &[], "\"job_id\""),
            ("no_job_id", &[], "{}"),
            ("no_job_id", &[], r#"{"job_id": 7}"#),
            ("no_job_id", &[], r#"{"job_id": "  "}"#),
            ("bad_cloudevent", &[], no_data),
            ("bad_cloudevent", &[], r#"{"specversion": "0.3", "data": {}}"#),
            ("bad_cloudevent", &structured, "{}"),
            ("bad_cloudevent", &batch, "[]"),
            ("bad_cloudevent", &[("ce-id", "1")], "{}"),
        ] {
            assert_eq!(reason(headers, payload), expected, "{payload}");
        }
        let not_object = event(json!("text")).to_string();
        assert_eq!(reason(&[], &not_object), "not_an_object");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_not_json() {
        let decoded = read(&[], b"{\"job_id\": \"\xff\"}");
        assert!(matches!(decoded, Decoded::Unreadable { reason: "not_json", .. }), "{decoded:?}");
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let wrong = with(json!({
            "thread_id": "a\u{0}b",
            "agent": "x y",
            "input": [],
            "command": {},
            "checkpoint_id": "1F1E533B-1e75-67ed-bfff-4b5d0ac8932d",
            "config": {
                "recursion_limit": 0, "timeout_seconds": -1, "durability": "fast",
                "budget": {"max_tokens": "many", "max_cost_usd": 0, "max_model_calls": 0.5}, "metadata": {"a": []}, "tags": "x",
            },
            "multitask_strategy": "steal",
            "trace_id": 7,
        }));
        check_problems(
            &wrong,
            &expect![[r#"
            /trace_id: must be a text of 1 to 255 characters; found 7
            /agent: must be "name", "name@version" or "sha256:" and 64 hex digits; found a text
            /agent: excludes agent_definition; give only one of them
            /command: must be an object with resume, update or goto
            /input: must be an object; found a list
            /checkpoint_id: must be a lower-case UUID with dashes; found a text
            /config/recursion_limit: must be a whole number from 1 to 10000; found 0
            /config/timeout_seconds: must be a number of seconds above 0, at most 604800; found -1
            /config/durability: must be sync, async or exit; found a text
            /config/budget/max_tokens: must be a whole number from 1 to 1125899906842624; found a text
            /config/budget/max_model_calls: must be a whole number from 1 to 1125899906842624; found 0.5
            /config/budget/max_cost_usd: must be a number above 0, at most 1125899906842624; found 0
            /config/metadata: must be an object of at most 64 texts (of at most 1024 characters), numbers, booleans and nulls; found an object
            /config/tags: must be a list of at most 64 texts of 1 to 1024 characters; found a text
            /multitask_strategy: must be enqueue, reject, interrupt or rollback; found a text
            /thread_id: must not contain control characters"#]],
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        check_problems(
            &json!({"job_id": "j1"}),
            &expect![[r#"
            /agent_definition: is required, unless agent names a stored definition
            /input: is required, unless there is a command"#]],
        );
        assert_eq!(problems(&with(json!({"agent": "a"}))).len(), 1);
        assert_eq!(problems(&with(json!({"agent_definition": "text"}))).len(), 1);
        assert_eq!(problems(&with(json!({"command": {"resume": 1}, "input": {"a": 1}}))).len(), 1);
        assert_eq!(problems(&with(json!({"input_payload": {"other": 1}}))).len(), 1);
    }

    #[test]
    fn defaults_nulls_and_unknown_fields_are_accepted() {
        let job = job_of(
            &[],
            &json!({
                "job_id": " j1 ", "thread_id": null, "agent_definition": null, "agent": "demo@2", "input": null,
                "input_payload": {"messages": []}, "command": null, "config": null, "surprise": [1],
            }),
        );
        assert_eq!((job.job_id.as_str(), job.thread_id.as_str()), ("j1", "j1"));
        assert!(matches!(job.task, Task::Stored(ref name) if name == "demo@2"), "{:?}", job.task);
        assert_eq!(job.config, JobConfig::default());
        assert!(job.input.is_some() && job.command.is_none());
    }

    #[test]
    fn a_command_stands_for_the_input() {
        let body = json!({"job_id": "j1", "thread_id": "t1", "agent": "a",
            "command": {"resume": {"ok": true}, "goto": "next"}, "input": {}});
        let command = job_of(&[], &body).command.expect("a command");
        assert_eq!(command.resume, Some(json!({"ok": true})));
        assert_eq!(command.goto, ["next"]);
    }

    #[test]
    fn a_payload_above_the_limit_is_a_job_that_fails() {
        let body = with(json!({"thread_id": "t1", "input": {"text": "x".repeat(2 << 20)}}));
        let job = job_of(&[], &body);
        assert_eq!((job.job_id.as_str(), job.thread_id.as_str()), ("j1", "t1"));
        let Task::Invalid(problems) = job.task else { panic!("must be refused") };
        let size = body.to_string().len();
        assert_eq!(problems, [format!("payload is {size} bytes, limit 1572864")]);
    }

    #[test]
    fn input_nested_too_deep_is_a_problem_and_not_a_crash() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let payload = format!(r#"{{"job_id": "j1", "agent_definition": {deep}, "input": {{"a": {deep}}}}}"#);
        let Decoded::Job(job) = read(&[], payload.as_bytes()) else { panic!("the job id is readable") };
        let Task::Invalid(problems) = job.task else { panic!("must be refused") };
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn the_stored_request_gives_back_the_same_job() {
        // Spaces, order, repeated keys and big numbers of a definition must survive: its hash is its name.
        let definition = r#"{ "b": 1.50,  "a": 123456789012345678901234567890, "b": [] }"#;
        let full = format!(
            r#"{{"job_id":"j1","thread_id":"t1","agent_definition":{definition},"checkpoint_id":
            "1f1e533b-1e75-67ed-bfff-4b5d0ac8932d","command":{{"resume":[null],"update":{{"z":1,"a":2}},
            "goto":["n"]}},"config":{{"recursion_limit":7,"timeout_seconds":0.5,"durability":"exit","budget":
            {{"max_tokens":9,"max_cost_usd":0.1,"max_model_calls":3}},"metadata":{{"k":1.5,"n":null}},"tags":["x"]}},
            "multitask_strategy":"rollback","trace_id":"abc"}}"#
        );
        let stored =
            bare().to_string().replace(r#"{"nodes":[]}"#, "null").replacen('{', r#"{"agent":"a","#, 1);
        for payload in [full.as_str(), &stored, r#"{"job_id":"j1"}"#] {
            let Decoded::Job(job) = read(&[("traceparent", TRACE)], payload.as_bytes()) else {
                panic!("{payload}")
            };
            let request = serde_json::to_vec(&job).expect("a job");
            let back: Job = serde_json::from_slice(&request).expect("a stored job");
            assert_eq!(serde_json::to_vec(&back).expect("a job"), request);
            assert_eq!(format!("{back:?}"), format!("{job:?}"));
        }
        let Decoded::Job(job) = read(&[], full.as_bytes()) else { panic!("{full}") };
        assert!(matches!(job.task, Task::Inline(ref raw) if raw.get() == definition), "{:?}", job.task);
    }

    #[test]
    fn numbers_survive_the_store_to_the_last_bit() {
        // Needs serde_json's float_roundtrip; without it some numbers move by one bit each time they are read.
        for n in 1..10_000 {
            let number = f64::from(n) * 0.731_234_567 / 3.7;
            let job = job_of(&[], &with(json!({"input": {"number": number}})));
            let request = serde_json::to_vec(&job).expect("a job");
            let back: Job = serde_json::from_slice(&request).expect("a stored job");
            assert_eq!(back.input.expect("an input")["number"].as_f64(), Some(number));
        }
    }
}
