//! What a worker would refuse, found while the sender still listens.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use crate::{
    graph::{self, CompiledGraph, Diagnostic, NodeKind, RuntimeKind, Stored},
    job::{Config, Decoded, Job, Task, decode},
    node::ToolSet,
    tool::{self, Toolbox},
};

/// A request that a worker would run.
#[derive(Debug)]
pub struct Checked {
    /// The job it asks for.
    pub job: Job,
    /// Its graph, when the definition came with it and refers to no stored one.
    pub graph: Option<CompiledGraph>,
    /// The stored definitions that the one that came with it refers to; nobody has looked them up.
    pub refers: BTreeSet<String>,
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
        Task::Inline(definition) => match compile_alone(definition.get().as_bytes(), limits) {
            Ok(Alone::Refers(refers)) => Ok(Checked { job, graph: None, refers }),
            Ok(Alone::Graph(graph)) if graph.unset.is_empty() => {
                Ok(Checked { job, graph: Some(*graph), refers: BTreeSet::new() })
            }
            Ok(Alone::Graph(graph)) => {
                let unset =
                    |name| Diagnostic::new(format!("/agent_definition/variables/{name}"), "has no value");
                let details = graph.unset.iter().map(unset).collect();
                Err(Rejected { message: "the agent definition is a template".to_owned(), details })
            }
            Err(diagnostics) => {
                let inside = |found: Diagnostic| {
                    Diagnostic::new(format!("/agent_definition{}", found.pointer), found.message)
                };
                let details = diagnostics.into_iter().map(inside).collect();
                Err(Rejected { message: "the agent definition is wrong".to_owned(), details })
            }
        },
        Task::Stored(_) => Ok(Checked { job, graph: None, refers: BTreeSet::new() }),
    }
}

/// How compiling begins to say that a reference leads nowhere.
const NOT_STORED: &str = "no definition is stored under";

/// A definition without mistakes, as far as can be said without the stored ones.
#[derive(Debug)]
pub enum Alone {
    /// Its graph.
    Graph(Box<CompiledGraph>),
    /// It refers to these stored definitions, which whoever has the store looks up.
    Refers(BTreeSet<String>),
}

/// Compiles a definition where no stored ones are known; lists every mistake but the references.
pub fn compile_alone(definition: &[u8], limits: &graph::Limits) -> Result<Alone, Vec<Diagnostic>> {
    let mistakes = match compile(definition, limits, &Stored::new()) {
        Ok(graph) => return Ok(Alone::Graph(Box::new(graph))),
        Err(mistakes) => mistakes,
    };
    let found = mistakes.len();
    let others: Vec<_> =
        mistakes.into_iter().filter(|mistake| !mistake.message.starts_with(NOT_STORED)).collect();
    let only_refers = others.is_empty() && found > 0;
    if only_refers { Ok(Alone::Refers(graph::references(definition))) } else { Err(others) }
}

/// Compiles a definition, which may refer to `stored` ones, and checks the tools it brings along; lists every mistake.
pub fn compile(
    definition: &[u8],
    limits: &graph::Limits,
    stored: &Stored,
) -> Result<CompiledGraph, Vec<Diagnostic>> {
    let graph = graph::compile_with(definition, limits, stored)?;
    let mut mistakes = Vec::new();
    check_tools(&graph, "", (&mut Met::new(), &mut mistakes));
    if mistakes.is_empty() { Ok(graph) } else { Err(mistakes) }
}

/// Graphs that have been walked, by their addresses: one that several nodes run is walked once.
type Met = HashSet<*const CompiledGraph>;

/// The tools of a graph and of those inside it; graphs are nested a few levels deep at most.
fn check_tools(graph: &CompiledGraph, pointer: &str, (met, mistakes): (&mut Met, &mut Vec<Diagnostic>)) {
    for (index, definition) in graph.tools.values().enumerate() {
        let at = |mistake| Diagnostic::new(format!("{pointer}/tool_definitions/{index}"), mistake);
        mistakes.extend(tool::check_definition(definition).into_iter().map(at));
    }
    for node in graph.nodes() {
        if let NodeKind::Subgraph(inner) = &node.kind
            && met.insert(Arc::as_ptr(&inner.graph))
        {
            check_tools(&inner.graph, &format!("{pointer}{}", inner.place), (met, mistakes));
        }
    }
}

/// What the graph's tools need and is not there: packages of scripts, MCP servers and their tools, or why nobody can say.
pub async fn check_tools_here(graph: &CompiledGraph, toolbox: &Toolbox) -> Vec<Diagnostic> {
    let mut mistakes = check_packages(graph, toolbox).await;
    // Who has configured no server does not know which there are.
    if toolbox.knows_mcp_servers() {
        mistakes.extend(
            ToolSet::of(graph, toolbox).missing().await.into_iter().map(|(name, error)| {
                Diagnostic::new("", format!("tool `{name}`: {}: {error}", error.code()))
            }),
        );
    }
    mistakes
}

/// The packages that scripts of the graph need and that are not installed where scripts run, or why nobody can say.
async fn check_packages(graph: &CompiledGraph, toolbox: &Toolbox) -> Vec<Diagnostic> {
    let mut scripts = Vec::new();
    collect_scripts(graph, "", (&mut Met::new(), &mut scripts));
    let mut mistakes = Vec::new();
    for (pointer, runtime) in scripts {
        let said = match toolbox.missing_packages(runtime).await {
            Ok(missing) if missing.is_empty() => continue,
            Ok(missing) => format!("not installed: {}", missing.join(", ")),
            Err(error) => format!("{}: {error}", error.code()),
        };
        mistakes.push(Diagnostic::new(format!("{pointer}/runtime/dependencies"), said));
    }
    mistakes
}

fn collect_scripts<'a>(
    graph: &'a CompiledGraph,
    pointer: &str,
    (met, found): (&mut Met, &mut Vec<(String, &'a graph::ToolRuntime)>),
) {
    let runtimes = graph.tools.values().enumerate();
    found.extend(runtimes.filter_map(|(index, definition)| {
        let runtime = definition.runtime.as_ref().filter(|runtime| runtime.kind == RuntimeKind::Script)?;
        Some((format!("{pointer}/tool_definitions/{index}"), runtime))
    }));
    for node in graph.nodes() {
        if let NodeKind::Subgraph(inner) = &node.kind
            && met.insert(Arc::as_ptr(&inner.graph))
        {
            collect_scripts(&inner.graph, &format!("{pointer}{}", inner.place), (met, found));
        }
    }
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
    fn mistakes_of_tools_inside_a_subgraph_are_found() {
        let tool = r#"{"name": "t", "description": "x", "http": {"url": "ftp://{{ host }}/"}}"#;
        let inner = format!(
            r#"{{"tool_definitions": [{tool}], "nodes": [{{"id": "a", "type": "agent", "tools": ["t"]}}]}}"#
        );
        let outer = format!(r#"{{"nodes": [{{"id": "sub", "type": "subgraph", "definition": {inner}}}]}}"#);
        let limits = graph::Limits::default();
        let alone = compile(inner.as_bytes(), &limits, &Stored::new()).expect_err("no such scheme");
        let nested = compile(outer.as_bytes(), &limits, &Stored::new()).expect_err("no such scheme");
        assert_eq!(alone[0].pointer, "/tool_definitions/0");
        assert_eq!(nested[0].pointer, "/nodes/0/definition/tool_definitions/0");
        assert_eq!(nested[0].message, alone[0].message);
    }

    #[test]
    fn a_definition_that_refers_to_stored_ones_is_checked_for_all_other_mistakes() {
        let definition = |to: &str| {
            format!(
                r#"{{"nodes": [{{"id": "sub", "type": "subgraph", "agent": "x@1"}}, {{"id": "b", "type": "agent"}}],
                    "edges": [{{"from": "START", "to": "sub"}}, {{"from": "sub", "to": "{to}"}}, {{"from": "b", "to": "END"}}]}}"#
            )
        };
        let limits = graph::Limits::default();
        let alone = compile_alone(definition("b").as_bytes(), &limits);
        assert!(matches!(&alone, Ok(Alone::Refers(refers)) if refers.contains("x@1")), "{alone:?}");
        let request =
            |to: &str| format!(r#"{{"job_id": "j", "input": {{}}, "agent_definition": {}}}"#, definition(to));
        let checked =
            check(&[], request("b").as_bytes(), &Config::default(), &limits).expect("no other mistakes");
        assert!(checked.graph.is_none() && checked.refers.contains("x@1"));
        let text = rejected(&request("nowhere"));
        assert!(text.contains("nowhere") && !text.contains(NOT_STORED), "{text}");
    }

    #[test]
    fn mistakes_of_the_definition_point_into_the_request() {
        let text = rejected(r#"{"job_id": "j", "input": {}, "agent_definition": {"nodes": 7}}"#);
        assert!(text.contains("\n/agent_definition/nodes: "), "{text}");
    }
}
