//! Requests and definitions in files: reading them, and filling in what a person leaves out.

use std::{collections::BTreeSet, io::Read};

use serde_json::{Map as JsonMap, Value as Json};

use super::error::Error;
use crate::{
    config::Config,
    graph::{CompiledGraph, Diagnostic},
    run::{self, Alone, Checked, Rejected},
};

/// Largest file read; every limit of a request is far below.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The text of `path`, or of standard input when it is `-`.
pub(super) fn read(path: &str) -> Result<Vec<u8>, Error> {
    let source: std::io::Result<Box<dyn Read>> = match path {
        "-" => Ok(Box::new(std::io::stdin().lock())),
        _ => std::fs::File::open(path).map(|file| Box::new(file) as Box<dyn Read>),
    };
    let mut bytes = Vec::new();
    source
        .and_then(|source| source.take(MAX_FILE_BYTES).read_to_end(&mut bytes))
        .map_err(|source| Error::File { path: path.to_owned(), source })?;
    Ok(bytes)
}

/// The ids a person gives on the command line.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ids<'a> {
    pub(super) job_id: Option<&'a str>,
    pub(super) thread_id: Option<&'a str>,
}

/// The request with `ids` put in, and a job id made when there is none at all.
pub(super) fn complete(bytes: &[u8], ids: Ids<'_>) -> Result<Vec<u8>, Rejected> {
    let mut request = object(bytes)?;
    if request.contains_key("specversion") {
        // Anything else in `data` is for the check to refuse.
        if let Some(Json::Object(data)) = request.get_mut("data") {
            fill_in(data, ids);
        }
    } else {
        fill_in(&mut request, ids);
    }
    Ok(serde_json::to_vec(&request).expect("a JSON map serialises"))
}

fn fill_in(fields: &mut JsonMap<String, Json>, ids: Ids<'_>) {
    if let Some(thread_id) = ids.thread_id {
        fields.insert("thread_id".to_owned(), thread_id.into());
    }
    if let Some(job_id) = ids.job_id {
        fields.insert("job_id".to_owned(), job_id.into());
    }
    if !fields.contains_key("job_id") {
        fields.insert("job_id".to_owned(), format!("job-{}", uuid::Uuid::now_v7()).into());
    }
}

/// What a file without mistakes holds.
pub(super) enum Found {
    /// A graph.
    Graph(Box<CompiledGraph>),
    /// A definition that refers to these stored ones.
    Refers(BTreeSet<String>),
    /// A request that names a stored definition.
    Stored,
}

/// The graph of a definition, or of a request with one inside.
pub(super) fn check(bytes: &[u8], config: &Config) -> Result<Found, Rejected> {
    if !is_request(&object(bytes)?) {
        let wrong = |details| Rejected { message: "the agent definition is wrong".to_owned(), details };
        return run::compile_alone(bytes, &config.limits).map_err(wrong).map(|alone| match alone {
            Alone::Graph(graph) => Found::Graph(graph),
            Alone::Refers(refers) => Found::Refers(refers),
        });
    }
    let payload = complete(bytes, Ids::default())?;
    let checked = check_request(&payload, config)?;
    Ok(match checked.graph {
        Some(graph) => Found::Graph(Box::new(graph)),
        None if checked.refers.is_empty() => Found::Stored,
        None => Found::Refers(checked.refers),
    })
}

/// Says which stored definitions were not looked up.
pub(super) fn not_looked_up(refers: &BTreeSet<String>) -> String {
    format!("not looked up: {}", refers.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
}

/// The job of a complete request.
pub(super) fn check_request(payload: &[u8], config: &Config) -> Result<Checked, Rejected> {
    run::check(&[], payload, &config.job, &config.limits)
}

fn is_request(object: &JsonMap<String, Json>) -> bool {
    ["agent_definition", "agent", "job_id", "specversion", "input", "input_payload"]
        .iter()
        .any(|key| object.contains_key(*key))
}

fn object(bytes: &[u8]) -> Result<JsonMap<String, Json>, Rejected> {
    let wrong = |message: String| Rejected {
        message: "the file is no JSON object".to_owned(),
        details: vec![Diagnostic::new("", message)],
    };
    match serde_json::from_slice(bytes) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_)) => {
            Err(wrong("must be an object: a definition or a request".to_owned()))
        }
        Err(error) => Err(wrong(format!("is not JSON: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn completed(request: &Json, ids: Ids<'_>) -> Json {
        let bytes = complete(request.to_string().as_bytes(), ids).expect("an object");
        serde_json::from_slice(&bytes).expect("it is JSON")
    }

    #[test]
    fn a_job_id_is_made_only_when_there_is_none() {
        let made = completed(&json!({"input": {}}), Ids::default());
        assert!(made["job_id"].as_str().is_some_and(|id| id.starts_with("job-")), "{made}");
        assert_eq!(made.get("thread_id"), None, "the thread is the job's own by default");
        let kept = completed(&json!({"job_id": "j"}), Ids::default());
        assert_eq!(kept, json!({"job_id": "j"}));
    }

    #[test]
    fn ids_of_the_command_line_win_and_go_where_the_data_is() {
        let ids = Ids { job_id: Some("mine"), thread_id: Some("t") };
        let bare = completed(&json!({"job_id": "j"}), ids);
        assert_eq!(bare, json!({"job_id": "mine", "thread_id": "t"}));
        let event = completed(&json!({"specversion": "1.0", "data": {"job_id": "j"}}), ids);
        assert_eq!(event, json!({"specversion": "1.0", "data": {"job_id": "mine", "thread_id": "t"}}));
    }

    #[test]
    fn what_is_no_object_is_refused_with_its_place() {
        for bad in ["", "[1]", "{\"a\": }"] {
            let rejected = complete(bad.as_bytes(), Ids::default()).expect_err("no object");
            assert_eq!(rejected.message, "the file is no JSON object");
            assert_eq!(rejected.details.len(), 1, "{bad:?}");
        }
    }
}
