//! The JSON Schemas of a definition, generated from the types that parse it: one for authors, with every
//! spelling, and a canonical one per part, which makes precise mistakes.

use std::sync::LazyLock;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map as JsonMap, Value as Json, json};

use super::{
    definition::{AgentNode, CallNode, Definition, EdgeDefinition, ExpressionsNode, ToolDefinition},
    json_schema::Schema,
};

/// The node types, with the part of the schema that describes them.
const NODE_TYPES: [(&str, &str); 5] = [
    ("orchestrator", "AgentNode"),
    ("specialist", "AgentNode"),
    ("agent", "AgentNode"),
    ("model", "CallNode"),
    ("transform", "ExpressionsNode"),
];

/// The types of edges: the flow, and who delegates to whom.
pub(super) const EDGE_TYPES: [&str; 4] = ["flow", "orchestrator", "specialists", "orchestration"];

/// Canonical schemas.
pub(super) static DEFINITION: LazyLock<Schema> = LazyLock::new(canonical::<Definition>);
pub(super) static AGENT: LazyLock<Schema> = LazyLock::new(canonical::<AgentNode>);
pub(super) static CALL: LazyLock<Schema> = LazyLock::new(canonical::<CallNode>);
pub(super) static EXPRESSIONS: LazyLock<Schema> = LazyLock::new(canonical::<ExpressionsNode>);
pub(super) static EDGE: LazyLock<Schema> = LazyLock::new(canonical::<EdgeDefinition>);
pub(super) static TOOL: LazyLock<Schema> = LazyLock::new(canonical::<ToolDefinition>);

/// The names of the node types.
pub(super) fn node_types() -> impl Iterator<Item = &'static str> {
    NODE_TYPES.iter().map(|(name, _)| *name)
}

fn generated<T: JsonSchema>() -> Json {
    let generator = SchemaSettings::draft2020_12().into_generator();
    generator.into_root_schema_for::<T>().to_value()
}

fn canonical<T: JsonSchema>() -> Schema {
    let mut schema = generated::<T>();
    // Null is left out before, and a condition is read by hand: `anyOf` gives no precise mistakes.
    without_null(&mut schema);
    if let Some(when) = schema.pointer_mut("/properties/when") {
        *when = json!({});
    }
    Schema::compile(&schema).expect("schemas generated from our types are valid")
}

/// The constants of alternatives that are nothing else; a mistake can then name them.
fn constants(alternatives: &Json) -> Option<Json> {
    let values = alternatives.as_array()?.iter().map(|alternative| alternative.get("const").cloned());
    values.collect::<Option<Vec<_>>>().map(Json::from)
}

/// Removes null from types and alternatives, and alternatives where a list of values does.
fn without_null(schema: &mut Json) {
    match schema {
        Json::Object(map) => {
            if let Some(Json::Array(types)) = map.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [only] = types.as_slice() {
                    map["type"] = only.clone();
                }
            }
            if let Some(Json::Array(alternatives)) = map.get_mut("anyOf") {
                alternatives.retain(|alternative| alternative != &json!({"type": "null"}));
                if let [Json::Object(only)] = alternatives.as_slice() {
                    let only = only.clone();
                    map.shift_remove("anyOf");
                    map.extend(only);
                }
            }
            if let Some(values) = map.get("oneOf").and_then(constants) {
                map.shift_remove("oneOf");
                map.insert("enum".into(), values);
            }
            map.values_mut().for_each(without_null);
        }
        Json::Array(items) => items.iter_mut().for_each(without_null),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

/// JSON Schema (draft 2020-12) of an agent definition, with every spelling that is accepted.
pub fn definition_schema() -> Json {
    let mut schema = generated::<Definition>();
    let mut definitions = JsonMap::new();
    for part in [generated::<AgentNode>(), generated::<CallNode>(), generated::<ExpressionsNode>()]
        .into_iter()
        .chain([generated::<EdgeDefinition>(), generated::<ToolDefinition>(), schema.clone()])
    {
        collect(part, &mut definitions);
    }
    definitions.shift_remove("Definition");
    let mut nodes = Vec::new();
    for (name, part) in NODE_TYPES {
        let node = node_spellings(name, &definitions[part]);
        definitions.insert(name.into(), node);
        nodes.push(reference(name));
    }
    for part in ["AgentNode", "CallNode", "ExpressionsNode"] {
        definitions.shift_remove(part);
    }
    edge_spellings(&mut definitions["EdgeDefinition"]);
    tool_spellings(&mut definitions["ToolDefinition"]);
    model_spellings(&mut definitions);
    for (pointer, items) in [
        ("/properties/nodes/items", json!({"anyOf": nodes})),
        ("/properties/edges/items", reference("EdgeDefinition")),
        ("/properties/tool_definitions/items", reference("ToolDefinition")),
    ] {
        *schema.pointer_mut(pointer).expect("the definition has these lists") = items;
    }
    schema["$defs"] = Json::Object(definitions);
    schema["title"] = "Agent definition".into();
    schema["required"] = json!(["nodes"]);
    schema
}

fn reference(name: &str) -> Json {
    json!({"$ref": format!("#/$defs/{name}")})
}

/// Adds the schema of a type, and those it refers to, to `definitions`.
fn collect(mut schema: Json, definitions: &mut JsonMap<String, Json>) {
    let Some(map) = schema.as_object_mut() else { return };
    map.shift_remove("$schema");
    if let Some(Json::Object(inner)) = map.shift_remove("$defs") {
        definitions.extend(inner);
    }
    if let Some(Json::String(title)) = map.shift_remove("title") {
        definitions.insert(title, schema);
    }
}

/// A node of type `name`, flat or with its settings in `config`.
fn node_spellings(name: &str, part: &Json) -> Json {
    let letters = name.chars().map(|c| format!("[{}{c}]", c.to_ascii_uppercase()));
    let kind = json!({"anyOf": [{"const": name}, {"pattern": format!("^{}$", letters.collect::<String>())}],
        "type": "string"});
    let fields = part["properties"].as_object().expect("node types are objects");
    let needed = |more: &[&str]| {
        let own = part["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
        let own = own.filter(|field| !["id", "name"].contains(field));
        more.iter().copied().chain(own).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut flat = fields.clone();
    flat.insert("type".into(), kind.clone());
    let named = json!([{"required": ["id"]}, {"required": ["name"]}]);
    let config = json!({"type": "object", "properties": fields, "required": needed(&[]),
        "additionalProperties": false});
    json!({
        "description": part["description"],
        "anyOf": [
            {"type": "object", "properties": flat, "required": needed(&["type"]), "anyOf": named,
                "additionalProperties": false},
            {"type": "object", "required": ["type", "config"], "additionalProperties": false,
                "properties": {"type": kind, "id": fields["id"], "name": fields["name"],
                    "config": config, "metadata": fields["metadata"]}},
        ],
    })
}

fn edge_spellings(edge: &mut Json) {
    let point = json!({"type": "string", "minLength": 1});
    let ends = json!({"anyOf": [point, {"type": "array", "items": point, "minItems": 2}, {"type": "null"}],
        "description": "The node it leaves, or `START`; a list is a join."});
    edge["properties"]["source"] = ends.clone();
    edge["properties"]["from"] = ends;
    edge["properties"]["to"] = edge["properties"]["target"].clone();
    let kinds = EDGE_TYPES.map(Json::from).into_iter().chain([Json::Null]).collect::<Vec<_>>();
    edge["properties"]["type"]["enum"] = kinds.into();
    edge["required"] = json!([]);
    edge["allOf"] = json!([
        {"anyOf": [{"required": ["source"]}, {"required": ["from"]}, {"required": ["sources"]}]},
        {"anyOf": [{"required": ["target"]}, {"required": ["to"]}]},
    ]);
}

fn tool_spellings(tool: &mut Json) {
    for alias in ["input_schema", "args_schema"] {
        tool["properties"][alias] = tool["properties"]["parameters"].clone();
    }
    tool["properties"]["script"] = json!({"type": ["string", "null"], "description": "`runtime.script`."});
    tool["properties"]["language"] =
        json!({"type": ["string", "null"], "description": "`runtime.language`."});
    tool["properties"]["dependencies"] =
        json!({"type": "array", "items": {"type": "string"}, "description": "`runtime.dependencies`."});
}

fn model_spellings(definitions: &mut JsonMap<String, Json>) {
    let mut everything = Json::Object(std::mem::take(definitions));
    rename_reference(&mut everything, "#/$defs/ModelSettings", "#/$defs/Model");
    let Json::Object(mut renamed) = everything else { return };
    let settings = &mut renamed["ModelSettings"];
    settings["properties"]["model_name"] = settings["properties"]["model"].clone();
    settings["required"] = json!([]);
    settings["anyOf"] = json!([{"required": ["model"]}, {"required": ["model_name"]}]);
    renamed.insert(
        "Model".into(),
        json!({"description": "`provider:model`, a model's name, or settings.",
            "anyOf": [{"type": "string", "minLength": 1}, reference("ModelSettings")]}),
    );
    *definitions = renamed;
}

fn rename_reference(schema: &mut Json, from: &str, to: &str) {
    match schema {
        Json::Object(map) => {
            for (key, value) in map.iter_mut() {
                if key == "$ref" && value == from {
                    *value = to.into();
                } else {
                    rename_reference(value, from, to);
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|item| rename_reference(item, from, to)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}
