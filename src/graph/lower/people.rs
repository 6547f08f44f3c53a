//! Lowering of the nodes at which a graph takes a decision: `router`, `approval`, `fail`.

use std::{fmt::Write, time::Duration};

use serde_json::{Value as Json, json};

use super::{Lowering, Place, PlainNode};
use crate::{
    graph::{
        compiled::{ApprovalNode, FailNode, ModelNode, NodeKind, Reducer, RouterNode},
        definition::{APPROVAL, AskNode, ROUTE, RouteNode, StopNode},
        expression::{Expression, Template},
        json_schema::Schema,
    },
    value::Name,
};

impl Lowering<'_> {
    pub(super) fn router(&mut self, node: &RouteNode, id: &str, place: Place<'_>) -> PlainNode {
        let mut template = |text: &Option<String>, field: &str| {
            text.as_ref().and_then(|text| self.template(text, place(field)))
        };
        let system_prompt = template(&node.system_prompt, "/system_prompt");
        let prompt = template(&node.prompt, "/prompt");
        let call = ModelNode {
            model: self.model(node.model.as_ref()),
            system_prompt,
            prompt,
            tools: Vec::new(),
            tools_node: None,
            summary: None,
            output_schema: Some(choice_schema(node).into()),
            schema_retries: 0,
            writes: None,
            keeps_answer: false,
        };
        let router = RouterNode {
            call,
            instructions: instructions(node),
            min_confidence: node.min_confidence.unwrap_or(0.0),
            has_otherwise: node.otherwise.is_some(),
            writes: self.chosen(node.writes.as_deref().unwrap_or(ROUTE), place),
        };
        PlainNode::new(id.into(), place(""), NodeKind::Router(Box::new(router)))
    }

    pub(super) fn approval(&mut self, node: &AskNode, id: &str, place: Place<'_>) -> PlainNode {
        let question = self.template(&node.question, place("/question"));
        let details = node.details.as_ref().and_then(|source| match Expression::parse(source) {
            Ok(expression) => {
                self.check_names(expression.names(), &place("/details"));
                Some(expression)
            }
            Err(error) => {
                self.wrong(place("/details"), format!("expression: {error}"));
                None
            }
        });
        let schema = match node.response_schema.as_ref().map(Schema::compile) {
            Some(Err(message)) => {
                self.wrong(place("/response_schema"), message);
                None
            }
            Some(Ok(schema)) => Some(schema),
            None => None,
        };
        if let (Some(schema), Some(default)) = (&schema, &node.default) {
            for problem in schema.check(default) {
                self.wrong(place("/default"), format!("does not satisfy response_schema: {problem}"));
            }
        }
        let deadline = match (node.deadline_seconds, &node.default) {
            (Some(seconds), Some(default)) => Some((Duration::from_secs_f64(seconds), default.clone())),
            (None, None) => None,
            (Some(_), None) => {
                self.wrong(
                    place("/deadline_seconds"),
                    "needs the field `default`: the answer after that time",
                );
                None
            }
            (None, Some(_)) => {
                self.wrong(place("/default"), "needs the field `deadline_seconds`: when it is the answer");
                None
            }
        };
        let writes = node.writes.as_deref().unwrap_or(APPROVAL);
        self.check_names(std::iter::once(writes), &place("/writes"));
        let approval = ApprovalNode {
            question: question.unwrap_or_else(|| Template::literal("")),
            details,
            response_schema: node.response_schema.clone(),
            deadline,
            writes: writes.into(),
        };
        PlainNode::new(id.into(), place(""), NodeKind::Approval(Box::new(approval)))
    }

    pub(super) fn fail(&mut self, node: &StopNode, id: &str, place: Place<'_>) -> PlainNode {
        let message = self.template(&node.message, place("/message"));
        let message = message.unwrap_or_else(|| Template::literal(""));
        PlainNode::new(id.into(), place(""), NodeKind::Fail(FailNode { code: node.code.clone(), message }))
    }

    /// The channel of a choice. It holds the last one as it was made: edges compare it.
    fn chosen(&mut self, channel: &str, place: Place<'_>) -> Name {
        let reducer = self.channels.specs.get(channel).map(|spec| spec.reducer);
        match reducer {
            Some(Reducer::LastValue | Reducer::Replace) => {}
            Some(
                Reducer::Append
                | Reducer::Merge
                | Reducer::Add
                | Reducer::Max
                | Reducer::Min
                | Reducer::Messages,
            ) => {
                let message = format!("the channel `{channel}` must have the reducer last_value or replace");
                self.wrong(place("/writes"), message);
            }
            None => self.check_names(std::iter::once(channel), &place("/writes")),
        }
        channel.into()
    }
}

/// The schema of a choice. The reasons come first: a model that has given them chooses better. The bounds of the
/// confidence are checked by whoever reads the choice: with them in the schema some providers guarantee less.
fn choice_schema(node: &RouteNode) -> Json {
    let names: Vec<&String> = node.targets.keys().collect();
    json!({
        "type": "object",
        "properties": {
            "reasoning": { "type": "string" },
            "target": { "type": "string", "enum": names },
            "confidence": { "type": "number" },
        },
        "required": ["reasoning", "target", "confidence"],
        "additionalProperties": false,
    })
}

fn instructions(node: &RouteNode) -> String {
    let mut text = String::from("Choose the target that fits best:\n");
    for (name, target) in &node.targets {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "- {name}: {}", target.description);
    }
    text.push_str(
        "Answer with a JSON object: `reasoning`, why, in one or two sentences; `target`, the name of the target; \
         `confidence`, from 0 to 1, how sure you are. When no target really fits, name the nearest one with a low \
         confidence.",
    );
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use crate::graph::{Limits, NodeKind, compile};

    fn mistakes(node: Json) -> Vec<String> {
        let mut node = node;
        node["id"] = "n".into();
        let definition = json!({ "nodes": [node], "edges": [] });
        let compiled = compile(definition.to_string().as_bytes(), &Limits::default());
        compiled.err().into_iter().flatten().map(|mistake| mistake.to_string()).collect()
    }

    #[test]
    fn a_deadline_and_its_answer_belong_together() {
        let ask = |more: Json| {
            let mut node =
                json!({ "type": "approval", "question": "Go?", "response_schema": { "enum": ["yes"] } });
            for (field, value) in more.as_object().expect("fields") {
                node[field] = value.clone();
            }
            mistakes(node)
        };
        assert_eq!(ask(json!({})), [""; 0]);
        assert_eq!(ask(json!({ "deadline_seconds": 5, "default": "yes" })), [""; 0]);
        for (more, place) in [
            (json!({ "deadline_seconds": 5 }), "/nodes/0/deadline_seconds: needs the field `default`"),
            (json!({ "default": "yes" }), "/nodes/0/default: needs the field `deadline_seconds`"),
            (json!({ "deadline_seconds": 5, "default": "no" }), "/nodes/0/default: does not satisfy"),
            (json!({ "deadline_seconds": 4e7, "default": "yes" }), "/nodes/0/deadline_seconds: "),
            (json!({ "question": "{{ nothing }}" }), "/nodes/0/question: unknown channel `nothing`"),
            (json!({ "details": "1 +" }), "/nodes/0/details: expression: "),
            (json!({ "response_schema": { "type": 7 } }), "/nodes/0/response_schema: "),
        ] {
            let found = ask(more.clone());
            assert!(found.iter().any(|mistake| mistake.starts_with(place)), "{more}: {found:#?}");
        }
    }

    #[test]
    fn a_code_is_a_word_in_capitals() {
        let fail = |code: &str| mistakes(json!({ "type": "fail", "code": code, "message": "m" }));
        assert_eq!(fail("UNKNOWN_TASK_TYPE"), [""; 0]);
        for code in ["", "no", "A B", "_A"] {
            assert!(fail(code).iter().any(|mistake| mistake.starts_with("/nodes/0/code")), "{code}");
        }
    }

    #[test]
    fn tools_need_a_word_by_their_definition_or_by_their_agent() {
        let tool =
            json!({ "name": "pay", "requires_approval": true, "http": { "url": "https://x.example.com" } });
        let agent =
            json!({ "id": "n", "type": "agent", "tools": ["pay", "ls"], "requires_approval": ["ls"] });
        let mut definition = json!({ "tool_definitions": [tool], "nodes": [agent], "edges": [] });
        let compiled = compile(definition.to_string().as_bytes(), &Limits::default()).expect("no mistakes");
        let NodeKind::Tools(tools) = &compiled.node("n.tools").expect("the agent has tools").kind else {
            panic!("it runs tools")
        };
        assert_eq!(tools.approvals.iter().map(|name| &**name).collect::<Vec<_>>(), ["pay", "ls"]);
        definition["nodes"][0]["requires_approval"] = json!(["effect:irreversible"]);
        let by_class =
            compile(definition.to_string().as_bytes(), &Limits::default()).expect("a class of tools");
        let NodeKind::Tools(tools) = &by_class.node("n.tools").expect("the agent has tools").kind else {
            panic!("it runs tools")
        };
        assert_eq!(tools.approvals.last().map(|name| &**name), Some("effect:irreversible"));
        definition["nodes"][0]["requires_approval"] = json!(["effect:pure"]);
        let harmless = compile(definition.to_string().as_bytes(), &Limits::default());
        assert!(harmless.is_err(), "nobody is asked about what changes nothing");
        definition["nodes"][0]["requires_approval"] = json!(["grep"]);
        let mistakes = compile(definition.to_string().as_bytes(), &Limits::default()).expect_err("a mistake");
        assert!(mistakes[0].to_string().starts_with("/nodes/0/requires_approval/0: `grep` is no tool"));
    }
}
