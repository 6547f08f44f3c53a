//! JSON Schema checks with sentences of ours. Home of jsonschema.
//!
//! **Invariant:** a schema reads nothing from outside itself, and its patterns match in linear time.
//! **Invariant:** no message repeats the value that was checked; it may be a secret.

#![expect(clippy::wildcard_enum_match_arm, reason = "rare keywords share one sentence")]

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
};

use jsonschema::{
    JsonType, PatternOptions, Validator,
    error::{TypeKind, ValidationError, ValidationErrorKind},
};
use serde_json::Value as Json;

use super::{diagnostic::Diagnostic, pointer::escape};

/// Most mistakes reported of one value; a reader fixes the first ones first.
const MAX_MISTAKES: usize = 50;
/// Largest schema in bytes; compiling one takes time and memory in proportion.
const MAX_SCHEMA_BYTES: usize = 256 << 10;
/// Largest compiled pattern in bytes.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// Largest schema, as text, that is kept compiled: that takes about ten times as much, and a process keeps a thousand
/// graphs. Schemas that people write by hand are smaller.
const MAX_KEPT_BYTES: usize = 8 << 10;
/// Keywords whose values are compiled to something much larger than they are.
const LARGE_WHEN_COMPILED: [&str; 2] = ["pattern", "patternProperties"];
/// Most subschemas of one schema with its references written out: a chain of definitions that each name the
/// next one twice is short, and takes exponentially long to check.
const MAX_UNFOLDED: u64 = 20_000;
/// Longest chain of references that lead to references; each step costs native stack.
const MAX_CHAIN: usize = 64;
/// Deepest value that is checked against a schema that refers to itself, for the same reason.
const MAX_RECURSIVE_DEPTH: usize = 20;
/// Keywords that make references we cannot follow to count them; hand-written and generated schemas use
/// `#/$defs/…`.
const UNSUPPORTED: [&str; 5] =
    ["$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef"];

/// A compiled JSON Schema (draft 2020-12 unless it says otherwise).
#[derive(Debug)]
pub struct Schema {
    json: Arc<Json>,
    validator: Validator,
    is_recursive: bool,
    /// Bytes of its text.
    size: usize,
}

impl Schema {
    /// Compiles `schema`, or says what is wrong with it. References to other documents are refused.
    pub fn compile(schema: &Json) -> Result<Self, String> {
        Self::of(&Arc::new(schema.clone()))
    }

    fn of(schema: &Arc<Json>) -> Result<Self, String> {
        if !schema.is_object() && !schema.is_boolean() {
            return Err(format!("must be a JSON Schema, an object; is {}", kind_of(schema)));
        }
        let size = schema.to_string().len();
        if size > MAX_SCHEMA_BYTES {
            return Err(format!("is {size} bytes long, at most {MAX_SCHEMA_BYTES} are allowed"));
        }
        let mut unfolded = Unfolded { root: schema, sizes: HashMap::new(), chain: 0, is_recursive: false };
        if unfolded.size(schema)? > MAX_UNFOLDED {
            return Err(format!("has more than {MAX_UNFOLDED} parts when its references are written out"));
        }
        let validator = jsonschema::options()
            .offline()
            .with_pattern_options(PatternOptions::regex().size_limit(MAX_PATTERN_BYTES))
            .build(schema)
            .map_err(|error| format!("is no valid JSON Schema: {}", wrong_schema(&error)))?;
        Ok(Self { json: schema.clone(), validator, is_recursive: unfolded.is_recursive, size })
    }

    /// What is wrong with `value`: one sentence per mistake, with the JSON pointer of its place in front.
    pub fn check(&self, value: &Json) -> Vec<String> {
        self.mistakes(value).iter().map(ToString::to_string).collect()
    }

    /// What is wrong with `value`, with pointers into it.
    pub(super) fn mistakes(&self, value: &Json) -> Vec<Diagnostic> {
        if self.is_recursive && depth(value) > MAX_RECURSIVE_DEPTH {
            return vec![Diagnostic::new("", format!("is nested deeper than {MAX_RECURSIVE_DEPTH} levels"))];
        }
        let errors = self.validator.iter_errors(value);
        errors.flat_map(|error| self.explain(&error)).take(MAX_MISTAKES).collect()
    }

    fn explain(&self, error: &ValidationError<'_>) -> Vec<Diagnostic> {
        let pointer = error.instance_path().as_str();
        match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected }
            | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
                let known = self.known_fields(error.schema_path().as_str());
                let message = |name: &String| {
                    Diagnostic::new(
                        format!("{pointer}/{}", escape(name)),
                        format!("unknown field `{name}`; known: {known}"),
                    )
                };
                unexpected.iter().map(message).collect()
            }
            kind => vec![Diagnostic::new(pointer, sentence(kind, error.instance()))],
        }
    }

    /// The fields of the object whose `additionalProperties` keyword is at `schema_path`.
    fn known_fields(&self, schema_path: &str) -> String {
        let parent = schema_path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let properties = self.json.pointer(parent).and_then(|schema| schema.get("properties")?.as_object());
        let mut names: Vec<_> = properties.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        if names.is_empty() { "none".into() } else { names.join(", ") }
    }
}

/// A JSON Schema as it was written, and compiled when it is first needed: once for all who share it, unless that would
/// be too much to keep.
#[derive(Clone)]
pub struct SharedSchema(Arc<Written>);

struct Written {
    json: Arc<Json>,
    compiled: OnceLock<Arc<Schema>>,
}

impl SharedSchema {
    /// As it was written.
    pub fn json(&self) -> &Json {
        &self.0.json
    }

    /// Compiled, or what is wrong with it.
    pub fn compiled(&self) -> Result<Arc<Schema>, String> {
        if let Some(kept) = self.0.compiled.get() {
            return Ok(kept.clone());
        }
        let schema = Arc::new(Schema::of(&self.0.json)?);
        if schema.size > MAX_KEPT_BYTES || names_any(&self.0.json, &LARGE_WHEN_COMPILED) {
            return Ok(schema);
        }
        Ok(self.0.compiled.get_or_init(|| schema).clone())
    }
}

impl From<Json> for SharedSchema {
    fn from(json: Json) -> Self {
        Self(Arc::new(Written { json: Arc::new(json), compiled: OnceLock::new() }))
    }
}

/// Whether a field at any depth has one of these names, be it a keyword or not.
fn names_any(json: &Json, names: &[&str]) -> bool {
    match json {
        Json::Object(fields) => {
            fields.iter().any(|(name, value)| names.contains(&name.as_str()) || names_any(value, names))
        }
        Json::Array(items) => items.iter().any(|item| names_any(item, names)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => false,
    }
}

/// Two are the same when they are written so.
impl PartialEq for SharedSchema {
    fn eq(&self, other: &Self) -> bool {
        self.json() == other.json()
    }
}

impl fmt::Debug for SharedSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.json().fmt(f)
    }
}

/// Levels of nested lists and objects in `value`.
pub(super) fn depth(value: &Json) -> usize {
    match value {
        Json::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        Json::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => 0,
    }
}

/// Counts subschemas as if every reference were replaced by what it leads to.
struct Unfolded<'a> {
    root: &'a Json,
    /// By reference; `None` while it is being counted.
    sizes: HashMap<&'a str, Option<u64>>,
    /// References being followed now.
    chain: usize,
    is_recursive: bool,
}

impl<'a> Unfolded<'a> {
    fn size(&mut self, schema: &'a Json) -> Result<u64, String> {
        match schema {
            Json::Object(map) => {
                let mut total = 1_u64;
                for (key, value) in map {
                    if UNSUPPORTED.contains(&key.as_str()) {
                        return Err(format!("uses `{key}`, which is not supported; use `#/$defs/…`"));
                    }
                    let part = match value.as_str() {
                        Some(reference) if key == "$ref" => self.referred(reference)?,
                        _ => self.size(value)?,
                    };
                    total = total.saturating_add(part);
                }
                Ok(total)
            }
            Json::Array(items) => {
                items.iter().try_fold(0_u64, |total, item| Ok(total.saturating_add(self.size(item)?)))
            }
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => Ok(0),
        }
    }

    fn referred(&mut self, reference: &'a str) -> Result<u64, String> {
        match self.sizes.get(reference) {
            Some(Some(size)) => return Ok(*size),
            Some(None) => {
                self.is_recursive = true;
                return Ok(1);
            }
            None => {}
        }
        // `%` escapes and names of other documents are left to the validator, which knows no other document.
        let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        let Some(target) = target else {
            return Err("is no valid JSON Schema: a reference leads nowhere, or outside of the schema".into());
        };
        if self.chain == MAX_CHAIN {
            return Err(format!("has a chain of more than {MAX_CHAIN} references"));
        }
        self.sizes.insert(reference, None);
        self.chain += 1;
        let size = self.size(target)?;
        self.chain -= 1;
        self.sizes.insert(reference, Some(size));
        Ok(size)
    }
}

fn wrong_schema(error: &ValidationError<'_>) -> String {
    let pointer = error.instance_path().as_str();
    match error.kind() {
        ValidationErrorKind::Referencing(_) => "a reference leads nowhere, or outside of the schema".into(),
        kind if pointer.is_empty() => sentence(kind, error.instance()),
        kind => format!("{pointer} {}", sentence(kind, error.instance())),
    }
}

fn sentence(kind: &ValidationErrorKind, value: &Json) -> String {
    match kind {
        ValidationErrorKind::Type { kind } => format!("must be {}, is {}", types(kind), kind_of(value)),
        ValidationErrorKind::Required { property } => {
            format!("needs the field `{}`", property.as_str().unwrap_or_default())
        }
        ValidationErrorKind::Enum { options } => format!("must be one of {options}"),
        ValidationErrorKind::Constant { expected_value } => format!("must be {expected_value}"),
        ValidationErrorKind::Minimum { limit } => format!("must be at least {limit}"),
        ValidationErrorKind::Maximum { limit } => format!("must be at most {limit}"),
        ValidationErrorKind::ExclusiveMinimum { limit } => format!("must be more than {limit}"),
        ValidationErrorKind::ExclusiveMaximum { limit } => format!("must be less than {limit}"),
        ValidationErrorKind::MinLength { limit: 1 }
        | ValidationErrorKind::MinItems { limit: 1 }
        | ValidationErrorKind::MinProperties { limit: 1 } => "must not be empty".into(),
        ValidationErrorKind::MinLength { limit } => format!("must have at least {limit} characters"),
        ValidationErrorKind::MaxLength { limit } => format!("must have at most {limit} characters"),
        ValidationErrorKind::MinItems { limit } => format!("must have at least {limit} items"),
        ValidationErrorKind::MaxItems { limit } => format!("must have at most {limit} items"),
        ValidationErrorKind::MinProperties { limit } => format!("must have at least {limit} fields"),
        ValidationErrorKind::MaxProperties { limit } => format!("must have at most {limit} fields"),
        ValidationErrorKind::Pattern { pattern } => format!("must match the pattern {pattern}"),
        ValidationErrorKind::Format { format } => format!("must be a valid {format}"),
        ValidationErrorKind::UniqueItems => "must not have an item twice".into(),
        ValidationErrorKind::FalseSchema => "is not allowed here".into(),
        ValidationErrorKind::AnyOf { .. }
        | ValidationErrorKind::OneOfNotValid { .. }
        | ValidationErrorKind::OneOfMultipleValid { .. } => "has none of the allowed forms".into(),
        other => format!("does not satisfy `{}`", other.keyword()),
    }
}

fn types(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(kind) => word(*kind).into(),
        TypeKind::Multiple(kinds) => kinds.iter().map(word).collect::<Vec<_>>().join(" or "),
    }
}

fn word(kind: JsonType) -> &'static str {
    match kind {
        JsonType::Null => "null",
        JsonType::Boolean => "true or false",
        JsonType::Integer => "a whole number",
        JsonType::Number => "a number",
        JsonType::String => "a text",
        JsonType::Array => "a list",
        JsonType::Object => "an object",
    }
}

/// What people call the type of `value`.
pub(super) fn kind_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "true or false",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;

    #[test]
    fn every_mistake_is_a_sentence_with_its_place() {
        let schema = Schema::compile(&json!({
            "type": "object", "required": ["a"], "additionalProperties": false,
            "properties": {"a": {"type": "string"}, "b": {"type": ["integer", "null"], "minimum": 1},
                "c": {"$ref": "#/$defs/c"}, "d": {"enum": ["x", "y"]}},
            "$defs": {"c": {"type": "object", "properties": {"e": {}}, "additionalProperties": false}},
        }))
        .expect("valid");
        assert_eq!(
            schema.check(&json!({"a": "", "a/z": 1})),
            ["/a~1z: unknown field `a/z`; known: a, b, c, d"]
        );
        expect_test::expect![[r#"
            [
                "/b: must be at least 1",
                "/c/f: unknown field `f`; known: e",
                "/d: must be one of [\"x\",\"y\"]",
                "(root): needs the field `a`",
            ]"#]]
        .assert_eq(&format!("{:#?}", schema.check(&json!({"b": 0, "c": {"f": 1}, "d": "secret"}))));
        assert_eq!(schema.check(&json!({"a": "x", "b": null})), Vec::<String>::new());
    }

    #[test]
    fn wrong_schemas_are_refused() {
        for (schema, part) in [
            (json!({"type": "strin"}), "/type"),
            (json!([1]), "is a list"),
            (json!({"$ref": "https://example.com/schema.json"}), "outside of the schema"),
            (json!({"$ref": "file:///etc/passwd"}), "outside of the schema"),
            (json!({"$ref": "#/$defs/missing"}), "leads nowhere"),
            (json!({"pattern": "a{1000}{1000}{1000}"}), ""),
        ] {
            let error = Schema::compile(&schema).expect_err("refused");
            assert!(error.contains(part), "{schema}: {error}");
        }
    }

    #[test]
    fn a_shared_schema_is_compiled_once_for_all_who_have_it() {
        let schema = SharedSchema::from(json!({"type": "integer"}));
        let other = schema.clone();
        let compiled = schema.compiled().expect("valid");
        assert_eq!(compiled.check(&json!("x")), ["(root): must be a whole number, is a text"]);
        assert!(Arc::ptr_eq(&compiled, &other.compiled().expect("valid")));
        assert_eq!(schema, json!({"type": "integer"}).into());
        let wrong = SharedSchema::from(json!(1));
        assert_eq!(wrong.compiled().expect_err("refused"), "must be a JSON Schema, an object; is a number");
    }

    #[test]
    fn what_is_large_when_compiled_is_not_kept() {
        let fields = |count: usize| -> serde_json::Map<_, _> {
            (0..count).map(|n| (format!("field_{n}"), json!({"type": "string"}))).collect()
        };
        for (schema, is_kept) in [
            (json!({"properties": fields(10)}), true),
            (json!({"properties": fields(1_000)}), false),
            (json!({"prefixItems": [{"properties": {"name": {"pattern": "^\\w{1,30}$"}}}]}), false),
            (json!({"patternProperties": {"^\\w{1,30}$": {"type": "string"}}}), false),
        ] {
            let shared = SharedSchema::from(schema);
            let twice = [shared.compiled().expect("valid"), shared.compiled().expect("valid")];
            assert_eq!(Arc::ptr_eq(&twice[0], &twice[1]), is_kept, "{:.100}", shared.json().to_string());
        }
    }

    #[test]
    fn schemas_that_refer_to_themselves_come_to_an_end() {
        let started = Instant::now();
        let looping = Schema::compile(&json!({"allOf": [{"$ref": "#"}]}));
        assert!(looping.is_err() || looping.is_ok_and(|schema| schema.check(&json!(1)).len() < 2));
        let mut defs = serde_json::Map::new();
        for level in 0..60 {
            let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
            defs.insert(format!("d{level}"), json!({"allOf": [next, next]}));
        }
        defs.insert("d60".into(), json!({"type": "string"}));
        assert!(Schema::compile(&json!({"$ref": "#/$defs/d0", "$defs": defs})).is_err());
        let next = json!({"properties": {"next": {"$ref": "#"}}});
        let tree = Schema::compile(&json!({"anyOf": [next, next], "type": "object"})).expect("valid");
        let deep = (0..100).fold(json!(1), |inner, _| json!({"next": inner}));
        assert_eq!(tree.check(&deep), ["(root): is nested deeper than 20 levels"]);
        assert!(started.elapsed().as_secs() < 5);
    }
}
