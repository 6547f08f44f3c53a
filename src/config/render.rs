//! The settings on paper: as they hold, for `agent-executor config`, and as a table, for the README.

use std::fmt::Write;

use super::{
    families::FAMILIES,
    resolve::{Settings, Source},
    table::{Setting, TABLE},
    value::{Kind, masked_addresses},
};

/// What a masked value looks like.
const MASK: &str = "***";
/// Where the sources start; longer values push theirs to the right.
const COLUMN: usize = 56;

/// Every setting as `NAME=value`, secrets masked, with where it comes from.
pub(super) fn effective(settings: &Settings) -> String {
    let mut out = String::new();
    for effective in &settings.all {
        let setting = effective.setting;
        let shown = effective.text.as_deref().map(|text| shown(setting.kind, setting.secret, text));
        line(&mut out, setting.name, shown, &effective.source);
    }
    for (variable, member) in &settings.members {
        let family = member.family;
        let shown = member.text.as_deref().map(|text| shown(family.kind, family.secret, text));
        line(&mut out, variable, shown, &member.source);
    }
    out
}

fn line(out: &mut String, name: &str, shown: Option<String>, source: &Source) {
    let assignment = match shown {
        Some(text) => format!("{name}={text}"),
        None => format!("#{name}="),
    };
    let source = match source {
        Source::Flag => "flag".to_owned(),
        Source::Environment(variable) if variable == name => "environment".to_owned(),
        Source::Environment(variable) => format!("environment, {variable}"),
        Source::File(path) => path.display().to_string(),
        Source::Default => "default".to_owned(),
        Source::Unset => "not set".to_owned(),
    };
    writeln!(out, "{assignment:<COLUMN$} # {source}").expect("a string takes all text");
}

fn shown(kind: Kind, secret: bool, text: &str) -> String {
    if let Kind::Address(schemes) | Kind::Addresses(schemes) = kind {
        return masked_addresses(text, schemes);
    }
    if secret { MASK.to_owned() } else { text.to_owned() }
}

/// The README's table.
pub fn markdown() -> String {
    let mut out = String::from("| name | default | what it is for |\n|---|---|---|\n");
    for setting in TABLE {
        let default = match setting.default {
            None | Some("") => String::new(),
            Some(text) => format!("`{text}`"),
        };
        let also = also(setting);
        writeln!(out, "| `{}`{also} | {default} | {} |", setting.name, setting.doc)
            .expect("a string takes all text");
    }
    for family in FAMILIES {
        let name = format!("{}<NAME>{}", family.prefix, family.suffix);
        let file = if family.secret { format!(", `{name}_FILE`") } else { String::new() };
        writeln!(out, "| `{name}`{file} | | For each name in `{}`: {} |", family.list, lower(family.doc))
            .expect("a string takes all text");
    }
    out
}

fn also(setting: &Setting) -> String {
    let file = setting.secret.then(|| format!("{}_FILE", setting.name));
    let names = setting.aliases.iter().map(|alias| (*alias).to_owned()).chain(file);
    names.map(|name| format!(", `{name}`")).collect()
}

fn lower(sentence: &str) -> String {
    let mut letters = sentence.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}
