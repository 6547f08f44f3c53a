//! Whether OpenAI's strict mode takes a JSON Schema. Pure.

use serde_json::{Map, Value as Json};

/// How deep strict mode lets schemas nest.
const MAX_DEPTH: usize = 5;

/// Keywords strict mode has always understood; others make a server refuse the request.
const STRICT_KEYWORDS: [&str; 12] = [
    "$defs",
    "$ref",
    "additionalProperties",
    "anyOf",
    "const",
    "definitions",
    "description",
    "enum",
    "items",
    "properties",
    "required",
    "type",
];

/// Whether every object in the schema is closed and needs all its properties, and nothing else is in it than
/// strict mode understands. The answer "no" is always safe: the schema is then a wish, not a guarantee.
pub(super) fn allows_strict(schema: &Json) -> bool {
    let is_object = schema.get("type").is_some_and(|kind| kind == "object");
    is_object && schema.get("anyOf").is_none() && is_strict(schema, MAX_DEPTH)
}

fn is_strict(schema: &Json, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    let Some(schema) = schema.as_object() else {
        return false;
    };
    let known = |keyword: &String| STRICT_KEYWORDS.contains(&keyword.as_str()) || keyword == "title";
    let each =
        |keyword: &str| schema.get(keyword).and_then(Json::as_object).into_iter().flat_map(Map::values);
    let alternatives = schema.get("anyOf").and_then(Json::as_array).into_iter().flatten();
    let inner = each("properties").chain(each("$defs")).chain(each("definitions"));
    schema.keys().all(known)
        && is_closed(schema)
        && inner.chain(alternatives).chain(schema.get("items")).all(|inner| is_strict(inner, depth))
}

/// Whether an object schema needs all its properties and allows no others; other schemas are closed.
fn is_closed(schema: &Map<String, Json>) -> bool {
    let is_object = match schema.get("type") {
        Some(Json::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
        Some(kind) => kind == "object",
        None => schema.contains_key("properties"),
    };
    if !is_object {
        return true;
    }
    let required = schema.get("required").and_then(Json::as_array);
    let needs = |name: &String| required.is_some_and(|required| required.iter().any(|known| known == name));
    let properties = schema.get("properties").and_then(Json::as_object);
    schema.get("additionalProperties") == Some(&Json::Bool(false))
        && properties.is_some_and(|properties| properties.keys().all(needs))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn closed(property: Json) -> Json {
        json!({"type": "object", "properties": {"a": property}, "required": ["a"], "additionalProperties": false})
    }

    #[test]
    fn closed_schemas_are_strict() {
        assert!(allows_strict(&closed(json!({"type": ["string", "null"], "description": "d"}))));
        assert!(allows_strict(&closed(json!({"type": "array", "items": closed(json!({"enum": [1, 2]}))}))));
        assert!(allows_strict(&closed(json!({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/x"}]}))));
    }

    #[test]
    fn open_or_unknown_schemas_are_not() {
        for schema in [
            json!({"type": "object"}),
            json!({"type": "array", "items": {}}),
            json!({"type": "object", "properties": {"a": {}}, "additionalProperties": false}),
            json!({"type": "object", "properties": {"a": {}}, "required": ["a"]}),
            closed(json!({"type": "object", "properties": {}})),
            closed(json!({"type": "string", "pattern": "^a$"})),
            closed(json!(true)),
            closed(closed(closed(closed(closed(json!({"type": "string"})))))),
        ] {
            assert!(!allows_strict(&schema), "{schema}");
        }
    }
}
