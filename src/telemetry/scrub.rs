//! What must not be read anywhere: known secret values, and values that stand beside a name such as `password`.
//!
//! **Invariant:** what is removed is replaced whole by [`REDACTED`]; nothing else of a text changes.

mod labelled;
mod stream;
mod values;

pub use labelled::{hide_named, is_sensitive};
pub use stream::Guard;
pub use values::Values;

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, LazyLock, Mutex, PoisonError, RwLock},
};

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value as Json;

/// What stands where a secret stood.
pub const REDACTED: &str = "***REDACTED***";

/// The shortest value that is looked for, in bytes: shorter ones stand in innocent texts by chance.
pub const SHORTEST: usize = 8;

/// The shortest value of one kind of character, such as `postgres` or `12345678`; shorter ones are words and numbers.
pub const SHORTEST_PLAIN: usize = 16;

/// Values remembered beside those of the configuration. More than a process resolves between two rotations of all of
/// them; the oldest go.
const MOST_PASSING: usize = 250;

/// Knows secret values and removes them; clones know the same.
#[derive(Clone, Default)]
pub struct Scrubber {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    taught: Mutex<Taught>,
    /// What is looked for; none before the first value.
    values: RwLock<Option<Arc<Values>>>,
}

#[derive(Default)]
struct Taught {
    kept: Vec<SecretString>,
    passing: VecDeque<SecretString>,
    /// What there is one of at a time.
    newest: BTreeMap<&'static str, Vec<SecretString>>,
}

impl fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrubber").finish_non_exhaustive()
    }
}

impl Scrubber {
    /// The one that logs, events and traces of this process go through.
    pub fn process() -> &'static Self {
        static PROCESS: LazyLock<Scrubber> = LazyLock::new(Scrubber::default);
        &PROCESS
    }

    /// Remembers the values of the configuration, for as long as it lives.
    pub fn keep<'a>(&self, values: impl IntoIterator<Item = &'a str>) {
        let mut taught = self.taught();
        let known = taught.kept.len();
        for value in values.into_iter().flat_map(parts) {
            if !taught.kept.iter().any(|kept| kept.expose_secret() == value) {
                taught.kept.push(value.into());
            }
        }
        if taught.kept.len() > known {
            self.look_for(&taught);
        }
    }

    /// Remembers a value that was resolved; it may be forgotten when many others have been used since.
    pub fn learn(&self, value: &str) {
        let mut taught = self.taught();
        let Taught { kept, passing, newest: _ } = &mut *taught;
        let mut is_new = false;
        for value in parts(value) {
            if kept.iter().any(|known| known.expose_secret() == value) {
                continue;
            }
            // Those that are used stay; the ones that nobody has asked for since go.
            match passing.iter().position(|known| known.expose_secret() == value) {
                Some(at) => {
                    let used = passing.remove(at);
                    passing.extend(used);
                }
                None => {
                    passing.push_back(value.into());
                    is_new = true;
                }
            }
        }
        while passing.len() > MOST_PASSING {
            passing.pop_front();
        }
        if is_new {
            self.look_for(&taught);
        }
    }

    /// Remembers the newest value of `what`, of which there is one at a time; the one before is forgotten, and no other.
    pub fn learn_newest(&self, what: &'static str, value: &str) {
        let value: Vec<SecretString> = parts(value).map(SecretString::from).collect();
        let mut taught = self.taught();
        taught.newest.insert(what, value);
        self.look_for(&taught);
    }

    /// What is looked for; none when nothing is known.
    pub fn values(&self) -> Option<Arc<Values>> {
        self.shared.values.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `text` without known values.
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.values().map_or(Cow::Borrowed(text), |values| values.remove(text))
    }

    /// `text` of a log line or an error, without known values and without those that stand beside a name such as
    /// `password`.
    pub fn report<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match self.text(text) {
            Cow::Borrowed(text) => labelled::hide_in_text(text),
            Cow::Owned(text) => Cow::Owned(labelled::hide_in_text(&text).into_owned()),
        }
    }

    /// Removes known values from every text of `json`; names of fields too.
    pub fn json(&self, json: &mut Json) {
        if let Some(values) = self.values() {
            values.remove_from_json(json);
        }
    }

    /// JSON in bytes without known values. Bytes without any are only looked through.
    pub fn json_bytes(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let values = self.values()?;
        if !values.may_be_in(bytes) {
            return None;
        }
        // Bytes may look like a value where none is, in the middle of an escape; texts do not.
        let mut json: Json = serde_json::from_slice(bytes).ok()?;
        values.remove_from_json(&mut json);
        serde_json::to_vec(&json).ok()
    }

    fn taught(&self) -> std::sync::MutexGuard<'_, Taught> {
        self.shared.taught.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_for(&self, taught: &Taught) {
        let newest = taught.newest.values().flatten();
        let all = taught.kept.iter().chain(&taught.passing).chain(newest).map(ExposeSecret::expose_secret);
        // What was known is never lost for a value too many.
        if let Some(values) = Values::of(all) {
            *self.shared.values.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(values));
        }
    }
}

/// Whether a value is long and mixed enough to be looked for without harm to innocent texts.
pub fn is_recognisable(value: &str) -> bool {
    let value = value.trim();
    let kinds = [
        |c: char| c.is_lowercase(),
        |c: char| c.is_uppercase(),
        |c: char| c.is_numeric(),
        |c: char| !c.is_alphanumeric(),
    ];
    let mixed = kinds.iter().filter(|is_kind| value.chars().any(is_kind)).count() > 1;
    value.len() >= if mixed { SHORTEST } else { SHORTEST_PLAIN }
}

/// The shortest line of a value that is looked for alone; the last lines of keys are short.
const SHORTEST_LINE: usize = 20;

/// What to look for of a value: all of it, and its lines, since tools quote those of a key alone.
fn parts(value: &str) -> impl Iterator<Item = &str> {
    let value = value.trim();
    let lines = value.lines().map(str::trim).filter(move |line| {
        // What begins and ends a PEM file is no secret.
        line.len() < value.len() && line.len() >= SHORTEST_LINE && !line.starts_with("-----")
    });
    std::iter::once(value).chain(lines).filter(|part| is_recognisable(part))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const VALUE: &str = "Tr0ub4dor&3";

    fn taught() -> Scrubber {
        let scrubber = Scrubber::default();
        scrubber.keep([VALUE]);
        scrubber
    }

    #[test]
    fn known_values_are_removed_and_the_rest_stays() {
        let scrubber = taught();
        assert_eq!(scrubber.text("a Tr0ub4dor&3 b Tr0ub4dor&3"), "a ***REDACTED*** b ***REDACTED***");
        assert!(matches!(scrubber.text("Tr0ub4dor&"), Cow::Borrowed(_)));
        assert_eq!(Scrubber::default().text(VALUE), VALUE);
    }

    #[test]
    fn words_numbers_and_short_values_are_not_looked_for() {
        let scrubber = Scrubber::default();
        scrubber.keep(["postgres", "12345678", "changeme", "PASSWORD", "a1!", " Ab3 \n", ""]);
        assert!(scrubber.values().is_none());
        assert!(is_recognisable("postgres1") && is_recognisable("correcthorsebatterystaple"));
    }

    #[test]
    fn lines_of_a_key_are_known_alone() {
        let scrubber = Scrubber::default();
        scrubber
            .keep(["-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSj\n-----END KEY-----\n"]);
        assert_eq!(scrubber.text("line MIIEvQIBADANBgkqhkiG9w0B"), "line ***REDACTED***");
        assert_eq!(scrubber.text("-----BEGIN KEY-----"), "-----BEGIN KEY-----");
    }

    #[test]
    fn values_of_the_configuration_outlive_those_that_pass() {
        let scrubber = taught();
        for number in 0..=MOST_PASSING {
            scrubber
                .shared
                .taught
                .lock()
                .expect("not poisoned")
                .passing
                .push_back(format!("pass-{number}").into());
        }
        scrubber.learn("the-last-one-1");
        let text = format!("Tr0ub4dor&3 pass-0 pass-1 pass-{MOST_PASSING} the-last-one-1");
        let text = scrubber.text(&text).into_owned();
        // Those short of eight characters were put there behind the scrubber's back, to be many.
        assert_eq!(text, "***REDACTED*** pass-0 pass-1 ***REDACTED*** ***REDACTED***");
    }

    #[test]
    fn the_newest_of_a_kind_pushes_nothing_out_but_the_one_before() {
        let scrubber = taught();
        scrubber.learn("a-resolved-1");
        for number in 0..=MOST_PASSING {
            scrubber.learn_newest("a token", &format!("hvs.token-{number}"));
            scrubber.learn_newest("another", "eyJ-of-another");
        }
        let text = format!("Tr0ub4dor&3 a-resolved-1 hvs.token-{MOST_PASSING} hvs.token-0 eyJ-of-another");
        assert_eq!(
            scrubber.text(&text),
            "***REDACTED*** ***REDACTED*** ***REDACTED*** hvs.token-0 ***REDACTED***"
        );
    }

    #[test]
    fn json_keeps_its_order_and_loses_values_only() {
        let text = br#"{"z":1.50,"a":["x Tr0ub4dor&3\n",{"Tr0ub4dor&3":null}]}"#;
        let clean = taught().json_bytes(text).expect("there was something");
        let expected = r#"{"z":1.5,"a":["x ***REDACTED***\n",{"***REDACTED***":null}]}"#;
        assert_eq!(String::from_utf8(clean).expect("UTF-8"), expected);
        assert_eq!(taught().json_bytes(br#"{"a":"Tr0ub4dor"}"#), None);
    }

    #[test]
    fn a_value_that_seems_to_begin_inside_an_escape_is_none() {
        let scrubber = Scrubber::default();
        scrubber.keep(["nabcdef1"]);
        let text = json!({ "a": "\nabcdef1" }).to_string();
        let clean = scrubber.json_bytes(text.as_bytes()).expect("it looks like one");
        assert_eq!(String::from_utf8(clean).expect("UTF-8"), text);
    }

    #[test]
    fn a_report_loses_what_stands_beside_a_name_too() {
        let text = taught().report("Tr0ub4dor&3: password=swordfish").into_owned();
        assert_eq!(text, "***REDACTED***: password=***REDACTED***");
    }
}
