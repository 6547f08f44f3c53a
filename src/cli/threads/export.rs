//! Everything that is stored of a thread, as JSON lines.

use std::io::{self, Write};

use serde_json::json;

use super::print;
use crate::{
    cli::error::Error,
    ids::ThreadId,
    store::{Checkpoints, ThreadView, Threads, postgres::PostgresStore},
};

/// Writes a line about the thread, then one for each checkpoint: the root graph's first, the oldest first.
pub(super) async fn run(store: &PostgresStore, thread: &ThreadId, view: &ThreadView) -> Result<(), Error> {
    let mut out = io::stdout();
    writeln!(out, "{}", json!({ "thread": view }))?;
    for ns in store.graphs(thread).await? {
        // One by one: a long thread does not fit into memory.
        for id in store.checkpoint_ids(thread, &ns).await?.into_iter().rev() {
            if let Some(saved) = store.load(thread, &ns, Some(&id)).await? {
                let mut line = print::whole(&saved);
                line["ns"] = ns.as_str().into();
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(())
}
