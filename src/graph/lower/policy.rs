//! What nodes say about failing, waiting and repeating, checked and compiled.

use std::{collections::HashMap, time::Duration};

use serde_json::{Value as Json, json};

use super::{Lowered, PlainNode};
use crate::graph::{
    channels::Channels,
    compiled::{NodeKind, Reducer},
    definition::{CacheDefinition, ErrorRouteDefinition, NodeDefinition, RetryDefinition},
    diagnostic::Diagnostic,
    expression::Expression,
    flow::{FlowEdge, FlowKind, Names, Point},
    policy::{CachePolicy, CallLimits, ErrorRoute, Policy, Retry, seconds},
    read::{Parts, Placed},
    spelling::{END, START},
    trigger::Trigger,
};

/// How long cached writes may be used when the author does not say: what was asked yesterday is asked anew.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);

/// Fields that change nothing about what a node writes, so that cached writes stay good when they change.
const BESIDE_THE_WORK: [&str; 7] =
    ["description", "metadata", "retry", "timeout_seconds", "idle_timeout_seconds", "cache", "on_error"];

/// The policies of a definition.
#[derive(Debug, Default)]
pub(in crate::graph) struct Policies {
    /// By the author's pointer to the node.
    by_place: HashMap<String, Policy>,
    /// Where nodes lead that have failed for good.
    pub(in crate::graph) routes: Vec<FlowEdge>,
}

impl Policies {
    /// The policy of `node` in the flow.
    pub(in crate::graph) fn of(&self, node: &PlainNode) -> Policy {
        self.by_place.get(&node.place).cloned().unwrap_or_default()
    }

    /// What holds inside of a graph that a node was wrapped into; the rest holds for the graph as a whole.
    pub(in crate::graph) fn inside(&self, node: &PlainNode) -> Self {
        let Policy { retry, idle_timeout, .. } = self.of(node);
        // The wrapped node is run again as a whole; without a word about it each of its calls would be repeated too.
        let retry = retry.map(|retry| Retry { max_attempts: 1, ..retry });
        let policy = Policy { retry, idle_timeout, ..Policy::default() };
        Self { by_place: HashMap::from([(node.place.clone(), policy)]), routes: Vec::new() }
    }

    /// The policy of the node that answers the calls of `node`: what holds for its calls.
    pub(in crate::graph) fn of_tools(&self, node: &PlainNode) -> Policy {
        let Policy { retry, timeout, .. } = self.of(node);
        Policy { retry, timeout, ..Policy::default() }
    }
}

/// Reads what the nodes of `parts`, which came to `lowered`, say.
pub(in crate::graph) fn read(
    parts: &Parts,
    lowered: &Lowered,
    (channels, names): (&Channels, &Names<'_>),
    mistakes: &mut Vec<Diagnostic>,
) -> Policies {
    let mut policies = Policies::default();
    let defaults = parts.definition.value.defaults.as_ref();
    let inline = lowered.items.iter().filter_map(|item| item.inline.as_ref());
    for node in parts.nodes.iter().chain(inline) {
        let place = node.place("");
        let in_flow = lowered.nodes.iter().position(|plain| plain.place == place);
        let specialists = lowered.specialists.iter().map(|specialist| &specialist.node);
        let mut outside = specialists.chain(lowered.items.iter().map(|item| &item.node));
        let plain = in_flow.map(|index| &lowered.nodes[index]);
        let Some(plain) = plain.or_else(|| outside.find(|plain| plain.place == place)) else {
            continue;
        };
        let common = &node.value.common;
        let retry = common.retry.as_ref().or(defaults.and_then(|defaults| defaults.retry.as_ref()));
        let mut reading = Reading { parts, lowered, node, channels, mistakes };
        if let NodeKind::Fail(_) = plain.kind {
            reading.fails_for_good();
            continue;
        }
        let on_error = common.on_error.as_ref().and_then(|route| {
            let (route, edge) = reading.on_error(route, in_flow, names)?;
            policies.routes.push(edge);
            Some(route)
        });
        let policy = Policy {
            retry: retry.map(compiled),
            timeout: common.timeout_seconds.map(seconds),
            idle_timeout: reading.idle_timeout(plain),
            cache: common.cache.as_ref().and_then(|cache| reading.cache(cache, plain)),
            on_error,
        };
        policies.by_place.insert(place, policy);
    }
    policies
}

/// What the definition says about calls.
pub(in crate::graph) fn limits(parts: &Parts) -> CallLimits {
    let limits = parts.definition.value.limits.clone().unwrap_or_default();
    CallLimits {
        model_calls: limits.model_calls.map(u64::from),
        tool_calls: limits.tool_calls.map(u64::from),
    }
}

pub(in crate::graph) fn compiled(retry: &RetryDefinition) -> Retry {
    let default = Retry::default();
    Retry {
        max_attempts: retry.max_attempts.unwrap_or(default.max_attempts),
        initial_interval: retry.initial_interval.map_or(default.initial_interval, seconds),
        backoff_factor: retry.backoff_factor.unwrap_or(default.backoff_factor),
        max_interval: retry.max_interval.map_or(default.max_interval, seconds),
        jitter: retry.jitter.unwrap_or(default.jitter),
        retry_on: retry.retry_on.clone().unwrap_or(default.retry_on),
    }
}

/// One node, while it is read.
struct Reading<'a> {
    parts: &'a Parts,
    lowered: &'a Lowered,
    node: &'a Placed<NodeDefinition>,
    channels: &'a Channels,
    mistakes: &'a mut Vec<Diagnostic>,
}

impl Reading<'_> {
    fn wrong(&mut self, pointer: &str, message: impl Into<String>) {
        self.mistakes.push(Diagnostic::new(self.node.place(pointer), message));
    }

    /// A `fail` node has no policy, neither its own nor that of the defaults.
    fn fails_for_good(&mut self) {
        let common = &self.node.value.common;
        let said = [
            ("/retry", common.retry.is_some()),
            ("/timeout_seconds", common.timeout_seconds.is_some()),
            ("/idle_timeout_seconds", common.idle_timeout_seconds.is_some()),
            ("/cache", common.cache.is_some()),
            ("/on_error", common.on_error.is_some()),
        ];
        for (field, _) in said.into_iter().filter(|(_, is_said)| *is_said) {
            self.wrong(field, "a `fail` node ends the job, whatever else is said about it");
        }
    }

    fn idle_timeout(&mut self, plain: &PlainNode) -> Option<Duration> {
        let limit = self.node.value.common.idle_timeout_seconds.map(seconds)?;
        if plain.kind.model().is_none() {
            let message = "only a node with a model can be silent; use `timeout_seconds`";
            self.wrong("/idle_timeout_seconds", message);
            return None;
        }
        Some(limit)
    }

    fn cache(&mut self, cache: &CacheDefinition, plain: &PlainNode) -> Option<CachePolicy> {
        if let Some(message) = not_cacheable(&plain.kind) {
            self.wrong("/cache", message);
            return None;
        }
        let key = match cache.key.as_deref().map(Expression::parse).transpose() {
            Ok(key) => key,
            Err(error) => {
                self.wrong("/cache/key", format!("expression: {error}"));
                return None;
            }
        };
        let unknown: Vec<_> =
            key.iter().flat_map(Expression::names).filter_map(|name| self.channels.check(name)).collect();
        unknown.into_iter().for_each(|message| self.wrong("/cache/key", message));
        let ttl = cache.ttl_seconds.map_or(DEFAULT_TTL, |ttl| Duration::from_secs(u64::from(ttl)));
        Some(CachePolicy { key, ttl, fingerprint: self.fingerprint(cache) })
    }

    /// A digest of everything but the state that decides what the node writes.
    fn fingerprint(&self, cache: &CacheDefinition) -> std::sync::Arc<str> {
        let definition = &self.parts.definition.value;
        let default = definition.defaults.as_ref().and_then(|defaults| defaults.model.clone());
        let fields = self.node.json().as_object().into_iter().flatten();
        let work = fields.filter(|(field, _)| !BESIDE_THE_WORK.contains(&field.as_str()));
        let work: serde_json::Map<String, Json> =
            work.map(|(field, value)| (field.clone(), value.clone())).collect();
        crate::graph::read::hash(&json!({
            "work": work,
            "default_model": default,
            "key": cache.key,
            "variables": definition.variables,
        }))
    }

    fn on_error(
        &mut self,
        route: &ErrorRouteDefinition,
        in_flow: Option<usize>,
        names: &Names<'_>,
    ) -> Option<(ErrorRoute, FlowEdge)> {
        let before = self.mistakes.len();
        if in_flow.is_none() {
            let is_item = self.lowered.items.iter().any(|item| item.node.place == self.node.place(""));
            let message = if is_item {
                "the failures of items go to the channel that `errors` of their map names"
            } else {
                "a specialist's failure is told to whoever delegated to it"
            };
            self.wrong("/on_error", message);
        }
        if let Some(message) = self.channels.check(&route.writes) {
            self.wrong("/on_error/writes", message);
        }
        let reducer = self.channels.specs.get(route.writes.as_str()).map(|spec| spec.reducer);
        if let Some(Reducer::Add | Reducer::Max | Reducer::Min | Reducer::Messages) = reducer {
            let message = format!("the channel `{}` cannot take an object; see its reducer", route.writes);
            self.wrong("/on_error/writes", message);
        }
        let target = match route.target.as_str() {
            "END" | END => Some((Point::End, None)),
            "START" | START => {
                self.wrong("/on_error/target", "no edge leads to START");
                None
            }
            name => {
                let message = names.wrong_end(name, true);
                message.into_iter().for_each(|message| self.wrong("/on_error/target", message));
                names.nodes.get(name).map(|index| (Point::Node(*index), Some(*index)))
            }
        };
        let ((point, index), source) = (target?, in_flow?);
        if index == Some(source) {
            self.wrong(
                "/on_error/target",
                "a node that has failed is run again by `retry`, not by `on_error`",
            );
        }
        if self.mistakes.len() > before {
            return None;
        }
        let next = index.and_then(|index| self.lowered.nodes.get(index));
        let target = next.map(|next| Trigger::Branch(&next.name).channel());
        let edge = FlowEdge {
            source: Point::Node(source),
            target: point,
            kind: FlowKind::OnError,
            place: self.node.place("/on_error"),
            label: None,
        };
        Some((ErrorRoute { target, channel: route.writes.as_str().into() }, edge))
    }
}

/// Why writes of a node of this kind cannot be used again, if they cannot.
fn not_cacheable(kind: &NodeKind) -> Option<&'static str> {
    match kind {
        NodeKind::Model(model) if model.tools_node.is_none() => None,
        NodeKind::Transform(_) | NodeKind::Router(_) => None,
        NodeKind::Approval(_) => Some("what a person answers once is no answer to another question"),
        NodeKind::Map(_) | NodeKind::Gather | NodeKind::Subgraph(_) | NodeKind::Tool(_) => {
            Some("only what a model, router or transform node writes can be kept")
        }
        NodeKind::Model(_) | NodeKind::Tools(_) | NodeKind::Fail(_) | NodeKind::Summary(_) => Some(
            "an agent's tools do something between its answers, which a cache would leave out; only a node \
             without tools can have one",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{CompiledGraph, Limits, RetryOn, compile};

    fn compiled(json: &Json) -> Result<CompiledGraph, Vec<String>> {
        let bytes = serde_json::to_vec(json).expect("JSON");
        compile(&bytes, &Limits::default()).map_err(|wrong| wrong.iter().map(ToString::to_string).collect())
    }

    fn agent(id: &str, more: &Json) -> Json {
        let mut node = json!({ "id": id, "type": "agent", "tools": ["ls"] });
        more.as_object().into_iter().flatten().for_each(|(field, value)| node[field] = value.clone());
        node
    }

    #[test]
    fn policies_that_make_no_sense_are_mistakes() {
        let route =
            |target: &str, writes: &str| json!({ "on_error": { "target": target, "writes": writes } });
        let transform = |id: &str, more: Json| {
            let mut node = json!({ "id": id, "type": "transform", "writes": { "x": "1" } });
            more.as_object().into_iter().flatten().for_each(|(field, value)| node[field] = value.clone());
            node
        };
        let nodes = json!([
            agent(
                "a",
                &json!({ "cache": {}, "retry": { "max_attempts": 0, "retry_on": ["never"], "wait": 1 } })
            ),
            transform("b", json!({ "idle_timeout_seconds": 1, "cache": { "key": "y" } })),
            transform("c", route("nowhere", "y")),
            transform("d", route("d", "count")),
            transform("e", route("START", "x")),
            agent("f", &json!({ "timeout_seconds": 0 })),
            transform("g", json!({ "cache": { "key": "x +" } })),
            { "id": "h", "type": "approval", "question": "?", "writes": "x", "cache": {} },
            { "id": "i", "type": "fail", "code": "NO", "message": "no", "retry": {}, "cache": {} },
        ]);
        let ids = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let edges: Vec<_> = ids
            .iter()
            .flat_map(|id| [json!({ "from": "START", "to": id }), json!({ "from": id, "to": "END" })])
            .chain([json!({ "from": "START", "to": "i" })])
            .collect();
        let channels = json!({ "x": {}, "count": { "reducer": "add" } });
        let wrong = compiled(&json!({ "channels": channels, "nodes": nodes, "edges": edges }));
        expect_test::expect![[r#"
            /nodes/0/retry/max_attempts: must be at least 1
            /nodes/0/retry/retry_on/0: must be one of ["model_unavailable","timeout","tool_error","expression","output","any"]
            /nodes/0/retry/wait: unknown field `wait`; known: backoff_factor, initial_interval, jitter, max_attempts, max_interval, retry_on
            /nodes/5/timeout_seconds: must be more than 0
            /nodes/0/cache: an agent's tools do something between its answers, which a cache would leave out; only a node without tools can have one
            /nodes/1/idle_timeout_seconds: only a node with a model can be silent; use `timeout_seconds`
            /nodes/1/cache/key: unknown channel `y`; known: messages, files, x, count
            /nodes/2/on_error/writes: unknown channel `y`; known: messages, files, x, count
            /nodes/2/on_error/target: unknown node `nowhere`; known: a, b, c, d, e, f, g, h, i, START, END
            /nodes/3/on_error/writes: the channel `count` cannot take an object; see its reducer
            /nodes/3/on_error/target: a node that has failed is run again by `retry`, not by `on_error`
            /nodes/4/on_error/target: no edge leads to START
            /nodes/6/cache/key: expression: does not parse: unexpected end of input, expected expression
            /nodes/7/cache: what a person answers once is no answer to another question
            /nodes/8/retry: a `fail` node ends the job, whatever else is said about it
            /nodes/8/cache: a `fail` node ends the job, whatever else is said about it"#]].assert_eq(&wrong.expect_err("all of it is wrong").join("\n"));
    }

    #[test]
    fn a_handler_is_reached_by_the_failure_alone_and_a_specialist_has_none() {
        let handler = json!({ "id": "h", "type": "transform", "writes": { "x": "1" } });
        let failing =
            agent("a", &json!({ "on_error": { "target": "h", "writes": "x" }, "timeout_seconds": 3 }));
        let edges = json!([{ "from": "START", "to": "a" }, { "from": "a", "to": "END" }, { "from": "h", "to": "END" }]);
        let definition = json!({ "channels": { "x": {} }, "nodes": [failing, handler], "edges": edges });
        let graph = compiled(&definition).expect("it is reachable");
        let policy = |name: &str| graph.node(name).expect("a node").policy.clone();
        let route = policy("a").on_error.expect("it has one");
        assert_eq!((route.target.as_deref(), &*route.channel), (Some("branch:to:h"), "x"));
        assert_eq!((policy("a.tools").timeout, policy("a.tools").on_error), (policy("a").timeout, None));

        let specialist =
            json!({ "id": "s", "type": "specialist", "on_error": { "target": "END", "writes": "x" } });
        let main =
            json!({ "id": "m", "type": "orchestrator", "on_error": { "target": "END", "writes": "x" } });
        let deep = json!({ "channels": { "x": {} }, "nodes": [main, specialist] });
        let wrong = compiled(&deep).expect_err("a specialist is in no flow");
        assert_eq!(wrong, ["/nodes/1/on_error: a specialist's failure is told to whoever delegated to it"]);
    }

    #[test]
    fn a_summary_is_covered_by_what_its_agent_says() {
        let summarize = json!({ "trigger_tokens": 100 });
        let said = json!({ "on_error": { "target": "h", "writes": "x" }, "idle_timeout_seconds": 3, "summarize": summarize });
        let handler = json!({ "id": "h", "type": "transform", "writes": { "x": "1" } });
        let edges = json!([{ "from": "START", "to": "a" }, { "from": "a", "to": "END" }, { "from": "h", "to": "END" }]);
        let graph = compiled(
            &json!({ "channels": { "x": {} }, "nodes": [agent("a", &said), handler], "edges": edges }),
        )
        .expect("no mistake");
        let policy = |name: &str| graph.node(name).expect("a node").policy.clone();
        assert_eq!(policy("a.summarize").idle_timeout, Some(Duration::from_secs(3)));
        assert!(policy("a.summarize").on_error.is_some());
        assert_eq!(policy("a.summarize").on_error, policy("a").on_error);
    }

    #[test]
    fn values_of_variables_tell_cached_writes_apart() {
        let fingerprint = |value: &str| {
            let model =
                json!({ "id": "m", "type": "model", "prompt": "{{ tone }}", "writes": "x", "cache": {} });
            let variables = json!({ "tone": { "value": value } });
            let definition = json!({ "variables": variables, "channels": { "x": {} }, "nodes": [model] });
            let graph = compiled(&definition).expect("no mistake");
            graph.node("m").and_then(|node| node.policy.cache.clone()).expect("it is cached").fingerprint
        };
        assert_eq!(fingerprint("kind"), fingerprint("kind"));
        assert_ne!(fingerprint("kind"), fingerprint("stern"));
    }

    #[test]
    fn an_item_that_corrects_its_answers_is_run_again_as_a_whole_and_in_no_other_way() {
        let node = json!({ "type": "model", "prompt": "{{ item }}", "writes": "out", "output_schema": { "type": "object" },
            "retry": { "max_attempts": 5, "retry_on": ["model_unavailable"] } });
        let map = json!({ "id": "each", "type": "map", "items": "list", "node": node });
        let graph =
            compiled(&json!({ "channels": { "list": {}, "out": { "reducer": "append" } }, "nodes": [map] }))
                .expect("no mistake");
        let item = graph.node("each.item").expect("the item");
        let NodeKind::Subgraph(inner) = &item.kind else { panic!("it is no graph of its own") };
        let inside = inner.graph.node("each.item").expect("the model").policy.retry.clone().expect("a word");
        assert_eq!(item.policy.retry.as_ref().map(|retry| retry.max_attempts), Some(5));
        assert_eq!(
            (inside.max_attempts, inside.covers(crate::graph::FailureClass::ModelUnavailable)),
            (1, true)
        );
    }

    #[test]
    fn defaults_hold_for_nodes_that_say_nothing() {
        let own = json!({ "retry": { "max_attempts": 1 } });
        let nodes = json!([agent("a", &json!({})), agent("b", &own)]);
        let edges =
            json!([{ "from": "START", "to": "a" }, { "from": "a", "to": "b" }, { "from": "b", "to": "END" }]);
        let defaults =
            json!({ "retry": { "max_attempts": 7, "initial_interval": 0.25, "retry_on": ["any"] } });
        let limits = json!({ "model_calls": 5 });
        let definition =
            json!({ "version": "2", "limits": limits, "defaults": defaults, "nodes": nodes, "edges": edges });
        let graph = compiled(&definition).expect("no mistake");
        let retry =
            |name: &str| graph.node(name).and_then(|node| node.policy.retry.clone()).expect("a retry");
        let default = Retry {
            max_attempts: 7,
            initial_interval: Duration::from_millis(250),
            retry_on: vec![RetryOn::Any],
            ..Retry::default()
        };
        assert_eq!((retry("a"), retry("a.tools")), (default.clone(), default));
        assert_eq!(retry("b"), Retry { max_attempts: 1, ..Retry::default() });
        assert_eq!(graph.limits, CallLimits { model_calls: Some(5), tool_calls: None });
        assert_eq!(graph.version.as_deref(), Some("2"));
    }
}
