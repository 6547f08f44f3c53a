//! Python LangGraph reads what is in the database: its own `PostgresSaver`, from PyPI, in a virtual environment that
//! is made once per set of pinned versions under `target/`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value as Json, json};

use crate::servers::Postgres;

/// The versions whose storage format we write, all pinned so that a release of theirs cannot break our build.
/// `langgraph` itself is there because stored sends and interrupts are objects of its classes.
const REQUIREMENTS: &[&str] = &[
    "langgraph-checkpoint-postgres==3.2.0",
    "langgraph-checkpoint==4.3.2",
    "langgraph-checkpoint-conformance==0.0.2",
    "langgraph==1.2.22",
    "langchain-core==1.7.2",
    "psycopg[binary]==3.3.9",
    "ormsgpack==1.13.1",
];

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/live/interop.py");

/// Everything LangGraph finds in a thread; the shape is described in interop.py.
pub(crate) async fn read_thread(database_url: &str, thread_id: &str) -> Result<Json> {
    let printed = run_script(vec!["read".into(), database_url.into(), thread_id.into()]).await?;
    serde_json::from_str(&printed).with_context(|| format!("interop.py printed no JSON: {printed}"))
}

/// What LangGraph says of every thread of a database; the shape is described in interop.py.
pub(crate) async fn check_threads(database_url: &str) -> Result<Json> {
    let printed = run_script(vec!["check".into(), database_url.into()]).await?;
    serde_json::from_str(&printed).with_context(|| format!("interop.py printed no JSON: {printed}"))
}

/// LangGraph's own migrations.
pub(crate) async fn set_up(database_url: &str) -> Result<()> {
    run_script(vec!["setup".into(), database_url.into()]).await.map(drop)
}

/// What a script prints.
pub(super) async fn run(script: &'static str, arguments: Vec<String>) -> Result<String> {
    let work = move || output(start(script)?.args(arguments));
    tokio::task::spawn_blocking(work).await.context("running Python panicked")?
}

/// A script in the virtual environment, whose arguments are still to come.
pub(super) fn start(script: &str) -> Result<Command> {
    start_with(REQUIREMENTS, script)
}

/// The same in an environment with other packages.
pub(super) fn start_with(requirements: &[&str], script: &str) -> Result<Command> {
    let mut python = Command::new(python(requirements)?);
    // Warnings of libraries about each other are not what is looked at; `-B` leaves nothing beside the scripts.
    python.args(["-W", "ignore", "-B", script]).env_remove("LANGGRAPH_STRICT_MSGPACK");
    Ok(python)
}

async fn run_script(arguments: Vec<String>) -> Result<String> {
    run(SCRIPT, arguments).await
}

/// The Python of the virtual environment, which is made when it is not there yet. A lock file keeps test processes
/// from making it at the same time.
fn python(requirements: &[&str]) -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{}", name_of(requirements)));
    let lock = File::create(folder.with_extension("lock")).context("cannot create the lock file")?;
    lock.lock().context("cannot lock the virtual environment")?;
    let (python, ready) = (folder.join("bin/python"), folder.join("ready"));
    if !ready.exists() {
        let _ = fs::remove_dir_all(&folder);
        output(Command::new("python3").args(["-m", "venv"]).arg(&folder))
            .context("cannot make a virtual environment; run `make setup`")?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "5"]);
        output(pip.args(requirements))
            .context("pip cannot install Python's packages (this test needs PyPI or a mirror of it)")?;
        File::create(&ready)?;
    }
    Ok(python)
}

/// Another set of versions is another environment.
fn name_of(requirements: &[&str]) -> String {
    requirements.join("_").replace("==", "-").replace(['[', ']'], "-")
}

fn output(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !done.status.success() {
        bail!("{command:?} failed ({}):\n{}", done.status, String::from_utf8_lossy(&done.stderr).trim_end());
    }
    String::from_utf8(done.stdout).context("not UTF-8")
}

/// A database with LangGraph's tables and one thread, `t-basic`, in rows that Python wrote.
async fn database_with_a_thread_of_python() -> Result<String> {
    let postgres = Postgres::shared().await?;
    let url = postgres.fresh_database().await?;
    set_up(&url).await?;
    let name = url.rsplit('/').next().context("the URL ends with the database")?.to_owned();
    postgres.sql(&name, include_str!("interop_thread.sql")).await?;
    Ok(url)
}

async fn change(url: &str, statement: &str) -> Result<()> {
    let name = url.rsplit('/').next().context("the URL ends with the database")?;
    Postgres::shared().await?.sql(name, statement).await.map(drop)
}

#[tokio::test]
async fn the_reader_understands_a_thread_that_python_wrote() {
    let url = database_with_a_thread_of_python().await.unwrap();
    let thread = read_thread(&url, "t-basic").await.unwrap();
    let history = thread["graphs"][""].as_array().unwrap();
    let steps: Vec<_> = history.iter().map(|checkpoint| checkpoint["step"].as_i64().unwrap()).collect();
    assert_eq!(steps, [-1, 0, 1, 2]);
    let last = &history[3];
    let classes: Vec<_> = last["messages"].as_array().unwrap().iter().map(|m| m["class"].clone()).collect();
    assert_eq!(classes, ["HumanMessage", "AIMessage", "ToolMessage"]);
    let call = json!([{"name": "search", "args": {"q": "x"}, "id": "call_1", "type": "tool_call"}]);
    assert_eq!(last["messages"][1]["tool_calls"], call);
    assert_eq!(last["channels"]["total"], 7);
    assert_eq!(thread["stored_values"], 18);
    assert_eq!(thread["encoded_otherwise"], json!([]));
}

#[tokio::test]
async fn the_reader_refuses_a_forked_history_and_half_a_message() {
    let url = database_with_a_thread_of_python().await.unwrap();
    let end = "checkpoint_id like '%8002-809bc03babe5'";
    change(&url, &format!("update checkpoints set parent_checkpoint_id = null where {end}")).await.unwrap();
    let error = read_thread(&url, "t-basic").await.unwrap_err();
    assert!(format!("{error:#}").contains("its parent is None"), "{error:#}");

    let url = database_with_a_thread_of_python().await.unwrap();
    // The text `content` of the human message becomes `contend`, which the decoder lets pass.
    let broken =
        "decode(replace(encode(blob, 'hex'), encode('content', 'hex'), encode('contend', 'hex')), 'hex')";
    change(&url, &format!("update checkpoint_blobs set blob = {broken} where channel = 'messages'"))
        .await
        .unwrap();
    let error = read_thread(&url, "t-basic").await.unwrap_err();
    assert!(format!("{error:#}").contains("content"), "{error:#}");

    assert!(read_thread(&url, "nobody").await.is_err());
}

#[test]
fn another_set_of_versions_is_another_environment() -> Result<()> {
    ensure!(name_of(&["a==1", "b[c]==2"]) == "a-1_b-c--2");
    ensure!(name_of(&["a==1"]) != name_of(&["a==2"]));
    Ok(())
}
