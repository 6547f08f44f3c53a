//! Finding virtual files: `ls`, `glob`, `grep`.

use std::collections::BTreeSet;

use globset::{GlobBuilder, GlobMatcher};

use super::{
    files::{File, Files, name_of, normalize, relative},
    optional_text, text,
};
use crate::tool::{Answer, Call, cut};

/// Longest glob pattern in bytes; a longer one is a mistake, and compiling it costs.
const MAX_PATTERN_BYTES: usize = 1_000;

/// Characters of one matching line that `grep` shows.
const MAX_MATCH_CHARS: usize = 1_000;

pub(super) fn ls(call: &Call<'_>) -> Result<Answer, String> {
    let base = base(call)?;
    let files = Files::of(call.state);
    let entries: BTreeSet<String> = files.below(&base).map(|(path, _)| entry(path, &base)).collect();
    Ok(found(entries, || format!("No files found in '{base}'.")))
}

/// The file itself when it lies directly in `base`, else the directory in `base` that leads to it.
fn entry(path: &str, base: &str) -> String {
    let below = relative(path, base).unwrap_or(path);
    match below.find('/') {
        Some(end) => path[..path.len() - below.len() + end + 1].to_owned(),
        None => path.to_owned(),
    }
}

pub(super) fn glob(call: &Call<'_>) -> Result<Answer, String> {
    let pattern = text(call.args, "pattern")?;
    let base = base(call)?;
    let matcher = compile(pattern)?;
    let files = Files::of(call.state);
    let mut matches: Vec<(&str, File<'_>)> = files
        .below(&base)
        .filter(|(path, _)| {
            // A pattern from the root is matched from the root, whatever `path` narrows the search to.
            let subject = if pattern.starts_with('/') { path } else { relative(path, &base).unwrap_or(path) };
            matcher.is_match(subject)
        })
        .collect();
    matches.sort_by_key(|(_, file)| std::cmp::Reverse(file.modified_at()));
    Ok(found(matches.into_iter().map(|(path, _)| path.to_owned()), || "No files found.".into()))
}

pub(super) fn grep(call: &Call<'_>) -> Result<Answer, String> {
    let pattern = text(call.args, "pattern")?;
    if pattern.is_empty() {
        return Err("pattern must not be empty.".into());
    }
    let mode = Mode::of(optional_text(call.args, "output_mode")?)?;
    let filter = optional_text(call.args, "glob")?;
    let matcher = filter.map(compile).transpose()?;
    let base = base(call)?;
    let files = Files::of(call.state);
    let rows = files
        .below(&base)
        .filter(|(path, _)| match (&matcher, filter) {
            (Some(matcher), Some(glob)) if glob.starts_with('/') => matcher.is_match(path),
            (Some(matcher), Some(glob)) if glob.contains('/') => {
                relative(path, &base).is_some_and(|below| matcher.is_match(below))
            }
            (Some(matcher), _) => matcher.is_match(name_of(path)),
            (None, _) => true,
        })
        .filter_map(|(path, file)| mode.row(path, &file.text()?, pattern));
    Ok(found(rows.collect::<Vec<_>>(), || "No matches found.".into()))
}

/// What `grep` shows of a file with matches.
#[derive(Clone, Copy)]
enum Mode {
    Paths,
    Lines,
    Count,
}

impl Mode {
    fn of(name: Option<&str>) -> Result<Self, String> {
        match name {
            None | Some("files_with_matches") => Ok(Self::Paths),
            Some("content") => Ok(Self::Lines),
            Some("count") => Ok(Self::Count),
            Some(_) => Err("output_mode must be files_with_matches, content or count.".into()),
        }
    }

    /// What is said of the file at `path`; `None` when no line of `content` contains `pattern`.
    fn row(self, path: &str, content: &str, pattern: &str) -> Option<String> {
        let mut matches =
            content.split('\n').enumerate().filter(|(_, line)| line.contains(pattern)).peekable();
        matches.peek()?;
        Some(match self {
            Self::Paths => path.to_owned(),
            Self::Count => format!("{path}: {}", matches.count()),
            Self::Lines => {
                let lines = matches.map(|(index, line)| {
                    let line: String = line.chars().take(MAX_MATCH_CHARS).collect();
                    format!("\n  {}: {line}", index + 1)
                });
                format!("{path}:{}", lines.collect::<String>())
            }
        })
    }
}

fn base(call: &Call<'_>) -> Result<String, String> {
    normalize(optional_text(call.args, "path")?.unwrap_or("/"))
}

fn compile(pattern: &str) -> Result<GlobMatcher, String> {
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(format!("A glob pattern may have at most {MAX_PATTERN_BYTES} bytes."));
    }
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    glob.map(|glob| glob.compile_matcher()).map_err(|error| format!("The glob pattern is not valid: {error}"))
}

fn found(rows: impl IntoIterator<Item = String>, none: impl FnOnce() -> String) -> Answer {
    let rows: Vec<String> = rows.into_iter().collect();
    if rows.is_empty() { Answer::success(none()) } else { Answer::success(cut(rows.join("\n"))) }
}
