//! The operator's list of subjects that tools may be.

/// Subjects by name (`tools.weather`), by pattern (`tools.*.get`, `tools.>`), without those of the executor itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedSubjects {
    allowed: Vec<String>,
    reserved: Vec<String>,
}

impl AllowedSubjects {
    /// Reads a list; an empty one allows no subject. What `reserved` covers is never allowed.
    ///
    /// Fails with a sentence that names the first part that is no pattern.
    pub fn new(allowed: Vec<String>, reserved: Vec<String>) -> Result<Self, String> {
        match allowed.iter().find(|pattern| !is_pattern(pattern)) {
            Some(wrong) => Err(format!("'{wrong}' is no subject; write tools.weather, tools.* or tools.>")),
            // Where nothing is allowed, nothing need be reserved.
            None if allowed.is_empty() => Ok(Self::default()),
            None => Ok(Self { allowed, reserved }),
        }
    }

    /// Why a tool may not be this subject, if it may not.
    pub(super) fn refusal(&self, subject: &str) -> Option<&'static str> {
        if self.reserved.iter().any(|pattern| covers(pattern, subject)) {
            return Some("it is one of the executor's own");
        }
        let is_allowed = self.allowed.iter().any(|pattern| covers(pattern, subject));
        (!is_allowed).then_some("NATS_TOOL_SUBJECTS does not name it")
    }
}

fn is_pattern(text: &str) -> bool {
    let words: Vec<&str> = text.split('.').collect();
    let last = words.len() - 1;
    words.iter().enumerate().all(|(index, word)| match *word {
        "" => false,
        ">" => index == last,
        "*" => true,
        word => !word.contains(|c: char| "*>".contains(c) || c.is_whitespace() || c.is_control()),
    })
}

/// Whether `subject`, which has no wildcards, is one of `pattern`.
fn covers(pattern: &str, subject: &str) -> bool {
    let mut words = subject.split('.');
    for token in pattern.split('.') {
        match (token, words.next()) {
            (_, None) => return false,
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (token, Some(word)) if token == word => {}
            (_, Some(_)) => return false,
        }
    }
    words.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(patterns: &[&str]) -> Vec<String> {
        patterns.iter().map(|&pattern| pattern.to_owned()).collect()
    }

    #[test]
    fn subjects_are_allowed_by_name_or_pattern_and_never_the_executors_own() {
        for (allowed, subject, expected) in [
            (&[][..], "tools.a", false),
            (&["tools.a"], "tools.a", true),
            (&["tools.a"], "tools.ab", false),
            (&["tools.a"], "tools.a.b", false),
            (&["tools.*"], "tools.a", true),
            (&["tools.*"], "tools.a.b", false),
            (&["tools.*.get"], "tools.a.get", true),
            (&["tools.>"], "tools.a.b", true),
            (&["tools.>"], "tools", false),
            (&["x", ">"], "anything.at.all", true),
            (&[">"], "agent.control.job", false),
        ] {
            let subjects = AllowedSubjects::new(list(allowed), list(&["agent.control.>"])).expect("patterns");
            assert_eq!(subjects.refusal(subject).is_none(), expected, "{allowed:?} {subject}");
        }
    }

    #[test]
    fn a_part_that_is_no_pattern_is_named() {
        for wrong in ["", "a..b", ".a", "a.", "a.>.b", "a*", "a b", "a.b>"] {
            let error = AllowedSubjects::new(list(&["tools.>", wrong]), Vec::new()).expect_err(wrong);
            assert!(error.contains(&format!("'{wrong}'")), "{error}");
        }
    }
}
