//! Catalogues of agents to stamp: CSV files with a header, or JSON lists of objects. Home of csv.
//!
//! **Invariant:** a cell is data: whatever it holds, it stays one text.

use serde_json::{Map as JsonMap, Value as Json};

use crate::graph::Filling;

/// Most agents of one catalogue: each is checked and stored on its own, and ten thousand take a minute.
const MOST: usize = 10_000;

/// An entry, or what is wrong with it.
pub(super) type Entry = Result<Filling, String>;

/// The entries of a catalogue, in its order; an error is about the whole file.
pub(super) fn read(path: &str, bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let is_csv = path.rsplit('.').next().is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
    let entries = if is_csv { rows(bytes)? } else { objects(bytes)? };
    if entries.len() > MOST {
        return Err(format!("has {} entries, at most {MOST} are allowed", entries.len()));
    }
    Ok(entries.into_iter().map(filling).collect())
}

fn rows(bytes: &[u8]) -> Result<Vec<JsonMap<String, Json>>, String> {
    // Spreadsheets begin UTF-8 files with a mark that is no part of the first column's name.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = csv::Reader::from_reader(bytes);
    let head = reader.headers().map_err(|error| error.to_string())?.clone();
    if let Some(twice) = head.iter().enumerate().find(|(at, name)| head.iter().take(*at).any(|n| n == *name))
    {
        return Err(format!("has two columns `{}`", twice.1));
    }
    let row = |row: Result<csv::StringRecord, csv::Error>| {
        let row = row.map_err(|error| error.to_string())?;
        // An empty cell is nothing filled in, so that a default can hold.
        let cells = head.iter().zip(row.iter()).filter(|(_, cell)| !cell.is_empty());
        Ok(cells.map(|(name, cell)| (name.to_owned(), Json::from(cell))).collect())
    };
    reader.records().map(row).collect()
}

fn objects(bytes: &[u8]) -> Result<Vec<JsonMap<String, Json>>, String> {
    let list: Vec<JsonMap<String, Json>> =
        serde_json::from_slice(bytes).map_err(|error| format!("is no list of objects: {error}"))?;
    Ok(list)
}

fn filling(mut fields: JsonMap<String, Json>) -> Entry {
    let mut text = |field: &str| match fields.shift_remove(field) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        // A version is easily written as a number.
        Some(Json::Number(number)) => Ok(Some(number.to_string())),
        Some(Json::Bool(_) | Json::Array(_) | Json::Object(_)) => Err(format!("`{field}` must be a text")),
    };
    let name = text("name")?.filter(|name| !name.is_empty()).ok_or("needs a `name`")?;
    let (version, description) = (text("version")?, text("description")?);
    let variables = match fields.shift_remove("variables") {
        Some(Json::Object(variables)) => variables.into_iter().chain(fields).collect(),
        Some(_) => return Err("`variables` must be an object".to_owned()),
        None => fields,
    };
    Ok(Filling { name, version, description, variables })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entries(path: &str, text: &str) -> Vec<Filling> {
        let read = read(path, text.as_bytes()).expect("a catalogue");
        read.into_iter().map(|entry| entry.expect("an entry")).collect()
    }

    #[test]
    fn a_csv_and_a_json_catalogue_say_the_same() {
        let csv =
            "\u{feff}name,version,task,context\r\nbilling,2,\"Say \"\"hi\"\", {{ now }}\nand bye\",\r\n";
        let json = json!([{"name": "billing", "version": 2, "variables": {"task": "Say \"hi\", {{ now }}\nand bye"}}]);
        let from_csv = entries("x.CSV", csv);
        assert_eq!(from_csv, entries("x.json", &json.to_string()));
        assert_eq!(
            from_csv[0].variables.keys().collect::<Vec<_>>(),
            ["task"],
            "an empty cell fills in nothing"
        );
    }

    #[test]
    fn mistakes_are_told_for_the_file_or_the_entry() {
        for (path, text, expected) in [
            ("a.csv", "name,name\na,b\n", "two columns `name`"),
            ("a.csv", "name,task\na,b,c\n", "found record with 3 fields"),
            ("a.json", "{}", "is no list of objects"),
        ] {
            let error = read(path, text.as_bytes()).expect_err("it is wrong");
            assert!(error.contains(expected), "{error}");
        }
        let read =
            read("a.json", br#"[{"name": "a"}, {"task": "x"}, {"name": []}, {"name": "b", "variables": 1}]"#);
        let wrong: Vec<_> = read.expect("a list").into_iter().filter_map(Result::err).collect();
        assert_eq!(wrong, ["needs a `name`", "`name` must be a text", "`variables` must be an object"]);
    }
}
