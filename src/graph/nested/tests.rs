use std::fs;

use serde_json::{Value as Json, json};

use crate::graph::*;

fn mistakes_with(json: &Json, stored: &Stored) -> Vec<String> {
    let result = compile_with(json.to_string().as_bytes(), &Limits::default(), stored);
    result.expect_err("it has mistakes").iter().map(ToString::to_string).collect()
}

fn mistakes(json: &Json) -> Vec<String> {
    mistakes_with(json, &Stored::new())
}

fn compiled(json: &Json) -> CompiledGraph {
    compile(json.to_string().as_bytes(), &Limits::default())
        .unwrap_or_else(|mistakes| panic!("{mistakes:#?}"))
}

/// A graph of one node that runs the stored definition `reference`.
fn runs(reference: &str) -> Json {
    json!({"nodes": [{"id": "sub", "type": "subgraph", "agent": reference}]})
}

fn stored(definitions: &[(&str, Json)]) -> Stored {
    let bytes = |json: &Json| json.to_string().into_bytes().into_boxed_slice();
    definitions.iter().map(|(name, json)| ((*name).to_owned(), bytes(json))).collect()
}

fn names(names: &[crate::value::Name]) -> Vec<&str> {
    names.iter().map(|name| &**name).collect()
}

#[test]
fn a_map_leads_on_once_all_of_its_items_are_done() {
    let graph = compiled(&json!({
        "channels": {"list": {}, "out": {"reducer": "append"}},
        "nodes": [
            {"id": "each", "type": "map", "items": "list", "max_concurrency": 3, "errors": "out", "max_items": 5000,
                "node": {"type": "transform", "writes": {"out": "[item, index]"}}},
            {"id": "other", "type": "transform", "writes": {"out": "1"}},
            {"id": "end", "type": "transform", "writes": {"out": "2"}},
        ],
        "edges": [{"from": "START", "to": "each"}, {"from": "START", "to": "other"},
            {"sources": ["each", "other"], "to": "end"}, {"from": "end", "to": "END"}],
    }));
    let node = |name: &str| graph.node(name).expect("it is there");
    let NodeKind::Map(map) = &node("each").kind else { panic!("no map") };
    assert_eq!((&*map.node, map.max_items), ("each.item", 1_000), "the operator's limit holds");
    assert_eq!(names(&node("each").routes.always), ["branch:to:each.done"], "without items");
    assert_eq!(names(&node("each.item").routes.always), ["branch:to:each.done"]);
    let rules = node("each.item").items.as_ref().expect("it runs for items");
    assert_eq!((rules.max_concurrency, rules.errors.as_deref()), (Some(3), Some("out")));
    assert_eq!(names(&node("each.done").routes.always), ["join:each.done+other:end"]);
    assert_eq!(names(&node("end").triggers), ["branch:to:end", "join:each.done+other:end"]);
}

#[test]
fn mistakes_of_maps_are_found() {
    let map = |fields: Json, more: Json| {
        let mut map = json!({"id": "each", "type": "map", "items": "list",
            "node": {"type": "transform", "writes": {"out": "item"}}});
        map.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let mut nodes = vec![map];
        nodes.extend(more.as_array().expect("a list").iter().cloned());
        mistakes(&json!({"channels": {"list": {}, "one": {}, "out": {"reducer": "append"}}, "nodes": nodes,
            "edges": [{"from": "START", "to": "each"}, {"from": "each", "to": "END"}]}))
    };
    let wrong = map(
        json!({"items": "lst", "errors": "one", "node": {"type": "transform", "writes": {"one": "itm"}}}),
        json!([]),
    );
    let wrong: Vec<_> = wrong.iter().map(|mistake| mistake.split(';').next().unwrap_or_default()).collect();
    assert_eq!(
        wrong,
        [
            "/nodes/0/items: unknown channel `lst`",
            "/nodes/0/errors: the errors of several items need a channel with the reducer `append`",
            "/nodes/0/node/writes/one: unknown channel `itm`",
            "/nodes/0/node: the items write `one` side by side, and it keeps one value: give it a reducer such as `append`",
        ]
    );
    let agent = map(json!({"node": {"type": "agent"}}), json!([]));
    assert!(
        agent[0].starts_with("/nodes/0/node: the items would share the agent's conversation"),
        "{agent:?}"
    );
    let unknown = map(json!({"node": "worker"}), json!([]));
    assert_eq!(unknown, ["/nodes/0/node: unknown node `worker`; known: each"]);
    let worker = json!({"id": "worker", "type": "transform", "writes": {"out": "item"}});
    let twice = json!([worker, {"id": "again", "type": "map", "items": "list", "node": "worker"}]);
    let twice = map(json!({"node": "worker"}), twice);
    assert!(
        twice[0].starts_with("/nodes/2/node: the node `worker` runs for the items of `each` already"),
        "{twice:?}"
    );
    let edge = mistakes(&json!({"channels": {"list": {}, "out": {"reducer": "append"}},
        "nodes": [{"id": "each", "type": "map", "items": "list", "node": "worker"}, worker],
        "edges": [{"from": "START", "to": "each"}, {"from": "each", "to": "worker"}, {"from": "worker", "to": "END"}]}));
    assert!(edge[0].starts_with("/edges/1/to: `worker` runs for the items of a map"), "{edge:?}");
}

#[test]
fn mistakes_inside_a_subgraph_have_their_place_in_the_whole() {
    let wrong = mistakes(&json!({
        "channels": {"a": {}},
        "nodes": [{"id": "sub", "type": "subgraph", "input": {"x": "a", "nope": "b"}, "output": {"a": "y", "c": "x"},
            "definition": {"channels": {"x": {}}, "nodes": [{"id": "t", "type": "transform", "writes": {"x": "1"}}]}}],
    }));
    let wrong: Vec<_> = wrong.iter().map(|mistake| mistake.split(';').next().unwrap_or_default()).collect();
    assert_eq!(
        wrong,
        [
            "/nodes/0/input/nope: the subgraph has no channel `nope`",
            "/nodes/0/input/nope: unknown channel `b`",
            "/nodes/0/output/a: the subgraph has no channel `y`",
            "/nodes/0/output/c: unknown channel `c`",
        ]
    );
    let inner = mistakes(&json!({"nodes": [{"id": "sub", "type": "subgraph",
        "definition": {"nodes": [{"id": "t", "type": "transform", "writes": {"x": "1"}}]}}]}));
    assert!(inner[0].starts_with("/nodes/0/definition/nodes/0/writes/x: unknown channel `x`"), "{inner:?}");
    let neither = mistakes(&json!({"nodes": [{"id": "sub", "type": "subgraph"}]}));
    assert_eq!(neither, ["/nodes/0: needs the field `definition` or `agent`"]);
}

#[test]
fn graphs_are_not_nested_without_end() {
    let mut definition = json!({"nodes": [{"id": "a", "type": "model"}]});
    for _ in 0..5 {
        definition = json!({"nodes": [{"id": "sub", "type": "subgraph", "definition": definition}]});
    }
    let limits = Limits { max_depth: 100, ..Limits::default() };
    let wrong = compile(definition.to_string().as_bytes(), &limits).expect_err("it is too deep");
    assert!(wrong[0].message.contains("nested deeper than 4 levels"), "{wrong:?}");
}

#[test]
fn stored_definitions_are_looked_up_by_version() {
    let leaf = json!({"nodes": [{"id": "a", "type": "model"}]});
    let graph = runs("leaf@1");
    assert_eq!(references(graph.to_string().as_bytes()).into_iter().collect::<Vec<_>>(), ["leaf@1"]);
    let known = stored(&[("leaf@1", leaf)]);
    let compiled =
        compile_with(graph.to_string().as_bytes(), &Limits::default(), &known).expect("it is stored");
    let NodeKind::Subgraph(sub) = &compiled.node("sub").expect("there").kind else { panic!("no subgraph") };
    assert!(sub.graph.node("a").is_some());
    assert_eq!(mistakes(&graph), ["/nodes/0/agent: no definition is stored under `leaf@1`"]);
    assert_eq!(
        mistakes(&runs("leaf")),
        ["/nodes/0/agent: `leaf` names no version: write `leaf@<version>` or `sha256:…`"]
    );
    let broken = stored(&[("leaf@1", json!({"nodes": []}))]);
    assert_eq!(mistakes_with(&graph, &broken), ["/nodes/0/agent: in `leaf@1`: /nodes: must not be empty"]);
}

#[test]
fn a_stored_definition_is_as_deep_wherever_it_is_referred_to() {
    let leaf = json!({"nodes": [{"id": "a", "type": "agent", "model": "scripted:x"}]});
    let chain =
        [("one@1", leaf), ("two@1", runs("one@1")), ("three@1", runs("two@1")), ("four@1", runs("three@1"))];
    let both = |first: &str, second: &str| {
        let node = |id: &str, agent: &str| json!({"id": id, "type": "subgraph", "agent": agent});
        json!({"nodes": [node("a", first), node("b", second)],
            "edges": [{"from": "START", "to": "a"}, {"from": "a", "to": "b"}, {"from": "b", "to": "END"}]})
    };
    let mut known = stored(&chain);
    known.extend(stored(&[("more@1", runs("four@1"))]));
    let compile = |json: &Json| compile_with(json.to_string().as_bytes(), &Limits::default(), &known);
    compile(&both("four@1", "three@1")).expect("four levels each");
    let wrong = mistakes_with(&both("four@1", "more@1"), &known);
    assert_eq!(
        wrong,
        ["/nodes/1/agent: in `more@1`: /nodes/0/agent: graphs are nested deeper than 4 levels"]
    );
}

#[test]
fn what_items_require_is_refused_since_nothing_would_check_it() {
    let requires = json!([{"node": "gate", "when": "x"}]);
    let definition = |node: Json, more: &[Json]| {
        let gate = json!({"id": "gate", "type": "transform", "writes": {"x": "1"}});
        let map = json!({"id": "each", "type": "map", "items": "list", "node": node});
        let nodes: Vec<_> = [&gate, &map].into_iter().chain(more).collect();
        json!({"channels": {"list": {}, "x": {}, "out": {"reducer": "append"}},
            "nodes": nodes,
            "edges": [{"from": "START", "to": "gate"}, {"from": "gate", "to": "each"}, {"from": "each", "to": "END"}]})
    };
    let item = json!({"id": "one", "type": "transform", "writes": {"out": "[item]"}, "requires": requires});
    let message = "what the items require belongs to their map";
    let beside = mistakes(&definition(json!("one"), std::slice::from_ref(&item)));
    assert_eq!(beside, [format!("/nodes/2/requires: {message}")]);
    let inline = mistakes(&definition(item, &[]));
    assert_eq!(inline, [format!("/nodes/1/node/requires: {message}")]);
}

#[test]
fn definitions_that_contain_each_other_are_refused() {
    let known = stored(&[("a@1", runs("b@1")), ("b@1", runs("a@1"))]);
    let wrong = mistakes_with(&runs("a@1"), &known);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].ends_with("the definitions contain each other: a@1 → b@1 → a@1"), "{wrong:?}");
}

#[test]
fn mistakes_of_tool_nodes_are_found() {
    let tool = |fields: Json| {
        let mut node = json!({"id": "t", "type": "tool"});
        node.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        mistakes(&json!({"channels": {"x": {}}, "nodes": [node]}))
    };
    let wrong = tool(
        json!({"tool": "serch", "writes": "y", "arguments": {"a": "{{ z }}", "b": ["{{ x", {"c": "{{ x|shout }}"}]}}),
    );
    let places: Vec<_> = wrong.iter().map(|mistake| mistake.split(": ").next().unwrap_or_default()).collect();
    let expected = [
        "/nodes/0/tool",
        "/nodes/0/writes",
        "/nodes/0/arguments/a",
        "/nodes/0/arguments/b/0",
        "/nodes/0/arguments/b/1/c",
    ];
    assert_eq!(places, expected, "{wrong:#?}");
    let task = tool(json!({"tool": "task"}));
    assert!(task[0].contains("use a `subgraph`"), "{task:?}");
}

#[test]
fn the_case_of_the_modular_core_runs_the_shipped_definition() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let [shipped, played] =
        ["graph-definitions/modular-core.json", "tests/cases/modular-core/definition.json"].map(|file| {
            let text = fs::read(root.join(file)).expect("it can be read");
            without_models(serde_json::from_slice(&text).expect("it is JSON"))
        });
    assert_eq!(shipped, played);
}

fn without_models(json: Json) -> Json {
    match json {
        Json::Object(map) => {
            let rest = map.into_iter().filter(|(key, _)| key != "model");
            Json::Object(rest.map(|(key, value)| (key, without_models(value))).collect())
        }
        Json::Array(items) => items.into_iter().map(without_models).collect(),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => json,
    }
}
