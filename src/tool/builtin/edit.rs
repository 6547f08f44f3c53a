//! Reading and changing one virtual file: `read_file`, `write_file`, `edit_file`.

use super::{
    files::{Files, MAX_FILE_BYTES, MAX_FILES, created, normalize_file},
    flag, integer, text,
};
use crate::tool::{Answer, Call, MAX_RESULT_CHARS};

/// Lines `read_file` shows when the model names no limit.
pub(super) const DEFAULT_READ_LINES: u64 = 2_000;

/// Characters of one row; a longer line goes on in rows numbered `5.1`, `5.2`, as LangGraph's deep agents do.
const MAX_ROW_CHARS: usize = 5_000;

/// Characters of an `old_string` repeated in an error: enough to recognise it.
const MAX_QUOTE_CHARS: usize = 200;

pub(super) fn read_file(call: &Call<'_>) -> Result<Answer, String> {
    let path = normalize_file(text(call.args, "file_path")?)?;
    let offset = integer(call.args, "offset")?.unwrap_or(0);
    let limit = integer(call.args, "limit")?.unwrap_or(DEFAULT_READ_LINES);
    if limit == 0 {
        return Err("limit must be at least 1.".into());
    }
    let files = Files::of(call.state);
    let content = files.expect_file(&path)?.expect_text(&path)?;
    if content.trim().is_empty() {
        return Ok(Answer::success(format!("File '{path}' exists but is empty.")));
    }
    // A final newline ends the last line; it does not start another one.
    let lines: Vec<&str> = content.strip_suffix('\n').unwrap_or(&content).split('\n').collect();
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    if start >= lines.len() {
        return Err(format!("offset {offset} is past the end: the file has {} lines.", lines.len()));
    }
    let count = usize::try_from(limit).unwrap_or(usize::MAX).min(lines.len() - start);
    Ok(Answer::success(numbered(&lines, start, start + count)))
}

/// The lines from `start` up to `end` with their numbers, as many as fit in an answer.
fn numbered(lines: &[&str], start: usize, end: usize) -> String {
    let mut out = String::new();
    let mut room = MAX_RESULT_CHARS;
    for (index, line) in lines.iter().enumerate().take(end).skip(start) {
        let row = row(index + 1, line);
        let size = row.chars().count() + 1;
        // The first line is always shown, as far as it fits: an answer without any would be read again.
        if size > room && index > start {
            return format!("{out}[output limit reached; go on with offset={index}]");
        }
        room = room.saturating_sub(size);
        out.push_str(&row);
        out.push('\n');
    }
    if end < lines.len() {
        return format!("{out}[lines {}-{end} of {}; go on with offset={end}]", start + 1, lines.len());
    }
    out.pop();
    out
}

fn row(number: usize, line: &str) -> String {
    let chars: Vec<char> = line.chars().collect();
    if chars.len() <= MAX_ROW_CHARS {
        return format!("{number:6}\t{line}");
    }
    let pieces = chars.chunks(MAX_ROW_CHARS).enumerate().map(|(index, piece)| {
        let piece: String = piece.iter().collect();
        let label = if index == 0 { number.to_string() } else { format!("{number}.{index}") };
        format!("{label:>6}\t{piece}")
    });
    pieces.collect::<Vec<_>>().join("\n")
}

pub(super) fn write_file(call: &Call<'_>) -> Result<Answer, String> {
    let path = normalize_file(text(call.args, "file_path")?)?;
    let content = text(call.args, "content")?;
    let files = Files::of(call.state);
    if files.get(&path).is_some() {
        return Err(format!(
            "Cannot write to '{path}' because it already exists. Read it and change it with edit_file, or \
             write to a new path."
        ));
    }
    if files.len() >= MAX_FILES {
        return Err(format!("There are already {MAX_FILES} files; change one of them with edit_file."));
    }
    check_size(content.len())?;
    let mut answer = Answer::success(format!("Wrote '{path}'."));
    answer.writes.push(created(&path, content, call.now));
    Ok(answer)
}

pub(super) fn edit_file(call: &Call<'_>) -> Result<Answer, String> {
    let path = normalize_file(text(call.args, "file_path")?)?;
    let (old, new) = (text(call.args, "old_string")?, text(call.args, "new_string")?);
    let everywhere = flag(call.args, "replace_all")?;
    let files = Files::of(call.state);
    let file = files.expect_file(&path)?;
    let content = file.expect_text(&path)?;
    let count = occurrences(&content, old, new)?;
    if count > 1 && !everywhere {
        return Err(format!(
            "old_string appears {count} times in '{path}'. Set replace_all to true to replace all of them, or \
             give more of the text around the one you mean: '{}'",
            quote(old)
        ));
    }
    // Before replacing: a short text found often and replaced by a long one can grow without bound.
    check_size((content.len() - count * old.len()).saturating_add(count.saturating_mul(new.len())))?;
    let replaced = if content.is_empty() { new.to_owned() } else { content.replace(old, new) };
    let places = if count == 1 { "1 place".to_owned() } else { format!("{count} places") };
    let mut answer = Answer::success(format!("Replaced the text in {places} of '{path}'."));
    answer.writes.push(file.replaced(&replaced, call.now));
    Ok(answer)
}

/// How often `old` stands in `content`: at least once.
fn occurrences(content: &str, old: &str, new: &str) -> Result<usize, String> {
    if old == new {
        return Err("old_string and new_string are the same; nothing would change.".into());
    }
    if old.is_empty() {
        // Only an empty file can be filled this way: write_file refuses a file that exists.
        return if content.is_empty() { Ok(1) } else { Err("old_string must not be empty.".into()) };
    }
    match content.matches(old).count() {
        0 => Err(format!(
            "old_string was not found in the file; it must match exactly, without line numbers: '{}'",
            quote(old)
        )),
        count => Ok(count),
    }
}

fn check_size(bytes: usize) -> Result<(), String> {
    if bytes > MAX_FILE_BYTES {
        return Err(format!("A file may have at most {MAX_FILE_BYTES} bytes, this would have {bytes}."));
    }
    Ok(())
}

fn quote(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTE_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
