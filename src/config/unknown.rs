//! Names that are no settings: refused where they can only be mistakes, pointed out where they may be.
//!
//! **Invariant:** flags and the file are ours alone, so every unknown name there is refused; the environment is
//! everybody's, so there only a slip of the pen is refused, and what merely looks like ours is pointed out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    Problem,
    families::FAMILIES,
    resolve::{FILE_VARIABLE, Member},
    table::{self, Setting, TABLE},
};

/// Shorter names may have one slip only: with two, too many words of the world are near.
const SHORT: usize = 6;
/// Two slips are a typing mistake, more are another word.
const MOST_SLIPS: usize = 2;

/// How names of ours begin. Others begin with words that are everybody's, such as `LOG_`, or another program's: `OTEL_`,
/// `VAULT_`.
const OURS: [&str; 21] = [
    "AGENT_EXECUTOR_",
    "ANTHROPIC_",
    "CLOUDEVENT_",
    "DRAGONFLY_",
    "HTTP_TOOL_",
    "JAVASCRIPT_TOOLS",
    "MAX_DEFINITION_",
    "MCP_",
    "MODEL_",
    "NATS_",
    "OPENAI_",
    "PG_",
    "POSTGRES_",
    "PYTHON_TOOLS",
    "REDIS_",
    "RETENTION_",
    "SCRIPTED_MODELS_",
    "SCRIPT_TOOL_",
    "SECRETS_",
    "STREAM_",
    "WEB_SEARCH_",
];

/// What the image of Postgres reads besides; often in the same secret or config map as our settings.
const OF_IMAGES: [&str; 6] = [
    "POSTGRES_DB_FILE",
    "POSTGRES_HOST_AUTH_METHOD",
    "POSTGRES_INITDB_ARGS",
    "POSTGRES_INITDB_ARGS_FILE",
    "POSTGRES_INITDB_WALDIR",
    "POSTGRES_USER_FILE",
];

/// The names that are known: the table's, and those of the families' members.
pub(super) struct Known<'a> {
    members: &'a BTreeMap<String, Member>,
}

impl<'a> Known<'a> {
    pub(super) fn new(members: &'a BTreeMap<String, Member>) -> Self {
        Self { members }
    }

    fn has(&self, name: &str) -> bool {
        let base = name.strip_suffix("_FILE").unwrap_or(name);
        table::find(name).is_some()
            || table::find(base).is_some_and(|setting| setting.secret)
            || self.members.contains_key(name)
            || self.members.get(base).is_some_and(|member| member.family.secret)
    }

    /// The known name that `name` was probably meant to be.
    fn nearest(&self, name: &str) -> Option<String> {
        let with_file = |name: &str, secret: bool| {
            let file = secret.then(|| format!("{name}_FILE"));
            std::iter::once(name.to_owned()).chain(file)
        };
        // Nobody writes HOSTNAME by hand, so nothing is meant to be it.
        let typed =
            |setting: &Setting| setting.names().filter(|name| *name != "HOSTNAME").collect::<Vec<_>>();
        let of_table = TABLE.iter().flat_map(|setting| {
            typed(setting).into_iter().flat_map(move |name| with_file(name, setting.secret))
        });
        let of_members = self.members.iter().flat_map(|(name, member)| with_file(name, member.family.secret));
        let all = of_table.chain(of_members).chain([FILE_VARIABLE.to_owned()]);
        let near = all.filter_map(|known| Some((near(&known, name)?, known)));
        near.min().map(|(_, known)| known)
    }

    /// Names among `given` that nobody knows.
    pub(super) fn refuse<'n>(&self, given: impl Iterator<Item = &'n String>, problems: &mut Vec<Problem>) {
        let unknown: BTreeSet<&String> = given.filter(|name| !self.has(name)).collect();
        for name in unknown {
            let hint = self.nearest(name).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            problems.push(Problem::new(name, format!("is not a setting{hint}")));
        }
    }

    /// Refuses slips in the environment; returns what else looks like a setting and is none, and why.
    pub(super) fn look_through(
        &self,
        environment: &HashMap<String, String>,
        problems: &mut Vec<Problem>,
    ) -> Vec<Problem> {
        // An empty value is no value: that is how a variable somebody else has set is taken back.
        let is_known = |name: &str| name == FILE_VARIABLE || self.has(name);
        let set = environment.iter().filter(|(name, text)| !text.trim().is_empty() && !is_known(name));
        let foreign = |(name, text): &(&String, &String)| is_foreign(name, text);
        let unknown: BTreeSet<&String> = set.filter(|pair| !foreign(pair)).map(|(name, _)| name).collect();
        let mut suspects = Vec::new();
        for name in unknown {
            if let Some(list) = family_of(name) {
                let message = format!("is not read, because {list} does not list its name");
                suspects.push(Problem::new(name, message));
            } else if let Some(near) = self.nearest(name).filter(|_| !is_numbered(name)) {
                let message = format!("is not a setting; did you mean {near}?");
                problems.push(Problem::new(name, message));
            } else if OURS.iter().any(|prefix| name.starts_with(prefix)) {
                suspects.push(Problem::new(name, "looks like a setting but is none"));
            }
        }
        suspects
    }
}

/// The list that would have to name the member of a family that `name` sets.
fn family_of(name: &str) -> Option<&'static str> {
    let base = name.strip_suffix("_FILE").unwrap_or(name);
    let is_member = |(prefix, suffix): (&str, &str)| {
        let middle = base.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
        middle.is_some_and(|middle| !middle.is_empty())
    };
    let family = FAMILIES.iter().find(|family| is_member((family.prefix, family.suffix)))?;
    Some(family.list)
}

/// Set by a platform or meant for another program, although it looks like ours.
fn is_foreign(name: &str, text: &str) -> bool {
    is_of_kubernetes(name, text) || OF_IMAGES.contains(&name) || name.starts_with("POSTGRESQL_")
        // PGHOST and its like are those of Postgres' own tools.
        || (name.starts_with("PG") && !name.starts_with("PG_"))
}

/// `<SERVICE>_SERVICE_HOST`, `<SERVICE>_PORT=tcp://…`, `<SERVICE>_PORT_4222_TCP_ADDR` and their like.
fn is_of_kubernetes(name: &str, text: &str) -> bool {
    let is_link = || {
        let mut words = name.rsplit_once("_PORT_")?.1.split('_');
        let port = words.next()?.parse::<u16>().is_ok();
        Some(port && words.next().is_some_and(|word| ["TCP", "UDP", "SCTP"].contains(&word)))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || is_service_link(name, text)
        || is_link().unwrap_or(false)
}

/// Kubernetes sets `<SERVICE>_PORT=tcp://…` for every Service near by; that is never what is meant here.
pub(super) fn is_service_link(name: &str, text: &str) -> bool {
    name.ends_with("_PORT") && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme))
}

/// `OPENAI_API_KEY_2` is a second one of somebody's, not a slip.
fn is_numbered(name: &str) -> bool {
    name.ends_with(|last: char| last.is_ascii_digit())
}

/// How many slips lead from `known` to `name`, when they are few enough for a typing mistake.
fn near(known: &str, name: &str) -> Option<usize> {
    let most = if known.len() < SHORT { 1 } else { MOST_SLIPS };
    if known.len().abs_diff(name.len()) > most {
        return None;
    }
    let total = slips(known, name);
    let (one, other): (Vec<&str>, Vec<&str>) = (known.split('_').collect(), name.split('_').collect());
    // NODE_NAME is not POD_NAME and DB_HOST is not PG_HOST: half a word's letters make another word.
    let mut words = one.iter().zip(&other);
    let another_word =
        one.len() == other.len() && words.any(|(a, b)| slips(a, b) * 2 >= a.len().max(b.len()).max(1));
    (total <= most && !another_word).then_some(total)
}

/// Letters to insert, drop, replace or swap with their neighbour to get from one word to the other.
fn slips(one: &str, other: &str) -> usize {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut rows = vec![(0..=other.len()).collect::<Vec<usize>>()];
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(a != b);
            let mut least = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked_through(names: &[&str]) -> (Vec<String>, Vec<String>) {
        let environment = names.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect();
        let (members, mut problems) = (BTreeMap::new(), Vec::new());
        let suspects = Known::new(&members).look_through(&environment, &mut problems);
        let text = |problem: &Problem| format!("{} {}", problem.name, problem.message);
        (problems.iter().map(text).collect(), suspects.iter().map(text).collect())
    }

    #[test]
    fn a_slip_of_the_pen_finds_the_name_that_was_meant() {
        let slips = [
            ("NATS_ULR", "NATS_URL"),
            ("NATS_UR", "NATS_URL"),
            ("NATSURL", "NATS_URL"),
            ("STREAM_MAXLENN", "STREAM_MAXLEN"),
            ("MAX_CONCURENT_JOBS", "MAX_CONCURRENT_JOBS"),
            ("MAX_CONCURRENT_JOB", "MAX_CONCURRENT_JOBS"),
            ("DATABSE_URL", "DATABASE_URL"),
            ("POSTGRES_PASWORD", "POSTGRES_PASSWORD"),
            ("OPENAI_API_KYE_FILE", "OPENAI_API_KEY_FILE"),
            ("OPEN_AI_API_KEY", "OPENAI_API_KEY"),
            ("PROT", "PORT"),
            ("K_SINC", "K_SINK"),
            ("LOG_LEVLE", "LOG_LEVEL"),
            ("AGENT_EXECUTER_CONFIG", "AGENT_EXECUTOR_CONFIG"),
        ];
        for (name, meant) in slips {
            let (refused, suspects) = looked_through(&[name]);
            assert_eq!(refused, [format!("{name} is not a setting; did you mean {meant}?")]);
            assert_eq!(suspects, [""; 0]);
        }
    }

    #[test]
    fn what_looks_like_ours_is_pointed_out() {
        let (refused, suspects) = looked_through(&[
            "STREAM_MAX_LENGTH",
            "NATS_USER",
            "REDIS_DB",
            "OPENAI_API_KEY_2",
            "MODEL_PROVIDER_ACME_BASE_URL",
            "HTTP_TOOL_SECRET_A",
            "HTTP_TOOL_SECRET_CRM_FILE",
            "WEB_SEARCH_KEY",
            "SECRETS_FOLDER",
            "RETENTION_CHECKPOINTS_DAYS",
            "PYTHON_TOOLS_ENABLED",
            "JAVASCRIPT_TOOLS_ENABLED",
        ]);
        assert_eq!(refused, [""; 0]);
        expect_test::expect![[r#"
            HTTP_TOOL_SECRET_A is not read, because HTTP_TOOL_SECRETS does not list its name
            HTTP_TOOL_SECRET_CRM_FILE is not read, because HTTP_TOOL_SECRETS does not list its name
            JAVASCRIPT_TOOLS_ENABLED looks like a setting but is none
            MODEL_PROVIDER_ACME_BASE_URL is not read, because MODEL_PROVIDERS does not list its name
            NATS_USER looks like a setting but is none
            OPENAI_API_KEY_2 looks like a setting but is none
            PYTHON_TOOLS_ENABLED looks like a setting but is none
            REDIS_DB looks like a setting but is none
            RETENTION_CHECKPOINTS_DAYS looks like a setting but is none
            SECRETS_FOLDER looks like a setting but is none
            STREAM_MAX_LENGTH looks like a setting but is none
            WEB_SEARCH_KEY looks like a setting but is none"#]]
        .assert_eq(&suspects.join("\n"));
    }

    #[test]
    fn what_everybody_sets_is_left_alone() {
        let names = "PATH HOME PWD OLDPWD SHELL SHLVL TERM LANG USER LOGNAME TZ HOST_NAME HOSTTYPE HTTP_PROXY \
            NODE_NAME JOB_NAME APP_NAME POD_IP POD_UID POD_NAMESPACE NAMESPACE K_SERVICE K_REVISION \
            DB_HOST DB_PORT DB_USER DB_PASSWORD DB_NAME PGHOST PGPORT PGUSER PGPASSWORD PGDATABASE PGDATA PGSSLMODE \
            POSTGRESQL_HOST POSTGRESQL_USER POSTGRES_INITDB_ARGS POSTGRES_USER_FILE MYSQL_HOST PORT_NUMBER \
            NATS_SERVICE_HOST NATS_SERVICE_PORT NATS_SERVICE_PORT_CLIENT NATS_PORT_4222_TCP NATS_PORT_4222_TCP_ADDR \
            POSTGRES_SERVICE_HOST REDIS_PORT_6379_TCP_PROTO DRAGONFLY_SERVICE_PORT_REDIS AGENT_EXECUTOR_SERVICE_HOST \
            OTEL_RESOURCE_ATTRIBUTES OTEL_EXPORTER_OTLP_PROTOCOL OTEL_EXPORTER_OTLP_TIMEOUT OTEL_EXPORTER_OTLP_TRACES_ENDPOINT \
            RUST_LOG LOG_FILE LOG_DIR MODEL AWS_REGION SSL_CERT_FILE CI EDITOR";
        let nothing = (Vec::new(), Vec::new());
        assert_eq!(looked_through(&names.split_whitespace().collect::<Vec<_>>()), nothing);
        assert!(is_foreign("NATS_PORT", "tcp://10.0.0.7:4222"));
        assert!(is_foreign("REDIS_2_PORT", "tcp://10.0.0.7:6379"));
    }

    #[test]
    fn the_prefixes_are_those_of_settings() {
        for prefix in OURS {
            let names = TABLE.iter().flat_map(Setting::names).chain([FILE_VARIABLE]);
            assert!(names.into_iter().any(|name| name.starts_with(prefix)), "{prefix}");
        }
    }

    #[test]
    fn every_setting_begins_like_ours_or_with_a_word_that_is_everybodys() {
        let everybodys =
            "DATABASE HOSTNAME JOB K LEASE LISTEN LOG MAX OTEL POD PORT PUBLIC SHUTDOWN TOOL VAULT";
        let everybodys: Vec<&str> = everybodys.split_whitespace().collect();
        for name in TABLE.iter().flat_map(Setting::names) {
            let word = name.split('_').next().expect("a name has a first word");
            let is_ours = OURS.iter().any(|prefix| name.starts_with(prefix));
            assert!(is_ours || everybodys.contains(&word), "{name}: begins like nothing in OURS");
        }
    }
}
