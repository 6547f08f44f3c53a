//! A folder with a file per secret, as Kubernetes and External Secrets mount it.
//!
//! A file is read each time it is asked for: Kubernetes replaces all files of a mounted secret at once when it changes,
//! and a read is a few microseconds beside the request that needs it.

use std::path::PathBuf;

use async_trait::async_trait;
use secrecy::SecretString;

use super::{Source, Trouble, given::read_file};

/// The folder.
pub(super) struct Folder(pub(super) PathBuf);

#[async_trait]
impl Source for Folder {
    async fn read(&self, name: &str) -> Result<Option<SecretString>, Trouble> {
        // Names are one part of a path that climbs nowhere.
        read_file(self.0.join(name)).await
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use secrecy::ExposeSecret;

    use super::*;

    #[tokio::test]
    async fn a_mounted_secret_changes_under_the_process() {
        // As the kubelet does: files lead through a link that is replaced.
        let mount = tempfile::tempdir().expect("a folder");
        let at = |name: &str| mount.path().join(name);
        for (version, value) in [("..1", "old-v4lue"), ("..2", "new-v4lue")] {
            fs::create_dir(at(version)).expect("made");
            fs::write(at(version).join("api-key"), value).expect("written");
        }
        symlink("..1", at("..data")).expect("linked");
        symlink("..data/api-key", at("api-key")).expect("linked");
        let folder = Folder(mount.path().to_owned());
        let read =
            async || folder.read("api-key").await.expect("readable").map(|v| v.expose_secret().to_owned());
        assert_eq!(read().await.as_deref(), Some("old-v4lue"));
        symlink("..2", at("..next")).expect("linked");
        fs::rename(at("..next"), at("..data")).expect("replaced");
        assert_eq!(read().await.as_deref(), Some("new-v4lue"));
        assert!(folder.read("other").await.expect("no trouble").is_none());
        assert!(folder.read("..data").await.expect("no trouble").is_none(), "a folder is no secret");
    }
}
