//! Resolved settings as what they are: texts, numbers, times, and what a word stands for.

use std::{path::PathBuf, time::Duration};

use secrecy::SecretString;
use url::Url;

use super::{
    families,
    resolve::{Member, Settings, Source},
    value::Value,
};
use crate::worker;

impl Settings {
    fn value(&self, name: &str) -> Option<&Value> {
        let effective = self.all.iter().find(|effective| effective.setting.name == name);
        effective.expect("compose asks only for names of the table").value.as_ref()
    }

    pub(super) fn source(&self, name: &str) -> &Source {
        let effective = self.all.iter().find(|effective| effective.setting.name == name);
        &effective.expect("compose asks only for names of the table").source
    }

    pub(super) fn optional_text(&self, name: &str) -> Option<String> {
        let Value::Text(text) = self.value(name)? else { unreachable!("{name} is not declared as text") };
        Some(text.clone())
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.optional_text(name).expect("the table gives a default")
    }

    pub(super) fn secret(&self, name: &str) -> Option<SecretString> {
        self.optional_text(name).map(SecretString::from)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        let Some(Value::Flag(flag)) = self.value(name) else {
            unreachable!("{name} is no flag with a default")
        };
        *flag
    }

    pub(super) fn count(&self, name: &str) -> u64 {
        let Some(Value::Count(count)) = self.value(name) else {
            unreachable!("{name} is no count with a default")
        };
        *count
    }

    /// Days; 0 is for ever.
    pub(super) fn days(&self, name: &str) -> Option<Duration> {
        let days = u32::try_from(self.count(name)).expect("the table's limits fit");
        (days > 0).then_some(worker::DAY * days)
    }

    pub(super) fn size(&self, name: &str) -> usize {
        usize::try_from(self.count(name)).expect("the table's limits fit")
    }

    pub(super) fn port(&self, name: &str) -> u16 {
        u16::try_from(self.count(name)).expect("the table's limits fit")
    }

    pub(super) fn span(&self, name: &str) -> Duration {
        let Some(Value::Span(span)) = self.value(name) else {
            unreachable!("{name} is no time with a default")
        };
        *span
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Some(Value::List(items)) => items.clone(),
            None => Vec::new(),
            Some(_) => unreachable!("{name} is not declared as a list"),
        }
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        let Value::Path(path) = self.value(name)? else { unreachable!("{name} is not declared as a path") };
        Some(path.clone())
    }

    pub(super) fn address(&self, name: &str) -> Option<Url> {
        let Value::Address(url) = self.value(name)? else { unreachable!("{name} is no address") };
        Some(url.clone())
    }

    /// What its word stands for.
    pub(super) fn choice<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> T {
        meaning(&self.text(name), words)
    }

    /// The settings for `name`, which `list` lists.
    pub(super) fn of<'a>(&'a self, list: &'static str, name: &'a str) -> Members<'a> {
        Members { settings: self, list, name }
    }
}

/// The settings of one name in a list; what cannot be read of them was refused when it was found, and is not there.
#[derive(Clone, Copy)]
pub(super) struct Members<'a> {
    settings: &'a Settings,
    list: &'static str,
    name: &'a str,
}

impl<'a> Members<'a> {
    pub(super) fn variable(self, suffix: &str) -> String {
        families::variable(self.list, suffix, self.name)
    }

    pub(super) fn found(self, suffix: &str) -> Option<&'a Member> {
        self.settings.members.get(&self.variable(suffix))
    }

    fn value(self, suffix: &str) -> Option<&'a Value> {
        self.found(suffix)?.value.as_ref()
    }

    /// As it was written.
    pub(super) fn text(self, suffix: &str) -> Option<String> {
        self.found(suffix)?.text.clone()
    }

    pub(super) fn choice<T: Copy>(self, suffix: &str, words: &[(&str, T)]) -> Option<T> {
        let Value::Text(word) = self.value(suffix)? else {
            unreachable!("{suffix} is not declared as a word")
        };
        Some(meaning(word, words))
    }

    pub(super) fn count(self, suffix: &str) -> Option<u64> {
        let Value::Count(count) = self.value(suffix)? else { unreachable!("{suffix} is no count") };
        Some(*count)
    }

    pub(super) fn span(self, suffix: &str) -> Option<Duration> {
        let Value::Span(span) = self.value(suffix)? else { unreachable!("{suffix} is no time") };
        Some(*span)
    }

    pub(super) fn list(self, suffix: &str) -> Vec<String> {
        match self.value(suffix) {
            Some(Value::List(items)) => items.clone(),
            None => Vec::new(),
            Some(_) => unreachable!("{suffix} is not declared as a list"),
        }
    }

    pub(super) fn address(self, suffix: &str) -> Option<Url> {
        let Value::Address(url) = self.value(suffix)? else { unreachable!("{suffix} is no address") };
        Some(url.clone())
    }
}

fn meaning<T: Copy>(word: &str, words: &[(&str, T)]) -> T {
    let known = words.iter().find(|(known, _)| *known == word);
    known.expect("whoever reads a setting knows every word of the table").1
}
