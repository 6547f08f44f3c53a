//! What the README shows is what the program does: its settings, its commands, and the request it tells people to
//! publish.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use agent_executor::config;

use super::{differences, none, repository};

const BEGIN: &str = "<!-- settings -->\n";
const END: &str = "<!-- /settings -->";

/// The part of the README between the two marks: its beginning and its end.
fn place(readme: &str) -> (usize, usize) {
    let begin = readme.find(BEGIN).expect("the README marks where the table begins") + BEGIN.len();
    let end = readme.find(END).expect("the README marks where the table ends");
    (begin, end)
}

#[test]
fn the_readme_lists_the_settings_of_the_program() {
    let path = repository().join("README.md");
    let mut readme = fs::read_to_string(&path).unwrap();
    let (begin, end) = place(&readme);
    let table = config::markdown();
    if std::env::var_os("UPDATE_EXPECT").is_some() && readme[begin..end] != table {
        readme.replace_range(begin..end, &table);
        fs::write(&path, &readme).unwrap();
        return;
    }
    let stale = table.lines().filter(|line| !readme[begin..end].contains(line)).collect::<Vec<_>>();
    let message = "README.md is stale; UPDATE_EXPECT=1 cargo test --test it readme rewrites it";
    assert!(readme[begin..end] == table, "{message}; missing lines:\n{}", stale.join("\n"));
}

/// The first indented block that begins with a brace.
fn request(readme: &str) -> String {
    let block = readme.lines().skip_while(|line| *line != "    {");
    block.take_while(|line| line.is_empty() || line.starts_with("    ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_program_accepts_the_request_of_the_readme() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), request(&readme)).unwrap();
    let mut validate = Command::new(env!("CARGO_BIN_EXE_agent-executor"));
    let done = validate.arg("validate").arg(file.path()).output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && told.contains("main       model openai:gpt-4o-mini"), "{told}");
}

/// The commands of the table in the README: the first word of each row, and the words that follow it there.
fn commands(readme: &str) -> BTreeSet<String> {
    let rows = readme.lines().skip_while(|line| !line.starts_with("| command |")).skip(2);
    let mut commands = BTreeSet::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cell = row.split('|').nth(1).expect("a row has cells");
        let words = cell.split('`').skip(1).step_by(2).collect::<Vec<_>>();
        let first = words.first().expect("a row names a command");
        let (name, sub) = first.split_once(' ').unwrap_or((first, ""));
        commands.insert(name.to_owned());
        let subs = [sub].into_iter().chain(words[1..].iter().copied());
        // `FILE` and the like are arguments.
        let subs = subs.filter(|sub| sub.starts_with(|c: char| c.is_ascii_lowercase()));
        commands.extend(subs.map(|sub| format!("{name} {sub}")));
    }
    commands
}

/// The subcommands that the program's help lists under `path`; those it hides are not there.
fn subcommands(path: &[&str]) -> BTreeSet<String> {
    let mut program = Command::new(env!("CARGO_BIN_EXE_agent-executor"));
    let help = program.args(path).arg("--help").output().expect("the program starts");
    let help = String::from_utf8(help.stdout).expect("help is text");
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn the_readme_lists_the_commands_of_the_program() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let mut real = subcommands(&[]);
    assert!(real.contains("serve") && !real.contains("store-stdio"), "the help was not understood: {real:?}");
    for name in real.clone() {
        real.extend(subcommands(&[&name]).into_iter().map(|sub| format!("{name} {sub}")));
    }
    none(&differences(("the program", &real), ("the README's table of commands", &commands(&readme))));
}

#[test]
fn commands_are_found_in_the_table() {
    let table = "| command | what it does |\n|---|---|\n| `run FILE` | `x` |\n| `dlq list`, `show` | y |\n\n| `z` | |";
    assert_eq!(commands(table).into_iter().collect::<Vec<_>>(), ["dlq", "dlq list", "dlq show", "run"]);
}

#[test]
fn the_marks_enclose_the_table() {
    let readme = format!("a\n{BEGIN}| b |\n{END}\nc");
    let (begin, end) = place(&readme);
    assert_eq!(&readme[begin..end], "| b |\n");
}
