//! A job as a message that a publisher could have sent, for requests that are sent once more.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map as JsonMap, Value as Json, value::RawValue};

use super::{Command, Job, JobConfig, MultitaskStrategy, Task};
use crate::ids::{CheckpointId, JobId, ThreadId};

/// Headers and payload of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `Content-Type`, and `traceparent` when there is one.
    pub headers: Vec<(String, String)>,
    /// Bare data.
    pub payload: Bytes,
}

#[derive(Serialize)]
struct Data<'a> {
    job_id: &'a JobId,
    thread_id: &'a ThreadId,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_definition: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a JsonMap<String, Json>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a Command>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_id: Option<&'a CheckpointId>,
    config: &'a JobConfig,
    multitask_strategy: MultitaskStrategy,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
}

/// The message that [`decode`](super::decode()) makes this very job of; `None` for one that was never understood.
pub fn encode_request(job: &Job) -> Option<Request> {
    let (agent_definition, agent) = match &job.task {
        Task::Inline(definition) => (Some(&**definition), None),
        Task::Stored(name) => (None, Some(name.as_str())),
        Task::Invalid(_) => return None,
    };
    let data = Data {
        job_id: &job.job_id,
        thread_id: &job.thread_id,
        agent_definition,
        agent,
        input: job.input.as_ref(),
        command: job.command.as_ref(),
        checkpoint_id: job.checkpoint_id.as_ref(),
        config: &job.config,
        multitask_strategy: job.multitask_strategy,
        trace_id: job.trace_id.as_deref(),
    };
    let content_type = ("Content-Type".to_owned(), "application/json".to_owned());
    let trace = job.traceparent.clone().map(|traceparent| ("traceparent".to_owned(), traceparent));
    let payload = serde_json::to_vec(&data).expect("a job came from JSON").into();
    Some(Request { headers: [content_type].into_iter().chain(trace).collect(), payload })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Config, Decoded, decode};

    fn read(headers: &[(String, String)], payload: &[u8]) -> Job {
        match decode(headers, payload, &Config::default()) {
            Decoded::Job(job) => *job,
            Decoded::Unreadable { reason, error } => panic!("{reason}: {error}"),
        }
    }

    #[test]
    fn a_request_that_is_sent_once_more_is_the_same_job() {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let headers = [("traceparent".to_owned(), trace.to_owned())];
        let definition = r#"{ "b": 1.50,  "a": 123456789012345678901234567890, "b": [] }"#;
        for payload in [
            format!(r#"{{"job_id":"j","agent_definition":{definition},"input":{{"z":1.5,"a":[]}}}}"#),
            r#"{"job_id":"j","thread_id":"t","agent":"a@1","command":{"resume":null,"update":{"x":1}},
                "checkpoint_id":"1f1e533b-1e75-67ed-bfff-4b5d0ac8932d","config":{"recursion_limit":7,
                "timeout_seconds":0.5,"durability":"exit","budget":{"max_tokens":9},"metadata":{"k":1},
                "tags":["x"]},"multitask_strategy":"rollback","trace_id":"abc"}"#
                .to_owned(),
            r#"{"specversion":"1.0","id":"e","source":"/s","type":"dev.my-platform.agent.execute",
                "data":{"job_id":"j","agent":"a","command":{"update":{}}}}"#
                .to_owned(),
        ] {
            let job = read(&headers, payload.as_bytes());
            assert!(!matches!(job.task, Task::Invalid(_)), "{:?}", job.task);
            let request = encode_request(&job).expect("it was understood");
            let again = read(&request.headers, &request.payload);
            assert_eq!(format!("{again:?}"), format!("{job:?}"));
        }
        assert_eq!(encode_request(&read(&[], br#"{"job_id":"j"}"#)), None);
    }
}
