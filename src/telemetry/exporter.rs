//! What leaves in spans: the exporter of traces behind the scrubber.

use std::{borrow::Cow, time::Duration};

use opentelemetry::{Array, KeyValue, StringValue, Value, trace::Status};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};

use super::scrub::{REDACTED, Scrubber, is_sensitive};

/// Hands spans on without secrets.
#[derive(Debug)]
pub(super) struct Scrubbed<E>(pub(super) E);

impl<E: SpanExporter> SpanExporter for Scrubbed<E> {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        batch.iter_mut().for_each(|span| scrub(span, Scrubber::process()));
        self.0.export(batch).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

fn scrub(span: &mut SpanData, scrubber: &Scrubber) {
    clean(&mut span.name, scrubber);
    attributes(&mut span.attributes, scrubber);
    for event in &mut span.events.events {
        clean(&mut event.name, scrubber);
        attributes(&mut event.attributes, scrubber);
    }
    if let Status::Error { description } = &mut span.status {
        clean(description, scrubber);
    }
}

fn clean(text: &mut Cow<'static, str>, scrubber: &Scrubber) {
    if let Cow::Owned(clean) = scrubber.report(text) {
        *text = Cow::Owned(clean);
    }
}

fn attributes(all: &mut [KeyValue], scrubber: &Scrubber) {
    let cleaned = |text: &StringValue| StringValue::from(scrubber.report(text.as_str()).into_owned());
    for KeyValue { key, value, .. } in all {
        let is_sensitive = is_sensitive(key.as_str());
        #[expect(clippy::wildcard_enum_match_arm, reason = "the enum is open; other kinds hold no text")]
        match value {
            Value::String(_) if is_sensitive => *value = REDACTED.into(),
            Value::String(text) => *text = cleaned(text),
            Value::Array(Array::String(texts)) => texts.iter_mut().for_each(|text| *text = cleaned(text)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry_sdk::trace::SdkTracerProvider;
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

    #[test]
    fn spans_and_their_events_lose_what_stands_beside_a_name() {
        let exporter = Exported::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(Scrubbed(exporter.clone())).build();
        let layer = super::super::trace::layer(&provider);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!(
                target: "agent_executor::x", "call", otel.name = "GET /?token=a1b2c3", api_key = "k-1", host = "h"
            );
            let _entered = span.enter();
            tracing::warn!(target: "agent_executor::x", error = "password=hunter2", "failed");
        });
        let spans = format!("{:?}", exporter.0.lock().expect("not poisoned"));
        for secret in ["a1b2c3", "k-1", "hunter2"] {
            assert!(!spans.contains(secret), "{secret}: {spans}");
        }
        assert!(spans.contains("GET /?token=***REDACTED***") && spans.contains("\"h\""), "{spans}");
    }
}
