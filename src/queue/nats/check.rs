//! Whether existing streams and consumers can do the work: refused when they cannot, warned about when
//! they can but break a relation that the crash protocol counts on.
//!
//! The server's answer is checked even for what was just created: nats-server 2.9 takes settings it does not
//! know and ignores them.

use std::time::Duration;

use async_nats::jetstream::{
    consumer::{self, AckPolicy, DeliverPolicy},
    stream::{self, DiscardPolicy, RetentionPolicy, StorageType},
};

use serde::Serialize;
use serde_json::Value as Json;

use super::{Config, Doubt};
use crate::{
    job::MAX_EVENT_BYTES,
    queue::{
        Error,
        control::{NOTICE_SUBJECT as NOTICE, SUBJECT as CONTROL},
    },
};

/// Shortest time to redelivery that progress messages can keep up with: they come three times as often.
const MIN_ACK_WAIT: Duration = Duration::from_secs(1);
/// Fewest deliveries of a message: an outage of Postgres costs about five, a rolling update two more; past
/// the limit the server keeps the message but never delivers it again.
const MIN_MAX_DELIVER: i64 = 10;
/// Deliveries we ask for: our own count of crashes decides long before.
pub(super) const MAX_DELIVER: i64 = 100;
/// Unsettled messages we ask for: those of all pods, and those that found no place in any and wait for a busy thread.
/// At the limit the server delivers nothing to anybody, so that one thread with ten thousand jobs must not reach it.
/// Each costs the server some hundred bytes.
pub(super) const MAX_ACK_PENDING: i64 = 50_000;
/// How long results should be kept: whoever reads them may be away over a long weekend.
pub const RESULTS_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the server remembers message ids; 100 results a second take about 92 MB of its memory.
pub(super) const DUPLICATE_WINDOW: Duration = Duration::from_secs(3600);

/// Largest message, headers included, of streams we create: JetStream's file store takes a record above 32 MiB for
/// damage. nats-server 2.9 confirms such a message and loses it.
pub(super) const MAX_MESSAGE_BYTES: usize = 31 * 1024 * 1024;

/// What is wrong with one object.
pub(super) struct Findings {
    object: String,
    refusals: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    fn new(object: String) -> Self {
        Self { object, refusals: Vec::new(), warnings: Vec::new() }
    }

    fn refuse_if(&mut self, wrong: bool, reason: impl FnOnce() -> String) {
        if wrong {
            self.refusals.push(reason());
        }
    }

    fn warn_if(&mut self, doubtful: bool, reason: impl FnOnce() -> String) {
        if doubtful {
            self.warnings.push(reason());
        }
    }

    /// Adds what is wrong to `doubts`.
    pub(super) fn tell(self, doubts: &mut Vec<Doubt>) {
        let Self { object, refusals, warnings } = self;
        for (works, reasons) in [(false, refusals), (true, warnings)] {
            doubts.extend(reasons.into_iter().map(|reason| Doubt { object: object.clone(), reason, works }));
        }
    }

    /// Logs the warnings; an error when something cannot work.
    pub(super) fn verdict(self) -> Result<(), Error> {
        for reason in &self.warnings {
            tracing::warn!(object = %self.object, %reason, "message broker is set up in a doubtful way");
        }
        if self.refusals.is_empty() {
            return Ok(());
        }
        Err(Error::Unusable { object: self.object, reason: self.refusals.join("; ") })
    }
}

/// Settings of a new object that the server did not take as they were asked for: nats-server 2.9 ignores what it
/// does not know without a word. What cannot work with the others is refused by their own checks.
pub(super) fn echo(object: String, asked: &impl Serialize, taken: &impl Serialize) -> Findings {
    let mut findings = Findings::new(object);
    let read = |config: Result<Json, _>| config.unwrap_or_default();
    let (asked, taken) = (read(serde_json::to_value(asked)), read(serde_json::to_value(taken)));
    for (setting, value) in asked.as_object().into_iter().flatten() {
        // Zero and empty leave the choice to the server.
        let is_open = match value {
            Json::Null => true,
            Json::Bool(value) => !value,
            Json::Number(value) => value.as_i64() == Some(0),
            Json::String(text) => text.is_empty(),
            Json::Array(items) => items.is_empty(),
            Json::Object(members) => members.is_empty(),
        };
        findings.warn_if(!is_open && taken[setting] != *value, || {
            format!("{setting} was to be {value}, but the server made it {}", taken[setting])
        });
    }
    findings
}

/// Checks the stream of requests.
pub(super) fn execution_stream(found: &stream::Config, config: &Config) -> Findings {
    let mut findings = stream_findings(found, &config.submit_subject);
    findings.warn_if(found.max_age > Duration::ZERO, || {
        format!("max_age is {:?}, should be 0: a message may vanish while it is worked on", found.max_age)
    });
    findings.warn_if(found.retention == RetentionPolicy::Interest, || {
        "retention is interest, should be workqueue: messages are dropped while the consumer is missing"
            .into()
    });
    findings.warn_if(found.retention == RetentionPolicy::Limits, || {
        "retention is limits, should be workqueue: settled messages stay, and one that the server forgets to \
         deliver again cannot be told from them"
            .into()
    });
    findings.warn_if(found.storage == StorageType::Memory, || {
        "storage is memory, should be file: a restart of the server loses jobs".into()
    });
    let has_limit = found.max_messages > 0 || found.max_bytes > 0 || found.max_messages_per_subject > 0;
    findings.warn_if(has_limit && found.discard == DiscardPolicy::Old, || {
        "discard is old, should be new: at its limit the stream drops requests that were accepted".into()
    });
    findings
}

/// Checks the stream of results.
pub(super) fn results_stream(found: &stream::Config) -> Findings {
    let mut findings = stream_findings(found, "agent.status.*");
    let largest = i32::try_from(MAX_EVENT_BYTES).expect("900 KB fit");
    findings.refuse_if((1..largest).contains(&found.max_message_size), || {
        format!("max_msg_size is {}, must be at least {largest} or unlimited", found.max_message_size)
    });
    findings.warn_if(found.retention != RetentionPolicy::Limits, || {
        format!("retention is {:?}, should be limits: results vanish once read", found.retention)
    });
    findings.warn_if((Duration::from_nanos(1)..RESULTS_MAX_AGE).contains(&found.max_age), || {
        format!("max_age is {:?}, should be 0 or at least {RESULTS_MAX_AGE:?}", found.max_age)
    });
    findings.warn_if(found.duplicate_window < DUPLICATE_WINDOW, || {
        let window = found.duplicate_window;
        format!("duplicate_window is {window:?}, should be at least {DUPLICATE_WINDOW:?}: repeats may show")
    });
    findings
}

/// Checks the stream of dead letters.
pub(super) fn dlq_stream(found: &stream::Config) -> Findings {
    stream_findings(found, "agent.dlq.*")
}

fn stream_findings(found: &stream::Config, subject: &str) -> Findings {
    let mut findings = Findings::new(format!("stream {}", found.name));
    findings.refuse_if(!found.subjects.iter().any(|pattern| covers(pattern, subject)), || {
        format!("subjects are {:?}, must include {subject:?}", found.subjects)
    });
    findings
        .refuse_if(found.no_ack, || "no_ack is true, must be false: publishing cannot be confirmed".into());
    let plain = [format!("{CONTROL}.>"), NOTICE.to_owned()];
    findings.warn_if(
        found.subjects.iter().any(|pattern| plain.iter().any(|subject| covers(pattern, subject))),
        || {
            let subjects = &found.subjects;
            format!("subjects are {subjects:?}, should not include {plain:?}: the stream answers requests to cancel")
        },
    );
    findings.refuse_if(found.sealed, || "sealed is true, must be false: it takes no messages".into());
    findings.refuse_if(found.mirror.is_some(), || "it is a mirror, must take messages itself".into());
    findings
}

/// Checks the consumer.
pub(super) fn workers(found: &consumer::Config, config: &Config) -> Findings {
    let mut findings = Findings::new(format!("consumer {}", config.consumer));
    let subject = &config.submit_subject;
    findings.refuse_if(found.deliver_subject.is_some(), || "it is a push consumer, must be pull".into());
    findings.refuse_if(found.ack_policy != AckPolicy::Explicit, || {
        format!("ack_policy is {:?}, must be explicit", found.ack_policy)
    });
    findings.refuse_if(found.headers_only, || "headers_only is true, must be false".into());
    let mut filters: Vec<&String> = found.filter_subjects.iter().collect();
    filters.extend(Some(&found.filter_subject).filter(|filter| !filter.is_empty()));
    findings.refuse_if(!filters.is_empty() && !filters.iter().any(|filter| covers(filter, subject)), || {
        format!("filter_subject is {filters:?}, must include {subject:?} or be empty")
    });
    let shortest = effective_ack_wait(found);
    findings.refuse_if(shortest < MIN_ACK_WAIT, || {
        format!("ack_wait or backoff is {shortest:?}, must be at least {MIN_ACK_WAIT:?}")
    });
    let lease = config.needs.ack_wait;
    findings.refuse_if(shortest >= MIN_ACK_WAIT && shortest < lease, || {
        format!("ack_wait or backoff is {shortest:?}, must be at least the lease of a thread, LEASE_SECONDS, {lease:?}")
    });
    let held = i64::try_from(config.needs.ack_pending).unwrap_or(i64::MAX);
    findings.refuse_if((1..held).contains(&found.max_ack_pending), || {
        format!(
            "max_ack_pending is {}, must be at least {held}: one process may hold as many (MAX_CONCURRENT_JOBS and parked ones)",
            found.max_ack_pending
        )
    });
    findings.refuse_if((1..MIN_MAX_DELIVER).contains(&found.max_deliver), || {
        format!("max_deliver is {}, must be at least {MIN_MAX_DELIVER} or unlimited", found.max_deliver)
    });
    findings.warn_if((MIN_MAX_DELIVER..MAX_DELIVER).contains(&found.max_deliver), || {
        format!("max_deliver is {}, should be {MAX_DELIVER} or unlimited", found.max_deliver)
    });
    findings.warn_if(!found.backoff.is_empty(), || {
        format!("backoff is {:?}, should be empty: it stretches the delay of a nak", found.backoff)
    });
    findings.warn_if(shortest >= MIN_ACK_WAIT && shortest < config.ack_wait, || {
        format!("ack_wait is {shortest:?}, should be {:?}", config.ack_wait)
    });
    findings.warn_if((held..MAX_ACK_PENDING).contains(&found.max_ack_pending), || {
        format!(
            "max_ack_pending is {}, should be {MAX_ACK_PENDING}: messages that wait for busy threads count, and block others at it",
            found.max_ack_pending
        )
    });
    findings.warn_if(found.deliver_policy != DeliverPolicy::All, || {
        format!(
            "deliver_policy is {:?}, should be all: older requests are never delivered",
            found.deliver_policy
        )
    });
    findings
}

/// Checks the consumer of advisories.
pub(super) fn advisories(found: &consumer::Config) -> Result<(), &'static str> {
    let pulled = found.deliver_subject.is_none() && found.ack_policy == AckPolicy::Explicit;
    if pulled { Ok(()) } else { Err("its consumer must be a pull consumer with explicit acks") }
}

/// Whether this version of the server is known to forget messages in flight (2.10.0 to 2.10.25).
pub(super) fn loses_redeliveries(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next(), numbers.next()), (Some(Ok(2)), Some(Ok(10)), Some(Ok(..26))))
}

/// The time after which the first redelivery comes: with a backoff, its first entry replaces `ack_wait`.
pub(super) fn effective_ack_wait(found: &consumer::Config) -> Duration {
    found.backoff.iter().copied().chain([found.ack_wait]).min().unwrap_or(found.ack_wait)
}

/// Whether every subject of `wanted` (which may have `*` and `>`) matches `pattern`.
pub(super) fn covers(pattern: &str, wanted: &str) -> bool {
    let mut wanted = wanted.split('.');
    for token in pattern.split('.') {
        match (token, wanted.next()) {
            (">", Some(_)) => return true,
            (_, None | Some(">")) => return false,
            ("*", Some(_)) => {}
            (token, Some(word)) if token == word => {}
            _ => return false,
        }
    }
    wanted.next().is_none()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn subjects_are_covered_as_the_server_matches_them() {
        for (pattern, wanted, expected) in [
            ("agent.execute.>", "agent.execute.request", true),
            ("agent.execute.>", "agent.execute.a.b", true),
            ("agent.execute.>", "agent.execute.>", true),
            ("agent.>", "agent.execute.*", true),
            ("agent.execute.*", "agent.execute.request", true),
            ("agent.execute.*", "agent.execute.>", false),
            ("agent.execute.*", "agent.execute.a.b", false),
            ("agent.execute.>", "agent.execute", false),
            ("agent.execute", "agent.execute.a", false),
            ("agent.execute.a", "agent.execute.*", false),
        ] {
            assert_eq!(covers(pattern, wanted), expected, "{pattern} {wanted}");
        }
    }

    #[test]
    fn all_settings_that_cannot_work_are_named() {
        let found = consumer::Config {
            deliver_subject: Some("push".into()),
            ack_policy: AckPolicy::None,
            filter_subject: "other.>".into(),
            max_deliver: 3,
            backoff: vec![Duration::from_millis(100), Duration::from_secs(5)],
            ack_wait: Duration::from_secs(30),
            ..consumer::Config::default()
        };
        let error = workers(&found, &Config::default()).verdict().expect_err("nothing fits");
        expect![[r#"consumer agent-executor-workers cannot be used: it is a push consumer, must be pull; ack_policy is None, must be explicit; filter_subject is ["other.>"], must include "agent.execute.request" or be empty; ack_wait or backoff is 100ms, must be at least 1s; max_deliver is 3, must be at least 10 or unlimited"#]].assert_eq(&error.to_string());
    }

    #[test]
    fn doubtful_settings_are_accepted() {
        let found = consumer::Config {
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs(10),
            max_deliver: 20,
            max_ack_pending: 1000,
            ..consumer::Config::default()
        };
        let findings = workers(&found, &Config::default());
        assert_eq!(findings.warnings.len(), 3);
        assert!(findings.verdict().is_ok());
        let limits = stream::Config {
            name: "S".into(),
            subjects: vec!["agent.>".into()],
            max_age: Duration::from_secs(60),
            ..stream::Config::default()
        };
        assert!(execution_stream(&limits, &Config::default()).verdict().is_ok());
    }

    #[test]
    fn a_server_that_forgets_messages_is_known() {
        for (version, expected) in [
            ("2.10.22", true),
            ("2.10.0-RC.1", true),
            ("2.10.26", false),
            ("2.9.10", false),
            ("2.11.0", false),
            ("3.10.1", false),
            ("dev", false),
        ] {
            assert_eq!(loses_redeliveries(version), expected, "{version}");
        }
    }

    #[test]
    fn a_consumer_that_cannot_hold_what_one_process_holds_is_refused() {
        let found = consumer::Config {
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs(4),
            max_deliver: -1,
            max_ack_pending: 355,
            ..consumer::Config::default()
        };
        let error = workers(&found, &Config::default()).verdict().expect_err("too little of both");
        expect![[r#"consumer agent-executor-workers cannot be used: ack_wait or backoff is 4s, must be at least the lease of a thread, LEASE_SECONDS, 5s; max_ack_pending is 355, must be at least 356: one process may hold as many (MAX_CONCURRENT_JOBS and parked ones)"#]].assert_eq(&error.to_string());
        let unlimited = consumer::Config { ack_wait: Duration::from_secs(30), max_ack_pending: -1, ..found };
        assert!(workers(&unlimited, &Config::default()).warnings.is_empty());
    }

    #[test]
    fn what_the_server_did_not_take_as_asked_is_named() {
        let asked = consumer::Config { max_deliver: 100, max_ack_pending: 50_000, ..Default::default() };
        let taken = consumer::Config { max_ack_pending: 1000, ..asked.clone() };
        let findings = echo("consumer c".into(), &asked, &taken);
        assert_eq!(findings.warnings, ["max_ack_pending was to be 50000, but the server made it 1000"]);
        assert!(echo("consumer c".into(), &asked, &asked).warnings.is_empty());
    }

    #[test]
    fn a_stream_that_drops_what_was_accepted_is_warned_of() {
        let found = stream::Config {
            name: "S".into(),
            subjects: vec!["agent.execute.>".into()],
            retention: RetentionPolicy::WorkQueue,
            max_messages: 10,
            max_age: Duration::from_secs(3600),
            duplicate_window: DUPLICATE_WINDOW,
            ..Default::default()
        };
        let warnings = execution_stream(&found, &Config::default()).warnings.join("\n");
        expect![[r#"
            max_age is 3600s, should be 0: a message may vanish while it is worked on
            discard is old, should be new: at its limit the stream drops requests that were accepted"#]]
        .assert_eq(&warnings);
        let results = results_stream(&stream::Config { retention: RetentionPolicy::Limits, ..found });
        assert_eq!(results.warnings, ["max_age is 3600s, should be 0 or at least 604800s"]);
    }

    #[test]
    fn a_stream_without_the_subject_is_refused() {
        let found = stream::Config {
            name: "S".into(),
            subjects: vec!["agent.status.done".into()],
            ..Default::default()
        };
        let error = results_stream(&found).verdict().expect_err("only one status is taken");
        assert_eq!(
            error.to_string(),
            r#"stream S cannot be used: subjects are ["agent.status.done"], must include "agent.status.*""#
        );
    }
}
