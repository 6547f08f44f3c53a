//! What the README shows is what the program does: its settings, and the request it tells people to publish.

use std::fs;
use std::process::Command;

use agent_executor::config;

use super::repository;

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

#[test]
fn the_marks_enclose_the_table() {
    let readme = format!("a\n{BEGIN}| b |\n{END}\nc");
    let (begin, end) = place(&readme);
    assert_eq!(&readme[begin..end], "| b |\n");
}
