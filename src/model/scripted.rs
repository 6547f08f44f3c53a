//! A model that says what its script says: for demos and tests, without a network or a key.
//!
//! **Invariant:** it keeps nothing between calls: which reply comes follows from the conversation alone, so a
//! run that is resumed elsewhere hears what it would have heard here.

mod play;
mod script;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde_json::Value as Json;

use self::{play::play, script::Script};
use super::{ChatModel, Chunk, Error, Request};
use crate::graph::ModelSettings;

/// Most bytes of a script's file; a definition may be as large.
const MAX_SCRIPT_BYTES: u64 = 1 << 20;
/// Longest name of a script's file; what file systems allow, less the ending.
const MAX_STEM_BYTES: usize = 200;

/// The scripted provider.
pub(super) struct Scripted {
    /// Where scripts are that are not in the definition.
    dir: Option<PathBuf>,
}

impl Scripted {
    /// The provider; `dir` holds a `<model>.json` for each model without a script of its own.
    pub(super) fn new(dir: Option<PathBuf>) -> Self {
        Self { dir }
    }

    async fn script(&self, settings: &ModelSettings) -> Result<Script, Error> {
        match (&settings.script, &self.dir) {
            (Some(json), _) => Script::parse(json),
            (None, Some(dir)) => Script::parse(&read(dir.join(file_name(&settings.model)?)).await?),
            (None, None) => Err(Error::Settings(
                "a scripted model needs a `script`, or a file in SCRIPTED_MODELS_DIR, which is not set"
                    .into(),
            )),
        }
    }
}

#[async_trait]
impl ChatModel for Scripted {
    async fn call(&self, request: Arc<Request>) -> Result<BoxStream<'static, Result<Chunk, Error>>, Error> {
        let script = self.script(&request.settings).await?;
        play(&script, &request).await
    }
}

/// The file of a model; its name comes from a definition and must not lead out of the folder.
fn file_name(model: &str) -> Result<String, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let is_stem = !model.is_empty() && model.len() <= MAX_STEM_BYTES && !model.starts_with('.');
    if !is_stem || !model.chars().all(plain) {
        return Err(Error::Settings("the name of a scripted model may have only A-Z a-z 0-9 . _ -".into()));
    }
    Ok(format!("{model}.json"))
}

async fn read(path: PathBuf) -> Result<Json, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let refused = |what: String| Error::Settings(format!("script {name:?}: {what}"));
    let unread = |error: std::io::Error| refused(error.kind().to_string());
    if tokio::fs::metadata(&path).await.map_err(unread)?.len() > MAX_SCRIPT_BYTES {
        return Err(refused(format!("larger than {MAX_SCRIPT_BYTES} bytes")));
    }
    let text = tokio::fs::read(&path).await.map_err(unread)?;
    serde_json::from_slice(&text).map_err(|error| refused(error.to_string()))
}

#[cfg(test)]
mod tests;
