//! What a worker would refuse, found while the sender still listens.

use crate::{
    graph::{self, CompiledGraph, Diagnostic},
    job::{Config, Decoded, Job, Task, decode},
    tool,
};

/// A request that a worker would run.
#[derive(Debug)]
pub struct Checked {
    /// The job it asks for.
    pub job: Job,
    /// Its graph, when the definition came with it.
    pub graph: Option<CompiledGraph>,
}

/// Why a request would not be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejected {
    /// One sentence.
    pub message: String,
    /// Each mistake, with its JSON pointer into the request's data.
    pub details: Vec<Diagnostic>,
}

/// Decodes a request and compiles the definition that came with it.
pub fn check(
    headers: &[(String, String)],
    payload: &[u8],
    config: &Config,
    limits: &graph::Limits,
) -> Result<Checked, Rejected> {
    let job = match decode(headers, payload, config) {
        Decoded::Job(job) => *job,
        Decoded::Unreadable { error, .. } => {
            return Err(Rejected { details: vec![located(&error)], message: error });
        }
    };
    match &job.task {
        Task::Invalid(problems) => {
            let details = problems.iter().map(|problem| located(problem)).collect();
            Err(Rejected { message: "the request is wrong".to_owned(), details })
        }
        Task::Inline(definition) => match compile(definition.get().as_bytes(), limits) {
            Ok(graph) => Ok(Checked { job, graph: Some(graph) }),
            Err(diagnostics) => {
                let inside = |found: Diagnostic| {
                    Diagnostic::new(format!("/agent_definition{}", found.pointer), found.message)
                };
                let details = diagnostics.into_iter().map(inside).collect();
                Err(Rejected { message: "the agent definition is wrong".to_owned(), details })
            }
        },
        Task::Stored(_) => Ok(Checked { job, graph: None }),
    }
}

/// Compiles a definition and checks the tools it brings along; lists every mistake.
pub fn compile(definition: &[u8], limits: &graph::Limits) -> Result<CompiledGraph, Vec<Diagnostic>> {
    let graph = graph::compile(definition, limits)?;
    let mistakes = graph.tools.values().enumerate().flat_map(|(place, definition)| {
        let at = move |mistake| Diagnostic::new(format!("/tool_definitions/{place}"), mistake);
        tool::check_definition(definition).into_iter().map(at)
    });
    let mistakes: Vec<_> = mistakes.collect();
    if mistakes.is_empty() { Ok(graph) } else { Err(mistakes) }
}

/// A problem starts with a JSON pointer, or names a CloudEvent attribute.
fn located(problem: &str) -> Diagnostic {
    match problem.split_once(": ") {
        Some((pointer, message)) if pointer.starts_with('/') => Diagnostic::new(pointer, message),
        _ => Diagnostic::new("", problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(payload: &str) -> String {
        let checked = check(&[], payload.as_bytes(), &Config::default(), &graph::Limits::default());
        let rejected = checked.expect_err("the request is wrong");
        let details = rejected.details.iter().map(|detail| format!("\n{detail}"));
        format!("{rejected}{}", details.collect::<String>())
    }

    #[test]
    fn mistakes_of_the_request_keep_their_pointers() {
        let text = rejected(r#"{"job_id": "j", "thread_id": 7, "config": {"recursion_limit": "x"}}"#);
        assert!(text.starts_with("the request is wrong\n"), "{text}");
        assert!(text.contains("/thread_id: "), "{text}");
        assert!(text.contains("/agent_definition: ") || text.contains("agent_definition"), "{text}");
        assert!(rejected("{").contains("JSON"), "{}", rejected("{"));
    }

    #[test]
    fn mistakes_of_the_definition_point_into_the_request() {
        let text = rejected(r#"{"job_id": "j", "input": {}, "agent_definition": {"nodes": 7}}"#);
        assert!(text.contains("\n/agent_definition/nodes: "), "{text}");
    }
}
