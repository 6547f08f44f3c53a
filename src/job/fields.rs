//! The fields of a request, read one by one so that every mistake is reported at once.
//!
//! **Invariant:** a problem names the place and what was expected, never the content that was found: it may
//! be a prompt or a secret.

use serde::de::DeserializeOwned;
use serde_json::{Map as JsonMap, Value as Json, value::RawValue};

use super::{Budget, Command, JobConfig, Task, envelope::RawObject};
use crate::ids::{CheckpointId, MAX_ID_CHARS};

/// Most supersteps a job may ask for: ten times what the largest deep agents use.
const MAX_RECURSION_LIMIT: u64 = 10_000;
/// Longest time a job may ask for, in seconds (7 days): as long as results are kept by default.
const MAX_TIMEOUT_SECONDS: f64 = 7.0 * 24.0 * 3600.0;
/// Most dollars and tokens of a budget: far above any run, and exact in a 64-bit float.
const MAX_BUDGET: u64 = 1 << 50;
/// Most entries of `metadata` and `tags`: they are stored with every checkpoint.
const MAX_LABELS: usize = 64;
/// Most characters of one text in `metadata` or `tags`.
const MAX_LABEL_CHARS: usize = 1024;
/// Most nodes in `command.goto`: as many as a graph may have.
const MAX_GOTO: usize = 200;

/// Reads the members of one object of the request and collects what is wrong with them.
pub(super) struct Fields<'p> {
    pointer: String,
    members: JsonMap<String, Json>,
    problems: &'p mut Vec<String>,
}

impl<'p> Fields<'p> {
    /// The members `names` of the request itself; what is nested too deep counts as a problem.
    pub(super) fn of_request(data: &RawObject<'_>, names: &[&str], problems: &'p mut Vec<String>) -> Self {
        let mut members = JsonMap::new();
        for name in names {
            let Some(raw) = data.get(*name) else { continue };
            match serde_json::from_str::<Json>(raw.get()) {
                Ok(value) => drop(members.insert((*name).into(), value)),
                Err(_) => problems.push(format!("/{name}: cannot be read: nested too deep or not Unicode")),
            }
        }
        Self { pointer: String::new(), members, problems }
    }

    fn problem(&mut self, name: &str, problem: &str) {
        self.problems.push(format!("{}/{name}: {problem}", self.pointer));
    }

    /// Whether a problem at `pointer` is known, so that its field is not reported as missing as well.
    fn is_faulty(&self, pointer: &str) -> bool {
        self.problems.iter().any(|problem| problem.starts_with(pointer))
    }

    /// Takes a member; a missing one and null count as absent, one that `read` refuses as a problem.
    pub(super) fn take<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(Json) -> Option<T>,
    ) -> Option<T> {
        let value = self.members.remove(name).filter(|value| !value.is_null())?;
        let found = kind(&value);
        let read = read(value);
        if read.is_none() {
            self.problem(name, &format!("must be {expected}; found {found}"));
        }
        read
    }

    /// Takes a member whose words are the variants of `T`.
    pub(super) fn word<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Option<T> {
        self.take(name, expected, |value| serde_json::from_value(value).ok())
    }

    fn object(&mut self, name: &str) -> Option<JsonMap<String, Json>> {
        self.take(name, "an object", into_object)
    }

    fn nested(&mut self, name: &str) -> Option<Fields<'_>> {
        let members = self.object(name)?;
        Some(Fields { pointer: format!("{}/{name}", self.pointer), members, problems: self.problems })
    }

    /// `trace_id`.
    pub(super) fn trace_id(&mut self) -> Option<String> {
        let expected = format!("a text of 1 to {MAX_ID_CHARS} characters");
        self.take("trace_id", &expected, |value| short_text(value, MAX_ID_CHARS))
    }

    /// `checkpoint_id`.
    pub(super) fn checkpoint_id(&mut self) -> Option<CheckpointId> {
        let expected = "a lower-case UUID with dashes";
        self.take("checkpoint_id", expected, |value| CheckpointId::parse(value.as_str()?).ok())
    }

    /// `input` or `input_payload`; required unless there is a command.
    pub(super) fn input(&mut self, command: Option<&Command>) -> Option<JsonMap<String, Json>> {
        let input = match (self.object("input"), self.object("input_payload")) {
            (Some(one), Some(two)) if one != two => {
                self.problem("input_payload", "differs from input; give only one of them");
                None
            }
            (one, two) => one.or(two),
        };
        match (input, command) {
            (None, None) => {
                if !self.is_faulty("/input") {
                    self.problem("input", "is required, unless there is a command");
                }
                None
            }
            (Some(input), Some(_)) if !input.is_empty() => {
                self.problem("input", "cannot be combined with a command; use command.update");
                None
            }
            (Some(_), Some(_)) => None,
            (input, _) => input,
        }
    }

    /// `command`.
    pub(super) fn command(&mut self) -> Option<Command> {
        let expected = "an object with resume, update or goto";
        let mut fields = self.nested("command")?;
        let before = fields.problems.len();
        let command = Command {
            resume: fields.take("resume", "any value", Some),
            update: fields.object("update"),
            goto: fields.take("goto", "a list of node names", node_names).unwrap_or_default(),
        };
        if command == Command::default() && fields.problems.len() == before {
            self.problem("command", &format!("must be {expected}"));
        }
        Some(command)
    }

    /// `config`.
    pub(super) fn config(&mut self) -> JobConfig {
        let Some(mut fields) = self.nested("config") else { return JobConfig::default() };
        let limit = format!("a whole number from 1 to {MAX_RECURSION_LIMIT}");
        let timeout = format!("a number of seconds above 0, at most {MAX_TIMEOUT_SECONDS}");
        let scalars = format!(
            "an object of at most {MAX_LABELS} texts (of at most {MAX_LABEL_CHARS} characters), numbers, \
             booleans and nulls"
        );
        let tags = format!("a list of at most {MAX_LABELS} texts of 1 to {MAX_LABEL_CHARS} characters");
        JobConfig {
            recursion_limit: fields.take("recursion_limit", &limit, |value| {
                let limit = value.as_u64().filter(|limit| (1..=MAX_RECURSION_LIMIT).contains(limit))?;
                u32::try_from(limit).ok()
            }),
            timeout_seconds: fields.take("timeout_seconds", &timeout, |value| {
                // Below a millisecond nothing can run, and the duration could round to zero.
                value.as_f64().filter(|seconds| (0.001..=MAX_TIMEOUT_SECONDS).contains(seconds))
            }),
            durability: fields.word("durability", "sync, async or exit").unwrap_or_default(),
            budget: fields.budget(),
            metadata: fields.take("metadata", &scalars, metadata).unwrap_or_default(),
            allow_incompatible: fields.word("allow_incompatible", "true or false").unwrap_or_default(),
            tags: fields.take("tags", &tags, texts).unwrap_or_default(),
        }
    }

    fn budget(&mut self) -> Option<Budget> {
        let mut fields = self.nested("budget")?;
        let tokens = format!("a whole number from 1 to {MAX_BUDGET}");
        let dollars = format!("a number above 0, at most {MAX_BUDGET}");
        let count = |value: Json| value.as_u64().filter(|n| (1..=MAX_BUDGET).contains(n));
        Some(Budget {
            max_tokens: fields.take("max_tokens", &tokens, count),
            max_model_calls: fields.take("max_model_calls", &tokens, count),
            max_cost_usd: fields.take("max_cost_usd", &dollars, |value| {
                #[expect(clippy::cast_precision_loss, reason = "a power of two is exact")]
                value.as_f64().filter(|cost| *cost > 0.0 && *cost <= MAX_BUDGET as f64)
            }),
        })
    }

    /// `agent_definition` or `agent`: the definition stays as it was written, so that its hash does too.
    pub(super) fn task(&mut self, definition: Option<&RawValue>) -> Option<Task> {
        let definition = definition.filter(|raw| raw.get() != "null");
        let expected = "\"name\", \"name@version\" or \"sha256:\" and 64 hex digits";
        let named = self.members.get("agent").is_some_and(|agent| !agent.is_null());
        let agent = self.take("agent", expected, |value| value.as_str().and_then(agent_reference));
        match (definition, named) {
            (Some(_), true) => {
                self.problem("agent", "excludes agent_definition; give only one of them");
                None
            }
            (None, false) => {
                if !self.is_faulty("/agent:") {
                    self.problem("agent_definition", "is required, unless agent names a stored definition");
                }
                None
            }
            (None, true) => agent.map(Task::Stored),
            (Some(raw), false) if raw.get().starts_with('{') => Some(Task::Inline(raw.to_owned())),
            (Some(_), false) => {
                self.problem("agent_definition", "must be an object");
                None
            }
        }
    }
}

/// The kind of a value in words; numbers are shown, because they tell nothing about a person.
fn kind(value: &Json) -> String {
    match value {
        Json::Null => "null".into(),
        Json::Bool(_) => "a boolean".into(),
        Json::Number(number) => number.to_string(),
        Json::String(text) if text.is_empty() => "an empty text".into(),
        Json::String(_) => "a text".into(),
        Json::Array(_) => "a list".into(),
        Json::Object(_) => "an object".into(),
    }
}

fn into_object(value: Json) -> Option<JsonMap<String, Json>> {
    match value {
        Json::Object(members) => Some(members),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => None,
    }
}

fn short_text(value: Json, max_chars: usize) -> Option<String> {
    let text = value.as_str()?.trim();
    // NUL cannot be stored in Postgres, and other control characters break log lines.
    let fits = !text.is_empty() && text.chars().count() <= max_chars && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned())
}

fn list_of(value: Json, most: usize, max_chars: usize) -> Option<Vec<String>> {
    let Json::Array(items) = value else { return None };
    if items.len() > most {
        return None;
    }
    items.into_iter().map(|item| short_text(item, max_chars)).collect()
}

fn texts(value: Json) -> Option<Vec<String>> {
    list_of(value, MAX_LABELS, MAX_LABEL_CHARS)
}

/// Node names; a single one may stand without a list, as LangGraph allows.
fn node_names(value: Json) -> Option<Vec<String>> {
    let list = if value.is_string() { Json::Array(vec![value]) } else { value };
    list_of(list, MAX_GOTO, MAX_ID_CHARS)
}

fn metadata(value: Json) -> Option<JsonMap<String, Json>> {
    let members = into_object(value)?;
    let storable = |text: &str| text.chars().count() <= MAX_LABEL_CHARS && !text.contains('\0');
    let fits = members.len() <= MAX_LABELS
        && members.iter().all(|(name, value)| {
            storable(name)
                && match value {
                    Json::String(text) => storable(text),
                    Json::Null | Json::Bool(_) | Json::Number(_) => true,
                    Json::Array(_) | Json::Object(_) => false,
                }
        });
    fits.then_some(members)
}

fn agent_reference(text: &str) -> Option<String> {
    let text = text.trim();
    let usable = |part: &str| {
        !part.is_empty() && !part.contains('@') && !part.chars().any(|c| c.is_control() || c.is_whitespace())
    };
    let well_formed = match (text.strip_prefix("sha256:"), text.split_once('@')) {
        (Some(hash), _) => hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()),
        (None, Some((name, version))) => usable(name) && usable(version),
        (None, None) => usable(text),
    };
    (well_formed && text.chars().count() <= MAX_ID_CHARS).then(|| text.to_owned())
}
