//! The rules of the house that no compiler checks: imports point down the list of `src/lib.rs`, outside crates have
//! one home, pure modules stay pure, every file says what it owns, every error code has its page.

mod readme;
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use source::Source;

/// Outside crates that only some files may name: a file or a folder each, given by how its path begins.
const HOMES: &[(&[&str], &[&str])] = &[
    (&["async_nats"], &["src/queue/nats"]),
    (&["sqlx", "rmp"], &["src/store/"]),
    (&["fred"], &["src/stream/dragonfly"]),
    // Vault is asked over HTTP; the sink of `K_SINK` is an HTTP server that stands beside the results stream. MCP over
    // HTTP goes through it, and rmcp speaks its types.
    (
        &["reqwest"],
        &["src/model/", "src/tool/http", "src/tool/mcp/", "src/queue/k_sink", "src/secrets/vault"],
    ),
    (&["rmcp", "sse_stream"], &["src/tool/mcp/"]),
    (&["axum", "tower_http"], &["src/http/"]),
    (&["petgraph", "minijinja", "jsonschema"], &["src/graph/"]),
    (&["cloudevents"], &["src/job/"]),
    (&["clap"], &["src/cli/", "src/main.rs"]),
    (&["rustix"], &["src/cli/", "src/tool/code/", "src/tool/mcp/"]),
    // Only the process that is made for it runs code.
    (&["rquickjs"], &["src/cli/worker_js"]),
    (
        &[
            "opentelemetry",
            "opentelemetry_sdk",
            "opentelemetry_otlp",
            "opentelemetry_http",
            "tracing_opentelemetry",
            "tracing_subscriber",
            "metrics_exporter_prometheus",
        ],
        &["src/telemetry"],
    ),
];

/// Modules without async, clock, randomness or I/O; their tests may read files.
const PURE: &[&str] = &["graph", "pregel", "job", "value"];

/// Words that a pure module does not use, and what each would bring in.
const IMPURE_WORDS: &[(&str, &str)] = &[
    ("tokio", "a runtime"),
    ("async", "waiting"),
    ("await", "waiting"),
    ("SystemTime", "a clock"),
    ("now_utc", "a clock"),
    ("now_v7", "a clock"),
    ("new_v4", "randomness"),
    ("fastrand", "randomness"),
    ("rand", "randomness"),
];

/// Paths that a pure module does not use.
const IMPURE_PATHS: &[(&[&str], &str)] = &[
    (&["std", "fs"], "files"),
    (&["std", "net"], "the network"),
    (&["std", "env"], "the environment"),
    (&["std", "process"], "processes"),
    (&["std", "thread"], "threads"),
    (&["Instant", "now"], "a clock"),
];

/// Texts in the shape of an error code that are none, and what they are.
const NOT_CODES: &[&str] = &[
    // Names of streams, and of subjects and headers of JetStream.
    "AGENT_EXECUTION",
    "AGENT_RESULTS",
    "AGENT_DLQ",
    "AGENT_ADVISORIES",
    "MAX_DELIVERIES",
    "MSG_TERMINATED",
    // What libraries in a script's process are told.
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TOKIO_WORKER_THREADS",
    // What the compiler is told about the build.
    "CARGO_PKG_VERSION",
    "GIT_COMMIT",
];

/// A file of `src/`: its path from the root of the repository, and its text.
struct Module {
    path: String,
    text: String,
}

impl Module {
    /// The module of the list in lib.rs that it belongs to; none for lib.rs and main.rs.
    fn name(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let name = inside.split('/').next()?.trim_end_matches(".rs");
        (name != "lib" && name != "main").then_some(name)
    }

    /// Whether it is the file of a `mod tests;`: its name says what it owns, and nothing of it is in the program.
    fn is_only_tests(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// Its code without tests.
    fn without_tests(&self) -> Source {
        Source::parse(if self.is_only_tests() { "" } else { &self.text }).without_tests()
    }

    /// How many times `super` leads from its top to the root of the crate.
    fn depth(&self) -> usize {
        let inside = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        inside.split('/').filter(|part| *part != "mod").count()
    }
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn modules() -> Vec<Module> {
    let mut found = Vec::new();
    collect(&repository().join("src"), &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn collect(folder: &Path, found: &mut Vec<Module>) {
    for entry in fs::read_dir(folder).expect("src can be listed") {
        let path = entry.expect("src can be listed").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("sources are text");
            let path =
                path.strip_prefix(repository()).expect("src is in the repository").display().to_string();
            found.push(Module { path, text });
        }
    }
}

/// The modules in the order of lib.rs.
fn order(lib: &str) -> Vec<String> {
    let code = Source::parse(lib).code;
    let names = code.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'));
    names.map(str::to_owned).collect()
}

/// Imports that point up the list.
fn upward(module: &Module, order: &[String]) -> Vec<String> {
    let place = |name: &str| order.iter().position(|other| other == name);
    let Some(name) = module.name() else { return Vec::new() };
    let Some(here) = place(name) else {
        return vec![format!("{}: {name} is not in the list of src/lib.rs", module.path)];
    };
    let mut wrong = Vec::new();
    for path in Source::parse(&module.text).paths() {
        let ups = path.names.iter().take_while(|name| *name == "super").count();
        let target = match path.names[0].as_str() {
            "crate" => path.names.get(1),
            // More than the depth: from within a module in the file.
            "super" if ups >= module.depth() && path.names.len() > ups + 1 => path.names.get(ups),
            _ => None,
        };
        if let Some(target) = target.filter(|target| place(target).is_some_and(|there| there < here)) {
            let place = format!("{}:{}", module.path, path.line);
            wrong.push(format!("{place}: {name} uses {target}, which is above it in src/lib.rs"));
        }
    }
    wrong.dedup(); // a `use` tree may name it several times
    wrong
}

/// Outside crates named outside their home.
fn homeless(module: &Module) -> Vec<String> {
    let mut wrong = Vec::new();
    for path in Source::parse(&module.text).paths() {
        for (crates, homes) in HOMES {
            let named = crates.contains(&path.names[0].as_str());
            if named && !homes.iter().any(|home| module.path.starts_with(home)) {
                let place = format!("{}:{}", module.path, path.line);
                wrong.push(format!("{place}: {} lives in {}", path.names[0], homes.join(", ")));
            }
        }
    }
    wrong.dedup();
    wrong
}

/// What a pure module does that is not pure.
fn impurities(module: &Module) -> Vec<String> {
    if !module.name().is_some_and(|name| PURE.contains(&name)) {
        return Vec::new();
    }
    let source = module.without_tests();
    let complaint = |line: usize, what: &str, brings: &str| {
        format!("{}:{line}: {what} brings {brings} into a pure module", module.path)
    };
    let mut wrong = Vec::new();
    for (line, word) in source.words() {
        let known = IMPURE_WORDS.iter().filter(|(impure, _)| *impure == word);
        wrong.extend(known.map(|(what, brings)| complaint(line, what, brings)));
    }
    for path in source.paths() {
        let names: Vec<&str> = path.names.iter().map(String::as_str).collect();
        let known =
            IMPURE_PATHS.iter().filter(|(impure, _)| names.windows(impure.len()).any(|part| part == *impure));
        wrong.extend(known.map(|(what, brings)| complaint(path.line, &what.join("::"), brings)));
    }
    wrong
}

fn opens_with_its_purpose(module: &Module) -> bool {
    module.text.starts_with("//! ")
}

/// `UPPER_CASE`, the shape of a code.
fn is_shouted(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    text.chars().all(plain)
        && text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.split('_').all(|word| !word.is_empty())
}

/// Every error code of the sources: what `fn code` answers and `mod code` lists, constants that say their own name, and
/// every other text of several words in that shape that is not the name of a setting (config has those) and not in
/// [`NOT_CODES`].
fn codes(modules: &[Module]) -> BTreeSet<String> {
    let of_config = |module: &Module| module.name() == Some("config");
    let shouted = |module: &Module| {
        let literals = module.without_tests().literals;
        let several = |text: &String| is_shouted(text) && text.contains('_');
        literals.into_iter().map(|(_, text)| text).filter(several).collect::<Vec<_>>()
    };
    let settings: BTreeSet<String> =
        modules.iter().filter(|module| of_config(module)).flat_map(shouted).collect();
    let mut codes: BTreeSet<String> =
        modules.iter().filter(|module| !of_config(module)).flat_map(shouted).collect();
    codes.retain(|code| !settings.contains(code) && !NOT_CODES.contains(&code.as_str()));
    for module in modules {
        let source = module.without_tests();
        let declared = [source.literals_in("fn code("), source.literals_in("mod code ")].concat();
        codes.extend(declared.into_iter().map(str::to_owned));
        codes.extend(source.namesakes().filter(|code| !settings.contains(*code)).map(str::to_owned));
    }
    codes
}

/// The second-level headings of TROUBLESHOOTING.md that are codes.
fn headings(troubleshooting: &str) -> BTreeSet<String> {
    let headings = troubleshooting.lines().filter_map(|line| line.strip_prefix("## "));
    headings.map(str::trim).filter(|heading| is_shouted(heading)).map(str::to_owned).collect()
}

/// How two sets differ, in words.
fn differences(left: (&str, &BTreeSet<String>), right: (&str, &BTreeSet<String>)) -> Vec<String> {
    let only = |one: (&str, &BTreeSet<String>), other: (&str, &BTreeSet<String>)| {
        let missing = one.1.difference(other.1);
        missing.map(|name| format!("{name} is in {} but not in {}", one.0, other.0)).collect::<Vec<_>>()
    };
    [only(left, right), only(right, left)].concat()
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn imports_point_down_the_list_of_modules() {
    let order = order(&fs::read_to_string(repository().join("src/lib.rs")).unwrap());
    assert!(order.len() > 10, "the list in src/lib.rs was not understood: {order:?}");
    none(&modules().iter().flat_map(|module| upward(module, &order)).collect::<Vec<_>>());
}

#[test]
fn outside_crates_stay_in_their_homes() {
    none(&modules().iter().flat_map(homeless).collect::<Vec<_>>());
}

#[test]
fn pure_modules_are_pure() {
    none(&modules().iter().flat_map(impurities).collect::<Vec<_>>());
}

#[test]
fn every_file_opens_with_what_it_owns() {
    let modules = modules();
    let silent = modules.iter().filter(|module| !module.is_only_tests() && !opens_with_its_purpose(module));
    none(&silent.map(|module| format!("{}: no `//!` at its top", module.path)).collect::<Vec<_>>());
}

#[test]
fn error_codes_and_troubleshooting_headings_are_the_same() {
    let written = fs::read_to_string(repository().join("TROUBLESHOOTING.md")).unwrap();
    none(&differences(("src", &codes(&modules())), ("TROUBLESHOOTING.md", &headings(&written))));
}

fn made_up(path: &str, text: &str) -> Module {
    Module { path: path.to_owned(), text: text.to_owned() }
}

fn list() -> Vec<String> {
    order("pub mod run;\npub mod store;\n// pub mod gone;\npub mod graph;")
}

#[test]
fn an_import_that_points_up_is_found() {
    let inside_braces = made_up("src/graph/lower.rs", "use crate::{value::X, store::{self, Y}};");
    assert_eq!(
        upward(&inside_braces, &list()),
        ["src/graph/lower.rs:1: graph uses store, which is above it in src/lib.rs"]
    );
    assert_eq!(
        upward(&made_up("src/store/mod.rs", "fn f() {}\nfn g() -> crate::run::Error {}"), &list()).len(),
        1
    );
    assert_eq!(
        upward(&made_up("src/store/a/b.rs", "use super::super::super::run::Error;"), &list()).len(),
        1
    );
    assert_eq!(upward(&made_up("src/unlisted.rs", ""), &list()).len(), 1);
}

#[test]
fn an_import_that_points_down_is_fine() {
    let text =
        "use crate::{graph::X, store::Y};\n// crate::run\nconst A: &str = \"crate::run\";\nuse super::run;";
    assert!(upward(&made_up("src/store/a/b.rs", text), &list()).is_empty());
}

#[test]
fn a_crate_outside_its_home_is_found() {
    for text in ["use sqlx::PgPool;", "fn f() -> ::sqlx::Error {}", "#[cfg(test)]\nmod t { use {sqlx, x}; }"]
    {
        let wrong = homeless(&made_up("src/run/mod.rs", text));
        assert_eq!(wrong.len(), 1, "{text}: {wrong:?}");
        assert!(homeless(&made_up("src/store/postgres/mod.rs", text)).is_empty());
    }
    assert!(homeless(&made_up("src/run/mod.rs", "// sqlx::\nuse crate::store::sqlx;")).is_empty());
}

#[test]
fn an_impurity_is_found() {
    let impure = [
        "async fn f() {}",
        "use std::{fs, fmt};",
        "fn f() { std::time::Instant::now(); }",
        "use fastrand::u8;",
    ];
    for text in impure {
        assert_eq!(impurities(&made_up("src/graph/mod.rs", text)).len(), 1, "{text}");
        assert!(impurities(&made_up("src/run/mod.rs", text)).is_empty());
    }
    assert!(impurities(&made_up("src/graph/mod.rs", "#[cfg(test)]\nmod tests { use std::fs; }")).is_empty());
    assert!(impurities(&made_up("src/graph/lower/tests.rs", "use std::fs;")).is_empty());
}

#[test]
fn a_silent_file_is_found() {
    assert!(!opens_with_its_purpose(&made_up("src/a.rs", "use b;\n//! Late.")));
    assert!(opens_with_its_purpose(&made_up("src/a.rs", "//! Owns a.\nuse b;")));
}

#[test]
fn a_code_without_its_page_is_found_and_a_page_without_its_code() {
    let modules = [
        made_up("src/store/mod.rs", "fn code(&self) { match self { _ => \"STORE_GONE\" } }"),
        made_up("src/worker/mod.rs", "const POISON: &str = \"POISON\";"),
        made_up(
            "src/run/mod.rs",
            "pub const LIMIT: &str = \"RECURSION_LIMIT\";\nlet variable = \"API_KEY\";",
        ),
        made_up(
            "src/node/mod.rs",
            "pub mod code { const INTERNAL: &str = \"INTERNAL\"; }\nmatch x { \"GET\" => {} }",
        ),
        made_up("src/config.rs", "const KEY: &str = \"API_KEY\";"),
        made_up("src/job/mod.rs", "let text = \"NOT A_CODE\";\n#[cfg(test)]\nmod tests { \"IN_TEST\" }"),
    ];
    let found = codes(&modules);
    let written = headings("# T\n## STORE_GONE\n## Before you start\n### RECURSION_LIMIT\n## OLD_CODE\n");
    assert_eq!(
        differences(("src", &found), ("pages", &written)),
        [
            "INTERNAL is in src but not in pages",
            "POISON is in src but not in pages",
            "RECURSION_LIMIT is in src but not in pages",
            "OLD_CODE is in pages but not in src"
        ]
    );
}
