//! Reducers, messages and a join, each superstep by somebody else; then changes from outside, new turns and forks.

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};

use super::{MODES, Mode, Ours, Python, go_on};
use crate::live::interop::read_thread;

fn definition() -> Json {
    let said =
        |name: &str| format!("[{{'role': 'assistant', 'content': '{name} by rust', 'id': 'm-{name}'}}]");
    let node = |name: &str, writes: Json| json!({ "id": name, "type": "transform", "writes": writes });
    let edge = |from: &str, to: &str| json!({ "from": from, "to": to });
    json!({
        "channels": {
            "log": { "reducer": "append", "default": [] }, "facts": { "reducer": "merge", "default": {} },
            "total": { "reducer": "add", "default": 0 }, "things": { "reducer": "append", "default": [] },
            "n": { "reducer": "last_value" }
        },
        "nodes": [
            node("split", json!({ "log": "['split by rust']", "total": "1", "messages": said("split"), "things": "[{'a': 1.5}]" })),
            node("zeta", json!({ "log": "['zeta by rust']", "facts": "{'zeta': n}", "total": "10" })),
            node("alpha", json!({ "log": "['alpha by rust']", "facts": "{'alpha': n + 1}", "total": "100" })),
            node("beta", json!({ "log": "['beta by rust']", "things": "['beta']" })),
            node("join", json!({ "log": "['join by rust of ' ~ (facts | length)]", "messages": said("join") }))
        ],
        "edges": [
            edge("START", "split"), edge("split", "zeta"), edge("split", "alpha"), edge("alpha", "beta"),
            { "sources": ["zeta", "beta"], "target": "join" }, edge("join", "END")
        ],
        "output": ["log"]
    })
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    Python,
    Rust,
}

impl Who {
    fn other(self) -> Self {
        match self {
            Self::Python => Self::Rust,
            Self::Rust => Self::Python,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Rust => "rust",
        }
    }
}

/// One superstep.
async fn step(
    ours: &mut Ours,
    python: &mut Python,
    (who, thread): (Who, &str),
    input: Option<Json>,
) -> Result<()> {
    match who {
        Who::Rust => {
            let request = input.map_or_else(go_on, |input| json!({ "input": input }));
            ours.step(thread, request).await
        }
        Who::Python => {
            let request = json!({ "steps": 1, "input": input });
            let reply = python.run(thread, request).await?;
            assert_eq!(reply["error"], Json::Null);
            Ok(())
        }
    }
}

/// What Python's `split` leaves in the state: objects that only Python knows.
const ODD_THINGS: usize = 8;

#[tokio::test]
async fn supersteps_of_one_turn_are_made_by_both_sides_in_turns() -> Result<()> {
    let mut ours = Ours::start(definition()).await?;
    for (mode, first) in MODES.into_iter().flat_map(|mode| [(mode, Who::Python), (mode, Who::Rust)]) {
        let mut python = Python::start(&ours.world, "flow", mode).await?;
        let thread = format!("turns-{mode:?}-{first:?}");
        let mut who = first;
        step(&mut ours, &mut python, (who, &thread), Some(json!({ "n": 5 }))).await?;
        for next in [json!(["alpha", "zeta"]), json!(["beta"]), json!(["join"])] {
            let mut found = python.state(&thread).await?["next"].take();
            found.as_array_mut().context("a list")?.sort_by_key(Json::to_string);
            assert_eq!(found, next, "{thread}");
            who = who.other();
            step(&mut ours, &mut python, (who, &thread), None).await?;
        }
        let state = python.state(&thread).await?;
        let (a, b) = (first.name(), first.other().name());
        let log = [("split", a), ("alpha", b), ("zeta", b), ("beta", a), ("join", b)];
        let mut log: Vec<_> = log.iter().map(|(node, who)| format!("{node} by {who}")).collect();
        log[4].push_str(" of 2");
        assert_eq!((&state["next"], &state["values"]["log"]), (&json!([]), &json!(log)), "{thread}");
        assert_eq!(state["values"]["facts"], json!({ "alpha": 6, "zeta": 5 }));
        assert_eq!(state["values"]["total"], 111);
        check_objects(&state["values"], first)?;
        let history = python.history(&thread).await?;
        let steps: Vec<_> = history.iter().filter_map(|state| state["step"].as_i64()).collect();
        assert_eq!(steps, [4, 3, 2, 1, 0, -1]);
        for pair in history.windows(2) {
            assert_eq!(pair[0]["parent"], pair[1]["checkpoint_id"]);
        }
        let stored = read_thread(&ours.world.database_url, &thread).await?;
        assert_eq!(stored["encoded_otherwise"], json!([]), "Python would have written the same bytes");
    }
    Ok(())
}

/// Messages and objects that one side does not know have come through its supersteps.
fn check_objects(values: &Json, first: Who) -> Result<()> {
    let messages = values["messages"].as_array().context("messages")?;
    let things = values["things"].as_array().context("things")?;
    let (a, b) = (first.name(), first.other().name());
    let (split, join) = (json!(format!("ai: split by {a}")), json!(format!("ai: join by {b}")));
    match first {
        Who::Python => {
            assert_eq!(*messages, [split, json!("chat: hm"), join]);
            assert_eq!(things.len(), ODD_THINGS + 1);
            assert!(
                things[0].as_str().is_some_and(|text| text.starts_with("datetime.datetime(2026")),
                "{things:?}"
            );
            assert_eq!(things[3], "Decimal('1.10')");
            assert_eq!(things[5]["1"], "one");
        }
        Who::Rust => {
            assert_eq!(*messages, [split, join]);
            assert_eq!(*things, [json!({ "a": "1.5" }), json!("beta")]);
        }
    }
    assert_eq!(things.last(), Some(&json!("beta")));
    Ok(())
}

fn log_of(state: &Json) -> Vec<String> {
    let log = state["values"]["log"].as_array().into_iter().flatten();
    log.map(|line| line.as_str().unwrap_or_default().to_owned()).collect()
}

/// A turn of which every node was run by that side.
fn turn(who: &str) -> Vec<String> {
    let nodes = ["split", "alpha", "zeta", "beta", "join"].into_iter();
    nodes.map(|node| format!("{node} by {who}{}", if node == "join" { " of 2" } else { "" })).collect()
}

#[tokio::test]
async fn changes_from_outside_new_turns_and_forks_are_understood_on_both_sides() -> Result<()> {
    let mut ours = Ours::start(definition()).await?;
    let mut python = Python::start(&ours.world, "flow", Mode::Strict).await?;
    ours.completed("t", json!({ "input": { "n": 1 } })).await?;
    // Python finds out by itself which node was the last.
    let updated = python.ask("update", "t", json!({ "values": { "log": ["noted"] } })).await?;
    assert_eq!((&updated["state"]["source"], &updated["state"]["next"]), (&json!("update"), &json!([])));
    ours.completed("t", json!({ "input": { "n": 2 } })).await?;
    let reply = python.run("t", json!({ "input": { "n": 3 } })).await?;
    let noted = [turn("rust"), vec!["noted".to_owned()], turn("rust")].concat();
    assert_eq!(log_of(&reply["state"]), [noted.clone(), turn("python")].concat());
    assert_eq!(reply["state"]["values"]["total"], 333);

    // Back to where our second turn was about to run beta, which an update pretends to have run already.
    let history = python.history("t").await?;
    let before_beta = |state: &&Json| state["next"] == json!(["beta"]) && log_of(state).len() == 9;
    let older = history.iter().find(before_beta).context("a checkpoint of ours")?["checkpoint_id"].clone();
    let forked =
        json!({ "values": { "log": ["instead of beta"] }, "as_node": "beta", "checkpoint_id": older });
    let reply = python.ask("update", "t", forked).await?;
    assert_eq!(reply["state"]["next"], json!(["join"]));
    ours.completed("t", go_on()).await?;
    let state = python.state("t").await?;
    let mut expected = noted[..9].to_vec();
    expected.extend(["instead of beta", "join by rust of 2"].map(str::to_owned));
    assert_eq!(log_of(&state), expected);

    // The same place once more: a fork of ours with a change, then one of Python's own.
    let fork = json!({ "checkpoint_id": older, "command": { "update": { "log": ["changed"] } } });
    ours.completed("t", fork).await?;
    let mut expected = noted[..9].to_vec();
    expected.extend(["changed", "beta by rust", "join by rust of 2"].map(str::to_owned));
    assert_eq!(log_of(&python.state("t").await?), expected);
    let reply = python.run("t", json!({ "checkpoint_id": older })).await?;
    assert_eq!(reply["ran"], json!(["beta", "join"]));
    ours.completed("t", json!({ "input": { "n": 4 } })).await?;
    let mut expected = noted[..9].to_vec();
    expected.extend(["beta by python", "join by python of 2"].map(str::to_owned));
    expected.extend(turn("rust"));
    assert_eq!(log_of(&python.state("t").await?), expected);
    Ok(())
}

#[tokio::test]
async fn new_input_on_a_thread_in_its_middle_starts_a_new_turn_on_both_sides() -> Result<()> {
    let mut ours = Ours::start(definition()).await?;
    let mut python = Python::start(&ours.world, "flow", Mode::Strict).await?;
    for first in [Who::Python, Who::Rust] {
        let thread = format!("middle-{first:?}");
        step(&mut ours, &mut python, (first, &thread), Some(json!({ "n": 1 }))).await?;
        step(&mut ours, &mut python, (first, &thread), None).await?;
        let input = json!({ "input": { "n": 2 } });
        match first {
            Who::Python => drop(ours.completed(&thread, input).await?),
            Who::Rust => drop(python.run(&thread, input).await?),
        }
        let expected = [turn(first.name())[..3].to_vec(), turn(first.other().name())].concat();
        let state = python.state(&thread).await?;
        assert_eq!((log_of(&state), &state["next"]), (expected, &json!([])), "{thread}");
        assert_eq!(state["values"]["facts"], json!({ "alpha": 3, "zeta": 2 }));
    }
    Ok(())
}
