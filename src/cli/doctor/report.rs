//! What the doctor found, for people and for scripts.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::json;

use crate::{
    cli::error::Error,
    queue::nats::Numbers,
    store::{FIRST, Found, Overview},
};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Something is to be done.
    Wrong,
    /// Worth knowing.
    Note,
}

/// Something that was found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    /// One word for scripts.
    pub(super) code: &'static str,
    pub(super) severity: Severity,
    /// One sentence.
    pub(super) what: String,
    pub(super) count: u64,
    /// The first of them.
    pub(super) ids: Vec<String>,
    /// What to do about it.
    pub(super) repair: &'static str,
    /// What was done about it.
    pub(super) repaired: Option<String>,
}

/// A server that was asked.
#[derive(Debug, Serialize)]
struct Server {
    name: &'static str,
    version: Option<String>,
    error: Option<String>,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub(super) struct Report {
    servers: Vec<Server>,
    pub(super) overview: Option<Overview>,
    pub(super) broker: Option<Numbers>,
    pub(super) findings: Vec<Finding>,
}

impl Report {
    /// A server answers.
    pub(super) fn reached(&mut self, name: &'static str, version: String) {
        self.servers.push(Server { name, version: Some(version), error: None });
    }

    /// A server does not.
    pub(super) fn unreached(&mut self, name: &'static str, error: &(dyn std::error::Error + 'static)) {
        let text = error.to_string();
        let (severity, repair) = if name == "dragonfly" {
            (Severity::Note, "jobs run without live events; repair the server, see STREAM_UNAVAILABLE")
        } else {
            (Severity::Wrong, "repair the server, or correct its address; nothing else was looked at there")
        };
        let what = format!("{name} cannot be used: {text}");
        self.servers.push(Server { name, version: None, error: Some(text) });
        self.add(Finding {
            severity,
            ids: vec![name.to_owned()],
            ..Finding::wrong("server", what, 1, repair)
        });
    }

    /// A look that could not be finished.
    pub(super) fn unfinished(&mut self, error: &Error) {
        let what = format!("not everything could be looked at: {error}");
        self.add(Finding::wrong("unfinished", what, 1, "run the doctor again"));
    }

    pub(super) fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Adds rows of one kind, if there are any.
    pub(super) fn add_found(
        &mut self,
        (code, severity): (&'static str, Severity),
        found: &Found,
        (what, repair): (&str, &'static str),
    ) {
        if found.count > 0 {
            let what = format!("{} {what}, the oldest for {:.0} s", found.count, found.oldest_seconds);
            let ids = found.first.clone();
            self.add(Finding { severity, ids, ..Finding::wrong(code, what, found.count, repair) });
        }
    }

    /// Notes what was done about the finding of this code.
    pub(super) fn repaired(&mut self, code: &str, done: String) {
        if let Some(finding) = self.findings.iter_mut().find(|finding| finding.code == code) {
            finding.repaired = Some(done);
        }
    }

    pub(super) fn has(&self, code: &str) -> bool {
        self.findings.iter().any(|finding| finding.code == code)
    }

    /// Whether nothing is left to do.
    pub(super) fn is_healthy(&self) -> bool {
        self.findings.iter().all(|found| found.severity == Severity::Note || found.repaired.is_some())
    }

    pub(super) fn print(&self, as_json: bool, verbose: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if as_json {
            let report = json!({
                "healthy": self.is_healthy(),
                "servers": self.servers,
                "store": self.overview,
                "broker": self.broker,
                "findings": self.findings,
            });
            return writeln!(out, "{report:#}");
        }
        if verbose {
            self.numbers(&mut out)?;
        }
        for finding in &self.findings {
            let Finding { code, severity, what, count, ids, repair, repaired } = finding;
            let mark = if *severity == Severity::Note { "note: " } else { "" };
            writeln!(out, "{mark}{code}: {}", what.replace(char::is_control, " "))?;
            let rest = count.saturating_sub(u64::try_from(ids.len()).unwrap_or(u64::MAX));
            let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            if !ids.is_empty() {
                writeln!(out, "    {}{more}", ids.join(", "))?;
            }
            match repaired {
                Some(done) => writeln!(out, "    done: {done}")?,
                None => writeln!(out, "    do: {repair}")?,
            }
        }
        Ok(())
    }

    fn numbers(&self, out: &mut impl Write) -> io::Result<()> {
        for Server { name, version, error } in &self.servers {
            writeln!(out, "{name}: {}", version.as_deref().or(error.as_deref()).unwrap_or("?"))?;
        }
        let tables = [
            self.broker.as_ref().and_then(|numbers| serde_json::to_value(numbers).ok()),
            self.overview.as_ref().and_then(|overview| serde_json::to_value(overview).ok()),
        ];
        for table in tables.iter().flatten() {
            for (name, value) in table.as_object().into_iter().flatten() {
                match value.as_object() {
                    Some(inner) if inner.contains_key("first") => {
                        writeln!(out, "{name}: {}", value["count"])?;
                    }
                    Some(inner) => {
                        for (key, number) in inner {
                            writeln!(out, "{name} {key}: {number}")?;
                        }
                    }
                    None if name == "version" => {}
                    None => writeln!(out, "{name}: {value}")?,
                }
            }
        }
        Ok(())
    }
}

impl Finding {
    pub(super) fn wrong(code: &'static str, what: String, count: u64, repair: &'static str) -> Self {
        Self { code, severity: Severity::Wrong, what, count, ids: Vec::new(), repair, repaired: None }
    }

    /// The same with the first of these ids.
    pub(super) fn with_ids(self, ids: impl Iterator<Item = String>) -> Self {
        Self { ids: ids.take(FIRST).collect(), ..self }
    }
}
