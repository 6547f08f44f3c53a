//! Traces: the exporter, and W3C `traceparent` in and out of spans.
//!
//! **Invariant:** a `traceparent` that is not well formed is as good as none; it never fails a job.

use std::time::Duration;

use opentelemetry::{
    Context, KeyValue,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider},
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::{Level, Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, Registry, filter::filter_fn, registry::LookupSpan};

use super::{OtlpConfig, exporter::Scrubbed};

/// Longest time for one export; a slow collector costs spans, not memory.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);

/// The parts of a well-formed `traceparent`.
#[derive(Clone, Copy)]
struct Parts<'a> {
    trace_id: &'a str,
    parent_id: &'a str,
    flags: &'a str,
}

/// What a sender passed on, kept with the span it belongs to.
struct Received(String);

/// Makes whoever sent `traceparent` the parent of `span`. Call it before the span is entered.
pub fn set_parent(span: &Span, traceparent: &str) {
    let traceparent = traceparent.trim();
    let Some(context) = parse(traceparent).and_then(remote) else { return };
    // Fails when no exporter is set up; then the text itself is passed on.
    let _ = span.set_parent(Context::new().with_remote_span_context(context));
    span.with_subscriber(|(id, dispatch)| {
        let registry = dispatch.downcast_ref::<Registry>()?;
        registry.span(id)?.extensions_mut().replace(Received(traceparent.to_owned()));
        Some(())
    });
}

/// What to send along so that the receiver's spans become children of `span`; without an exporter it is
/// what was received with the span or one around it.
pub fn traceparent_of(span: &Span) -> Option<String> {
    let context = span.context();
    let own = context.span().span_context().clone();
    if own.is_valid() {
        let flags = own.trace_flags().to_u8();
        return Some(format!("00-{}-{}-{flags:02x}", own.trace_id(), own.span_id()));
    }
    span.with_subscriber(|(id, dispatch)| {
        let registry = dispatch.downcast_ref::<Registry>()?;
        registry.span(id)?.scope().find_map(|span| Some(span.extensions().get::<Received>()?.0.clone()))
    })
    .flatten()
}

/// The trace id in a well-formed `traceparent`: 32 hexadecimal digits, for logs.
pub fn trace_id(traceparent: &str) -> Option<&str> {
    parse(traceparent.trim()).map(|parts| parts.trace_id)
}

/// Reads `version-traceid-parentid-flags`; versions after 00 may go on behind another dash.
fn parse(text: &str) -> Option<Parts<'_>> {
    let mut parts = text.split('-');
    let [version, trace_id, parent_id, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let is_set = |text: &str| text.bytes().any(|b| b != b'0');
    let well_formed = is_hex(version, 2)
        && version != "ff"
        && (version != "00" || parts.next().is_none())
        && is_hex(trace_id, 32)
        && is_set(trace_id)
        && is_hex(parent_id, 16)
        && is_set(parent_id)
        && is_hex(flags, 2);
    well_formed.then_some(Parts { trace_id, parent_id, flags })
}

fn remote(parts: Parts<'_>) -> Option<SpanContext> {
    let trace_id = TraceId::from_hex(parts.trace_id).ok()?;
    let parent_id = SpanId::from_hex(parts.parent_id).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(parts.flags, 16).ok()?);
    Some(SpanContext::new(trace_id, parent_id, flags, true, TraceState::default()))
}

/// The exporter: protobuf over HTTP, in batches, from a thread of its own.
pub(super) fn provider(
    config: &OtlpConfig,
) -> Result<SdkTracerProvider, opentelemetry_otlp::ExporterBuildError> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", config.endpoint.trim_end_matches('/')))
        .with_headers(config.headers.clone())
        .with_timeout(EXPORT_LIMIT)
        .build()?;
    let resource = Resource::builder()
        .with_service_name(config.service_name.clone())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(Scrubbed(exporter)).with_resource(resource).build())
}

/// Hands our spans, and warnings inside them, to `provider`.
pub(super) fn layer<S>(provider: &SdkTracerProvider) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let tracer = provider.tracer("agent-executor");
    let layer = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false);
    Box::new(layer.with_filter(filter_fn(is_traced)))
}

fn is_traced(metadata: &Metadata<'_>) -> bool {
    let least = if metadata.is_span() { Level::INFO } else { Level::WARN };
    metadata.target().starts_with("agent_executor") && *metadata.level() <= least
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry_sdk::{
        error::OTelSdkResult,
        trace::{SdkTracerProvider, SpanData, SpanExporter},
    };
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Exported(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Exported {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().expect("not poisoned").extend(batch);
            Ok(())
        }
    }

    const SENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_well_formed_traceparents_are_read() {
        assert_eq!(trace_id(SENT), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(trace_id(&SENT.replacen("00", "cc", 1)), trace_id(SENT), "later versions are read as 00");
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(trace_id(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn without_an_exporter_the_received_traceparent_is_passed_on() {
        tracing::subscriber::with_default(tracing_subscriber::registry(), || {
            let job = tracing::info_span!("job");
            assert_eq!(traceparent_of(&job), None);
            set_parent(&job, "nonsense");
            assert_eq!(traceparent_of(&job), None);
            set_parent(&job, SENT);
            let node = job.in_scope(|| tracing::info_span!("node"));
            assert_eq!(traceparent_of(&node).as_deref(), Some(SENT));
        });
    }

    #[test]
    fn with_an_exporter_spans_join_the_trace_of_the_sender() {
        let exporter = Exported::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer(&provider)), || {
            let job = tracing::info_span!(target: "agent_executor::worker", "job");
            set_parent(&job, SENT);
            let passed_on = traceparent_of(&job).expect("an exported span has a context");
            assert_eq!(trace_id(&passed_on), trace_id(SENT));
            assert_ne!(passed_on, SENT, "the receiver's parent is our span, not our parent");
        });
        let spans = exporter.0.lock().expect("not poisoned");
        assert_eq!(spans.len(), 1);
        assert_eq!(spans[0].parent_span_id.to_string(), "00f067aa0ba902b7");
    }

    /// One request, whole, as a collector gets it.
    fn collect(listener: &std::net::TcpListener) -> Vec<u8> {
        use std::io::{Read, Write};
        let (mut connection, _) = listener.accept().expect("the exporter connects");
        let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
        let is_whole = |request: &[u8]| {
            let text = String::from_utf8_lossy(request);
            let head = text.split_once("\r\n\r\n").map(|(head, _)| head.to_ascii_lowercase());
            let length = head.as_ref().and_then(|head| head.split_once("content-length: "));
            let length = length.and_then(|(_, rest)| rest.lines().next()?.parse::<usize>().ok());
            let start = request.windows(4).position(|window| window == b"\r\n\r\n");
            start.zip(length).is_some_and(|(start, length)| request.len() >= start + 4 + length)
        };
        while !is_whole(&request) {
            let count = connection.read(&mut chunk).expect("the exporter sends");
            assert_ne!(count, 0, "the exporter hung up early");
            request.extend_from_slice(&chunk[..count]);
        }
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("the exporter listens");
        request
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn spans_reach_a_collector_from_inside_a_runtime() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let provider = provider(&OtlpConfig {
            endpoint: format!("http://{address}/"),
            service_name: "executor-under-test".to_owned(),
            headers: [("x-team".to_owned(), "agents".to_owned())].into(),
        })
        .expect("the exporter can be built");
        let collector = tokio::task::spawn_blocking(move || collect(&listener));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer(&provider)), || {
            let job = tracing::info_span!(target: "agent_executor::worker", "a traced job");
            set_parent(&job, SENT);
        });
        crate::telemetry::Guard { provider: Some(provider) }.shutdown().await;
        let request = collector.await.expect("the collector does not panic");
        let text = String::from_utf8_lossy(&request);
        assert!(text.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{text}");
        assert!(text.contains("x-team: agents"), "{text}");
        assert!(text.contains("executor-under-test") && text.contains("a traced job"), "{text}");
    }
}
