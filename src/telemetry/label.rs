//! Label values that publishers choose, kept to a number that a metrics server can bear.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use super::scrub::Scrubber;

/// Values of one label per process; a time series costs some kilobytes in a metrics server, per pod.
const MOST_VALUES: usize = 100;

/// What later values are counted under.
const OTHER: &str = "other";

/// The values one label has had.
#[derive(Debug, Default)]
pub struct Label {
    seen: Mutex<Option<HashSet<String>>>,
}

/// Names of models.
pub static MODEL: Label = Label::new();

/// Names of nodes.
pub static NODE: Label = Label::new();

/// Codes of failures; ours are fixed, but a new source of them must not be able to flood a server.
pub static CODE: Label = Label::new();

/// Names of tools.
pub static TOOL: Label = Label::new();

impl Label {
    const fn new() -> Self {
        Self { seen: Mutex::new(None) }
    }

    /// `value` itself, without known secrets, while there are few of them, else `other`.
    pub fn value(&self, value: &str) -> String {
        let value = &*Scrubber::process().text(value);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.get_or_insert_default();
        if seen.contains(value) {
            return value.to_owned();
        }
        if seen.len() == MOST_VALUES {
            return OTHER.to_owned();
        }
        seen.insert(value.to_owned());
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_values_have_a_series_of_their_own() {
        let label = Label::new();
        for n in 0..MOST_VALUES {
            assert_eq!(label.value(&n.to_string()), n.to_string());
        }
        assert_eq!(label.value("one more"), OTHER);
        assert_eq!(label.value("7"), "7");
    }
}
