//! What is to be run: a definition from a file, and what somebody asks of it.

use serde_json::{Map as JsonMap, Value as Json, json};
use uuid::Uuid;

use crate::{
    cli::{
        error::Error,
        prompts,
        request::{self, check_request, not_looked_up},
    },
    config::Config,
    ids::ThreadId,
    job::Job,
    run::{self, Alone, Rejected},
};

/// What somebody asks of a definition.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Work {
    /// Channels to write first.
    Input(Json),
    /// The answer to the thread's question, or answers by id.
    Resume(Json),
}

impl Work {
    /// What `--input` and `--resume` say.
    pub(super) fn read(input: Option<&str>, resume: Option<&str>) -> Result<Option<Self>, Error> {
        if let Some(text) = resume {
            return Ok(Some(Self::Resume(value(text))));
        }
        let Some(text) = input else { return Ok(None) };
        let piped;
        let text = match text {
            "-" => {
                piped = request::read("-")?;
                std::str::from_utf8(&piped).map_err(|_| Error::Input("is not UTF-8".to_owned()))?
            }
            text => text,
        };
        state(text).map(Self::Input).map(Some)
    }
}

/// JSON, or else the text itself.
pub(super) fn value(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// A JSON object is the state; anything else is what the user says.
fn state(text: &str) -> Result<Json, Error> {
    let text = text.trim();
    if text.is_empty() {
        return Err(Error::Input("is empty".to_owned()));
    }
    if !text.starts_with('{') {
        return Ok(json!({ "messages": [{ "role": "user", "content": text }] }));
    }
    // Whoever begins with a brace means JSON: a mistake in it must not become a message.
    serde_json::from_str(text).map_err(|error| Error::Input(format!("begins like JSON and is none: {error}")))
}

/// A definition without mistakes.
pub(super) struct Definition<'a> {
    config: &'a Config,
    json: Json,
}

impl<'a> Definition<'a> {
    /// Reads it and lists every mistake; with `model`, every node that names a model gets that one.
    pub(super) fn read(config: &'a Config, path: &str, model: Option<&str>) -> Result<Self, Error> {
        let read = request::read(path)?;
        let wrong = |rejected: &Rejected| {
            eprintln!("{path}: {rejected}");
            for diagnostic in &rejected.details {
                eprintln!("  {diagnostic}");
            }
            Error::Definition { path: path.to_owned() }
        };
        let of_compiler = |details| Rejected { message: "the agent definition is wrong".to_owned(), details };
        let bytes = prompts::inline(path, read).map_err(|rejected| wrong(&rejected))?;
        let compile = |bytes: &[u8]| match run::compile_alone(bytes, &config.limits) {
            Ok(Alone::Graph(_)) => Ok(()),
            Ok(Alone::Refers(refers)) => {
                eprintln!("{path}: {}; `run` knows no stored definitions", not_looked_up(&refers));
                Err(Error::Definition { path: path.to_owned() })
            }
            Err(details) => Err(wrong(&of_compiler(details))),
        };
        compile(&bytes)?;
        let mut json: Json = serde_json::from_slice(&bytes).expect("what compiles is JSON");
        if let Some(model) = model {
            let replaced = replace_models(&mut json, model);
            if replaced == 0 {
                return Err(Error::NoModel);
            }
            compile(json.to_string().as_bytes())?;
        }
        Ok(Self { config, json })
    }

    /// A new job that does `work` on the thread; mistakes of the input are written to standard error.
    pub(super) fn job(&self, thread_id: &ThreadId, work: &Work) -> Result<Job, Error> {
        let mut request = JsonMap::new();
        request.insert("job_id".to_owned(), format!("run-{}", Uuid::now_v7()).into());
        request.insert("thread_id".to_owned(), thread_id.as_str().into());
        request.insert("agent_definition".to_owned(), self.json.clone());
        match work {
            Work::Input(input) => request.insert("input".to_owned(), input.clone()),
            Work::Resume(answer) => request.insert("command".to_owned(), json!({ "resume": answer })),
        };
        let payload = Json::Object(request).to_string().into_bytes();
        let checked = check_request(&payload, self.config).map_err(|rejected| {
            eprintln!("{rejected}");
            for diagnostic in &rejected.details {
                eprintln!("  {diagnostic}");
            }
            Error::Input("cannot be run".to_owned())
        })?;
        Ok(checked.job)
    }
}

/// Gives `model` to every node that names a model, nested definitions and nodes of maps included, and to the
/// definition's own default; how many there were.
fn replace_models(definition: &mut Json, model: &str) -> usize {
    let defaults = definition.get_mut("defaults").map_or(0, |defaults| replace_model(defaults, model));
    let nodes = definition.get_mut("nodes").and_then(Json::as_array_mut);
    defaults + nodes.into_iter().flatten().map(|node| replace_in_node(node, model)).sum::<usize>()
}

/// The same for a node, whose settings may stand in its `config` too.
fn replace_in_node(node: &mut Json, model: &str) -> usize {
    let mut replaced = replace_model(node, model);
    if let Some(summarize) = node.get_mut("summarize") {
        replaced += replace_model(summarize, model);
    }
    // What a map does for each item, unless it names a node beside it.
    for inner in ["config", "node"] {
        if let Some(inner) = node.get_mut(inner).filter(|inner| inner.is_object()) {
            replaced += replace_in_node(inner, model);
        }
    }
    for nested in node.as_object_mut().into_iter().flat_map(|node| node.values_mut()) {
        if nested.get("nodes").is_some_and(Json::is_array) {
            replaced += replace_models(nested, model);
        }
    }
    replaced
}

fn replace_model(place: &mut Json, model: &str) -> usize {
    let named = place.get_mut("model").filter(|named| named.is_object() || named.is_string());
    named.map_or(0, |named| {
        *named = model.into();
        1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_state_and_a_text_is_what_the_user_says() {
        let input = |text: &str| Work::read(Some(text), None);
        let said = |text: &str| json!({"messages": [{"role": "user", "content": text}]});
        assert_eq!(input("{\"a\": 1}").expect("JSON"), Some(Work::Input(json!({"a": 1}))));
        assert_eq!(input(" hello \n").expect("a text"), Some(Work::Input(said("hello"))));
        assert_eq!(input("42").expect("a text"), Some(Work::Input(said("42"))));
        for wrong in ["", " ", "{\"a\": }", "{hello}"] {
            assert!(matches!(input(wrong), Err(Error::Input(_))), "{wrong:?}");
        }
        assert_eq!(Work::read(None, None).expect("nothing"), None);
    }

    #[test]
    fn an_answer_is_json_or_a_text() {
        let answer = |text: &str| Work::read(None, Some(text)).expect("an answer");
        assert_eq!(answer("true"), Some(Work::Resume(json!(true))));
        assert_eq!(answer("go on"), Some(Work::Resume(json!("go on"))));
        assert_eq!(answer("{\"a\": [1]}"), Some(Work::Resume(json!({"a": [1]}))));
    }

    #[test]
    fn another_model_takes_the_place_of_every_named_one_and_of_nothing_else() {
        let mut definition = json!({
            "nodes": [
                {"name": "a", "model": {"provider": "scripted", "model": "x"}},
                {"name": "b", "config": {"model": "openai:y"}},
                {"name": "c", "type": "transform"},
                {"name": "d", "definition": {"nodes": [{"name": "e", "model": "z"}]}},
                {"name": "f", "summarize": {"trigger_tokens": 9, "model": "z"}},
                {"name": "g", "type": "map", "node": {"type": "model", "model": "z"}},
                {"name": "h", "config": {"node": {"config": {"definition": {"nodes": [{"model": "z"}]}}}}},
                {"name": "i", "type": "map", "node": "a"},
            ],
            "channels": {"model": {"type": "string"}},
        });
        assert_eq!(replace_models(&mut definition, "p:m"), 6);
        assert_eq!(definition["nodes"][4]["summarize"], json!({"trigger_tokens": 9, "model": "p:m"}));
        assert_eq!(definition["nodes"][5]["node"]["model"], "p:m");
        assert_eq!(
            definition["nodes"][6]["config"]["node"]["config"]["definition"]["nodes"][0]["model"],
            "p:m"
        );
        assert_eq!(definition["nodes"][7]["node"], "a");
        assert_eq!(definition["nodes"][0]["model"], "p:m");
        assert_eq!(definition["nodes"][1]["config"]["model"], "p:m");
        assert_eq!(definition["nodes"][3]["definition"]["nodes"][0]["model"], "p:m");
        assert_eq!(definition["channels"]["model"], json!({"type": "string"}));
        assert_eq!(replace_models(&mut json!({"nodes": []}), "p:m"), 0);
    }
}
