//! The JSON Schemas of a definition, generated from the types that parse it: one for authors, with every
//! spelling, and a canonical one per part, which makes precise mistakes.

use std::sync::LazyLock;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::{Map as JsonMap, Value as Json, json};

use super::{
    definition::{
        AgentNode, AskNode, CallNode, Definition, EdgeDefinition, ExpressionsNode, MapNode, NodeCommon,
        NodeWork, RouteNode, StopNode, SubgraphNode, ToolCallNode, ToolDefinition,
    },
    json_schema::Schema,
};

/// A type of nodes.
pub(super) struct NodeType {
    /// Its name in definitions.
    pub(super) name: &'static str,
    /// The canonical schema of a whole node of it, without `type`.
    pub(super) schema: LazyLock<Schema>,
    generated: fn() -> Json,
    /// Reads the fields that other types do not have.
    pub(super) read: fn(&Json) -> ReadWork,
}

/// What a node does, or why its fields cannot be read.
type ReadWork = Result<NodeWork, serde_path_to_error::Error<serde_json::Error>>;

impl NodeType {
    const fn new<T: JsonSchema>(name: &'static str, read: fn(&Json) -> ReadWork) -> Self {
        Self { name, schema: LazyLock::new(|| compiled(whole_node::<T>())), generated: whole_node::<T>, read }
    }
}

/// Every type of nodes.
pub(super) static NODE_TYPES: [NodeType; 11] = [
    NodeType::new::<AgentNode>("orchestrator", |json| fields(json).map(NodeWork::Orchestrator)),
    NodeType::new::<AgentNode>("specialist", |json| fields(json).map(NodeWork::Specialist)),
    NodeType::new::<AgentNode>("agent", |json| fields(json).map(NodeWork::Agent)),
    NodeType::new::<CallNode>("model", |json| fields(json).map(NodeWork::Model)),
    NodeType::new::<ExpressionsNode>("transform", |json| fields(json).map(NodeWork::Transform)),
    NodeType::new::<RouteNode>("router", |json| fields(json).map(NodeWork::Router)),
    NodeType::new::<AskNode>("approval", |json| fields(json).map(NodeWork::Approval)),
    NodeType::new::<StopNode>("fail", |json| fields(json).map(NodeWork::Fail)),
    NodeType::new::<MapNode>("map", |json| fields(json).map(NodeWork::Map)),
    NodeType::new::<SubgraphNode>("subgraph", |json| fields(json).map(NodeWork::Subgraph)),
    NodeType::new::<ToolCallNode>("tool", |json| fields(json).map(NodeWork::Tool)),
];

fn fields<T: DeserializeOwned>(json: &Json) -> Result<T, serde_path_to_error::Error<serde_json::Error>> {
    serde_path_to_error::deserialize(json)
}

/// The names of the fields that every node may have.
pub(super) static COMMON_FIELDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let schema = generated::<NodeCommon>();
    schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
});

/// The types of edges: the flow, and who delegates to whom.
pub(super) const EDGE_TYPES: [&str; 4] = ["flow", "orchestrator", "specialists", "orchestration"];

/// Canonical schemas.
pub(super) static DEFINITION: LazyLock<Schema> = LazyLock::new(canonical::<Definition>);
pub(super) static EDGE: LazyLock<Schema> = LazyLock::new(canonical::<EdgeDefinition>);
pub(super) static TOOL: LazyLock<Schema> = LazyLock::new(canonical::<ToolDefinition>);

fn generated<T: JsonSchema>() -> Json {
    let generator = SchemaSettings::draft2020_12().into_generator();
    generator.into_root_schema_for::<T>().to_value()
}

/// The schema of a node whose type has the fields `T`: those and the common ones.
fn whole_node<T: JsonSchema>() -> Json {
    let (mut schema, mut common) = (generated::<T>(), generated::<NodeCommon>());
    for part in ["properties", "$defs"] {
        if let (Some(Json::Object(theirs)), Some(map)) = (common.get_mut(part), schema.as_object_mut()) {
            let own = map.entry(part).or_insert_with(|| json!({}));
            own.as_object_mut().into_iter().for_each(|own| own.extend(std::mem::take(theirs)));
        }
    }
    let required = [&common, &schema].into_iter().filter_map(|part| part["required"].as_array());
    schema["required"] = required.flatten().cloned().collect();
    schema
}

fn canonical<T: JsonSchema>() -> Schema {
    compiled(generated::<T>())
}

fn compiled(mut schema: Json) -> Schema {
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
    for part in [generated::<EdgeDefinition>(), generated::<ToolDefinition>(), schema.clone()] {
        collect(part, &mut definitions);
    }
    definitions.shift_remove("Definition");
    let mut nodes = Vec::new();
    for node_type in &NODE_TYPES {
        let part = collect((node_type.generated)(), &mut definitions);
        let part = part.and_then(|title| definitions.shift_remove(&title)).unwrap_or_default();
        definitions.insert(node_type.name.into(), node_spellings(node_type.name, &part));
        nodes.push(reference(node_type.name));
    }
    if let Some(fields) = definitions["Summarize"]["properties"].as_object_mut() {
        prompt_spellings(fields);
    }
    edge_spellings(&mut definitions["EdgeDefinition"]);
    tool_spellings(&mut definitions["ToolDefinition"]);
    runtime_spellings(&mut definitions);
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

/// Adds the schema of a type, and those it refers to, to `definitions`; the name it has there.
fn collect(mut schema: Json, definitions: &mut JsonMap<String, Json>) -> Option<String> {
    let map = schema.as_object_mut()?;
    map.shift_remove("$schema");
    if let Some(Json::Object(inner)) = map.shift_remove("$defs") {
        definitions.extend(inner);
    }
    let Some(Json::String(title)) = map.shift_remove("title") else { return None };
    definitions.insert(title.clone(), schema);
    Some(title)
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
    let mut fields = fields.clone();
    prompt_spellings(&mut fields);
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

/// Prompts may stand in files beside a definition that the command line reads.
fn prompt_spellings(fields: &mut JsonMap<String, Json>) {
    let file = json!({"type": "object", "additionalProperties": false, "required": ["file"],
        "properties": {"file": {"type": "string", "minLength": 1,
            "description": "Path of a text file, from the folder of the definition."}}});
    for prompt in ["system_prompt", "prompt"] {
        if let Some(field) = fields.get_mut(prompt) {
            let text = json!({"type": field["type"]});
            *field = json!({"description": field["description"], "anyOf": [text, file]});
        }
    }
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

/// `runtime` is a script, or has the fields of what its `type` names.
fn runtime_spellings(definitions: &mut JsonMap<String, Json>) {
    let script = definitions["ToolDefinition"]["properties"]["runtime"].clone();
    let mut kinds: Vec<Json> = script["anyOf"].as_array().cloned().unwrap_or_default();
    for (kind, name) in [("http", "HttpTool"), ("nats", "NatsTool")] {
        let mut typed = definitions[name].clone();
        typed["properties"]["type"] = json!({"const": kind});
        let required = typed["required"].as_array_mut();
        required.into_iter().for_each(|required| required.insert(0, "type".into()));
        kinds.push(typed);
    }
    definitions["ToolDefinition"]["properties"]["runtime"]["anyOf"] = kinds.into();
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
