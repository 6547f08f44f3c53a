use std::{fs, path::PathBuf};

use serde_json::{Value as Json, json};

use super::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("graph-definitions")
}

fn examples() -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(folder()).expect("the folder is there");
    let mut examples: Vec<_> = files
        .map(|file| file.expect("readable").path())
        .filter(|path| path.is_file() && !path.to_string_lossy().ends_with(".schema.json"))
        .map(|path| {
            (path.file_name().expect("named").to_string_lossy().into_owned(), fs::read(&path).expect("read"))
        })
        .collect();
    examples.sort();
    assert!(examples.len() >= 10, "one example per node and edge kind");
    examples
}

/// The graph of a definition without mistakes.
pub(super) fn compiled(json: &Json) -> CompiledGraph {
    compile(&serde_json::to_vec(json).expect("JSON"), &Limits::default())
        .unwrap_or_else(|mistakes| panic!("{mistakes:#?}"))
}

fn mistakes(json: &Json) -> Vec<String> {
    let result = compile(&serde_json::to_vec(json).expect("JSON"), &Limits::default());
    result
        .map(|graph| describe(&graph))
        .expect_err("it has mistakes")
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn every_example_compiles() {
    let mut all = String::new();
    for (name, json) in examples() {
        match compile(&json, &Limits::default()) {
            Ok(graph) => {
                let text = describe(&graph);
                let (head, rest) = text.split_once('\n').expect("a first line");
                all += &format!("{name}: {}\n{rest}", head.split("  ").next().expect("a name"));
            }
            Err(mistakes) => panic!("{name}: {mistakes:#?}"),
        }
    }
    expect_test::expect_file!["examples.expected"].assert_eq(&all);
}

#[test]
fn the_schema_file_is_current_and_accepts_every_example() {
    let schema = definition_schema();
    let mut text = serde_json::to_string_pretty(&schema).expect("JSON");
    text.push('\n');
    expect_test::expect_file![folder().join("agent-definition.schema.json")].assert_eq(&text);
    let schema = Schema::compile(&schema).expect("the schema is one");
    for (name, json) in examples() {
        let json = serde_json::from_slice(&json).expect("JSON");
        assert_eq!(schema.check(&json), Vec::<String>::new(), "{name}");
    }
    for spelling in [
        json!({"nodes": [{"id": "a", "type": "AGENT"}]}),
        json!({"nodes": [{"name": "a", "type": "agent", "model": "openai:gpt-4o"}], "edges": [{"from": "START", "to": "a"}]}),
        json!({"nodes": [{"type": "Specialist", "config": {"name": "a", "model": {"provider": "x", "model_name": "y"}}}]}),
        json!({"nodes": [{"id": "a", "type": "agent", "system_prompt": null}],
            "tool_definitions": [{"name": "t", "script": "print(1)"}]}),
    ] {
        assert_eq!(schema.check(&spelling), Vec::<String>::new(), "{spelling}");
        compiled(&spelling);
    }
    for wrong in [
        json!({}),
        json!({"nodes": []}),
        json!({"nodes": [{"id": "a", "type": "robot"}]}),
        json!({"nodes": [{"id": "a", "type": "agent", "tool": []}]}),
    ] {
        assert!(!schema.check(&wrong).is_empty(), "{wrong}");
    }
}

#[test]
fn a_broken_definition_gets_all_its_mistakes_in_its_own_spelling() {
    let broken = json!({"name": 7, "nodes": []});
    assert_eq!(mistakes(&broken), ["/name: must be a text, is a number", "/nodes: must not be empty"]);
    assert_eq!(mistakes(&json!({})), ["(root): needs the field `nodes`"]);
    let broken = json!({
        "name": 7, "node": [], "defaults": {"modle": "x"},
        "channels": {"log": {"reducer": "append", "default": 1}, "lgo2": {"reducer": "sum"}, "a:b": {}, "messages": {"reducer": "append"}},
        "output": ["text", "log", "lgo2"],
        "recursion_limit": 5, "limits": {"recursion": 6},
        "tool_definitions": [
            {"name": "search", "description": "x"},
            {"name": "ls", "script": "x", "language": 3},
            {"name": "both", "http": {"url": "http://x/{{ y"}, "parameters": {"type": "objec"}},
            {"name": "both", "runtime": {"script": "x"}},
        ],
        "nodes": [
            {"id": "main", "type": "Agent", "config": {"model": {"provider": "openai", "model_name": "x",
                "temperature": "hot", "topp": 1}, "toolz": []}},
            {"id": "a", "type": "agent", "tools": ["search", "serch", "task"], "system_prompt": "{{ nme }}",
                "model": {"provider": "x"}},
            {"type": "model", "output_schema": {"type": "objec"}},
            {"id": "b", "type": "agent", "tools": ["serch", "task"], "system_prompt": "{{ nme }} {{"},
            {"id": "b", "type": "model", "output_schema": {"type": "objec"}, "writes": "lgo"},
            {"id": "b.tools", "type": "transform", "writes": {"log": "1 +", "lgo": "nme|shout"}},
            {"id": "__x", "type": "transform", "writes": {}},
            {"id": "c", "type": "robot"},
            "node",
        ],
        "edges": [
            {"source": "START", "target": "nowhere"},
            {"source": "b", "target": "START"},
            {"source": "END", "target": "b", "type": "conditional"},
            {"source": "b", "target": "c", "when": "nme =="},
            {"source": "b", "target": "c", "when": {"all": [{"path": "/lgo", "op": "is"}]}, "otherwise": true},
            {"source": "b", "sources": ["b", "c"], "target": "c"},
            {"sources": ["b", "b"], "target": "END"},
            {"from": "b"},
        ],
    });
    expect_test::expect_file!["mistakes.expected"].assert_eq(&(mistakes(&broken).join("\n") + "\n"));
}

#[test]
fn edges_that_do_not_fit_together_are_mistakes() {
    let transform = |id: &str| json!({"id": id, "type": "transform", "writes": {"x": "1"}});
    let flow = |edges: Json| {
        let nodes: Vec<_> = ["a", "b", "c", "d"].into_iter().map(transform).collect();
        mistakes(&json!({"channels": {"x": {}}, "nodes": nodes, "edges": edges})).join("\n")
    };
    let mut all = String::new();
    for (title, edges) in [
        ("no edges", json!([])),
        ("nothing leaves START", json!([{"source": "a", "target": "b"}])),
        (
            "unreachable",
            json!([{"source": "START", "target": "a"}, {"source": "a", "target": "END"},
            {"source": "b", "target": "c"}, {"source": "c", "target": "b", "when": "x"}, {"source": "d", "target": "END"}]),
        ),
        (
            "no way to END",
            json!([{"source": "START", "target": "a"}, {"source": "a", "target": "b", "when": "x"},
            {"source": "a", "target": "c", "otherwise": true}, {"source": "b", "target": "a"},
            {"source": "c", "target": "a"}, {"source": "a", "target": "d", "when": "x"}, {"source": "d", "target": "a"}]),
        ),
        (
            "leads nowhere",
            json!([{"source": "START", "target": "a"}, {"source": "a", "target": "b"},
            {"sources": ["a", "b"], "target": "c"}, {"source": "c", "target": "d"}]),
        ),
        (
            "otherwise",
            json!([{"source": "START", "target": "a"}, {"source": "a", "target": "b", "otherwise": true},
            {"source": "a", "target": "c", "otherwise": true}, {"source": "b", "target": "d", "when": "x"},
            {"source": "b", "target": "END"}, {"source": "c", "target": "d"},
            {"source": "c", "target": "END", "when": "x"}, {"source": "c", "target": "a", "otherwise": true},
            {"source": "d", "target": "END"}]),
        ),
        (
            "loop",
            json!([{"source": "START", "target": "a"}, {"source": "a", "target": "b"}, {"source": "b", "target": "a"},
            {"source": "a", "target": "END"}, {"source": "START", "target": "c"}, {"source": "c", "target": "c"},
            {"source": "c", "target": "d"}, {"source": "d", "target": "END"}]),
        ),
        (
            "twice",
            json!([{"source": "START", "target": "a"}, {"source": "START", "target": "b"},
            {"sources": ["a", "b"], "target": "c"}, {"sources": ["b", "a"], "target": "c"},
            {"source": "c", "target": "d"}, {"source": "c", "target": "d"}, {"source": "d", "target": "END"}]),
        ),
    ] {
        all += &format!("## {title}\n{}\n", flow(edges));
    }
    expect_test::expect_file!["flow_mistakes.expected"].assert_eq(&all);
}

#[test]
fn size_limits_hold_before_anything_is_read() {
    let limits = Limits { max_bytes: 2_000, max_nodes: 2, max_edges: 1, max_depth: 8, max_map_items: 5 };
    let first = |json: &[u8]| compile(json, &limits).expect_err("too large")[0].to_string();
    assert!(first(&vec![b' '; 2_001]).contains("2001 bytes"));
    assert!(first(format!("{}{}", "[".repeat(9), "]".repeat(9)).as_bytes()).contains("nested 9 levels"));
    assert!(first("[".repeat(1_900).as_bytes()).contains("is not JSON: recursion limit"));
    assert!(first(b"{\"nodes\": ").contains("is not JSON: EOF"));
    assert!(first(b"[]").contains("must be an object, is a list"));
    let node = json!({"id": "a", "type": "agent"});
    let many = json!({"nodes": [node, node, node], "edges": [{"from": "START", "to": "a"}, {"from": "a", "to": "END"}]});
    let many = compile(many.to_string().as_bytes(), &limits).expect_err("too many");
    assert_eq!(many.len(), 2, "{many:?}");
}

#[test]
fn both_spellings_mean_the_same_graph() {
    let flat = json!({"nodes": [{"type": "orchestrator", "name": "main", "tools": [], "system_prompt": "Hi {{ }} {%",
        "model": {"provider": "openai", "model_name": "gpt-4o"}}], "edges": [], "tool_definitions": []});
    let nested = json!({"nodes": [{"id": "main", "type": "ORCHESTRATOR", "config": {"name": "main", "tools": [],
        "system_prompt": "Hi {{ }} {%", "model": {"provider": "openai", "model": "gpt-4o"}}}]});
    let without_hash =
        |json| describe(&compiled(json)).lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(without_hash(&flat), without_hash(&nested));
    let reordered = json!({"edges": [], "tool_definitions": [], "nodes": flat["nodes"]});
    assert_eq!(
        compiled(&flat).hash,
        compiled(&reordered).hash,
        "the order of fields is not part of the hash"
    );
    assert_ne!(compiled(&flat).hash, compiled(&nested).hash);
    assert_eq!(compiled(&flat).hash.len(), 64);
}

fn model<'a>(graph: &'a CompiledGraph, node: &str) -> &'a ModelNode {
    let NodeKind::Model(model) = &graph.node(node).expect("the node is there").kind else {
        panic!("{node} calls no model")
    };
    model
}

fn names(names: &[crate::value::Name]) -> Vec<&str> {
    names.iter().map(|name| &**name).collect()
}

#[test]
fn an_orchestrator_becomes_a_model_and_its_tools_and_specialists_become_graphs() {
    let graph = compiled(&json!({
        "tool_definitions": [{"name": "search", "script": "print()"}],
        "nodes": [
            {"id": "boss", "name": "Boss", "type": "orchestrator", "tools": ["search", "ls"], "model": "x:y"},
            {"id": "r", "name": "Researcher", "type": "specialist", "description": "Finds things.",
                "tools": ["search"], "system_prompt": "{{ literally }}"},
        ],
        "edges": [{"from": "boss", "to": "r"}, {"from": "r", "to": "boss", "type": "Orchestrator"}],
    }));
    assert_eq!(&*graph.name, "boss");
    let boss = graph.node("boss").expect("there");
    assert_eq!(names(&boss.triggers), ["branch:to:boss"]);
    assert!(boss.routes.always.is_empty() && boss.routes.branch.is_none(), "it leads to END");
    assert_eq!(names(&graph.start.always), ["branch:to:boss"]);
    let tools =
        ["search", "ls", "write_todos", "read_file", "write_file", "edit_file", "glob", "grep", "task"];
    assert_eq!(names(&model(&graph, "boss").tools), tools);
    assert_eq!(model(&graph, "boss").tools_node.as_deref(), Some("boss.tools"));
    let back = graph.node("boss.tools").expect("there");
    assert_eq!(names(&back.routes.always), ["branch:to:boss"]);
    assert!(
        matches!(&back.kind, NodeKind::Tools(node) if &*node.agent == "boss" && names(&node.tools) == tools)
    );
    assert_eq!(
        graph.subagents.keys().map(|name| &**name).collect::<Vec<_>>(),
        ["Researcher", "general-purpose"]
    );
    let researcher = &graph.subagents["Researcher"];
    assert_eq!(researcher.description, "Finds things.");
    assert_eq!(&*researcher.graph.name, "Researcher");
    let own = model(&researcher.graph, "Researcher");
    assert_eq!(own.tools.len(), 1 + BUILTIN_TOOLS.len());
    assert_eq!(*own.model, ModelSettings::parse(DEFAULT_MODEL));
    assert_eq!(own.system_prompt.as_ref().map(Template::source), Some("{{ literally }}"));
    assert_eq!(
        own.system_prompt.as_ref().map(|t| t.render(&Default::default())),
        Some(Ok("{{ literally }}".into()))
    );
    let general = model(&graph.subagents["general-purpose"].graph, "general-purpose");
    assert_eq!(general.model.model, "y", "it has the orchestrator's model");
    assert!(!general.tools.iter().any(|name| &**name == TASK_TOOL));
    assert_eq!(graph.recursion_limit, 1_000);
    assert_eq!(
        researcher.graph.channels.keys().map(|name| &**name).collect::<Vec<_>>(),
        ["messages", "files", "todos"]
    );
}

#[test]
fn the_general_purpose_agent_may_do_nothing_that_its_orchestrator_may_not_do_alone() {
    let approvals = ["effect:irreversible", "mcp:files/write_file", "task", "write_file"];
    let graph = compiled(&json!({"nodes": [
        {"id": "boss", "type": "orchestrator", "tools": ["mcp:files"], "requires_approval": approvals},
    ]}));
    let general = &graph.subagents["general-purpose"].graph;
    let tools = general.node("general-purpose.tools").expect("it has tools");
    let NodeKind::Tools(tools) = &tools.kind else { panic!("{tools:?}") };
    assert_eq!(names(&tools.approvals), ["effect:irreversible", "mcp:files/write_file", "write_file"]);
}

#[test]
fn joins_and_branches_become_channels() {
    let graph = compiled(&json!({
        "channels": {"x": {"reducer": "add"}},
        "nodes": [
            {"id": "b", "type": "transform", "writes": {"x": "1"}},
            {"id": "a", "type": "transform", "writes": {"x": "1"}},
            {"id": "j", "type": "transform", "writes": {"x": "1"}},
            {"id": "k", "type": "transform", "writes": {"x": "1"}},
        ],
        "edges": [
            {"from": "START", "to": "a", "when": "x == 0"}, {"from": "START", "to": "b"},
            {"from": "START", "to": "a", "when": {"path": "/x", "op": "gt", "value": 0}},
            {"sources": ["b", "a"], "to": "j"}, {"source": ["a", "j"], "to": "k"}, {"from": "j", "to": "k"},
            {"from": "k", "to": "END", "when": "x > 9"}, {"from": "k", "to": "j", "otherwise": true},
        ],
    }));
    assert_eq!(names(&graph.start.always), ["branch:to:b"]);
    let cases = &graph.start.branch.as_ref().expect("conditional").cases;
    assert_eq!(cases.iter().map(|case| case.target.as_deref()).collect::<Vec<_>>(), [Some("branch:to:a"); 2]);
    let node = |name: &str| graph.node(name).expect("there");
    assert_eq!(names(&node("a").routes.always), ["join:b+a:j", "join:a+j:k"]);
    assert_eq!(names(&node("j").triggers), ["branch:to:j", "join:b+a:j"]);
    assert_eq!(names(&node("j").routes.always), ["join:a+j:k", "branch:to:k"]);
    let branch = node("k").routes.branch.as_ref().expect("conditional");
    assert_eq!((branch.cases[0].target.as_deref(), branch.otherwise.as_deref()), (None, Some("branch:to:j")));
    assert_eq!(graph.topology.edge_count(), 2 + 2 + 1 + 1);
}

#[test]
fn channels_start_with_what_changes_nothing() {
    let graph = compiled(&json!({
        "channels": {"l": {}, "a": {"reducer": "append"}, "m": {"reducer": "merge"}, "s": {"reducer": "add"},
            "h": {"reducer": "max", "default": 3}, "todos": {"reducer": "append"}},
        "nodes": [{"id": "x", "type": "agent", "tools": ["read_file"]}],
    }));
    let defaults: Vec<_> = graph
        .channels
        .iter()
        .map(|(name, spec)| {
            format!("{name}={}", spec.default.as_ref().map_or("none".into(), |v| v.to_json().to_string()))
        })
        .collect();
    assert_eq!(defaults, ["messages=[]", "files={}", "l=none", "a=[]", "m={}", "s=0", "h=3", "todos=[]"]);
    assert_eq!(graph.recursion_limit, 25);
}

#[test]
fn agents_without_an_orchestrator_are_nodes_of_the_flow() {
    let alone = compiled(&json!({"nodes": [{"name": "solo", "type": "specialist"}]}));
    assert_eq!(model(&alone, "solo").tools.len(), BUILTIN_TOOLS.len());
    assert!(alone.subagents.is_empty());
    let two =
        json!({"nodes": [{"name": "a", "type": "orchestrator"}, {"name": "b", "type": "orchestrator"}]});
    assert_eq!(mistakes(&two), ["/nodes: 2 orchestrators, but no edges that say in which order they run"]);
    let typed = json!({"nodes": [{"name": "a", "type": "orchestrator"}, {"name": "s", "type": "specialist"}],
        "edges": [{"from": "START", "to": "s"}, {"from": "s", "to": "END"}, {"from": "a", "to": "x", "type": "specialists"}]});
    let wrong = mistakes(&typed);
    assert_eq!(wrong.len(), 3, "{wrong:#?}");
    assert!(wrong[0].starts_with("/edges/0/to: `s` is a specialist"), "{wrong:#?}");
    assert!(wrong[2].starts_with("/edges/2/to: unknown node `x`; known: a, s, START, END"), "{wrong:#?}");
}

#[test]
fn models_come_from_the_node_then_the_definition_then_the_program() {
    let graph = compiled(&json!({
        "defaults": {"model": {"model_name": "d", "fallbacks": ["x:y"]}},
        "nodes": [{"id": "a", "type": "model"}, {"id": "b", "type": "agent", "model": "llama"}],
        "edges": [{"from": "START", "to": "a"}, {"from": "a", "to": "b"}, {"from": "b", "to": "END"}],
    }));
    let settings = &model(&graph, "a").model;
    assert_eq!((settings.provider.as_str(), settings.model.as_str()), ("openai", "d"));
    assert_eq!(settings.fallbacks, [ModelSettings::parse("x:y")]);
    assert_eq!(*model(&graph, "b").model, ModelSettings::parse("openai:llama"));
    assert_eq!(model(&graph, "b").tools_node, None);
}

/// Every place of `json`, as JSON pointers.
fn places(json: &Json, place: String, all: &mut Vec<String>) {
    match json {
        Json::Object(map) => map.iter().for_each(|(key, value)| places(value, format!("{place}/{key}"), all)),
        Json::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| places(item, format!("{place}/{index}"), all));
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
    all.push(place);
}

#[test]
fn no_wrong_value_anywhere_makes_the_compiler_panic_or_point_outside_of_the_definition() {
    let wrong = [json!(null), json!(-1), json!("x"), json!([]), json!({}), json!(["__start__"]), json!("{{")];
    for name in [
        "nested.json",
        "condition-typed.json",
        "parallel-join.json",
        "agent-http-tool.json",
        "map.json",
        "subgraph.json",
        "tool.json",
    ] {
        let json: Json = serde_json::from_slice(&fs::read(folder().join(name)).expect("read")).expect("JSON");
        let mut all = Vec::new();
        places(&json, String::new(), &mut all);
        for place in all {
            for value in &wrong {
                let mut changed = json.clone();
                *changed.pointer_mut(&place).expect("a place of it") = value.clone();
                let result = compile(changed.to_string().as_bytes(), &Limits::default());
                for mistake in result.err().into_iter().flatten() {
                    let points_at_something = changed.pointer(&mistake.pointer).is_some();
                    assert!(points_at_something, "{name}: {place} = {value}: {mistake}");
                }
            }
        }
    }
}

#[test]
fn the_least_limit_of_a_maps_items_counts() {
    let items = |limits: Json, own: Json| {
        let map = json!({ "id": "each", "type": "map", "items": "list", "max_items": own,
            "node": { "type": "transform", "writes": { "out": "[item]" } } });
        let definition = json!({ "channels": { "list": {}, "out": { "reducer": "append" } }, "limits": limits, "nodes": [map] });
        let graph = compile(definition.to_string().as_bytes(), &Limits::default()).expect("no mistakes");
        let NodeKind::Map(map) = &graph.node("each").expect("it is there").kind else {
            panic!("it is a map")
        };
        map.max_items
    };
    assert_eq!(items(json!({}), Json::Null), Limits::default().max_map_items);
    assert_eq!(items(json!({ "plan_steps": 7 }), Json::Null), 7);
    assert_eq!(items(json!({ "plan_steps": 7 }), json!(3)), 3);
    assert_eq!(items(json!({ "plan_steps": 7 }), json!(9)), 7);
}
