//! The run's virtual files as the channel `files` keeps them: paths, texts, and the writes that change one.
//!
//! **Invariant:** a write names only the changed file; the channel's reducer merges it with what is there.
//! **Invariant:** a path is absolute, has no `.` or `..` part, and ends without a slash; `/` is the root.

use std::{borrow::Cow, collections::BTreeMap};

use crate::{
    graph::FILES,
    ids::UnixNanos,
    value::{Map, Name, State, Value},
};

/// Longest path in characters; far above what people write, short enough to list by the thousand.
const MAX_PATH_CHARS: usize = 1024;

/// Largest file in bytes; the whole channel is stored again by each superstep that changes one file.
pub(super) const MAX_FILE_BYTES: usize = 1 << 20;

/// Most files of one run; bounds what every checkpoint that touches them has to carry.
pub(super) const MAX_FILES: usize = 2_000;

/// The files of a state, sorted by path.
pub(super) struct Files<'a> {
    by_path: BTreeMap<String, File<'a>>,
}

/// One file as the state has it.
#[derive(Clone, Copy)]
pub(super) struct File<'a> {
    /// Its key in the channel; publishers may have spelt it without the leading slash.
    key: &'a Name,
    value: &'a Value,
}

impl<'a> Files<'a> {
    /// The files of `state`; none when the channel is not there.
    pub(super) fn of(state: &'a State) -> Self {
        let by_path = state
            .get(FILES)
            .and_then(Value::as_map)
            .into_iter()
            .flatten()
            .filter(|(_, value)| **value != Value::Null)
            .map(|(key, value)| {
                let path = normalize(key).unwrap_or_else(|_| key.to_string());
                (path, File { key, value })
            })
            .collect();
        Self { by_path }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_path.len()
    }

    /// The file at the normalised `path`.
    pub(super) fn get(&self, path: &str) -> Option<File<'a>> {
        self.by_path.get(path).copied()
    }

    /// The file at `path`, or a sentence that helps to find the right one.
    pub(super) fn expect_file(&self, path: &str) -> Result<File<'a>, String> {
        self.get(path).ok_or_else(|| {
            format!("File '{path}' not found. Use ls or glob to see which files exist, or write_file to create it.")
        })
    }

    /// The files at or below the normalised `base`, in the order of their paths.
    pub(super) fn below<'s>(&'s self, base: &'s str) -> impl Iterator<Item = (&'s str, File<'a>)> {
        self.by_path
            .iter()
            .filter(move |(path, _)| relative(path, base).is_some())
            .map(|(path, file)| (path.as_str(), *file))
    }
}

impl<'a> File<'a> {
    /// The text, or `None` when the file holds something else (base64, a foreign value).
    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        if let Some(text) = self.value.as_str() {
            return Some(Cow::Borrowed(text));
        }
        let map = self.value.as_map()?;
        if map.get("encoding").and_then(Value::as_str) == Some("base64") {
            return None;
        }
        let content = map.get("content")?;
        if let Some(text) = content.as_str() {
            return Some(Cow::Borrowed(text));
        }
        let lines: Option<Vec<&str>> = content.as_list()?.iter().map(Value::as_str).collect();
        Some(Cow::Owned(lines?.join("\n")))
    }

    /// The text, or a sentence that says why there is none.
    pub(super) fn expect_text(self, path: &str) -> Result<Cow<'a, str>, String> {
        self.text().ok_or_else(|| format!("File '{path}' does not hold text."))
    }

    /// When it was last changed, as ISO 8601 (text order is time order); empty when unknown.
    pub(super) fn modified_at(self) -> &'a str {
        self.value.as_map().and_then(|map| map.get("modified_at")).and_then(Value::as_str).unwrap_or_default()
    }

    /// The write that gives this file a new text and keeps what else is known of it.
    pub(super) fn replaced(self, text: &str, now: UnixNanos) -> (Name, Value) {
        let mut map = self.value.as_map().cloned().unwrap_or_default();
        // LangGraph agents of a later file format keep the text whole; theirs stays that way.
        let whole = map.get("content").is_some_and(|content| content.as_str().is_some());
        let content = if whole { Value::from(text) } else { lines_of(text) };
        map.insert("content".into(), content);
        map.entry("created_at".into()).or_insert_with(|| now.isoformat().into());
        map.insert("modified_at".into(), now.isoformat().into());
        write(self.key.clone(), map)
    }
}

/// The write that creates a file at the normalised `path`.
pub(super) fn created(path: &str, text: &str, now: UnixNanos) -> (Name, Value) {
    let time = Value::from(now.isoformat());
    let pairs = [("content", lines_of(text)), ("created_at", time.clone()), ("modified_at", time)];
    write(path.into(), pairs.into_iter().map(|(key, value)| (Name::from(key), value)).collect())
}

fn write(key: Name, file: Map) -> (Name, Value) {
    (FILES.into(), Value::map([(key, Value::Map(file.into()))]))
}

fn lines_of(text: &str) -> Value {
    Value::list(text.split('\n').map(Value::from).collect())
}

/// The part of `path` below `base`, without a leading slash; a file's own name when both are the same.
pub(super) fn relative<'p>(path: &'p str, base: &str) -> Option<&'p str> {
    if base == "/" {
        return Some(path.strip_prefix('/').unwrap_or(path));
    }
    if path == base {
        return Some(name_of(path));
    }
    path.strip_prefix(base)?.strip_prefix('/')
}

/// The last part of a path.
pub(super) fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The one spelling of `path`: absolute, without empty and `.` parts.
///
/// Fails with a sentence for the model when the path climbs (`..`, `~`), is a Windows drive, is too long or
/// has control characters.
pub(super) fn normalize(path: &str) -> Result<String, String> {
    let chars = path.chars().count();
    if chars > MAX_PATH_CHARS {
        return Err(format!("A path may have at most {MAX_PATH_CHARS} characters, this one has {chars}."));
    }
    if path.chars().any(char::is_control) {
        return Err("A path must not contain control characters.".into());
    }
    let drive = matches!(path.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
    if drive || path.starts_with('~') {
        return Err(format!(
            "'{path}' is not a path of these files: write it from the root, like /notes/a.md."
        ));
    }
    let parts: Vec<&str> = path.split(['/', '\\']).filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(format!(
            "'{path}' climbs out with '..': write the path from the root, like /notes/a.md."
        ));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// As [`normalize`], for a path that must name a file.
pub(super) fn normalize_file(path: &str) -> Result<String, String> {
    let path = normalize(path)?;
    if path == "/" {
        return Err("file_path must name a file, like /notes/a.md.".into());
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_path_becomes_one() {
        for spelling in ["/a/b.md", "a/b.md", "/a//b.md", "/./a/./b.md", "/a/b.md/", "a\\b.md"] {
            assert_eq!(normalize(spelling).as_deref(), Ok("/a/b.md"), "{spelling}");
        }
        assert_eq!(normalize("").as_deref(), Ok("/"));
        assert_eq!(normalize("/a..b").as_deref(), Ok("/a..b"));
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in ["..", "/a/../b", "~/x", "C:\\x", "/a\nb", "/\0", "a\\..\\b", &"x".repeat(1025)] {
            assert!(normalize(path).is_err(), "{path:?}");
        }
        assert!(normalize_file("/").is_err());
    }

    #[test]
    fn files_are_found_whatever_form_the_publisher_gave_them() {
        let state: State = [(
            Name::from(FILES),
            Value::map([
                ("plain.txt", Value::from("one")),
                ("/lines.txt", Value::map([("content", Value::list(vec!["a".into(), "b".into()]))])),
                ("/whole.txt", Value::map([("content", Value::from("a\nb"))])),
                ("/image.png", Value::map([("content", Value::from("iVBO")), ("encoding", "base64".into())])),
                ("/gone.txt", Value::Null),
            ]),
        )]
        .into();
        let files = Files::of(&state);
        let text = |path: &str| files.get(path).and_then(File::text).map(Cow::into_owned);
        assert_eq!(text("/plain.txt").as_deref(), Some("one"));
        assert_eq!(text("/lines.txt").as_deref(), Some("a\nb"));
        assert_eq!(text("/whole.txt").as_deref(), Some("a\nb"));
        assert_eq!(text("/image.png"), None);
        assert_eq!(files.len(), 4, "a removed file is not there");
    }
}
