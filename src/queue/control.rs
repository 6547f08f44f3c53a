//! What people and programs ask of jobs: the request on `agent.control.<job or thread>`, its body and its answer.
//!
//! **Invariant:** a body that is not understood cancels nothing.

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::Receipt;
use crate::{
    encoding::{from_percent, percent},
    ids::{JobId, MAX_ID_CHARS},
    store::{self, CancelKind, Met, Target, Wished},
};

/// Where requests go, without the id.
pub const SUBJECT: &str = "agent.control";
/// Where a notice goes that threads have something to look up.
pub const NOTICE_SUBJECT: &str = "agent.notice.cancel";
/// Longest reason in characters: it is stored with the job and shown in its result.
pub const MAX_REASON_CHARS: usize = 1000;
/// Longest name of whoever asks, in characters.
pub const MAX_BY_CHARS: usize = 255;
/// Jobs listed in one answer: with ids of 255 characters it stays below half a megabyte.
const MAX_ANSWERED: usize = 200;
/// Largest body: reason and name in JSON escapes (six bytes each), twice over.
const MAX_BODY_BYTES: usize = 16 * 1024;
/// What the token of a subject has of an id as it is, beside letters and digits: the rest is in percent code.
const TOKEN: &[u8] = b"-_~";

/// What an id names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One job.
    Job,
    /// Every job of a thread that has not ended.
    Thread,
}

/// A wish to end jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancel {
    /// The id of a job or a thread.
    pub target: String,
    /// Which of the two; none: a job, or a thread when there is no such job.
    pub kind: Option<Kind>,
    /// Why.
    pub reason: Option<String>,
    /// Who wishes it.
    pub by: Option<String>,
}

/// A wish that came as a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlRequest {
    /// What is asked for.
    pub cancel: Cancel,
    /// Where the answer goes; none when nobody waits for it.
    pub reply: Option<Receipt>,
}

/// The body as it travels.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Body {
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<Action>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<Kind>,
}

/// What can be asked for.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Cancel,
}

impl Cancel {
    /// Reads subject and body of a request; an empty body asks to cancel. The error is a sentence for whoever
    /// asked.
    pub(super) fn read(subject: &str, body: &[u8]) -> Result<Self, String> {
        let encoded = subject.strip_prefix(SUBJECT).and_then(|rest| rest.strip_prefix('.'));
        let target = encoded.and_then(from_percent).ok_or("the id in the subject cannot be decoded")?;
        // Threads have the same kind of id.
        let target = JobId::parse(&target).map_err(|error| format!("the id in the subject {error}"))?;
        if body.len() > MAX_BODY_BYTES {
            return Err(format!("the body has {} bytes, at most {MAX_BODY_BYTES} are read", body.len()));
        }
        let body: Body = if body.is_empty() {
            Body::default()
        } else {
            // By way of an object: a list would be taken for the fields in their order.
            let object = serde_json::from_slice::<serde_json::Map<String, Json>>(body);
            let body = object.and_then(|object| serde_json::from_value(Json::Object(object)));
            body.map_err(|error| format!("the body cannot be read: {error}"))?
        };
        Ok(Self {
            target: target.to_string(),
            kind: body.kind,
            reason: bounded("reason", body.reason, MAX_REASON_CHARS)?,
            by: bounded("by", body.by, MAX_BY_CHARS)?,
        })
    }

    /// What the store is to look for.
    pub fn target_kind(&self) -> Target {
        match self.kind {
            None => Target::Either,
            Some(Kind::Job) => Target::Job,
            Some(Kind::Thread) => Target::Thread,
        }
    }

    /// The wish as the store keeps it.
    pub fn wish(&self) -> store::Cancel {
        let by = self.by.clone().unwrap_or_default();
        store::Cancel { kind: CancelKind::Cancel, by, reason: self.reason.clone() }
    }

    /// Where the request is published.
    pub(super) fn subject(&self) -> String {
        format!("{SUBJECT}.{}", percent(&self.target, TOKEN))
    }

    /// The request's body.
    pub(super) fn body(&self) -> Vec<u8> {
        let Self { target: _, kind, reason, by } = self.clone();
        let body = Body { action: Some(Action::Cancel), reason, by, kind };
        serde_json::to_vec(&body).expect("texts are JSON")
    }
}

/// The answer to a wish that is stored: `{"jobs": [{"job_id", "thread_id", "state"}]}` and what else there is to
/// say. A state is `cancelled` for the jobs in `ended`, `cancelling` for others that are open, and how the job had
/// ended before.
pub fn answer(met: &Met, ended: &[JobId]) -> Json {
    let state = |job: &Wished| match job.state.as_str() {
        _ if ended.contains(&job.job_id) => "cancelled".to_owned(),
        "queued" | "running" => "cancelling".to_owned(),
        before => before.to_owned(),
    };
    let listed = met.jobs.iter().take(MAX_ANSWERED);
    let jobs: Vec<_> = listed
        .map(|job| json!({ "job_id": job.job_id, "thread_id": job.thread_id, "state": state(job) }))
        .collect();
    let more = met.jobs.len() - jobs.len();
    let mut answer = json!({ "jobs": jobs });
    if met.waits {
        answer["message"] = "no such job is known; one that comes under this id is cancelled at once".into();
    } else if met.jobs.is_empty() {
        answer["message"] = "no job of this thread is open".into();
    } else if more > 0 {
        answer["message"] = format!("{more} more jobs are cancelled").into();
    }
    answer
}

/// An answer that refuses.
pub fn refusal(code: &str, message: &str) -> Json {
    json!({ "error": { "code": code, "message": message } })
}

/// A text of one line and limited length; an empty one counts as none.
fn bounded(name: &str, text: Option<String>, limit: usize) -> Result<Option<String>, String> {
    let Some(text) = text else { return Ok(None) };
    let chars = text.chars().count();
    if chars > limit {
        return Err(format!("{name} has {chars} characters, at most {limit} are taken"));
    }
    let line = text.replace(char::is_control, " ");
    Ok(Some(line.trim().to_owned()).filter(|line| !line.is_empty()))
}

const _: () = assert!(MAX_ID_CHARS * 4 * 3 < 4096, "nats-server takes subjects of 4096 bytes in one line");

#[cfg(test)]
mod tests {
    use super::*;

    fn read(subject: &str, body: &str) -> Result<Cancel, String> {
        Cancel::read(subject, body.as_bytes())
    }

    #[test]
    fn what_is_written_is_read_again_whatever_the_id_holds() {
        for target in ["j1", "a.b c*>%é/漢", "100%", "~_-"] {
            let cancel = Cancel {
                target: target.into(),
                kind: Some(Kind::Thread),
                reason: Some("no longer \"needed\"".into()),
                by: Some("ann".into()),
            };
            let subject = cancel.subject();
            assert_eq!(subject.split('.').count(), 3, "{subject}");
            assert!(subject.is_ascii() && !subject.contains([' ', '*', '>']), "{subject}");
            assert_eq!(Cancel::read(&subject, &cancel.body()), Ok(cancel));
        }
    }

    #[test]
    fn an_answer_says_what_becomes_of_each_job() {
        let wished = |id: &str, state: &str| Wished {
            job_id: JobId::parse(id).expect("valid"),
            thread_id: crate::ids::ThreadId::parse("t").expect("valid"),
            state: state.into(),
        };
        let jobs =
            vec![wished("a", "running"), wished("b", "queued"), wished("c", "queued"), wished("d", "dead")];
        let met = Met { jobs, waits: false };
        let said = answer(&met, &[JobId::parse("b").expect("valid")]);
        let states: Vec<_> =
            said["jobs"].as_array().expect("a list").iter().map(|job| &job["state"]).collect();
        assert_eq!(states, ["cancelling", "cancelled", "cancelling", "dead"]);
        assert_eq!(said["jobs"][0], json!({ "job_id": "a", "thread_id": "t", "state": "cancelling" }));
        let many = Met { jobs: vec![wished("a", "queued"); MAX_ANSWERED + 7], waits: false };
        assert_eq!(answer(&many, &[])["message"], "7 more jobs are cancelled");
        let waits = answer(&Met { jobs: Vec::new(), waits: true }, &[]);
        assert!(waits["message"].as_str().is_some_and(|said| said.contains("no such job is known")));
    }

    #[test]
    fn an_empty_body_cancels_and_dots_may_stand_in_the_subject() {
        let cancel = read("agent.control.pod.7", "").expect("a wish");
        assert_eq!(cancel, Cancel { target: "pod.7".into(), kind: None, reason: None, by: None });
        assert_eq!(read("agent.control.x", r#"{"by":" \n "}"#).expect("a wish").by, None);
        assert_eq!(
            read("agent.control.x", r#"{"action":"cancel","kind":"job"}"#).expect("a wish").kind,
            Some(Kind::Job)
        );
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_reason() {
        let long = format!(r#"{{"reason":"{}"}}"#, "é".repeat(MAX_REASON_CHARS + 1));
        let huge = " ".repeat(MAX_BODY_BYTES + 1);
        for (subject, body, reason) in [
            ("agent.control.x", "cancel", "the body cannot be read"),
            ("agent.control.x", "[]", "the body cannot be read"),
            ("agent.control.x", r#"{"action":"pause"}"#, "unknown variant `pause`"),
            ("agent.control.x", r#"{"acton":"cancel"}"#, "unknown field `acton`"),
            ("agent.control.x", r#"{"kind":"pod"}"#, "unknown variant `pod`"),
            ("agent.control.x", &long, "reason has 1001 characters, at most 1000"),
            ("agent.control.x", &huge, "at most 16384 are read"),
            ("agent.control.%zz", "", "cannot be decoded"),
            ("agent.control.%00", "", "must not contain control characters"),
            ("agent.control.%20", "", "must not be empty"),
        ] {
            let error = read(subject, body).expect_err("not understood");
            assert!(error.contains(reason), "{error}");
        }
    }
}
