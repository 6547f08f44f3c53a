//! The `router` node: a model chooses one of the targets; the edges that leave the node read the choice.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::{Error, Scope, TaskView, asking, model_call};
use crate::{
    graph::{RouterNode, Schema},
    model::Request,
    pregel::Write,
    stream::EventType,
    value::{Message, Role},
};

/// How often a model may correct a choice that is none: most that can will do it at once, and a crash repeats the
/// corrections with the choice.
const CORRECTIONS: usize = 1;

/// Problems of one choice that the model is told.
const MAX_PROBLEMS: usize = 5;

/// What a model has chosen.
#[derive(Debug, PartialEq)]
struct Choice {
    /// `None` when nothing valid was chosen.
    target: Option<String>,
    confidence: f64,
    reasoning: String,
}

pub(super) async fn run(scope: &Scope, task: TaskView<'_>, node: &RouterNode) -> Result<Vec<Write>, Error> {
    let choice = Box::pin(choose(scope, task, node)).await?;
    let is_taken = choice.target.is_some() && choice.confidence >= node.min_confidence;
    let Choice { target, confidence, reasoning } = &choice;
    let data = json!({
        "kind": "route", "target": target, "confidence": confidence, "reasoning": reasoning, "taken": is_taken,
    });
    scope.emitter.emit(EventType::Custom, task.origin(), data);
    if !is_taken && !node.has_otherwise {
        return Err(undecided(choice, node.min_confidence));
    }
    let value = json!({ "target": target, "confidence": confidence, "reasoning": reasoning });
    Ok(vec![Write::new(node.writes.clone(), value.into())])
}

fn undecided(choice: Choice, least: f64) -> Error {
    Error::Undecided(match choice.target {
        Some(target) => {
            format!("{target:?} was chosen with a confidence of {}, and {least} is needed", choice.confidence)
        }
        None => format!("the model made no valid choice: {}", choice.reasoning),
    })
}

/// Asks for a choice, and again when the answer is none.
async fn choose(scope: &Scope, task: TaskView<'_>, node: &RouterNode) -> Result<Choice, Error> {
    let mut request = model_call::request(task, &node.call)?;
    let own = request.system_prompt.take().map(|prompt| format!("{prompt}\n\n")).unwrap_or_default();
    request.system_prompt = Some(format!("{own}{}", node.instructions));
    let mut request = Arc::new(request);
    let schema = node.call.output_schema.clone().unwrap_or_else(|| Json::Bool(true).into());
    let schema = schema.compiled().map_err(Error::Output)?;
    let mut problems = String::new();
    for number in 0..=CORRECTIONS {
        let answer = asking::ask(scope, task, request.clone()).await?;
        match read(&schema, &answer.reply.text) {
            Ok(choice) => return Ok(choice),
            Err(wrong) => problems = wrong,
        }
        correct(Arc::make_mut(&mut request), task, (number, &answer.reply.text, &problems));
    }
    Ok(Choice { target: None, confidence: 0.0, reasoning: problems })
}

/// Adds an answer that was no choice to the conversation, and what is wrong with it.
fn correct(request: &mut Request, task: TaskView<'_>, (number, answer, problems): (usize, &str, &str)) {
    let id = |part: &str| format!("{}-{part}-{number}", task.id);
    let role = Role::Ai { tool_calls: Vec::new(), invalid_tool_calls: Vec::new(), usage: None };
    request.messages.push(Arc::new(Message::new(id("choice"), role, answer)));
    let wrong = format!("This is no valid choice: {problems}. Answer with the JSON object and nothing else.");
    request.messages.push(Arc::new(Message::new(id("correction"), Role::Human, wrong)));
}

fn read(schema: &Schema, text: &str) -> Result<Choice, String> {
    let json: Json = serde_json::from_str(text).map_err(|_| "it is not JSON".to_owned())?;
    let problems = schema.check(&json);
    if !problems.is_empty() {
        return Err(problems.into_iter().take(MAX_PROBLEMS).collect::<Vec<_>>().join("; "));
    }
    let confidence = json["confidence"].as_f64().unwrap_or(-1.0);
    if !(0.0..=1.0).contains(&confidence) {
        return Err("/confidence: must be from 0 to 1".into());
    }
    let field = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
    Ok(Choice { target: Some(field("target")), confidence, reasoning: field("reasoning") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        let schema = json!({
            "type": "object", "required": ["target", "confidence", "reasoning"],
            "properties": { "target": { "enum": ["a"] }, "confidence": { "type": "number" } },
        });
        Schema::compile(&schema).expect("valid")
    }

    #[test]
    fn an_answer_is_a_choice_or_says_why_it_is_none() {
        let text = r#"{"target": "a", "confidence": 1, "reasoning": "it is"}"#;
        let expected = Choice { target: Some("a".into()), confidence: 1.0, reasoning: "it is".into() };
        assert_eq!(read(&schema(), text), Ok(expected));
        assert_eq!(read(&schema(), "a"), Err("it is not JSON".into()));
        let wrong = |target: &str, confidence: &str| {
            let text = format!(r#"{{"target": "{target}", "confidence": {confidence}, "reasoning": ""}}"#);
            read(&schema(), &text).expect_err("no choice")
        };
        let both = wrong("b", r#""high""#);
        assert!(both.contains("/target") && both.contains("/confidence"), "{both}");
        assert_eq!(wrong("a", "1.5"), "/confidence: must be from 0 to 1");
    }
}
