//! What a server says without being asked: how far a call is, and that its tools have changed. Nothing that it asks of
//! us is done: it is told that we offer neither models nor files nor people.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rmcp::{
    ClientHandler, RoleClient,
    model::{ClientCapabilities, ClientConfig, Implementation, ProgressNotificationParam, ProgressToken},
    service::NotificationContext,
};
use tokio::sync::broadcast;

use crate::tool::{Progress, shorten};

/// Words on progress that wait for the calls they are about; slow ones miss the oldest.
const WAITING: usize = 256;

/// Characters of a word on progress.
const MAX_MESSAGE_CHARS: usize = 1_000;

/// Hears one server in one session.
#[derive(Clone, Debug)]
pub(super) struct Ear {
    progress: broadcast::Sender<(ProgressToken, Progress)>,
    has_changed: Arc<AtomicBool>,
}

impl Ear {
    /// Has heard nothing.
    pub(super) fn new() -> Self {
        Self { progress: broadcast::Sender::new(WAITING), has_changed: Arc::default() }
    }

    /// What is said on progress from now on.
    pub(super) fn progress(&self) -> broadcast::Receiver<(ProgressToken, Progress)> {
        self.progress.subscribe()
    }

    /// Whether the server's tools have changed.
    pub(super) fn has_changed(&self) -> bool {
        self.has_changed.load(Ordering::Acquire)
    }

    /// They are about to be listed.
    pub(super) fn lists(&self) {
        self.has_changed.store(false, Ordering::Release);
    }
}

impl ClientHandler for Ear {
    fn get_info(&self) -> ClientConfig {
        let own = Implementation::new("agent-executor", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), own)
    }

    async fn on_progress(&self, said: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        let message = said.message.map(|text| shorten(text, MAX_MESSAGE_CHARS));
        let progress = Progress { done: said.progress, total: said.total, message };
        // Nobody may be waiting any more.
        let _ = self.progress.send((said.progress_token, progress));
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.has_changed.store(true, Ordering::Release);
    }
}
