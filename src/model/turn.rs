//! A call's turn: it has its place among all calls, and says afterwards what became of it.

use std::time::{Duration, Instant};

use super::{
    Error, Models,
    breaker::{Entry, Verdict},
    limit::{Desk, Place, estimate},
};
use crate::{graph::ModelSettings, ids::ThreadId, model::Request, telemetry::metric, value::Usage};

/// The longest wait a provider can impose on all calls; as long as one that it can impose on a retry.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The wait when a provider says that calls come too fast and not for how long: one second, as it counts.
const USUAL_PAUSE: Duration = Duration::from_secs(1);
/// The status that says that calls come too fast.
const TOO_MANY_REQUESTS: u16 = 429;

/// The right to make one call, until it is dropped.
pub struct Turn {
    place: Place,
    /// The address, when a definition asks for another one than the provider's own.
    door: Option<String>,
    /// What the breaker let it through as; none once that is told.
    entry: Option<Entry>,
    /// Tokens that were counted before the call.
    tokens: u64,
}

impl Models {
    /// Waits until `thread` may make this call: for a place in this process, and for what the provider's limits allow all
    /// processes together. Dropping the future leaves the line.
    ///
    /// Fails with [`Error::BreakerOpen`] while the provider is not asked, and with [`Error::UnknownProvider`].
    pub async fn turn(&self, request: &Request, thread: &ThreadId) -> Result<Turn, Error> {
        let (desk, lane) = self.lane(&request.settings.provider)?;
        let door = door(&request.settings);
        let refused = |retry_in| Error::BreakerOpen { provider: request.settings.provider.clone(), retry_in };
        if let Some(retry_in) = desk.refuses(lane, &door) {
            return Err(refused(retry_in));
        }
        let tokens = if desk.counts_tokens(lane) { estimate(request) } else { 0 };
        let since = Instant::now();
        let placed = tokio::select! {
            biased;
            place = desk.place(lane, thread, tokens) => Ok(place),
            // It need not come to the head of the line to learn that.
            retry_in = desk.refused(lane, &door) => Err(refused(retry_in)),
        };
        metrics::histogram!(metric::LLM_WAIT_SECONDS, "provider" => desk.provider(lane).to_owned())
            .record(since.elapsed().as_secs_f64());
        let place = placed?;
        let entry = desk.enter(lane, &door).map_err(refused)?;
        Ok(Turn { place, door, entry: Some(entry), tokens })
    }
}

impl Turn {
    /// The provider has answered, with so many tokens if it says.
    pub fn answered(mut self, usage: Option<&Usage>) {
        let (desk, lane) = self.place.whose();
        if let Some(usage) = usage.filter(|_| desk.counts_tokens(lane)) {
            let signed = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
            desk.settle(lane, signed(usage.total_tokens).saturating_sub(signed(self.tokens)));
        }
        self.leave(Verdict::Answered);
    }

    /// The provider has begun to answer: a probe need not wait for the end.
    pub fn hears(&mut self) {
        if self.entry == Some(Entry::Probe) {
            self.leave(Verdict::Answered);
        }
    }

    /// The call has failed.
    pub fn failed(mut self, error: &Error) {
        let (desk, lane) = self.place.whose();
        // What another host asks for is not the provider's word.
        if let Some(asked) = pause(error).filter(|_| self.door.is_none()) {
            desk.pause(lane, asked);
        }
        self.leave(verdict(error));
    }

    fn leave(&mut self, verdict: Verdict) {
        if let Some(entry) = self.entry.take() {
            let (desk, lane) = self.place.whose();
            Desk::left(desk, lane, &self.door, (entry, verdict));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.leave(Verdict::Unknown);
    }
}

/// The host a definition asks for instead of the provider's own: its failures are not the provider's.
fn door(settings: &ModelSettings) -> Option<String> {
    let url = url::Url::parse(settings.base_url.as_deref()?).ok()?;
    Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
}

/// How long everybody has to wait because of this failure.
fn pause(error: &Error) -> Option<Duration> {
    match error {
        Error::Throttled { status, retry_after, .. } => {
            let usual = (*status == TOO_MANY_REQUESTS).then_some(USUAL_PAUSE);
            retry_after.or(usual).map(|asked| asked.min(LONGEST_PAUSE))
        }
        Error::UnknownProvider(..)
        | Error::NoKey { .. }
        | Error::UrlRefused(_)
        | Error::Settings(_)
        | Error::Unavailable { .. }
        | Error::Rejected { .. }
        | Error::Protocol { .. }
        | Error::BreakerOpen { .. }
        | Error::Timeout { .. } => None,
    }
}

/// What a failure says about its provider. Too many calls are no failure of its own: the limits slow them down.
fn verdict(error: &Error) -> Verdict {
    match error {
        Error::Throttled { status: TOO_MANY_REQUESTS, .. }
        | Error::Rejected { .. }
        | Error::Protocol { .. } => Verdict::Answered,
        Error::Throttled { .. } | Error::Unavailable { .. } | Error::Timeout { .. } => Verdict::Failed,
        Error::UnknownProvider(..)
        | Error::NoKey { .. }
        | Error::UrlRefused(_)
        | Error::Settings(_)
        | Error::BreakerOpen { .. } => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::Arc};

    use futures::FutureExt as _;
    use serde_json::{from_value, json};
    use tokio::time::sleep;

    use super::*;
    use crate::model::{Config, Provider, breaker, limit::Limits};

    fn request(settings: serde_json::Value) -> Request {
        Request {
            settings: Arc::new(from_value(settings).expect("settings")),
            system_prompt: None,
            messages: Vec::new(),
            tools: Vec::new(),
            output_schema: None,
            retry: 0,
        }
    }

    fn models() -> Models {
        let breaker = breaker::Config { failures: 2, open: Duration::from_secs(30) };
        Models::new(Config { breaker, ..Config::default() }).expect("the defaults are valid")
    }

    fn failure(status: u16) -> Error {
        let retry_after = Some(Duration::from_secs(4));
        Error::Throttled { provider: "openai".into(), status, message: "no".into(), retry_after }
    }

    async fn turn(models: &Models, request: &Request) -> Result<Turn, Error> {
        models.turn(request, &ThreadId::parse("t").expect("an id")).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_fails_is_not_asked_until_a_probe_is_answered() {
        let (models, asked) = (models(), request(json!({ "provider": "openai", "model": "m" })));
        let elsewhere = request(json!({ "model": "m", "base_url": "http://elsewhere/v1" }));
        for _ in 0..2 {
            let down = Error::Unavailable { provider: "openai".into(), message: "down".into() };
            turn(&models, &asked).await.expect("closed").failed(&down);
        }
        let error = turn(&models, &asked).await.err().expect("open");
        assert_eq!((error.code(), error.is_retryable()), ("MODEL_BREAKER_OPEN", true));
        assert!(error.retry_after().is_some_and(|wait| wait > Duration::from_secs(29)), "{error}");
        assert_eq!(error.to_string(), "openai has failed too often and is not asked for 30 s");
        turn(&models, &elsewhere).await.expect("another server").answered(None);
        let other = request(json!({ "provider": "anthropic", "model": "m" }));
        turn(&models, &other).await.expect("another provider").answered(None);

        sleep(Duration::from_secs(31)).await;
        let probe = turn(&models, &asked).await.expect("the probe");
        assert!(turn(&models, &asked).await.is_err(), "one is enough");
        drop(probe);
        let probe = turn(&models, &asked).await.expect("the next probe");
        probe.failed(&Error::Rejected { provider: "openai".into(), status: 400, message: "no".into() });
        turn(&models, &asked).await.expect("closed: it answers, if only to refuse").answered(None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_in_line_leaves_it_when_the_provider_is_not_asked_any_more() {
        let breaker = breaker::Config { failures: 1, open: Duration::from_secs(3600) };
        let limits = Limits { requests_per_minute: Some(1), ..Limits::default() };
        let mut config = Config { breaker, ..Config::default() };
        config.providers.insert("openai".into(), Provider { limits, ..Provider::openai(None, None) });
        let models = Models::new(config).expect("valid");
        let asked = request(json!({ "provider": "openai", "model": "m" }));
        let elsewhere = request(json!({ "model": "m", "base_url": "http://elsewhere/v1" }));
        let first = turn(&models, &asked).await.expect("it goes at once");
        let began = tokio::time::Instant::now();
        let (mut second, mut other) = (pin!(turn(&models, &asked)), pin!(turn(&models, &elsewhere)));
        assert!((&mut second).now_or_never().is_none() && (&mut other).now_or_never().is_none());
        first.failed(&Error::Unavailable { provider: "openai".into(), message: "down".into() });
        let error = second.await.err().expect("refused");
        assert_eq!((error.code(), began.elapsed()), ("MODEL_BREAKER_OPEN", Duration::ZERO));
        other.await.expect("another server").answered(None);
        let waited = began.elapsed();
        assert!((59..=61).contains(&waited.as_secs()), "it is the next, after a minute: {waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_calls_are_slowed_down_and_open_nothing() {
        let (models, asked) = (models(), request(json!({ "provider": "openai", "model": "m" })));
        for _ in 0..5 {
            let began = tokio::time::Instant::now();
            turn(&models, &asked).await.expect("closed").failed(&failure(429));
            drop(turn(&models, &asked).await.expect("closed"));
            assert!(began.elapsed() >= Duration::from_secs(4), "{:?}", began.elapsed());
        }
        for _ in 0..2 {
            turn(&models, &asked).await.expect("closed").failed(&failure(529));
        }
        assert!(turn(&models, &asked).await.is_err(), "an overloaded provider is one that fails");
    }

    #[test]
    fn every_failure_says_whether_all_calls_wait() {
        let without = |status| Error::Throttled {
            provider: "p".into(),
            status,
            message: "no".into(),
            retry_after: None,
        };
        let seconds = |error| pause(&error).map(|pause| pause.as_secs());
        assert_eq!([without(429), without(503), without(529)].map(seconds), [Some(1), None, None]);
        assert_eq!([failure(429), failure(503), failure(529)].map(seconds), [Some(4); 3]);
        let retry_after = Some(Duration::from_secs(3600));
        let long = Error::Throttled { provider: "p".into(), status: 429, message: "no".into(), retry_after };
        assert_eq!(seconds(long), Some(30));
    }
}
