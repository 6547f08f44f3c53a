//! Where each setting's value comes from: flags, then the environment, then the file, then the default.
//!
//! **Invariant:** all mistakes are found before any is reported.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use super::{
    Problem,
    families::{FAMILIES, Family},
    table::{Setting, TABLE},
    unknown::{Known, is_service_link},
    value::Value,
};
use crate::telemetry::scrub::is_sensitive;

/// Names the file of settings.
pub(super) const FILE_VARIABLE: &str = "AGENT_EXECUTOR_CONFIG";
/// Largest file of settings, or of one secret; more is the wrong file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Variables that say nothing but where programs, homes and times are.
const BASICS: [&str; 9] = ["HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER"];

/// All that settings are read from; tests bring their own.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--set NAME=VALUE` and the flags that stand for one setting.
    pub flags: Vec<(String, String)>,
    /// The environment.
    pub environment: HashMap<String, String>,
    /// `--config FILE`; wins over `AGENT_EXECUTOR_CONFIG`.
    pub file: Option<PathBuf>,
}

impl Sources {
    /// The environment of the process; the one place that reads it.
    pub fn from_process(flags: Vec<(String, String)>, file: Option<PathBuf>) -> Self {
        let pairs = std::env::vars_os();
        let environment =
            pairs.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self { flags, environment: environment.collect(), file }
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A flag.
    Flag,
    /// The environment, under this name.
    Environment(String),
    /// The file of settings.
    File(PathBuf),
    /// The table.
    Default,
    /// Nowhere.
    Unset,
}

/// A setting as it holds.
#[derive(Clone, Debug)]
pub(super) struct Effective {
    /// The setting.
    pub(super) setting: &'static Setting,
    /// Its value as it was written; `None` when it is not set.
    pub(super) text: Option<String>,
    /// Its value; `None` when it is not set.
    pub(super) value: Option<Value>,
    /// Where it comes from.
    pub(super) source: Source,
}

/// All settings, resolved.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) all: Vec<Effective>,
    /// Values of families by variable; `None` when a listed name does without.
    pub(super) members: BTreeMap<String, Member>,
    /// Names in the environment that look like settings and are none, and why.
    pub(super) suspects: Vec<Problem>,
    /// Values in the environment whose names say that they are secret, whoever reads them.
    pub(super) secrets_beside: Vec<String>,
    /// Where this person's programs keep their state.
    pub(super) state_folder: Option<PathBuf>,
    /// What every program needs of the environment, and nothing that is ours.
    pub(super) basics: Vec<(String, String)>,
}

/// A setting of a family as it holds.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) family: &'static Family,
    /// Its value as it was written; `None` when it is not set.
    pub(super) text: Option<String>,
    /// Its value; `None` when it is not set or cannot be read.
    pub(super) value: Option<Value>,
    pub(super) source: Source,
    /// The file that holds the value, when it is not in the setting itself.
    pub(super) file: Option<PathBuf>,
}

/// One place values are looked up in.
struct Level {
    values: HashMap<String, String>,
    source: fn(&str, &Path) -> Source,
}

/// A value that was found.
struct Found {
    text: String,
    source: Source,
    file: Option<PathBuf>,
}

/// Resolves every setting of the table. What cannot be read has its default, so that the rest can be checked.
pub(super) fn resolve(sources: &Sources) -> (Settings, Vec<Problem>) {
    let mut problems = Vec::new();
    let (path, file) = read_file(sources, &mut problems);
    let levels = [
        Level { values: flags(sources, &mut problems), source: |_, _| Source::Flag },
        Level { values: sources.environment.clone(), source: |name, _| Source::Environment(name.to_owned()) },
        Level { values: file, source: |_, path| Source::File(path.to_owned()) },
    ];
    let all: Vec<Effective> =
        TABLE.iter().map(|setting| effective(setting, &levels, &path, &mut problems)).collect();
    let members = members(&all, &levels, &path, &mut problems);
    let known = Known::new(&members);
    let [flags, _, file] = &levels;
    known.refuse(flags.values.keys().chain(file.values.keys()), &mut problems);
    let suspects = known.look_through(&sources.environment, &mut problems);
    let secret = sources.environment.iter().filter(|(name, _)| is_sensitive(name));
    let secrets_beside = secret.map(|(_, value)| value.clone()).collect();
    let (state_folder, basics) = (state_folder(&sources.environment), basics(&sources.environment));
    (Settings { all, members, suspects, secrets_beside, state_folder, basics }, problems)
}

fn basics(environment: &HashMap<String, String>) -> Vec<(String, String)> {
    let given = BASICS.iter().filter_map(|name| Some(((*name).to_owned(), environment.get(*name)?.clone())));
    given.collect()
}

/// As the XDG base directories say: a relative path is no path, and without a home there is no such folder.
fn state_folder(environment: &HashMap<String, String>) -> Option<PathBuf> {
    let absolute = |name: &str| environment.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    state.map(|state| state.join("agent-executor"))
}

fn effective(
    setting: &'static Setting,
    levels: &[Level],
    path: &Path,
    problems: &mut Vec<Problem>,
) -> Effective {
    let names: Vec<&str> = setting.names().collect();
    let found = levels.iter().find_map(|level| lookup(level, &names, setting.secret, path, problems));
    let default =
        || setting.default.map(|text| setting.kind.parse(text).expect("a test checks every default"));
    let Some(Found { text, source, .. }) = found else {
        let source = if setting.default.is_some() { Source::Default } else { Source::Unset };
        return Effective { setting, text: setting.default.map(str::to_owned), value: default(), source };
    };
    let value = setting.kind.parse(&text).map(Some).unwrap_or_else(|expected| {
        let got = if setting.secret { String::new() } else { format!(", not {text:?}") };
        problems.push(Problem::new(setting.name, format!("must be {expected}{got}")));
        default()
    });
    Effective { setting, text: Some(text), value, source }
}

/// The value in one level; the first name wins. An empty value is no value.
fn lookup(
    level: &Level,
    names: &[&str],
    secret: bool,
    path: &Path,
    problems: &mut Vec<Problem>,
) -> Option<Found> {
    let get = |name: &str| level.values.get(name).filter(|text| !text.trim().is_empty());
    for name in names {
        let file_name = format!("{name}_FILE");
        let direct = get(name).filter(|text| !is_service_link(name, text));
        let in_file = get(&file_name).filter(|_| secret);
        match (direct, in_file) {
            (Some(_), Some(_)) => {
                problems
                    .push(Problem::new(name, format!("is set together with {file_name}; set one of them")));
            }
            (Some(text), None) => {
                let source = (level.source)(name, path);
                return Some(Found { text: text.clone(), source, file: None });
            }
            (None, Some(secret_path)) => match read_limited(Path::new(secret_path)) {
                Ok(text) => {
                    let text = text.trim_end_matches(['\r', '\n']).to_owned();
                    let file = Some(PathBuf::from(secret_path));
                    return Some(Found { text, source: (level.source)(&file_name, path), file });
                }
                Err(error) => problems.push(Problem::new(&file_name, format!("cannot be read: {error}"))),
            },
            (None, None) => {}
        }
    }
    None
}

fn flags(sources: &Sources, problems: &mut Vec<Problem>) -> HashMap<String, String> {
    let mut values = HashMap::new();
    for (name, value) in &sources.flags {
        if values.insert(name.clone(), value.clone()).is_some() {
            problems.push(Problem::new(name, "is given by two flags"));
        }
    }
    values
}

fn read_file(sources: &Sources, problems: &mut Vec<Problem>) -> (PathBuf, HashMap<String, String>) {
    let from_environment = || sources.environment.get(FILE_VARIABLE).filter(|path| !path.is_empty());
    let Some(path) = sources.file.clone().or_else(|| from_environment().map(PathBuf::from)) else {
        return (PathBuf::new(), HashMap::new());
    };
    let mut values = HashMap::new();
    let place = path.display().to_string();
    let parsed = read_limited(&path).map_err(|error| format!("cannot be read: {error}")).and_then(|text| {
        // The error's own text quotes the line, which may hold a secret.
        toml::from_str::<toml::Table>(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            format!("is not TOML, line {line}: {}", error.message())
        })
    });
    match parsed {
        Ok(table) => flatten(&table, "", &mut values, problems),
        Err(message) => problems.push(Problem::new(&place, message)),
    }
    (path, values)
}

/// `[nats] url = …` and `nats_url = …` both mean NATS_URL.
fn flatten(
    table: &toml::Table,
    prefix: &str,
    values: &mut HashMap<String, String>,
    problems: &mut Vec<Problem>,
) {
    for (key, value) in table {
        let name = format!("{prefix}{}", key.to_ascii_uppercase().replace('-', "_"));
        if let toml::Value::Table(inner) = value {
            flatten(inner, &format!("{name}_"), values, problems);
            continue;
        }
        let Some(text) = scalar(value) else {
            problems.push(Problem::new(&name, "must be a text, a number, true, false or a list of texts"));
            continue;
        };
        if values.insert(name.clone(), text).is_some() {
            problems.push(Problem::new(&name, "is given twice in the file"));
        }
    }
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(items) => {
            items.iter().map(toml::Value::as_str).collect::<Option<Vec<_>>>().map(|items| items.join(","))
        }
        toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

fn members(
    all: &[Effective],
    levels: &[Level],
    path: &Path,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Member> {
    let mut members = BTreeMap::new();
    for family in FAMILIES {
        let listed = all.iter().find(|effective| effective.setting.name == family.list);
        let Some(Value::List(names)) = listed.and_then(|effective| effective.value.as_ref()) else {
            continue;
        };
        for name in names {
            let variable = family.variable(name);
            let found =
                levels.iter().find_map(|level| lookup(level, &[&variable], family.secret, path, problems));
            let member = member(family, &variable, found, problems);
            members.insert(variable, member);
        }
    }
    members
}

fn member(
    family: &'static Family,
    variable: &str,
    found: Option<Found>,
    problems: &mut Vec<Problem>,
) -> Member {
    let Some(Found { text, source, file }) = found else {
        if family.required {
            problems.push(Problem::new(variable, format!("is not set, but {} asks for it", family.list)));
        }
        return Member { family, text: None, value: None, source: Source::Unset, file: None };
    };
    let value = match family.kind.parse(&text) {
        Ok(value) => Some(value),
        Err(expected) => {
            problems.push(Problem::new(variable, format!("must be {expected}")));
            None
        }
    };
    Member { family, text: Some(text), value, source, file }
}

pub(super) fn read_limited(path: &Path) -> std::io::Result<String> {
    if std::fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(std::io::Error::other(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    std::fs::read_to_string(path)
}
