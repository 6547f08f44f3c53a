//! Threads for people and for scripts.

use std::io::{self, Write};

use serde_json::{Map as JsonMap, Value as Json, json};

use crate::{
    cli::columns,
    graph::is_internal,
    ids::Namespace,
    pregel::{self, INTERRUPT},
    store::{Saved, ThreadSize, ThreadView},
};

fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

/// What a thread does, in a word.
fn doing(view: &ThreadView) -> &'static str {
    match (&view.owner, view.open_jobs, view.waits) {
        (Some(_), ..) => "owned",
        (None, 1.., _) => "queued",
        (None, 0, true) => "waits",
        (None, 0, false) => "idle",
    }
}

/// Prints threads, one per line.
pub(super) fn list(views: &[ThreadView], as_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        return views.iter().try_for_each(|view| writeln!(out, "{}", json!(view)));
    }
    let row = |view: &ThreadView| {
        [
            view.thread_id.clone(),
            doing(view).to_owned(),
            view.checkpoints.to_string(),
            view.step.map_or_else(|| "-".to_owned(), |step| step.to_string()),
            or_dash(view.ts.as_deref()),
            or_dash(view.job_id.as_deref()),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    columns::write(&mut out, ["THREAD", "STATE", "CHECKPOINTS", "STEP", "LAST", "JOB"], &rows)
}

/// Prints one thread.
pub(super) fn show(view: &ThreadView, graphs: &[Namespace], as_json: bool) -> io::Result<()> {
    let mut out = io::stdout();
    let mut shown = json!(view);
    shown["state"] = doing(view).into();
    let nested = graphs.iter().filter(|ns| !ns.is_root());
    shown["graphs"] = nested.map(Namespace::as_str).collect();
    if as_json {
        return writeln!(out, "{shown:#}");
    }
    for (name, value) in shown.as_object().into_iter().flatten() {
        match value {
            Json::Array(items) => {
                for item in items {
                    writeln!(out, "{name}: {}", columns::plain(item.as_str().unwrap_or_default()))?;
                }
            }
            Json::Null => {}
            Json::String(text) => writeln!(out, "{name}: {}", columns::plain(text))?,
            Json::Bool(_) | Json::Number(_) | Json::Object(_) => writeln!(out, "{name}: {value}")?,
        }
    }
    Ok(())
}

/// The nodes a checkpoint leads to.
fn next(saved: &Saved) -> Vec<String> {
    pregel::armed(&saved.checkpoint).iter().map(ToString::to_string).collect()
}

/// The questions that stand on a checkpoint.
fn questions(saved: &Saved) -> Vec<Json> {
    let asked = saved.writes.iter().filter(|write| &*write.channel == INTERRUPT);
    let lists = asked.map(|write| write.value.to_json());
    lists.flat_map(|asked| if let Json::Array(items) = asked { items } else { vec![asked] }).collect()
}

fn metadata(saved: &Saved) -> Json {
    let mut metadata = Json::Object(saved.metadata.extra.clone());
    metadata["source"] = saved.metadata.source.as_str().into();
    metadata["step"] = saved.metadata.step.into();
    metadata["parents"] = json!(saved.metadata.parents);
    metadata
}

/// Everything that is stored with a checkpoint.
pub(super) fn whole(saved: &Saved) -> Json {
    let writes = saved.writes.iter().map(|write| {
        json!({"task_id": write.task_id.as_str(), "idx": write.idx, "channel": write.channel,
            "value": write.value.to_json()})
    });
    let mut whole = snapshot(saved);
    whole["channel_versions"] = json!(saved.checkpoint.versions);
    whole["versions_seen"] = json!(saved.checkpoint.seen);
    whole["writes"] = writes.collect();
    whole
}

/// A checkpoint as a reader of states wants it.
fn snapshot(saved: &Saved) -> Json {
    let values = saved.checkpoint.values.iter().filter(|(name, _)| !is_internal(name));
    let values: JsonMap<_, _> = values.map(|(name, value)| (name.to_string(), value.to_json())).collect();
    json!({
        "checkpoint_id": saved.checkpoint.id,
        "parent_checkpoint_id": saved.parent,
        "ts": saved.checkpoint.ts,
        "metadata": metadata(saved),
        "next": next(saved),
        "interrupts": questions(saved),
        "values": values,
    })
}

/// Prints the state at a checkpoint.
pub(super) fn state(saved: &Saved, as_json: bool) -> io::Result<()> {
    let mut out = io::stdout();
    if as_json {
        return writeln!(out, "{:#}", snapshot(saved));
    }
    writeln!(
        out,
        "checkpoint {}  step {}  {}",
        saved.checkpoint.id, saved.metadata.step, saved.checkpoint.ts
    )?;
    let next = next(saved);
    if !next.is_empty() {
        writeln!(out, "next: {}", next.join(", "))?;
    }
    for question in questions(saved) {
        writeln!(out, "waits for: {question}")?;
    }
    for (name, value) in saved.checkpoint.values.iter().filter(|(name, _)| !is_internal(name)) {
        let messages: Vec<_> = value.messages().collect();
        if messages.is_empty() {
            writeln!(out, "{name}: {}", value.to_json())?;
            continue;
        }
        writeln!(out, "{name}:")?;
        for message in messages {
            writeln!(out, "  {}: {}", message.type_name(), columns::plain(&message.content.text()))?;
        }
    }
    Ok(())
}

/// Prints checkpoints, one per line.
pub(super) fn history(saved: &[Saved], as_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        return saved.iter().try_for_each(|saved| writeln!(out, "{}", snapshot(saved)));
    }
    let row = |saved: &Saved| {
        let text = |key: &str| or_dash(saved.metadata.extra.get(key).and_then(Json::as_str));
        let next = if questions(saved).is_empty() {
            next(saved).join(",")
        } else {
            format!("{} (waits)", next(saved).join(","))
        };
        [
            saved.checkpoint.id.to_string(),
            saved.metadata.step.to_string(),
            saved.metadata.source.as_str().to_owned(),
            saved.checkpoint.ts.clone(),
            text("job_id"),
            next,
        ]
    };
    let rows: Vec<_> = saved.iter().map(row).collect();
    columns::write(&mut out, ["CHECKPOINT", "STEP", "SOURCE", "TIME", "JOB", "NEXT"], &rows)
}

/// Prints what threads take.
pub(super) fn report(sizes: &[ThreadSize], as_json: bool) -> io::Result<()> {
    const TABLES: [&str; 5] =
        ["checkpoints", "checkpoint_blobs", "checkpoint_writes", "executor_job", "executor_effect"];
    let mut out = io::stdout().lock();
    if as_json {
        return sizes.iter().try_for_each(|size| writeln!(out, "{}", json!(size)));
    }
    let row = |size: &ThreadSize| {
        let of = |table: &str| size.tables.get(table).copied().unwrap_or_default().to_string();
        let [checkpoints, blobs, writes, jobs, effects] = TABLES.map(of);
        [size.thread_id.clone(), size.bytes.to_string(), checkpoints, blobs, writes, jobs, effects]
    };
    let rows: Vec<_> = sizes.iter().map(row).collect();
    let head = ["THREAD", "BYTES", "CHECKPOINTS", "BLOBS", "WRITES", "JOBS", "EFFECTS"];
    columns::write(&mut out, head, &rows)
}
