//! Asks a person at the terminal what a job wants to know.
//!
//! **Invariant:** an answer that leaves here satisfies the question's `response_schema`.
//! **Invariant:** a question reaches the terminal without control sequences.

use std::io::{self, BufRead, Write};

use async_trait::async_trait;
use serde_json::{Map as JsonMap, Value as Json};
use tokio::sync::oneshot;

use super::definition::value;
use crate::{cli::events::printable, embedded::Brake, graph::Schema};

/// Most mistakes of an answer that are shown; the first ones help most.
const SHOWN_MISTAKES: usize = 5;

/// Whoever is asked.
#[async_trait]
pub(super) trait Asked: Send {
    /// Shows a line.
    fn tell(&mut self, line: &str);

    /// The next line they type; `None` when they do not want to answer.
    async fn line(&mut self, prompt: &str) -> Option<String>;
}

/// The person at the terminal.
pub(super) struct Terminal {
    brake: Brake,
}

impl Terminal {
    /// Until somebody pulls `brake`.
    pub(super) fn new(brake: Brake) -> Self {
        Self { brake }
    }
}

#[async_trait]
impl Asked for Terminal {
    fn tell(&mut self, line: &str) {
        eprintln!("{}", printable(line));
    }

    async fn line(&mut self, prompt: &str) -> Option<String> {
        eprint!("{}", printable(prompt));
        let _ = io::stderr().flush();
        let (send, typed) = oneshot::channel();
        // Not one of the runtime's: reading a line cannot be cut short, and the process must be able to end.
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = io::stdin().lock().read_line(&mut line);
            let _ = send.send(read.ok().filter(|bytes| *bytes > 0).map(|_| line));
        });
        tokio::select! {
            typed = typed => typed.ok().flatten().map(|line| line.trim().to_owned()),
            () = self.brake.cancel.cancelled() => None,
            () = self.brake.leave.cancelled() => None,
        }
    }
}

/// Answers to all `questions` (`[{id, value, response_schema?}]`) by their ids; `None` when somebody does not want to
/// answer.
pub(super) async fn answers(person: &mut impl Asked, questions: &Json) -> Option<Json> {
    let mut answers = JsonMap::new();
    for question in questions.as_array().into_iter().flatten() {
        let id = question["id"].as_str()?;
        answers.insert(id.to_owned(), answer(person, question).await?);
    }
    (!answers.is_empty()).then_some(Json::Object(answers))
}

/// How the questions are answered without a terminal; `again` is the command for the thread.
pub(super) fn how_to_answer(questions: &Json, again: &str) -> String {
    let questions = questions.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut text = String::new();
    for question in questions {
        let id = question["id"].as_str().unwrap_or_default();
        text.push_str(&format!("question {id}: {}\n", printable(&told(&question["value"]).join(" "))));
        if let Some(schema) = question.get("response_schema") {
            text.push_str(&format!("  the answer satisfies {schema}\n"));
        }
    }
    let answer = match questions {
        [_] | [] => "ANSWER".to_owned(),
        [first, ..] => format!("{{\"{}\": ANSWER, …}}", first["id"].as_str().unwrap_or_default()),
    };
    text + &format!("to answer: {again} --resume '{answer}'")
}

/// A question as lines: its text, then whatever else comes with it.
fn told(value: &Json) -> Vec<String> {
    let Some(map) = value.as_object() else { return vec![plain(value)] };
    let texts = ["question", "message", "error"];
    let first = texts.iter().filter_map(|name| map.get(*name)).map(plain);
    let rest = map.iter().filter(|(name, _)| !texts.contains(&name.as_str()));
    first.chain(rest.map(|(name, value)| format!("  {name}: {}", plain(value)))).collect()
}

fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

async fn answer(person: &mut impl Asked, question: &Json) -> Option<Json> {
    for line in told(&question["value"]) {
        person.tell(&line);
    }
    let schema = question.get("response_schema").cloned().unwrap_or(Json::Bool(true));
    let checked = Schema::compile(&schema).ok();
    loop {
        let answer = by_schema(person, &schema).await?;
        let mistakes = checked.as_ref().map(|schema| schema.check(&answer)).unwrap_or_default();
        if mistakes.is_empty() {
            return Some(answer);
        }
        for mistake in mistakes.iter().take(SHOWN_MISTAKES) {
            person.tell(&format!("that does not fit: {mistake}"));
        }
    }
}

/// What a schema asks for, as far as it can be asked for in parts.
enum Shape<'a> {
    /// One of these, or with `true` something else as well.
    Choice(Vec<&'a Json>, bool),
    /// Yes or no.
    YesNo,
    /// A text as it is typed.
    Text,
    /// An object with these members; required ones first.
    Members(Vec<(&'a str, &'a Json, bool)>),
    /// JSON, or else a text.
    Free,
}

fn shape(schema: &Json) -> Shape<'_> {
    if let Some(choices) = choices(schema) {
        return Shape::Choice(choices, false);
    }
    let alternatives = ["anyOf", "oneOf"].iter().find_map(|name| schema.get(*name)?.as_array());
    if let Some(alternatives) = alternatives {
        let named: Vec<_> = alternatives.iter().filter_map(choices).flatten().collect();
        let is_open = alternatives.iter().any(|alternative| choices(alternative).is_none());
        return if named.is_empty() { Shape::Free } else { Shape::Choice(named, is_open) };
    }
    match schema["type"].as_str() {
        Some("boolean") => Shape::YesNo,
        Some("string") => Shape::Text,
        Some("object") => match schema["properties"].as_object() {
            Some(properties) if !properties.is_empty() => {
                let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
                let is_required = |name: &str| required.iter().any(|required| required == name);
                let members =
                    properties.iter().map(|(name, schema)| (name.as_str(), schema, is_required(name)));
                let mut members: Vec<_> = members.collect();
                members.sort_by_key(|(_, _, is_required)| !is_required);
                Shape::Members(members)
            }
            Some(_) | None => Shape::Free,
        },
        Some(_) | None => Shape::Free,
    }
}

/// The values that a schema lists.
fn choices(schema: &Json) -> Option<Vec<&Json>> {
    let listed = schema.get("enum").and_then(Json::as_array).map(|values| values.iter().collect());
    listed.or_else(|| schema.get("const").map(|value| vec![value]))
}

async fn by_schema(person: &mut impl Asked, schema: &Json) -> Option<Json> {
    let Shape::Members(members) = shape(schema) else { return part(person, schema, ("", true)).await? };
    let mut object = JsonMap::new();
    for (name, schema, is_required) in members {
        if let Some(value) = part(person, schema, (name, is_required)).await? {
            object.insert(name.to_owned(), value);
        }
    }
    Some(Json::Object(object))
}

/// One value; `Some(None)` when it may be left out and was.
async fn part(
    person: &mut impl Asked,
    schema: &Json,
    (name, is_required): (&str, bool),
) -> Option<Option<Json>> {
    let shape = shape(schema);
    let what = match &shape {
        Shape::Choice(choices, is_open) => {
            for (place, choice) in choices.iter().enumerate() {
                person.tell(&format!("  {}) {}", place + 1, plain(choice)));
            }
            if *is_open { "a number, or something else as JSON" } else { "a number" }
        }
        Shape::YesNo => "yes or no",
        Shape::Text => "text",
        Shape::Members(_) => "a JSON object",
        Shape::Free => "JSON or text",
    };
    let optional = if is_required { "" } else { "; empty leaves it out" };
    let prompt =
        if name.is_empty() { format!("({what}) > ") } else { format!("{name} ({what}{optional}) > ") };
    loop {
        let line = person.line(&prompt).await?;
        if line.is_empty() && !is_required {
            return Some(None);
        }
        let understood = match &shape {
            Shape::Choice(choices, is_open) => {
                chosen(choices, &line).or_else(|| is_open.then(|| value(&line)))
            }
            Shape::YesNo => yes_or_no(&line),
            Shape::Text => Some(Json::String(line)),
            Shape::Members(_) | Shape::Free => Some(value(&line)),
        };
        if let Some(value) = understood {
            return Some(Some(value));
        }
        person.tell(&format!("please answer with {what}"));
    }
}

/// The choice that a number from 1, or its own text, stands for.
fn chosen(choices: &[&Json], line: &str) -> Option<Json> {
    let by_text = choices.iter().find(|choice| plain(choice).eq_ignore_ascii_case(line));
    let by_place = || line.parse::<usize>().ok().and_then(|place| choices.get(place.checked_sub(1)?));
    by_text.or_else(by_place).map(|choice| (*choice).clone())
}

fn yes_or_no(line: &str) -> Option<Json> {
    match line.to_ascii_lowercase().as_str() {
        "y" | "yes" | "true" => Some(true.into()),
        "n" | "no" | "false" => Some(false.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Somebody who says these lines and then goes away.
    struct Script {
        lines: std::collections::VecDeque<&'static str>,
        seen: Vec<String>,
    }

    #[async_trait]
    impl Asked for Script {
        fn tell(&mut self, line: &str) {
            self.seen.push(line.to_owned());
        }

        async fn line(&mut self, prompt: &str) -> Option<String> {
            self.seen.push(prompt.to_owned());
            self.lines.pop_front().map(str::to_owned)
        }
    }

    async fn asked(question: Json, lines: &[&'static str]) -> (Option<Json>, Vec<String>) {
        let mut person = Script { lines: lines.iter().copied().collect(), seen: Vec::new() };
        let questions = json!([question]);
        let answers = answers(&mut person, &questions).await;
        (answers.map(|answers| answers["i"].clone()), person.seen)
    }

    fn question(schema: Json) -> Json {
        json!({"id": "i", "value": "Which?", "response_schema": schema})
    }

    #[tokio::test]
    async fn choices_are_chosen_by_number_or_by_name() {
        let schema = || question(json!({"enum": ["approve", "reject", 7]}));
        for (lines, expected) in [
            (&["1"][..], json!("approve")),
            (&["Reject"], json!("reject")),
            (&["nonsense", "0", "4", "3"], json!(7)),
            (&["7"], json!(7)),
        ] {
            assert_eq!(asked(schema(), lines).await.0, Some(expected), "{lines:?}");
        }
        let (none, seen) = asked(schema(), &[]).await;
        assert_eq!(none, None, "nobody answers");
        assert_eq!(seen[..4], ["Which?", "  1) approve", "  2) reject", "  3) 7"]);
    }

    #[tokio::test]
    async fn a_question_with_other_answers_beside_its_choices_takes_json() {
        let schema = json!({"anyOf": [{"enum": ["done"]}, {"type": "object", "required": ["result"]}]});
        assert_eq!(asked(question(schema.clone()), &["1"]).await.0, Some(json!("done")));
        let (answer, seen) = asked(question(schema), &["perhaps", "{\"result\": 5}"]).await;
        assert_eq!(answer, Some(json!({"result": 5})));
        assert!(seen.iter().any(|line| line.starts_with("that does not fit")), "{seen:?}");
    }

    #[tokio::test]
    async fn the_members_of_an_object_are_asked_for_one_by_one() {
        let schema = json!({
            "type": "object",
            "properties": {
                "note": {"type": "string"},
                "sure": {"type": "boolean"},
                "count": {"type": "integer"},
            },
            "required": ["sure", "count"],
        });
        let (answer, seen) = asked(question(schema.clone()), &["maybe", "y", "3", ""]).await;
        assert_eq!(answer, Some(json!({"sure": true, "count": 3})));
        assert!(seen.contains(&"note (text; empty leaves it out) > ".to_owned()), "{seen:?}");
        let (answer, _) = asked(question(schema), &["n", "many", "", "no", "4", "well"]).await;
        assert_eq!(answer, Some(json!({"sure": false, "count": 4, "note": "well"})));
    }

    #[tokio::test]
    async fn without_a_schema_json_or_a_text_will_do() {
        let free = || json!({"id": "i", "value": {"question": "Go on?", "cost": 3}});
        assert_eq!(asked(free(), &["true"]).await.0, Some(json!(true)));
        let (answer, seen) = asked(free(), &["as you like"]).await;
        assert_eq!(answer, Some(json!("as you like")));
        assert_eq!(seen, ["Go on?", "  cost: 3", "(JSON or text) > "]);
    }

    #[test]
    fn without_a_terminal_the_way_to_answer_is_told() {
        let one = json!([{"id": "a1", "value": "Go\u{1b}[2J on?", "response_schema": {"type": "boolean"}}]);
        let text = how_to_answer(&one, "agent-executor run f --thread t");
        assert!(text.ends_with("run f --thread t --resume 'ANSWER'"), "{text}");
        assert!(text.contains("question a1: Go[2J on?") && text.contains(r#"{"type":"boolean"}"#), "{text}");
        let two = json!([{"id": "a1", "value": "x"}, {"id": "b2", "value": "y"}]);
        assert!(how_to_answer(&two, "cmd").contains(r#"'{"a1": ANSWER, …}'"#));
    }
}
