//! What a model is told of `task`, the tool that hands work to a subagent; the run itself carries it out.

use serde_json::json;

use crate::model::ToolSpec;

/// What the model is told of `task`, given the names and descriptions of the subagents it may delegate to.
pub fn task_spec<'a>(subagents: impl Iterator<Item = (&'a str, &'a str)>) -> ToolSpec {
    let (names, lines): (Vec<&str>, Vec<String>) = subagents
        .map(|(name, description)| {
            let line = match description.trim() {
                "" => format!("- {name}"),
                description => format!("- {name}: {description}"),
            };
            (name, line)
        })
        .unzip();
    let description = format!(
        "Hands a task to a subagent and answers with its final report. The subagent does not see this conversation, \
         so the description must say everything it needs and what to report back; it shares the files. Several \
         calls in one turn run in parallel. Subagents:\n{}",
        lines.join("\n")
    );
    let parameters = json!({
        "type": "object",
        "properties": {
            "description": {"type": "string", "description": "The whole task, with all that is needed to do it."},
            "subagent_type": {"type": "string", "enum": names, "description": "The subagent to hand it to."}
        },
        "required": ["description", "subagent_type"],
        "additionalProperties": false
    });
    ToolSpec { name: "task".into(), description, parameters: parameters.into() }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::{tool::validate_args, value::Value};

    #[test]
    fn the_task_tool_lists_the_subagents() {
        let spec = task_spec([("researcher", "Finds sources."), ("general-purpose", "")].into_iter());
        expect![[r#"
            Hands a task to a subagent and answers with its final report. The subagent does not see this conversation, so the description must say everything it needs and what to report back; it shares the files. Several calls in one turn run in parallel. Subagents:
            - researcher: Finds sources.
            - general-purpose"#]].assert_eq(&spec.description);
        let args = |kind: &str| {
            let args = json!({"description": "x", "subagent_type": kind});
            validate_args(&spec, Value::from(args).as_map().expect("an object"))
        };
        assert_eq!(args("researcher"), Ok(()));
        assert!(args("nobody").expect_err("unknown").contains("general-purpose"));
    }
}
