//! One line that says what is waited for, where a person waits.

use std::io::{IsTerminal, Write};

/// A line on standard error while it lives; nothing when standard error is no terminal.
#[must_use = "the line disappears when this is dropped"]
pub(super) struct Progress(());

impl Progress {
    /// Shows `what` is going on.
    pub(super) fn show(what: &str) -> Option<Self> {
        let mut err = std::io::stderr();
        if !err.is_terminal() {
            return None;
        }
        // The line is a courtesy; without it the command works as well.
        let _ = write!(err, "\r\x1b[2K{what} …");
        let _ = err.flush();
        Some(Self(()))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let _ = write!(std::io::stderr(), "\r\x1b[2K");
    }
}
