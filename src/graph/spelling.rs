//! Authors' spellings → the canonical one, remembering where each part came from.
//!
//! **Invariant:** a pointer into canonical JSON always leads back to the text the author wrote.

use serde_json::{Map as JsonMap, Value as Json};

use super::{definition::ModelSettings, diagnostic::Diagnostic, json_schema::kind_of, pointer::escape};

/// START, in edges.
pub(super) const START: &str = "__start__";
/// END, in edges.
pub(super) const END: &str = "__end__";

/// A part of a definition in canonical spelling.
#[derive(Clone, Debug)]
pub(super) struct Canonical {
    /// The canonical JSON.
    pub(super) json: Json,
    /// Canonical pointers and the author's pointers for them, shortest first.
    places: Vec<(String, String)>,
}

impl Canonical {
    /// The author's pointer for `pointer`, a pointer into the canonical JSON.
    pub(super) fn place(&self, pointer: &str) -> String {
        let covers = |prefix: &str| {
            pointer.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let best =
            self.places.iter().filter_map(|(from, to)| covers(from).map(|rest| (from.len(), to, rest)));
        best.max_by_key(|(length, ..)| *length)
            .map_or_else(|| pointer.to_owned(), |(_, to, rest)| format!("{to}{rest}"))
    }

    /// Moves mistakes from canonical to author's pointers.
    pub(super) fn translate(&self, mistakes: Vec<Diagnostic>) -> impl Iterator<Item = Diagnostic> {
        mistakes.into_iter().map(|mistake| Diagnostic::new(self.place(&mistake.pointer), mistake.message))
    }
}

/// Collects canonical fields; every field remembers its place.
struct Fields {
    map: JsonMap<String, Json>,
    places: Vec<(String, String)>,
    mistakes: Vec<Diagnostic>,
}

impl Fields {
    fn new(place: &str) -> Self {
        let places = vec![(String::new(), place.to_owned())];
        Self { map: JsonMap::new(), places, mistakes: Vec::new() }
    }

    /// Adds a field; null counts as left out, because publishers in other languages send it for that.
    fn add(&mut self, name: &str, value: &Json, place: String) {
        if value.is_null() {
            return;
        }
        match self.map.get(name) {
            Some(earlier) if earlier != value => {
                let message = format!("`{name}` is given twice with different values");
                self.mistakes.push(Diagnostic::new(place, message));
            }
            Some(_) => {}
            None => {
                self.map.insert(name.into(), value.clone());
                self.places.push((format!("/{}", escape(name)), place));
            }
        }
    }

    fn add_all(&mut self, object: &JsonMap<String, Json>, place: &str, rename: fn(&str) -> &str) {
        for (name, value) in object {
            self.add(rename(name), value, format!("{place}/{}", escape(name)));
        }
    }

    fn place(&self, name: &str) -> String {
        let wanted = format!("/{}", escape(name));
        self.places.iter().find(|(from, _)| *from == wanted).map(|(_, to)| to.clone()).unwrap_or_default()
    }

    /// Copies a missing field from another one, its place included.
    fn fill(&mut self, missing: &str, from: &str) {
        if let (None, Some(value)) = (self.map.get(missing), self.map.get(from).cloned()) {
            self.add(missing, &value, self.place(from));
        }
    }

    /// Spells out the model settings at `name`.
    fn spell_model(&mut self, name: &str) {
        if let Some(value) = self.map.get_mut(name) {
            let pointer = format!("/{}", escape(name));
            let place = self.places.iter().find(|(from, _)| *from == pointer).map(|(_, to)| to.clone());
            spell_model(value, &pointer, &place.unwrap_or_default(), &mut self.places);
        }
    }

    fn finish(self) -> (Canonical, Vec<Diagnostic>) {
        (Canonical { json: Json::Object(self.map), places: self.places }, self.mistakes)
    }
}

/// `"provider:model"` → an object; `model_name` → `model`; the same for its fallbacks.
fn spell_model(value: &mut Json, pointer: &str, place: &str, places: &mut Vec<(String, String)>) {
    if let Json::String(text) = value {
        let settings = ModelSettings::parse(text);
        *value = serde_json::json!({"provider": settings.provider, "model": settings.model});
        for field in ["", "/provider", "/model"] {
            places.push((format!("{pointer}{field}"), place.to_owned()));
        }
        return;
    }
    let Json::Object(map) = value else { return };
    map.retain(|_, value| !value.is_null());
    if !map.contains_key("model")
        && let Some(model) = map.shift_remove("model_name")
    {
        map.insert("model".into(), model);
        places.push((format!("{pointer}/model"), format!("{place}/model_name")));
    } else if map.get("model") == map.get("model_name") {
        map.shift_remove("model_name");
    }
    let Some(Json::Array(fallbacks)) = map.get_mut("fallbacks") else { return };
    for (index, fallback) in fallbacks.iter_mut().enumerate() {
        let part = format!("/fallbacks/{index}");
        spell_model(fallback, &format!("{pointer}{part}"), &format!("{place}{part}"), places);
    }
}

fn unchanged(name: &str) -> &str {
    name
}

fn object<'a>(json: &'a Json, place: &str) -> Result<&'a JsonMap<String, Json>, Diagnostic> {
    json.as_object().ok_or_else(|| Diagnostic::new(place, format!("must be an object, is {}", kind_of(json))))
}

/// Spells out the fields of the whole definition; nodes, edges and tools stay as they are.
pub(super) fn definition(json: &Json) -> Result<(Canonical, Vec<Diagnostic>), Diagnostic> {
    let mut fields = Fields::new("");
    fields.add_all(object(json, "")?, "", unchanged);
    if let Some(Json::Object(defaults)) = fields.map.get_mut("defaults") {
        defaults.retain(|_, value| !value.is_null());
        if let Some(model) = defaults.get_mut("model") {
            spell_model(model, "/defaults/model", "/defaults/model", &mut fields.places);
        }
    }
    Ok(fields.finish())
}

/// Spells out a node: `config` is flattened, `id` and `name` stand in for each other, `type` is lower case.
pub(super) fn node(json: &Json, place: &str) -> Result<(Canonical, Vec<Diagnostic>), Diagnostic> {
    let object = object(json, place)?;
    let mut fields = Fields::new(place);
    for (name, value) in object {
        let place = format!("{place}/{}", escape(name));
        match value.as_object().filter(|_| name == "config") {
            Some(config) => fields.add_all(config, &place, unchanged),
            None => fields.add(name, value, place),
        }
    }
    // Outside and inside of `config` the name may differ: outside it is what the drawing shows.
    fields.fill("id", "name");
    fields.fill("name", "id");
    if !fields.map.contains_key("id") {
        fields.mistakes.push(Diagnostic::new(place, "needs the field `id` or `name`"));
    }
    if let Some(Json::String(kind)) = fields.map.get_mut("type") {
        kind.make_ascii_lowercase();
    }
    fields.spell_model("model");
    if let Some(Json::Object(summarize)) = fields.map.get_mut("summarize") {
        summarize.retain(|_, value| !value.is_null());
        let place = fields.places.iter().find(|(from, _)| from == "/summarize").map(|(_, to)| to.clone());
        if let (Some(model), Some(place)) = (summarize.get_mut("model"), place) {
            spell_model(model, "/summarize/model", &format!("{place}/model"), &mut fields.places);
        }
    }
    Ok(fields.finish())
}

/// Spells out an edge: `from` and `to`, START and END, a list as `source`.
pub(super) fn edge(json: &Json, place: &str) -> Result<(Canonical, Vec<Diagnostic>), Diagnostic> {
    let mut fields = Fields::new(place);
    fields.add_all(object(json, place)?, place, |name| match name {
        "from" => "source",
        "to" => "target",
        other => other,
    });
    if fields.map.get("source").is_some_and(Json::is_array) && !fields.map.contains_key("sources") {
        fields.fill("sources", "source");
        fields.map.shift_remove("source");
    }
    for name in ["source", "target"] {
        if let Some(Json::String(point)) = fields.map.get_mut(name) {
            match point.as_str() {
                "START" => *point = START.into(),
                "END" => *point = END.into(),
                _ => {}
            }
        }
    }
    if let Some(Json::String(kind)) = fields.map.get_mut("type") {
        kind.make_ascii_lowercase();
    }
    Ok(fields.finish())
}

/// Fields of a tool that a `runtime` with this `type` stands for.
const RUNTIME_TYPES: [&str; 2] = ["http", "nats"];

/// Spells out a tool: a script beside the name goes into `runtime`, a `runtime` with a type is the field of that
/// name, `input_schema` is `parameters`.
pub(super) fn tool(json: &Json, place: &str) -> Result<(Canonical, Vec<Diagnostic>), Diagnostic> {
    let mut fields = Fields::new(place);
    fields.add_all(object(json, place)?, place, |name| match name {
        "input_schema" | "args_schema" => "parameters",
        other => other,
    });
    typed_runtime(&mut fields);
    for part in ["runtime", "http", "nats", "retry"] {
        let Some(Json::Object(map)) = fields.map.get_mut(part) else { continue };
        map.retain(|_, value| !value.is_null());
        for inner in ["pagination", "auth"] {
            if let Some(Json::Object(map)) = map.get_mut(inner) {
                map.retain(|_, value| !value.is_null());
            }
        }
    }
    if !fields.map.contains_key("runtime") && fields.map.contains_key("script") {
        fields.add("runtime", &Json::Object(JsonMap::new()), place.to_owned());
    }
    for part in ["script", "dependencies", "language"] {
        let place = fields.place(part);
        let Some(Json::Object(runtime)) = fields.map.get("runtime") else { break };
        if runtime.contains_key(part) || !fields.map.contains_key(part) {
            continue;
        }
        let value = fields.map.shift_remove(part);
        if let (Some(value), Some(Json::Object(runtime))) = (value, fields.map.get_mut("runtime")) {
            runtime.insert(part.into(), value);
            fields.places.push((format!("/runtime/{part}"), place));
        }
    }
    Ok(fields.finish())
}

/// `"runtime": {"type": "nats", …}` → `"nats": {…}`.
fn typed_runtime(fields: &mut Fields) {
    let Some(Json::Object(runtime)) = fields.map.get("runtime") else { return };
    let kind = runtime.get("type").and_then(Json::as_str);
    let Some(field) = kind.and_then(|kind| RUNTIME_TYPES.into_iter().find(|known| *known == kind)) else {
        return;
    };
    let mut runtime = runtime.clone();
    runtime.shift_remove("type");
    let place = fields.place("runtime");
    fields.map.shift_remove("runtime");
    fields.add(field, &Json::Object(runtime), place);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spelled(result: Result<(Canonical, Vec<Diagnostic>), Diagnostic>) -> Canonical {
        let (canonical, mistakes) = result.expect("an object");
        assert_eq!(mistakes, []);
        canonical
    }

    #[test]
    fn flat_and_nested_nodes_are_the_same() {
        let flat = json!({"type": "orchestrator", "name": "main", "tools": [],
            "model": {"provider": "openai", "model_name": "gpt-4o"}, "system_prompt": null});
        let nested = json!({"id": "main", "type": "Orchestrator",
            "config": {"name": "main", "model": "openai:gpt-4o", "tools": []}});
        let (flat, nested) = (spelled(node(&flat, "/nodes/0")), spelled(node(&nested, "/nodes/1")));
        assert_eq!(flat.json, nested.json);
        assert_eq!(flat.place("/model/model"), "/nodes/0/model/model_name");
        assert_eq!(flat.place("/id"), "/nodes/0/name");
        assert_eq!(nested.place("/model/temperature"), "/nodes/1/config/model/temperature");
        assert_eq!(nested.place("/model/model"), "/nodes/1/config/model");
        assert_eq!(nested.place("/tools/0"), "/nodes/1/config/tools/0");
        assert_eq!(nested.place("/toolsy"), "/nodes/1/toolsy");
    }

    #[test]
    fn a_field_cannot_say_two_things() {
        let twice = json!({"id": "a", "tools": ["x"], "config": {"tools": ["y"]}});
        let (_, mistakes) = node(&twice, "/nodes/0").expect("an object");
        assert_eq!(mistakes[0].pointer, "/nodes/0/config/tools");
    }

    #[test]
    fn edges_and_tools_have_one_spelling() {
        let edge = spelled(edge(&json!({"from": "START", "to": "a"}), "/edges/0"));
        assert_eq!(edge.json, json!({"source": "__start__", "target": "a"}));
        assert_eq!(edge.place("/source"), "/edges/0/from");
        let tool =
            tool(&json!({"name": "t", "script": "x", "dependencies": ["y"], "input_schema": {}}), "/t/0");
        let tool = spelled(tool);
        assert_eq!(
            tool.json,
            json!({"name": "t", "parameters": {}, "runtime": {"script": "x", "dependencies": ["y"]}})
        );
        assert_eq!(tool.place("/runtime/dependencies/0"), "/t/0/dependencies/0");
        let typed = json!({"name": "t", "runtime": {"type": "nats", "subject": "a.b"}});
        let typed = spelled(super::tool(&typed, "/t/0"));
        assert_eq!(typed.json, json!({"name": "t", "nats": {"subject": "a.b"}}));
        assert_eq!(typed.place("/nats/subject"), "/t/0/runtime/subject");
        let nulls =
            json!({"name": "t", "retry": {"jitter": null}, "http": {"url": "x", "auth": {"scope": null}}});
        let nulls = spelled(super::tool(&nulls, "/t/0"));
        assert_eq!(nulls.json, json!({"name": "t", "retry": {}, "http": {"url": "x", "auth": {}}}));
        assert_eq!(tool.place("/parameters/type"), "/t/0/input_schema/type");
    }
}
