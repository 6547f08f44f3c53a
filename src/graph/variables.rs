//! The variables of a definition, and the stamping of definitions from one with variables.
//!
//! **Invariant:** what is filled in stays data; it is never read as a template or as JSON text.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::{Map as JsonMap, Value as Json};

use super::{channels::Channels, diagnostic::Diagnostic, pointer::escape, read::Parts};
use crate::value::{Name, State, Value};

/// The variables of a definition.
#[derive(Debug, Default)]
pub(super) struct Variables {
    /// Those that have a value, by name.
    pub(super) values: Arc<State>,
    /// Those that must be filled in first.
    pub(super) unset: BTreeSet<Name>,
}

impl Variables {
    /// Whether a template may read `name` as a variable.
    pub(super) fn has(&self, name: &str) -> bool {
        self.values.contains_key(name) || self.unset.contains(name)
    }
}

/// The variables of the definition in `parts`.
pub(super) fn read(parts: &Parts, channels: &Channels, mistakes: &mut Vec<Diagnostic>) -> Variables {
    let (mut values, mut unset) = (State::new(), BTreeSet::new());
    for (name, variable) in &parts.definition.value.variables {
        let place = || parts.definition.place(&format!("/variables/{}", escape(name)));
        if !is_identifier(name) {
            let message = "the name of a variable has letters, digits and _, and no digit first";
            mistakes.push(Diagnostic::new(place(), message));
        }
        if channels.specs.contains_key(name.as_str()) {
            mistakes.push(Diagnostic::new(place(), format!("there is a channel `{name}` already")));
        }
        let is_required = variable.required.unwrap_or(variable.default.is_none());
        match variable.value.as_ref().or(variable.default.as_ref().filter(|_| !is_required)) {
            Some(value) => {
                values.insert(name.as_str().into(), Value::from(value.clone()));
            }
            None if is_required => {
                unset.insert(name.as_str().into());
            }
            None => {
                values.insert(name.as_str().into(), "".into());
            }
        }
    }
    Variables { values: Arc::new(values), unset }
}

fn is_identifier(name: &str) -> bool {
    let mut letters = name.bytes();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && letters.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// What is filled into a template to make one definition of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filling {
    /// The name of the definition.
    pub name: String,
    /// Its version; that of the template when absent.
    pub version: Option<String>,
    /// What it is for; as in the template when absent.
    pub description: Option<String>,
    /// Values of variables, by name.
    pub variables: JsonMap<String, Json>,
}

/// A definition made of `template`: its name and version are the filling's, and so are the values of its variables.
/// The result still has to be compiled.
pub fn stamp(template: &Json, filling: &Filling) -> Result<Json, Vec<String>> {
    let mut definition = template.clone();
    let Some(map) = definition.as_object_mut() else {
        return Err(vec!["the template must be an object".to_owned()]);
    };
    map.insert("name".into(), filling.name.as_str().into());
    for (field, text) in [("version", &filling.version), ("description", &filling.description)] {
        if let Some(text) = text {
            map.insert(field.into(), text.as_str().into());
        }
    }
    let mut variables = map.get("variables").and_then(Json::as_object).cloned().unwrap_or_default();
    let mut wrong = Vec::new();
    for (name, value) in &filling.variables {
        match variables.get_mut(name).and_then(Json::as_object_mut) {
            Some(variable) => {
                variable.insert("value".into(), value.clone());
            }
            None => wrong.push(format!("the template has no variable `{name}`")),
        }
    }
    if !variables.is_empty() {
        map.insert("variables".into(), Json::Object(variables));
    }
    if wrong.is_empty() { Ok(definition) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::graph::{CompiledGraph, Limits, NodeKind, compile, describe};

    fn template() -> Json {
        json!({
            "name": "template", "version": "1",
            "variables": {"task": {"description": "what to do"}, "context": {"default": "nothing"},
                "tone": {"required": false}},
            "nodes": [{"id": "a", "type": "agent", "model": "scripted:x",
                "system_prompt": "Do {{ task }}. Know {{ context }}.{{ tone }}"}],
        })
    }

    fn compiled(definition: &Json) -> Result<CompiledGraph, Vec<String>> {
        compile(definition.to_string().as_bytes(), &Limits::default())
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    fn prompt(definition: &Json) -> String {
        let graph = compiled(definition).expect("no mistakes");
        let NodeKind::Model(model) = &graph.node("a").expect("it is there").kind else { panic!("an agent") };
        let template = model.system_prompt.as_ref().expect("it has one");
        template.render(&State::new()).expect("every variable has a value")
    }

    fn filling(variables: &Json) -> Filling {
        let variables = variables.as_object().expect("an object").clone();
        Filling { name: "stamped".into(), version: Some("2".into()), variables, ..Filling::default() }
    }

    #[test]
    fn a_template_compiles_and_says_what_must_be_filled_in() {
        let graph = compiled(&template()).expect("no mistakes");
        assert_eq!(graph.unset.iter().map(|name| &**name).collect::<Vec<_>>(), ["task"]);
        assert!(
            describe(&graph).contains("variables  task (to be filled in), context, tone"),
            "{}",
            describe(&graph)
        );
    }

    #[test]
    fn what_is_filled_in_is_data_and_never_a_template_or_json() {
        let nasty = r#"{{ 7 * 7 }} {% for x in y %} "},"nodes":[]} \u0041"#;
        let stamped =
            stamp(&template(), &filling(&json!({"task": nasty, "context": ["a", 1]}))).expect("fits");
        assert_eq!((stamped["name"].as_str(), stamped["version"].as_str()), (Some("stamped"), Some("2")));
        assert_eq!(stamped["nodes"], template()["nodes"], "the prompt is untouched");
        assert_eq!(prompt(&stamped), format!("Do {nasty}. Know [\"a\",1]."));
        assert!(compiled(&stamped).expect("no mistakes").unset.is_empty());
    }

    #[test]
    fn mistakes_of_fillings_and_declarations_are_named() {
        let unknown = stamp(&template(), &filling(&json!({"taks": "x"}))).expect_err("no such variable");
        assert_eq!(unknown, ["the template has no variable `taks`"]);
        let mut wrong = template();
        wrong["variables"]["messages"] = json!({});
        wrong["variables"]["a-b"] = json!({});
        wrong["nodes"][0]["system_prompt"] = "{{ taks }}".into();
        let mistakes = compiled(&wrong).expect_err("three mistakes").join("\n");
        assert!(
            mistakes.contains("/variables/messages: there is a channel `messages` already"),
            "{mistakes}"
        );
        assert!(mistakes.contains("/variables/a-b: the name of a variable"), "{mistakes}");
        assert!(mistakes.contains("/nodes/0/system_prompt: unknown channel `taks`"), "{mistakes}");
    }
}
