//! Prompt files beside a definition: read into it before anybody else sees it.
//!
//! **Invariant:** nothing outside of the definition's own folder is read, not even by way of a link.
//! **Invariant:** what leaves this program holds texts, never the name of a file.

use std::{
    io::Read,
    path::{Component, Path, PathBuf},
};

use serde_json::{Map as JsonMap, Value as Json};

use crate::{
    graph::{Diagnostic, pointer::escape},
    run::Rejected,
};

/// Largest prompt file in bytes; a template may be as large.
const MAX_PROMPT_BYTES: u64 = 512 << 10;
/// Most references to files in one definition; twice as many as it may have nodes.
const MAX_REFERENCES: usize = 400;
/// Fields that may hold `{"file": …}` in place of a text.
const PROMPTS: [&str; 2] = ["system_prompt", "prompt"];
/// Fields whose content is the author's own, or a JSON Schema.
const NOT_OURS: [&str; 4] = ["metadata", "output_schema", "parameters", "script"];

/// The definition or request in `bytes`, read from `path`, with the text of every prompt file it names. What names
/// none comes back unchanged, whatever it is. Fails with every reference that cannot be read.
pub(super) fn inline(path: &str, bytes: Vec<u8>) -> Result<Vec<u8>, Rejected> {
    let Ok(mut json) = serde_json::from_slice::<Json>(&bytes) else { return Ok(bytes) };
    let folder = match path {
        "-" => None,
        path => Some(Path::new(path).parent().unwrap_or(Path::new("")).to_owned()),
    };
    let mut inliner = Inliner { folder, found: 0, mistakes: Vec::new() };
    if let Some((pointer, definition)) = definition(&mut json) {
        let nodes = definition.get_mut("nodes");
        nodes.into_iter().for_each(|nodes| inliner.walk(nodes, &format!("{pointer}/nodes")));
    }
    match (inliner.found, inliner.mistakes) {
        (0, _) => Ok(bytes),
        (_, mistakes) if mistakes.is_empty() => Ok(serde_json::to_vec(&json).expect("JSON serialises")),
        (_, details) => Err(Rejected { message: "prompt files cannot be read".to_owned(), details }),
    }
}

/// The definition in a file, which holds nothing else, a request or a CloudEvent; and the pointer to it as mistakes in
/// it are reported.
fn definition(json: &mut Json) -> Option<(&'static str, &mut JsonMap<String, Json>)> {
    let mut holder = json;
    if holder.get("specversion").is_some() {
        holder = holder.get_mut("data")?;
    }
    if holder.get("agent_definition").is_some() {
        return Some(("/agent_definition", holder.get_mut("agent_definition")?.as_object_mut()?));
    }
    Some(("", holder.as_object_mut()?))
}

struct Inliner {
    /// None for what came from standard input.
    folder: Option<PathBuf>,
    found: usize,
    mistakes: Vec<Diagnostic>,
}

impl Inliner {
    /// Replaces the references in `json`, which serde_json has kept from being nested too deep to walk.
    fn walk(&mut self, json: &mut Json, pointer: &str) {
        match json {
            Json::Object(map) => {
                for (key, value) in map.iter_mut().filter(|(key, _)| !NOT_OURS.contains(&key.as_str())) {
                    let pointer = format!("{pointer}/{}", escape(key));
                    match reference(value).filter(|_| PROMPTS.contains(&key.as_str())) {
                        Some(file) => match self.text(file) {
                            Ok(text) => *value = text.into(),
                            Err(message) => self.mistakes.push(Diagnostic::new(pointer, message)),
                        },
                        None => self.walk(value, &pointer),
                    }
                }
            }
            Json::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.walk(item, &format!("{pointer}/{index}"));
                }
            }
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
        }
    }

    fn text(&mut self, file: &str) -> Result<String, String> {
        self.found += 1;
        if self.found > MAX_REFERENCES {
            return Err(format!("more than {MAX_REFERENCES} prompt files are named"));
        }
        let Some(folder) = &self.folder else {
            return Err("a definition from standard input has no folder to read prompt files from".into());
        };
        let inside = |component: Component<'_>| matches!(component, Component::Normal(_) | Component::CurDir);
        if file.is_empty() || !Path::new(file).components().all(inside) {
            return Err(format!(
                "the file `{file}` must lie in the folder of the definition: no `..`, no leading `/`"
            ));
        }
        let unread = |error: std::io::Error| format!("the file `{file}` cannot be read: {error}");
        // A link may lead out of the folder too.
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let root = folder.canonicalize().map_err(unread)?;
        let path = root.join(file).canonicalize().map_err(unread)?;
        if !path.starts_with(&root) {
            return Err(format!(
                "the file `{file}` is a link that leads out of the folder of the definition"
            ));
        }
        if !path.is_file() {
            return Err(format!("`{file}` is no file"));
        }
        let mut bytes = Vec::new();
        let opened = std::fs::File::open(&path).map_err(unread)?;
        opened.take(MAX_PROMPT_BYTES + 1).read_to_end(&mut bytes).map_err(unread)?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_PROMPT_BYTES {
            return Err(format!("the file `{file}` is longer than {MAX_PROMPT_BYTES} bytes"));
        }
        String::from_utf8(bytes).map_err(|_| format!("the file `{file}` is not UTF-8 text"))
    }
}

/// The file that `{"file": …}` names.
fn reference(value: &Json) -> Option<&str> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    map.get("file")?.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    fn folder() -> TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("inner/prompts")).expect("created");
        std::fs::write(folder.path().join("outside.md"), "secret").expect("written");
        std::fs::write(folder.path().join("inner/prompts/a.md"), "You are {{ name }}.\n").expect("written");
        folder
    }

    fn inlined(folder: &TempDir, json: &Json) -> Result<Json, Vec<String>> {
        let path = folder.path().join("inner/definition.json");
        let bytes = inline(path.to_str().expect("UTF-8"), json.to_string().into_bytes());
        let bytes =
            bytes.map_err(|rejected| rejected.details.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        Ok(serde_json::from_slice(&bytes).expect("JSON"))
    }

    #[test]
    fn files_are_read_wherever_a_definition_may_stand() {
        let folder = folder();
        let definition = |prompt: Json| {
            json!({"nodes": [{"id": "a", "system_prompt": prompt}, {"config": {"prompt": prompt}},
                {"summarize": {"prompt": prompt}, "metadata": {"prompt": {"file": "kept"}}}]})
        };
        let (file, text) =
            (definition(json!({"file": "prompts/a.md"})), definition(json!("You are {{ name }}.\n")));
        assert_eq!(inlined(&folder, &file), Ok(text.clone()));
        let request = |definition: Json| json!({"job_id": "j", "agent_definition": definition});
        assert_eq!(inlined(&folder, &request(file.clone())), Ok(request(text.clone())));
        let event = |definition: Json| json!({"specversion": "1.0", "data": request(definition)});
        assert_eq!(inlined(&folder, &event(file)), Ok(event(text)));
    }

    #[test]
    fn what_names_no_file_is_left_as_it_was_written() {
        for bytes in ["{\"nodes\": [{\"a\": 1.50, \"a\": 2}]}", "not JSON", "[]", "{\"specversion\": 1}"] {
            assert_eq!(inline("x.json", bytes.into()).expect("unchanged"), bytes.as_bytes());
        }
    }

    #[test]
    fn nothing_outside_of_the_folder_is_read() {
        let folder = folder();
        std::os::unix::fs::symlink("../outside.md", folder.path().join("inner/link.md")).expect("linked");
        let outside = folder.path().join("outside.md");
        for file in
            ["../outside.md", "prompts/../../outside.md", "link.md", outside.to_str().expect("UTF-8"), ""]
        {
            let found =
                inlined(&folder, &json!({"nodes": [{"prompt": {"file": file}}]})).expect_err("refused");
            assert!(found[0].starts_with("/nodes/0/prompt: the file `"), "{found:?}");
            assert!(found[0].contains("folder of the definition"), "{found:?}");
        }
    }

    #[test]
    fn every_file_that_cannot_be_read_is_named() {
        let folder = folder();
        let inner = folder.path().join("inner");
        std::fs::write(inner.join("long.md"), "x".repeat((512 << 10) + 1)).expect("written");
        std::fs::write(inner.join("bytes.md"), [0xff]).expect("written");
        let nodes =
            ["missing.md", "long.md", "bytes.md", "prompts"].map(|file| json!({"prompt": {"file": file}}));
        let found = inlined(&folder, &json!({"nodes": nodes})).expect_err("refused");
        for (line, part) in
            found.iter().zip(["cannot be read", "longer than 524288 bytes", "not UTF-8", "is no file"])
        {
            assert!(line.contains(part), "{line}");
        }
        let stdin = inline("-", json!({"nodes": [{"prompt": {"file": "a.md"}}]}).to_string().into_bytes());
        assert!(stdin.expect_err("refused").details[0].message.contains("standard input"));
    }

    #[test]
    fn the_example_with_prompt_files_is_right() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/graph-definitions/prompt-files/agent.json");
        let bytes =
            inline(path, std::fs::read(path).expect("the example is there")).expect("its files are there");
        let limits = crate::graph::Limits::default();
        crate::graph::compile(&bytes, &limits).expect("it has no mistakes");
        let mistakes =
            crate::graph::compile(&std::fs::read(path).expect("there"), &limits).expect_err("a reference");
        assert!(mistakes[0].message.contains("file reference"), "{mistakes:?}");
    }
}
