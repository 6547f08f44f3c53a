//! `agents stamp`: one definition with variables, many agents.
//!
//! **Invariant:** nothing is stored unless everything in the catalogue can run.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use clap::Args;
use serde_json::{Value as Json, json};

use super::{
    super::{
        error::{Error, Exit},
        request,
    },
    Checked, catalogue,
};
use crate::{
    config::Config,
    graph::{self, Stored},
    run,
    store::Agents,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A definition with variables
    #[arg(value_name = "TEMPLATE")]
    template: String,
    /// What to fill in: CSV with a header, or a JSON list
    #[arg(long, value_name = "FILE")]
    catalogue: String,
    /// Check everything, and store nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// Stamps every entry of the catalogue.
pub(super) async fn run(config: &Config, arguments: &Arguments) -> Result<Exit, Error> {
    let bytes = request::read(&arguments.template)?;
    // Who stores nothing and looks nothing up needs no database.
    if arguments.dry_run && graph::references(&bytes).is_empty() {
        return stamp(config, None, (&bytes, arguments)).await;
    }
    let store = super::connect(config).await?;
    let done = stamp(config, Some(&store), (&bytes, arguments)).await;
    store.close().await;
    done
}

async fn stamp(
    config: &Config,
    store: Option<&dyn Agents>,
    (bytes, arguments): (&[u8], &Arguments),
) -> Result<Exit, Error> {
    let template: Json = serde_json::from_slice(bytes).unwrap_or_default();
    let stored = match store {
        Some(store) => run::referred(store, bytes).await?,
        None => Stored::new(),
    };
    let entries = catalogue::read(&arguments.catalogue, &request::read(&arguments.catalogue)?);
    let wrong = |reason| Error::Catalogue { path: arguments.catalogue.clone(), reason };
    let entries = entries.map_err(wrong)?;
    let (stamped, mistakes) = stamp_all(&template, entries, (config, &stored));
    if !mistakes.is_empty() {
        for line in &mistakes {
            eprintln!("bad  {line}");
        }
        return Err(wrong(format!("{} entries cannot be stamped", mistakes.len())));
    }
    let mut out = io::stdout();
    let Some(store) = store.filter(|_| !arguments.dry_run) else {
        for Checked { agent } in &stamped {
            let (name, version, hash) = (&agent.name, &agent.version, &agent.hash);
            if arguments.json {
                let hash = format!("sha256:{hash}");
                writeln!(out, "{}", json!({"name": name, "version": version, "hash": hash, "is": "ok"}))?;
            } else {
                writeln!(out, "ok      {name}@{version}  sha256:{hash}")?;
            }
        }
        return Ok(Exit::Success);
    };
    let mut taken = 0;
    for checked in &stamped {
        taken += usize::from(!checked.store(store, &mut out, arguments.json).await?);
    }
    eprintln!("{} agents: {} stored or known, {taken} refused", stamped.len(), stamped.len() - taken);
    Ok(if taken == 0 { Exit::Success } else { Exit::Error })
}

/// The definitions of all entries, and a line for each entry that makes none.
fn stamp_all(
    template: &Json,
    entries: Vec<catalogue::Entry>,
    (config, stored): (&Config, &Stored),
) -> (Vec<Checked>, Vec<String>) {
    let (mut stamped, mut mistakes) = (Vec::new(), Vec::new());
    let mut known: HashMap<(String, String), String> = HashMap::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let number = index + 1;
        match entry
            .map_err(|reason| vec![reason])
            .and_then(|filling| stamp_one(template, &filling, (config, stored)))
        {
            Ok(checked) => {
                let agent = &checked.agent;
                let place = (agent.name.clone(), agent.version.clone());
                match known.insert(place, agent.hash.clone()) {
                    Some(other) if other != agent.hash => {
                        let (name, version) = (&agent.name, &agent.version);
                        mistakes.push(format!(
                            "entry {number}: {name}@{version} stands twice, with other content"
                        ));
                    }
                    Some(_) | None => stamped.push(checked),
                }
            }
            Err(reasons) => mistakes.push(format!("entry {number}: {}", reasons.join("; "))),
        }
    }
    (stamped, mistakes)
}

fn stamp_one(
    template: &Json,
    filling: &graph::Filling,
    (config, stored): (&Config, &Stored),
) -> Result<Checked, Vec<String>> {
    let definition = graph::stamp(template, filling)?;
    let version = definition["version"].as_str().ok_or_else(|| vec!["needs a `version`".to_owned()])?;
    let bytes = serde_json::to_vec_pretty(&definition).expect("JSON can be written as JSON");
    Checked::of((bytes.into(), stored), &filling.name, version, config)
        .map_err(|mistakes| mistakes.iter().map(|mistake| format!("{}: {mistake}", filling.name)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Sources;

    #[test]
    fn every_entry_becomes_a_definition_or_a_line_that_says_why_not() {
        let config = Config::load(&Sources::default()).expect("the defaults are valid");
        let template = json!({
            "version": "1", "variables": {"task": {}},
            "nodes": [{"id": "a", "type": "agent", "model": "scripted:x", "system_prompt": "{{ task }}"}],
        });
        let entries = json!([
            {"name": "a", "task": "x"}, {"name": "a", "version": "2", "task": "y"}, {"name": "a", "task": "z"},
            {"name": "b"}, {"name": "c d", "task": "x"}, {"name": "e", "task": "x", "tsak": "y"}, {},
        ]);
        let entries = catalogue::read("x.json", entries.to_string().as_bytes()).expect("a list");
        let (stamped, mistakes) = stamp_all(&template, entries, (&config, &Stored::new()));
        let names = stamped.iter().map(|checked| format!("{}@{}", checked.agent.name, checked.agent.version));
        assert_eq!(names.collect::<Vec<_>>(), ["a@1", "a@2"]);
        assert_eq!(mistakes.len(), 5, "{mistakes:#?}");
        for (line, part) in mistakes.iter().zip([
            "stands twice",
            "/variables/task: has no value",
            "c d@1: name",
            "`tsak`",
            "`name`",
        ]) {
            assert!(line.contains(part), "{line}");
        }
    }
}
