//! Logs, traces and metrics: what operators see of the process.
//!
//! **Invariant:** above DEBUG no log line, span or label carries a secret, a prompt, a message's text or a
//! tool's arguments; whoever logs leaves them out, and [`scrub`] takes out the secrets that come along all the same.

mod bounded;
mod exporter;
pub mod label;
pub mod metric;
mod log;
mod recorder;
pub mod scrub;
mod trace;

pub use bounded::{Gate, InUse, Limited, Pass, Reserved};
pub use metrics_exporter_prometheus::PrometheusHandle;
pub use recorder::{metrics, run_upkeep};
pub use trace::{set_parent, trace_id, traceparent_of};

use std::{
    collections::HashMap,
    io::{IsTerminal, Write as _},
    time::Duration,
};

use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, ParseError, filter_fn},
    fmt::writer::BoxMakeWriter,
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

/// Longest wait for the last spans to reach the collector; a dead collector must not eat the shutdown grace.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// Crates that speak too much below `warn` for anybody who runs this program.
const CHATTY: [&str; 9] =
    ["opentelemetry", "hyper", "h2", "reqwest", "rustls", "tower", "fred", "sqlx", "async_nats"];

/// Crates that write what they were sent into their lines, arguments of tools included; what goes wrong in them is
/// reported by whoever calls them.
const TELLTALE: &str = "rmcp=off";

/// The words for levels.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// How the process reports what it does.
#[derive(Clone, Debug)]
pub struct Config {
    /// `error`, `warn`, `info`, `debug`, `trace`, `off`, or directives such as `info,agent_executor::queue=debug`.
    pub log_level: String,
    /// How a line looks.
    pub log_format: LogFormat,
    /// Where lines go.
    pub log_target: LogTarget,
    /// The collector of traces; `None` switches tracing off.
    pub otlp: Option<OtlpConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log_level: "info".to_owned(),
            log_format: LogFormat::Json,
            log_target: LogTarget::Stdout,
            otlp: None,
        }
    }
}

/// Where traces go: OTLP over HTTP with protobuf bodies.
#[derive(Clone)]
pub struct OtlpConfig {
    /// Base address of the collector; `/v1/traces` is appended.
    pub endpoint: String,
    /// `service.name` of the resource.
    pub service_name: String,
    /// Headers of every export, such as an authorization; may hold secrets.
    pub headers: HashMap<String, String>,
}

impl std::fmt::Debug for OtlpConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OtlpConfig")
            .field("endpoint", &self.endpoint)
            .field("service_name", &self.service_name)
            .finish_non_exhaustive()
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output; what `serve` uses.
    Stdout,
    /// Standard error; for commands whose standard output is their answer.
    Stderr,
}

/// Why the reporting cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `LOG_LEVEL` holds a word that is no level; the filter would take it for a module.
    #[error("LOG_LEVEL: {0:?} is no level")]
    Word(String),
    /// `LOG_LEVEL` is neither a level nor a list of directives.
    #[error("LOG_LEVEL is neither a level nor a list of directives")]
    Level(#[from] ParseError),
    /// The exporter of traces cannot be built.
    #[error("the exporter of traces cannot be built")]
    Otlp(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Logs have been set up already.
    #[error("logs have been set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

impl Error {
    /// The code operators find in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        "TELEMETRY_INVALID"
    }
}

/// Keeps the exporter of traces; ends with [`Guard::shutdown`].
#[must_use = "the last spans are lost when the guard is not shut down"]
#[derive(Debug)]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Guard {
    /// Sends what has not been sent yet; waits at most three seconds.
    pub async fn shutdown(self) {
        let Some(provider) = self.provider else { return };
        // The exporter blocks on its own thread; a worker thread of the runtime must not.
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_LIMIT)).await;
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last traces were not exported"),
            Err(error) => tracing::warn!(%error, "the exporter of traces panicked"),
        }
    }
}

/// Sets up logs and, when configured, traces for the whole process. Once per process.
pub fn init(config: &Config) -> Result<Guard, Error> {
    let provider = config.otlp.as_ref().map(trace::provider).transpose()?;
    let traces = provider.as_ref().map(trace::layer);
    tracing_subscriber::registry().with(log_layer(config)?).with(traces).try_init()?;
    std::panic::set_hook(Box::new(tell_panic));
    Ok(Guard { provider })
}

/// What the standard library prints of a panic, without secrets: its text may quote a value.
fn tell_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let text = format!("thread '{}' {panic}", thread.name().unwrap_or("<unnamed>"));
    let trace = std::backtrace::Backtrace::capture();
    let text = scrub::Scrubber::process().report(&text);
    if trace.status() == std::backtrace::BacktraceStatus::Captured {
        say(&format!("{text}\n{trace}"));
    } else {
        say(&text);
    }
}

/// Writes to standard error; nobody is left to tell when that is gone.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "\n{text}");
}

/// Checks a `LOG_LEVEL`.
pub fn check_level(text: &str) -> Result<(), Error> {
    directives(text).map(drop)
}

type BoxLayer<S> = Box<dyn Layer<S> + Send + Sync>;

fn log_layer<S>(config: &Config) -> Result<BoxLayer<S>, Error>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let to_terminal = match config.log_target {
        LogTarget::Stdout => std::io::stdout().is_terminal(),
        LogTarget::Stderr => std::io::stderr().is_terminal(),
    };
    let layer: BoxLayer<S> = match (config.log_format, config.log_target) {
        (LogFormat::Json, LogTarget::Stdout) => Box::new(log::JsonLines::new(std::io::stdout)),
        (LogFormat::Json, LogTarget::Stderr) => Box::new(log::JsonLines::new(std::io::stderr)),
        (LogFormat::Text, LogTarget::Stdout) => {
            let writer = BoxMakeWriter::new(|| log::Scrubbing(std::io::stdout()));
            Box::new(log::people(writer).with_ansi(to_terminal))
        }
        (LogFormat::Text, LogTarget::Stderr) => {
            let writer = BoxMakeWriter::new(|| log::Scrubbing(std::io::stderr()));
            Box::new(log::people(writer).with_ansi(to_terminal))
        }
    };
    // Our spans carry the ids that error lines need, so those that carry any exist at every level.
    let filter = directives(&config.log_level)?.or(filter_fn(is_our_span));
    Ok(Box::new(layer.with_filter(filter)))
}

fn is_our_span(metadata: &Metadata<'_>) -> bool {
    let has_log_fields = || metadata.fields().iter().any(|field| !field.name().contains('.'));
    let is_ours = metadata.target().starts_with("agent_executor") && *metadata.level() <= Level::INFO;
    metadata.is_span() && is_ours && has_log_fields()
}

/// A plain level is meant for this program: other crates stay at `info` or above, chatty ones at `warn`.
fn directives(level: &str) -> Result<EnvFilter, Error> {
    let level = level.trim().to_ascii_lowercase();
    let is_word = |part: &&str| !part.contains('=') && !LEVELS.contains(part);
    if let Some(word) = level.split(',').map(str::trim).find(is_word) {
        return Err(Error::Word(word.to_owned()));
    }
    let quiet: String = CHATTY.iter().map(|name| format!(",{name}=warn")).collect();
    let text = match level.as_str() {
        "off" => level,
        "error" | "warn" => format!("{level},{TELLTALE}"),
        "info" => format!("info{quiet},{TELLTALE}"),
        "debug" | "trace" => format!("info{quiet},{TELLTALE},agent_executor={level}"),
        // Later directives win, so what the operator wrote stands.
        _ => format!("info{quiet},{TELLTALE},{level}"),
    };
    Ok(EnvFilter::builder().with_regex(false).parse(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_understood_and_nonsense_is_not() {
        for good in ["info", "DEBUG", " warn ", "off", "agent_executor::queue=trace", "warn,sqlx=debug"] {
            assert!(check_level(good).is_ok(), "{good}");
        }
        for bad in ["loud", "", "a=b=c", "agent_executor=loud"] {
            assert!(check_level(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plain_level_is_meant_for_this_program() {
        let debug = directives("debug").expect("a level").to_string();
        assert!(debug.contains("agent_executor=debug"), "{debug}");
        assert!(debug.contains("opentelemetry=warn"), "{debug}");
        for level in ["error", "warn", "info", "debug", "sqlx=debug"] {
            let filter = directives(level).expect("a level").to_string();
            assert!(filter.contains("rmcp=off"), "{filter}");
        }
    }
}
