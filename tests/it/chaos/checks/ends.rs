//! How jobs ended: results, their rows, dead letters.

use serde_json::Value as Json;

use super::{Complaints, Violation, grouped};
use crate::chaos::history::{History, Published};
use crate::chaos::jobs::{Expected, Kind};

fn job_of(result: &Published) -> &str {
    result.event["subject"].as_str().unwrap_or_default()
}

/// Every accepted job has exactly one terminal result (an interrupted run ends its job), and nobody else has one.
pub(super) fn one_result_per_job(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("every accepted job has exactly one result");
    let by_job = grouped(&history.results, job_of);
    for asked in &history.asked {
        let results = by_job.get(asked.job_id.as_str()).map_or(0, Vec::len);
        let wanted = usize::from(!matches!(asked.expected, Expected::Letter(_)));
        complaints
            .unless(results == wanted, &asked.job_id, || format!("{results} results, should be {wanted}"));
    }
    for (job_id, results) in by_job {
        let known = history.asked.iter().any(|asked| asked.job_id == job_id);
        complaints.unless(known, job_id, || format!("{} results of a job nobody asked for", results.len()));
        let ids_are_right = results.iter().all(|result| {
            let id = result.event["id"].as_str().unwrap_or_default();
            id == result.message_id
                && (id == format!("{job_id}:result") || id.starts_with(&format!("{job_id}:interrupted:")))
        });
        complaints.unless(ids_are_right, job_id, || "the event's id or the message id is wrong".into());
    }
    complaints.found
}

/// What is in the stream is what Postgres has stored, and Postgres knows that it is there.
pub(super) fn results_are_those_of_postgres(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("the results stream and Postgres agree");
    let by_job = grouped(&history.results, job_of);
    for job in &history.jobs {
        let about = &job.job_id;
        complaints.unless(!matches!(job.state.as_str(), "queued" | "running"), about, || {
            format!("still {} after {} attempts", job.state, job.attempt)
        });
        complaints.unless(job.finished_ms.is_none() || job.published, about, || {
            "its result is not marked as published".into()
        });
        for result in by_job.get(job.job_id.as_str()).into_iter().flatten() {
            complaints.unless(job.digest.as_deref() == Some(&result.digest), about, || {
                format!("the bytes of message {} are not those of the row", result.stream_seq)
            });
            let named = (job.event_id.as_deref(), job.subject.as_deref());
            complaints.unless(named == (Some(&result.message_id), Some(&result.subject)), about, || {
                format!("the row says {named:?}, the message {} on {}", result.message_id, result.subject)
            });
        }
    }
    for (job_id, _) in by_job {
        complaints.unless(history.job(job_id).is_some(), job_id, || "a result without a row".into());
    }
    complaints.found
}

/// Jobs complete with the output they must have, once their questions are answered; those with mistakes and poison fail
/// as they must.
pub(super) fn every_job_ends_as_it_must(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("every job ends as it must");
    let by_job = grouped(&history.results, job_of);
    for asked in &history.asked {
        let Some(result) = by_job.get(asked.job_id.as_str()).and_then(|results| results.first()) else {
            continue;
        };
        let data = &result.event["data"];
        let about = &asked.job_id;
        if result.subject == "agent.status.interrupted" {
            let may_ask = asked.irreversible && history.last_of(asked).job_id != *about;
            complaints.unless(may_ask, about, || format!("it asks: {}", data["interrupts"]));
            continue;
        }
        match &asked.expected {
            Expected::Completed(output) => {
                let is = |status: &str| result.subject == format!("agent.status.{status}");
                let completed = is("completed") && data["result"]["output"] == *output;
                let or =
                    (is("failed") || is("cancelled")) && asked.or.iter().any(|code| is_failure(data, code));
                complaints.unless(completed || or, about, || {
                    format!("{}: {} {}, should be {output}", result.subject, data["result"], data["error"])
                });
            }
            Expected::Failed(code, _) => {
                let failed = result.subject == "agent.status.failed" && is_failure(data, code);
                complaints.unless(failed, about, || {
                    format!("{}: {}, should be {code}", result.subject, data["error"])
                });
            }
            Expected::Letter(_) => {}
        }
    }
    complaints.found
}

fn is_failure(data: &Json, code: &str) -> bool {
    data["error"]["type"] == code
}

/// Poison and mistakes are dead letters, in the stream and in the table; an innocent job never is.
pub(super) fn only_what_must_is_a_dead_letter(history: &History) -> Vec<Violation> {
    let mut complaints = Complaints::about("dead letters are those that must be");
    for asked in &history.asked {
        let reasons: &[&str] = match &asked.expected {
            Expected::Completed(_) => &[],
            Expected::Failed(_, reason) => std::slice::from_ref(reason),
            Expected::Letter(reasons) => reasons,
        };
        let in_stream: Vec<&str> = history
            .letters
            .iter()
            .filter(|letter| letter.payload.contains(&asked.job_id))
            .map(|letter| letter.reason.as_str())
            .collect();
        let in_table: Vec<&str> = history
            .buried
            .iter()
            .filter(|buried| buried.payload.contains(&asked.job_id))
            .map(|buried| buried.reason.as_str())
            .collect();
        for (place, found) in [("stream", in_stream), ("table", in_table)] {
            let right = if reasons.is_empty() {
                found.is_empty()
            } else {
                found.len() == 1 && found.iter().all(|reason| reasons.contains(reason))
            };
            complaints.unless(right, &asked.job_id, || {
                format!("dead letters in the {place}: {found:?}, should be one of {reasons:?}")
            });
        }
        let dead = history.job(&asked.job_id).is_some_and(|job| job.state == "dead");
        complaints.unless(dead == (asked.kind == Kind::Poison), &asked.job_id, || {
            format!("given up: {dead}, although it is {:?}", asked.kind)
        });
    }
    complaints.found
}
