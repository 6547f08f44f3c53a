//! Removes values from a text that comes in pieces: a value may be split between any two of them.
//!
//! **Invariant:** the pieces that come out, joined, are the text that went in without the values.

use std::sync::Arc;

use super::Values;

/// Holds back the end of what it was given while a value may have begun there.
#[derive(Debug)]
pub struct Guard {
    values: Arc<Values>,
    held: String,
}

impl Guard {
    /// Nothing is held.
    pub fn new(values: Arc<Values>) -> Self {
        Self { values, held: String::new() }
    }

    /// What can be shown by now.
    pub fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let (clean, rest) = self.values.remove_up_to_open_end(&self.held);
        let rest_at = self.held.len() - rest.len();
        self.held.drain(..rest_at);
        clean
    }

    /// What is held, at the end of the text.
    pub fn finish(&mut self) -> String {
        self.values.remove(&std::mem::take(&mut self.held)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn guard(values: &[&str]) -> Guard {
        Guard::new(Arc::new(Values::of(values.iter().copied()).expect("there are some")))
    }

    #[test]
    fn a_value_in_two_pieces_is_removed_and_what_only_begins_like_one_comes_late() {
        let mut guard = guard(&["hunter2hunter2"]);
        assert_eq!(guard.push("the key is hunt"), "the key is ");
        assert_eq!(guard.push("er2hunter2."), "***REDACTED***.");
        assert_eq!(guard.push(" a hunt"), " a ");
        assert_eq!(guard.push(" for it, h"), "hunt for it, ");
        assert_eq!(guard.finish(), "h");
        assert_eq!(guard.finish(), "");
    }

    #[test]
    fn a_value_that_goes_on_as_a_longer_one_is_waited_for() {
        let mut guard = guard(&["abcd", "abcdefgh"]);
        assert_eq!(guard.push("abcd"), "");
        assert_eq!(guard.push("efgh!"), "***REDACTED***!");
        assert_eq!(guard.push("abcdx"), "***REDACTED***x");
    }

    proptest! {
        #[test]
        fn pieces_joined_are_the_text_without_the_values(
            pieces in proptest::collection::vec("[ab1ü]{0,6}", 0..20),
        ) {
            let values = Arc::new(Values::of(["ab1ab1ab", "üb1b"]).expect("there are some"));
            let mut guard = Guard::new(values.clone());
            let mut shown: String = pieces.iter().map(|piece| guard.push(piece)).collect();
            shown.push_str(&guard.finish());
            prop_assert_eq!(shown, values.remove(&pieces.concat()).into_owned());
        }
    }
}
