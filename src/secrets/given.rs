//! Secrets that the operator lists by name: values in settings, and files that settings name.

use std::{io, path::PathBuf};

use async_trait::async_trait;
use indexmap::IndexMap;
use secrecy::SecretString;
use tokio::io::AsyncReadExt;

use super::{MAX_VALUE_BYTES, Source, Trouble, trimmed};

/// Where the value of a listed secret is.
#[derive(Clone, Debug)]
pub enum Given {
    /// In the setting itself.
    Value(SecretString),
    /// In a file, which is read each time: what is mounted changes.
    File(PathBuf),
}

/// Listed secrets by name.
pub(super) struct GivenValues(pub(super) IndexMap<String, Given>);

#[async_trait]
impl Source for GivenValues {
    async fn read(&self, name: &str) -> Result<Option<SecretString>, Trouble> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Given::Value(value)) => Ok(Some(value.clone())),
            Some(Given::File(path)) => match read_file(path.clone()).await? {
                Some(value) => Ok(Some(value)),
                // It is promised by name, so it is late rather than unknown.
                None => Err(Box::new(io::Error::from(io::ErrorKind::NotFound))),
            },
        }
    }
}

/// The text of a small file; `None` when there is none.
pub(super) async fn read_file(path: PathBuf) -> Result<Option<SecretString>, Trouble> {
    let file = match tokio::fs::File::open(&path).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Box::new(error)),
    };
    if !file.metadata().await?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_VALUE_BYTES).expect("a constant that fits");
    file.take(most + 1).read_to_end(&mut bytes).await?;
    if bytes.len() > MAX_VALUE_BYTES {
        return Err(format!("its file is larger than {MAX_VALUE_BYTES} bytes").into());
    }
    let text = String::from_utf8(bytes).map_err(|_| "its file is not UTF-8")?;
    Ok(Some(trimmed(&text)))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[tokio::test]
    async fn a_file_is_read_anew_each_time_and_missed_when_it_is_away() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let source = GivenValues(IndexMap::from([("KEY".to_owned(), Given::File(path.clone()))]));
        for value in ["first-v4lue", "second-v4lue"] {
            std::fs::write(&path, format!("{value}\n")).expect("written");
            let read = source.read("KEY").await.expect("readable").expect("there");
            assert_eq!(read.expose_secret(), value);
        }
        std::fs::remove_file(&path).expect("removed");
        assert!(source.read("KEY").await.is_err(), "it was promised");
        std::fs::write(&path, vec![b'x'; MAX_VALUE_BYTES + 1]).expect("written");
        let error = source.read("KEY").await.expect_err("too large").to_string();
        assert_eq!(error, "its file is larger than 65536 bytes");
        assert!(source.read("OTHER").await.expect("no trouble").is_none());
    }
}
