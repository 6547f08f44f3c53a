//! Every secret value of the settings, for the scrubber.

use secrecy::SecretString;

use super::{
    mcp,
    resolve::{Settings, read_limited},
    value::{Kind, Value, secrets_of_addresses},
};

/// The secrets with the settings they are in; without a name what is none of ours.
pub(super) fn secrets(settings: &Settings) -> Vec<(String, SecretString)> {
    let mut all = Vec::new();
    let mut add = |name: &str, kind: Kind, text: &str| {
        all.extend(parts(kind, text).into_iter().map(|part| (name.to_owned(), SecretString::from(part))));
    };
    for effective in settings.all.iter().filter(|effective| effective.setting.secret) {
        if let Some(text) = &effective.text {
            add(effective.setting.name, effective.setting.kind, text);
        }
    }
    for (name, member) in settings.members.iter().filter(|(_, member)| member.family.secret) {
        if let Some(text) = &member.text {
            add(name, member.family.kind, text);
            if member.family.list == "MCP_SERVERS" {
                mcp::secrets(text).iter().for_each(|part| add(name, Kind::Text, part));
            }
        }
    }
    let is_creds = |setting: &&super::resolve::Effective| setting.setting.name == "NATS_CREDS_FILE";
    if let Some(Value::Path(path)) = settings.all.iter().find(is_creds).and_then(|found| found.value.as_ref())
        && let Ok(text) = read_limited(path)
    {
        add("NATS_CREDS_FILE", Kind::Text, &text);
    }
    settings.secrets_beside.iter().for_each(|text| add("", Kind::Text, text));
    all
}

/// What is secret of a value.
fn parts(kind: Kind, text: &str) -> Vec<String> {
    match kind {
        Kind::Address(schemes) | Kind::Addresses(schemes) => secrets_of_addresses(text, schemes),
        // Headers: the value, and its last word behind a scheme such as `Bearer`.
        Kind::List => text
            .split(',')
            .filter_map(|pair| Some(pair.split_once('=')?.1.trim()))
            .flat_map(|value| [Some(value), value.split_whitespace().nth(1)])
            .flatten()
            .map(str::to_owned)
            .collect(),
        Kind::Text
        | Kind::Name
        | Kind::Word(_)
        | Kind::Flag
        | Kind::Count(..)
        | Kind::Seconds(..)
        | Kind::Millis(..)
        | Kind::Path
        | Kind::Level => vec![text.to_owned()],
    }
}
