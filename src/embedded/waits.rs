//! What a thread waits for when nobody runs it.

use serde_json::Value as Json;

use crate::{
    ids::{Namespace, ThreadId},
    pregel,
    store::{Checkpoints, Error, sqlite::SqliteStore},
    value::Value,
};

/// The questions of a thread that wait for answers, `[{id, value, response_schema?}]`; `None` when nothing waits or
/// nothing is stored.
pub async fn waiting(store: &SqliteStore, thread_id: &ThreadId) -> Result<Option<Json>, Error> {
    let saved = store.load(thread_id, &Namespace::root(), None).await?;
    let questions = saved.map(|saved| pregel::waiting(&saved.writes)).unwrap_or_default();
    let questions: Vec<Value> = questions.into_iter().map(Value::Interrupt).collect();
    Ok((!questions.is_empty()).then(|| Value::list(questions).to_json()))
}
