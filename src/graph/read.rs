//! From the bytes of a definition to its parts, each checked on its own: the part of compiling that knows JSON.
//!
//! **Invariant:** what is read satisfies the canonical schema; what does not is reported and left out.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use serde::de::DeserializeOwned;
use serde_json::{Map as JsonMap, Value as Json};
use sha2::{Digest, Sha256};

use super::{
    compile::Limits,
    definition::{Definition, EdgeDefinition, NodeDefinition, ToolDefinition},
    diagnostic::Diagnostic,
    json_schema::{Schema, depth, kind_of},
    pointer,
    schema::{self, NodeType},
    spelling::{self, Canonical},
};
use crate::encoding::hex;

/// A part and where it stands.
#[derive(Debug)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    canonical: Canonical,
}

impl<T> Placed<T> {
    /// The author's pointer to a part of it, given by a canonical pointer (empty for the whole).
    pub(super) fn place(&self, pointer: &str) -> String {
        self.canonical.place(pointer)
    }

    /// Its canonical JSON.
    pub(super) fn json(&self) -> &Json {
        &self.canonical.json
    }
}

/// The parts of a definition that could be read.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) definition: Placed<Definition>,
    pub(super) nodes: Vec<Placed<NodeDefinition>>,
    pub(super) edges: Vec<Placed<EdgeDefinition>>,
    pub(super) tools: Vec<Placed<ToolDefinition>>,
    /// Ids and names of nodes that are there but could not be read: edges may name them.
    pub(super) unread_nodes: Vec<String>,
    /// The same for tools.
    pub(super) unread_tools: Vec<String>,
    /// And for channels.
    pub(super) unread_channels: Vec<String>,
    /// SHA-256 of the canonical JSON, in hex.
    pub(super) hash: Arc<str>,
}

/// Reads `json`; mistakes go to `mistakes`. `None` when it is no definition at all.
pub(super) fn read(json: &[u8], limits: &Limits, mistakes: &mut Vec<Diagnostic>) -> Option<Parts> {
    match parse(json, limits) {
        Ok(json) => read_json(&json, limits, mistakes),
        Err(mistake) => {
            mistakes.push(mistake);
            None
        }
    }
}

/// Reads a definition that is a part of one that has been parsed.
pub(super) fn read_json(json: &Json, limits: &Limits, mistakes: &mut Vec<Diagnostic>) -> Option<Parts> {
    let hash = hash(json);
    let (canonical, wrong) = match spelling::definition(json) {
        Ok(definition) => definition,
        Err(mistake) => {
            mistakes.push(mistake);
            return None;
        }
    };
    mistakes.extend(wrong);
    let (canonical, unread_channels) = without_wrong_fields(canonical, mistakes);
    let definition: Placed<Definition> = checked((canonical, Vec::new()), &schema::DEFINITION, mistakes)?;
    let before = mistakes.len();
    check_counts(&definition.value, limits, mistakes);
    if mistakes.len() > before {
        return None;
    }
    let (mut nodes, mut unread_nodes) = (Vec::new(), Vec::new());
    for (index, json) in definition.value.nodes.iter().enumerate() {
        match read_node(json, &format!("/nodes/{index}"), mistakes) {
            Some(node) => nodes.push(node),
            None => unread_nodes.extend(names(json)),
        }
    }
    let edges = read_all(&definition.value.edges, "edges", spelling::edge, &schema::EDGE, mistakes);
    let tools = read_all(
        &definition.value.tool_definitions,
        "tool_definitions",
        spelling::tool,
        &schema::TOOL,
        mistakes,
    );
    let is_read = |name: &String| tools.iter().any(|tool: &Placed<ToolDefinition>| tool.value.name == *name);
    let mut unread_tools: Vec<_> = definition.value.tool_definitions.iter().flat_map(names).collect();
    unread_tools.retain(|name| !is_read(name));
    Some(Parts { definition, nodes, edges, tools, unread_nodes, unread_tools, unread_channels, hash })
}

/// Reports what is wrong with the definition's own fields and leaves those out, so that the rest of it can be
/// checked too; also the names of the channels among them.
fn without_wrong_fields(
    mut canonical: Canonical,
    mistakes: &mut Vec<Diagnostic>,
) -> (Canonical, Vec<String>) {
    let mut wrong = schema::DEFINITION.mistakes(&canonical.json);
    // What lists of objects lack as a whole (`nodes`) is said when the definition is read.
    wrong.retain(|mistake| !mistake.pointer.is_empty());
    let mut unread_channels = Vec::new();
    for mistake in &wrong {
        let mut parts = pointer::parts(&mistake.pointer);
        let (field, inner) = (parts.next().unwrap_or_default(), parts.next());
        let Some(map) = canonical.json.as_object_mut() else { break };
        match (map.get_mut(&*field), inner) {
            (Some(Json::Object(channels)), Some(channel)) if field == "channels" => {
                channels.shift_remove(&*channel);
                unread_channels.push(channel.into_owned());
            }
            // Without nodes there is nothing else to check.
            _ if field == "nodes" => {}
            _ => {
                map.shift_remove(&*field);
            }
        }
    }
    wrong.retain(|mistake| mistake.pointer != "/nodes");
    mistakes.extend(canonical.translate(wrong));
    (canonical, unread_channels)
}

fn parse(bytes: &[u8], limits: &Limits) -> Result<Json, Diagnostic> {
    if bytes.len() > limits.max_bytes {
        let message = format!("is {} bytes long, at most {} are allowed", bytes.len(), limits.max_bytes);
        return Err(Diagnostic::new("", message));
    }
    // serde_json itself stops at 128 levels, so counting them cannot overflow the stack.
    let json: Json = serde_json::from_slice(bytes)
        .map_err(|error| Diagnostic::new("", format!("is not JSON: {error}")))?;
    let levels = depth(&json);
    if levels > limits.max_depth {
        let message = format!("is nested {levels} levels deep, at most {} are allowed", limits.max_depth);
        return Err(Diagnostic::new("", message));
    }
    Ok(json)
}

fn check_counts(definition: &Definition, limits: &Limits, mistakes: &mut Vec<Diagnostic>) {
    let counts = [
        ("nodes", definition.nodes.len(), limits.max_nodes),
        ("edges", definition.edges.len(), limits.max_edges),
        // Tools and channels cost what nodes cost.
        ("tool_definitions", definition.tool_definitions.len(), limits.max_nodes),
        ("channels", definition.channels.len(), limits.max_nodes),
        ("variables", definition.variables.len(), limits.max_nodes),
    ];
    for (name, count, limit) in counts.into_iter().filter(|(_, count, limit)| count > limit) {
        mistakes.push(Diagnostic::new(
            format!("/{name}"),
            format!("has {count} items, at most {limit} are allowed"),
        ));
    }
}

/// The `id` and `name` of something that may have them anywhere.
fn names(json: &Json) -> Vec<String> {
    let inside = json.get("config");
    let found =
        [Some(json), inside].into_iter().flatten().flat_map(|object| [object.get("id"), object.get("name")]);
    found.flatten().filter_map(Json::as_str).map(str::to_owned).collect()
}

type Spelled = Result<(Canonical, Vec<Diagnostic>), Diagnostic>;

fn read_all<T: DeserializeOwned>(
    items: &[Json],
    list: &str,
    spell: fn(&Json, &str) -> Spelled,
    schema: &Schema,
    // The fifth parameter is the one every reader here has.
    mistakes: &mut Vec<Diagnostic>,
) -> Vec<Placed<T>> {
    let mut read = Vec::new();
    for (index, json) in items.iter().enumerate() {
        match spell(json, &format!("/{list}/{index}")) {
            Ok(spelled) => read.extend(checked(spelled, schema, mistakes)),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    read
}

/// Checks a part against its schema and reads it.
fn checked<T: DeserializeOwned>(
    (canonical, mut wrong): (Canonical, Vec<Diagnostic>),
    schema: &Schema,
    mistakes: &mut Vec<Diagnostic>,
) -> Option<Placed<T>> {
    wrong.extend(canonical.translate(schema.mistakes(&canonical.json)));
    if !wrong.is_empty() {
        mistakes.append(&mut wrong);
        return None;
    }
    let read = serde_path_to_error::deserialize(&canonical.json);
    placed(read, canonical, mistakes)
}

/// What was read, with its place.
fn placed<T>(
    read: Result<T, serde_path_to_error::Error<serde_json::Error>>,
    canonical: Canonical,
    mistakes: &mut Vec<Diagnostic>,
) -> Option<Placed<T>> {
    match read {
        Ok(value) => Some(Placed { value, canonical }),
        Err(error) => {
            let pointer = error.path().to_string().replace('.', "/");
            let pointer = canonical.place(&format!("/{pointer}"));
            mistakes.push(Diagnostic::new(pointer, error.into_inner().to_string()));
            None
        }
    }
}

/// Reads a node that stands at `place`.
pub(super) fn read_node(
    json: &Json,
    place: &str,
    mistakes: &mut Vec<Diagnostic>,
) -> Option<Placed<NodeDefinition>> {
    let (mut canonical, mut wrong) = match spelling::node(json, place) {
        Ok(spelled) => spelled,
        Err(mistake) => {
            mistakes.push(mistake);
            return None;
        }
    };
    // Whoever forgot both names has been told; the schema need not say it again.
    wrong.retain(|mistake| {
        mistakes.push(mistake.clone());
        false
    });
    let is_named = canonical.json.get("id").is_some();
    if let (false, Some(map)) = (is_named, canonical.json.as_object_mut()) {
        map.insert("id".into(), place.into());
        map.insert("name".into(), place.into());
    }
    let kind = canonical.json.as_object_mut().and_then(|map| map.shift_remove("type"));
    let named = kind.as_ref().and_then(Json::as_str);
    if let Some(node_type) = schema::NODE_TYPES.iter().find(|node_type| named == Some(node_type.name)) {
        return node(canonical, node_type, mistakes);
    }
    let known = schema::NODE_TYPES.iter().map(|node_type| node_type.name).collect::<Vec<_>>().join(", ");
    let (place, message) = match kind {
        None => (canonical.place(""), format!("needs the field `type`: one of {known}")),
        Some(Json::String(kind)) => {
            (canonical.place("/type"), format!("unknown node type `{kind}`; known: {known}"))
        }
        Some(other) => {
            let is = kind_of(&other);
            (canonical.place("/type"), format!("must be a text, one of {known}; is {is}"))
        }
    };
    mistakes.push(Diagnostic::new(place, message));
    None
}

fn node(
    mut canonical: Canonical,
    node_type: &NodeType,
    mistakes: &mut Vec<Diagnostic>,
) -> Option<Placed<NodeDefinition>> {
    let wrong = node_type.schema.mistakes(&canonical.json);
    let wrong: Vec<_> = wrong.into_iter().map(|mistake| explained(&canonical.json, mistake)).collect();
    let wrong_fields = wrong.iter().filter_map(|mistake| pointer::parts(&mistake.pointer).next());
    let wrong_fields: Vec<String> = wrong_fields.map(Cow::into_owned).collect();
    mistakes.extend(canonical.translate(wrong));
    // What is right about the node is checked all the same: the author wants to hear of everything at once.
    if let Some(map) = canonical.json.as_object_mut() {
        map.retain(|field, _| !wrong_fields.contains(field));
    }
    if !node_type.schema.mistakes(&canonical.json).is_empty() {
        return None;
    }
    let (common, own): (JsonMap<_, _>, JsonMap<_, _>) = canonical
        .json
        .as_object()
        .into_iter()
        .flatten()
        .map(|(field, value)| (field.clone(), value.clone()))
        .partition(|(field, _)| schema::COMMON_FIELDS.contains(field));
    let read = serde_path_to_error::deserialize(&Json::Object(common))
        .and_then(|common| Ok(NodeDefinition { common, work: (node_type.read)(&Json::Object(own))? }));
    placed(read, canonical, mistakes)
}

/// A mistake that says more where a prompt is the name of a file, which is for the command line to read.
fn explained(node: &Json, mistake: Diagnostic) -> Diagnostic {
    let is_prompt = mistake.pointer.ends_with("prompt");
    match node.pointer(&mistake.pointer).filter(|json| is_prompt && json.get("file").is_some()) {
        Some(_) => Diagnostic::new(
            &mistake.pointer,
            "is a file reference, and prompt files are read by the commands `validate`, `run`, `submit` and `graph` \
             only: send the text",
        ),
        None => mistake,
    }
}

/// SHA-256 of the JSON with sorted keys and no spaces, in hex.
pub(super) fn hash(json: &Json) -> Arc<str> {
    let canonical = serde_json::to_vec(&Sorted::from(json)).expect("JSON can be written as JSON");
    hex(Sha256::digest(&canonical)).into()
}

/// JSON whose objects are sorted.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum Sorted<'a> {
    Object(BTreeMap<&'a str, Sorted<'a>>),
    Array(Vec<Sorted<'a>>),
    Other(&'a Json),
}

impl<'a> From<&'a Json> for Sorted<'a> {
    fn from(json: &'a Json) -> Self {
        match json {
            Json::Object(map) => {
                Self::Object(map.iter().map(|(key, value)| (key.as_str(), value.into())).collect())
            }
            Json::Array(items) => Self::Array(items.iter().map(Self::from).collect()),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => Self::Other(json),
        }
    }
}
