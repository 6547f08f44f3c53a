//! The operator's rules: which definitions may name which secrets. What no rule says is not allowed.

use super::{Asker, Origin};

/// What stands before a pattern that only stored definitions fit.
const STORED: &str = "stored:";

/// `DEFINITION=SECRET+SECRET`, several of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    all: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    stored_only: bool,
    definition: String,
    secrets: Vec<String>,
}

impl Rules {
    /// Reads rules; `*` in a name stands for any text.
    ///
    /// Fails with a sentence that quotes the first that is none.
    pub fn parse<'a>(rules: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let all = rules.into_iter().map(str::trim).filter(|rule| !rule.is_empty()).map(Rule::parse);
        Ok(Self { all: all.collect::<Result<_, _>>()? })
    }

    /// Whether `asker` may have the secret `name`.
    pub(super) fn allow(&self, asker: &Asker, name: &str) -> bool {
        let fits = |rule: &Rule| {
            let is_from_there = !rule.stored_only || asker.origin == Origin::Stored;
            is_from_there && matches(&rule.definition, &asker.definition) && rule.names(name)
        };
        self.all.iter().any(fits)
    }

    /// Whether any rule is about the secret `name`.
    pub(super) fn speak_of(&self, name: &str) -> bool {
        self.all.iter().any(|rule| rule.names(name))
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no rule; write DEFINITION=SECRET, or stored:DEFINITION=SECRET+SECRET");
        let (definition, secrets) = text.rsplit_once('=').ok_or_else(wrong)?;
        let (stored_only, definition) = match definition.trim().strip_prefix(STORED) {
            Some(definition) => (true, definition),
            None => (false, definition.trim()),
        };
        let secrets: Vec<String> = secrets.split('+').map(|name| name.trim().to_owned()).collect();
        let is_pattern = |name: &String| super::is_name(&name.replace('*', "x"));
        if definition.is_empty() || !secrets.iter().all(is_pattern) {
            return Err(wrong());
        }
        Ok(Self { stored_only, definition: definition.to_owned(), secrets })
    }

    fn names(&self, secret: &str) -> bool {
        self.secrets.iter().any(|pattern| matches(pattern, secret))
    }
}

/// Whether `text` is `pattern` with any text for each `*`.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, text) in [
            ("a", "a"),
            ("*", ""),
            ("*", "x"),
            ("a*", "a"),
            ("a*c", "abc"),
            ("*b*", "abc"),
            ("a*b*c", "a-b-b-c"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("a", "ab"), ("a", "A"), ("a*a", "a"), ("a*c", "ab"), ("*b", "ba"), ("a*b*c", "acb")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_rule_is_about_its_definitions_and_its_secrets() {
        let rules = Rules::parse(["billing-*=STRIPE+CRM_*", "stored:ops=*", " "]).expect("rules");
        let allow = |asker: &Asker, name: &str| rules.allow(asker, name);
        let (billing, ops) = (Asker::inline(&"billing-eu".into()), Asker::inline(&"ops".into()));
        assert!(allow(&billing, "STRIPE") && allow(&billing, "CRM_KEY") && !allow(&billing, "OTHER"));
        assert!(!allow(&ops, "STRIPE") && allow(&Asker::stored(&"ops".into()), "STRIPE"));
        assert!(!allow(&Asker::stored(&"ops2".into()), "STRIPE"));
        assert!(!Rules::default().allow(&billing, "STRIPE") && !Rules::default().speak_of("STRIPE"));
    }

    #[test]
    fn what_is_no_rule_is_quoted() {
        for wrong in ["billing", "=A", "stored:=A", "a=", "a=B+", "a=b c", "a=../x"] {
            let error = Rules::parse([wrong]).expect_err(wrong);
            assert!(error.contains(wrong), "{error}");
        }
    }
}
