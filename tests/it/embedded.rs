//! `agent-executor run` from outside: the program as a child process, a file, and no server but the one a tool calls.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent_executor::{
    ids::{Namespace, SystemClock, ThreadId},
    store::{
        Checkpoints, Saved,
        sqlite::{Config, Place, SqliteStore},
    },
};
use anyhow::{Context, Result, ensure};
use axum::Router;
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{
    doors::{Served, serve},
    servers,
};

/// Longer than any run here takes on a busy machine, the lease of a dead process included.
const WITHIN: Duration = Duration::from_secs(60);

/// A folder with definitions and a database.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Result<Self> {
        Ok(Self { folder: tempfile::tempdir()? })
    }

    fn db(&self) -> PathBuf {
        self.folder.path().join("threads.db")
    }

    fn put(&self, name: &str, definition: &Json) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, definition.to_string())?;
        Ok(path)
    }

    /// `run FILE --db …` with `arguments`, without any setting of the shell and without a terminal.
    fn command(&self, file: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent-executor"));
        command
            .env_clear()
            .env("HTTP_TOOL_ALLOWED_HOSTS", "127.0.0.1")
            .env("HTTP_TOOL_ALLOW_PRIVATE", "true");
        command.arg("run").arg(file).arg("--db").arg(self.db()).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn run(&self, file: &Path, arguments: &[&str]) -> Result<Output> {
        let ended = tokio::time::timeout(WITHIN, self.command(file, arguments).output()).await;
        Ok(ended.context("it takes too long")??)
    }

    /// The checkpoints of the thread's root graph, newest first.
    async fn history(&self, thread_id: &str) -> Result<Vec<Saved>> {
        let store =
            SqliteStore::open(Config::at(Place::File(self.db())), Arc::new(SystemClock), "test").await?;
        let history = store.history(&ThreadId::parse(thread_id)?, &Namespace::root(), 1000).await?;
        store.close().await;
        Ok(history)
    }

    async fn messages(&self, thread_id: &str) -> Result<Vec<String>> {
        let history = self.history(thread_id).await?;
        let newest = &history.first().context("a checkpoint")?.checkpoint;
        let messages = newest.values.get("messages").context("messages")?;
        Ok(messages.messages().map(|message| message.content.text().to_string()).collect())
    }
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn events(text: &str) -> Vec<Json> {
    // A killed process may leave half a line.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn of_type<'a>(events: &'a [Json], event_type: &str) -> Vec<&'a Json> {
    events.iter().filter(|event| event["event_type"] == event_type).collect()
}

fn agent(replies: Json) -> Json {
    json!({
        "nodes": [{ "type": "orchestrator", "name": "main", "tools": [], "system_prompt": "Work.",
            "model": { "provider": "scripted", "model": "m", "script": { "replies": replies } } }],
        "edges": []
    })
}

/// A bank that counts what it is asked for, and says nothing while it stalls.
#[derive(Default)]
struct Bank {
    requests: AtomicUsize,
    stalls: AtomicBool,
}

async fn bank() -> Result<(Arc<Bank>, Served)> {
    let bank = Arc::<Bank>::default();
    let counted = bank.clone();
    let answer = move || {
        counted.requests.fetch_add(1, Ordering::SeqCst);
        let stalls = counted.stalls.load(Ordering::SeqCst);
        async move {
            if stalls {
                std::future::pending::<()>().await;
            }
            "paid"
        }
    };
    Ok((bank, serve(Router::new().fallback(answer)).await?))
}

/// An agent that pays, thinks for `delay_ms`, and says so.
fn payer(url: &str, delay_ms: u64) -> Json {
    let mut definition = agent(json!([
        { "text": "paying", "tool_calls": [{ "id": "c1", "name": "pay", "args": {} }] },
        { "text": "all is paid", "delay_ms": delay_ms }
    ]));
    definition["nodes"][0]["tools"] = json!(["pay"]);
    definition["tool_definitions"] =
        json!([{ "name": "pay", "description": "Pays.", "http": { "method": "POST", "url": url } }]);
    definition
}

/// Reads events until one is of that kind; they are the child's so far.
async fn until(child: &mut Child, event_type: &str, count: usize) -> Result<Vec<Json>> {
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    let read = async {
        let mut seen = Vec::new();
        while let Some(line) = lines.next_line().await? {
            seen.push(serde_json::from_str::<Json>(&line)?);
            if of_type(&seen, event_type).len() == count {
                return Ok(seen);
            }
        }
        anyhow::bail!("it ended before its {event_type}: {seen:?}")
    };
    let seen = tokio::time::timeout(WITHIN, read).await.context("it takes too long")??;
    child.stdout = Some(lines.into_inner().into_inner());
    Ok(seen)
}

fn signal(child: &Child, name: &str) -> Result<()> {
    let pid = child.id().context("it runs")?.to_string();
    let sent = std::process::Command::new("kill").args([name, &pid]).status()?;
    ensure!(sent.success(), "kill {name} {pid}");
    Ok(())
}

#[tokio::test]
async fn the_readme_s_first_example_runs_on_a_machine_without_servers() -> Result<()> {
    let desk = Desk::new()?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("graph-definitions/deep-agent.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-executor"));
    command.env_clear().env("HOME", desk.folder.path()).stdin(Stdio::null());
    command.arg("run").arg(&file).args(["--input", "Write about tides", "--thread", "first"]);
    let done = tokio::time::timeout(WITHIN, command.output()).await??;
    let text = out(&done);
    assert_eq!(done.status.code(), Some(0), "{text}\n{}", err(&done));
    for expected in [
        "main: I will plan the work first.\n",
        "→ main calls task ",
        "← write_file success after ",
        "■ completed\n",
        "  files     /notes.md, /tides.md\n",
        "  messages  13 messages\n",
    ] {
        assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
    }
    assert!(desk.folder.path().join(".local/state/agent-executor/threads.db").exists());
    assert!(err(&done).contains("--thread first --input"), "{}", err(&done));
    Ok(())
}

#[tokio::test]
async fn turns_of_a_thread_follow_one_another_and_memory_keeps_none() -> Result<()> {
    let desk = Desk::new()?;
    let file = desk.put("a.json", &agent(json!([{ "text": "one" }, { "text": "two" }])))?;
    for (turn, messages) in [("hi", 2), ("ho", 4)] {
        let done = desk.run(&file, &["--thread", "t", "--input", turn, "--json"]).await?;
        assert_eq!(done.status.code(), Some(0), "{}", err(&done));
        let events = events(&out(&done));
        assert_eq!(events.last().context("events")?["data"]["status"], "completed");
        assert_eq!(desk.messages("t").await?.len(), messages);
    }
    assert_eq!(desk.messages("t").await?[2], "ho");
    let nothing = desk.run(&file, &["--thread", "t"]).await?;
    assert_eq!(nothing.status.code(), Some(1));
    assert!(err(&nothing).contains("no unfinished job"), "{}", err(&nothing));
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-executor"));
    command.env_clear().arg("run").arg(&file).args(["--db", ":memory:", "--input", r#"{"messages": []}"#]);
    let done = command.output().await?;
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    assert!(!err(&done).contains("next turn"), "nothing is kept: {}", err(&done));
    Ok(())
}

#[tokio::test]
async fn a_killed_run_goes_on_from_its_checkpoint_and_repeats_no_call() -> Result<()> {
    let desk = Desk::new()?;
    let (bank, served) = bank().await?;
    let file = desk.put("payer.json", &payer(&served.url, 10_000))?;
    let arguments = ["--thread", "t", "--input", "pay", "--json"];
    let mut child = desk.command(&file, &arguments).spawn()?;
    // The state after the call has been stored: input, the model's turn, the call.
    let before = until(&mut child, "on_state_update", 3).await?;
    assert_eq!(of_type(&before, "on_tool_end").len(), 1);
    child.kill().await?;

    let again = desk.run(&file, &arguments).await?;
    assert_eq!(again.status.code(), Some(0), "{}", err(&again));
    let after = events(&out(&again));
    assert_eq!(after[0]["job_id"], before[0]["job_id"], "the same job goes on");
    assert_eq!((&after[0]["event_type"], &after[0]["attempt"]), (&json!("on_attempt_start"), &json!(2)));
    assert!(after[0]["data"]["resumed_from"].is_string(), "{}", after[0]);
    assert_eq!(of_type(&after, "on_tool_start"), Vec::<&Json>::new(), "the call is not made again");
    assert_eq!(bank.requests.load(Ordering::SeqCst), 1);
    let messages = desk.messages("t").await?;
    assert_eq!(messages, ["pay", "paying", "paid", "all is paid"], "asking again was no second turn");
    Ok(())
}

#[tokio::test]
async fn a_call_that_a_kill_left_open_is_asked_about_and_the_answer_is_taken() -> Result<()> {
    let desk = Desk::new()?;
    let (bank, served) = bank().await?;
    bank.stalls.store(true, Ordering::SeqCst);
    let file = desk.put("payer.json", &payer(&served.url, 0))?;
    let mut child = desk.command(&file, &["--thread", "it's", "--input", "pay", "--json"]).spawn()?;
    let asked = || async { bank.requests.load(Ordering::SeqCst) == 1 };
    servers::until("the request is on its way", WITHIN, asked).await?;
    child.kill().await?;
    bank.stalls.store(false, Ordering::SeqCst);

    let waits = desk.run(&file, &["--thread", "it's", "--input", "something else"]).await?;
    assert_eq!(waits.status.code(), Some(4), "{}", err(&waits));
    let told = err(&waits);
    assert!(told.contains("the new input was not run"), "{told}");
    assert!(told.contains("took effect") && told.contains(r"--thread 'it'\''s' --db "), "{told}");
    assert!(told.contains("--resume 'ANSWER'"), "{told}");
    let still = desk.run(&file, &["--thread", "it's"]).await?;
    assert_eq!(still.status.code(), Some(4), "it goes on waiting: {}", err(&still));
    let wrong = desk.run(&file, &["--thread", "it's", "--resume", "perhaps"]).await?;
    assert_eq!(wrong.status.code(), Some(4), "it asks once more: {}", err(&wrong));
    let done = desk.run(&file, &["--thread", "it's", "--resume", r#"{"result": "paid at noon"}"#]).await?;
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    assert!(out(&done).contains("main: all is paid"), "{}", out(&done));
    assert_eq!(bank.requests.load(Ordering::SeqCst), 1);
    Ok(())
}

/// Runs a command at a terminal that has `typed` waiting; what it shows.
async fn at_a_terminal(command: &Command, typed: &str) -> Result<(Option<i32>, String)> {
    const PTY: &str =
        "import os, pty, sys\nstatus = pty.spawn(sys.argv[1:])\nsys.exit(os.waitstatus_to_exitcode(status))";
    let command = command.as_std();
    let mut python = Command::new("python3");
    python.arg("-c").arg(PTY).arg(command.get_program()).args(command.get_args());
    python.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
    python.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = python.spawn()?;
    let mut stdin = child.stdin.take().context("piped")?;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, typed.as_bytes()).await?;
    let done =
        tokio::time::timeout(WITHIN, child.wait_with_output()).await.context("it takes too long")??;
    drop(stdin);
    Ok((done.status.code(), format!("{}{}", out(&done), err(&done))))
}

#[tokio::test]
async fn at_a_terminal_the_question_is_asked_and_answered() -> Result<()> {
    let desk = Desk::new()?;
    let (bank, served) = bank().await?;
    bank.stalls.store(true, Ordering::SeqCst);
    let mut definition = payer(&served.url, 0);
    definition["tool_definitions"][0]["http"]["timeout_seconds"] = json!(2.0);
    let file = desk.put("payer.json", &definition)?;
    let command = desk.command(&file, &["--thread", "t", "--input", "pay"]);
    let (code, shown) = at_a_terminal(&command, "nonsense\n1\n").await?;
    assert_eq!(code, Some(0), "{shown}");
    for expected in ["1) happened", "that does not fit", "all is paid", "■ completed"] {
        assert!(shown.contains(expected), "{expected:?} is missing in\n{shown}");
    }
    assert_eq!(bank.requests.load(Ordering::SeqCst), 1);
    Ok(())
}

#[tokio::test]
async fn two_runs_on_one_thread_take_turns_and_do_not_fork_it() -> Result<()> {
    let desk = Desk::new()?;
    let file = desk.put("a.json", &agent(json!([{ "text": "one", "delay_ms": 300 }, { "text": "two", "delay_ms": 300 }, { "text": "three" }])))?;
    let runs = ["a", "b", "c"].map(|turn| {
        let (desk, file) = (&desk, &file);
        async move { desk.run(file, &["--thread", "t", "--input", turn]).await }
    });
    for done in futures::future::join_all(runs).await {
        let done = done?;
        assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    }
    let messages = desk.messages("t").await?;
    assert_eq!(messages.len(), 6, "{messages:?}");
    let asked: HashSet<_> = messages.iter().step_by(2).map(String::as_str).collect();
    assert_eq!(asked, HashSet::from(["a", "b", "c"]));
    let history = desk.history("t").await?;
    let parents: HashSet<_> = history.iter().map(|saved| saved.parent.clone()).collect();
    assert_eq!(parents.len(), history.len(), "every checkpoint has one before it, and at most one after it");
    Ok(())
}

#[tokio::test]
async fn ctrl_c_cancels_and_keeps_what_was_done() -> Result<()> {
    let desk = Desk::new()?;
    let (bank, served) = bank().await?;
    let file = desk.put("payer.json", &payer(&served.url, 600_000))?;
    let mut child = desk.command(&file, &["--thread", "t", "--input", "pay", "--json"]).spawn()?;
    until(&mut child, "on_state_update", 3).await?;
    signal(&child, "-INT")?;
    let done = tokio::time::timeout(WITHIN, child.wait_with_output()).await??;
    assert_eq!(done.status.code(), Some(5), "{}", err(&done));
    assert_eq!(events(&out(&done)).last().context("events")?["data"]["status"], "cancelled");
    assert_eq!(desk.messages("t").await?, ["pay", "paying", "paid"]);
    assert_eq!(bank.requests.load(Ordering::SeqCst), 1);
    let over = desk.run(&file, &["--thread", "t"]).await?;
    assert_eq!(over.status.code(), Some(1), "the job has ended: {}", err(&over));
    Ok(())
}

#[tokio::test]
async fn sigterm_leaves_the_job_to_the_next_run() -> Result<()> {
    let desk = Desk::new()?;
    let (bank, served) = bank().await?;
    let file = desk.put("payer.json", &payer(&served.url, 10_000))?;
    let mut child = desk.command(&file, &["--thread", "t", "--input", "pay", "--json"]).spawn()?;
    until(&mut child, "on_state_update", 3).await?;
    signal(&child, "-TERM")?;
    let left = tokio::time::timeout(WITHIN, child.wait_with_output()).await??;
    assert_eq!(left.status.code(), Some(1), "{}", err(&left));
    assert!(err(&left).contains("to go on: agent-executor run"), "{}", err(&left));
    let done = desk.run(&file, &["--thread", "t"]).await?;
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    assert!(!err(&done).contains("waiting"), "the thread was given back: {}", err(&done));
    assert_eq!(bank.requests.load(Ordering::SeqCst), 1);
    Ok(())
}

#[tokio::test]
async fn a_failed_job_and_wrong_usage_have_exit_codes_of_their_own() -> Result<()> {
    let desk = Desk::new()?;
    let mut definition = agent(json!([]));
    definition["nodes"][0]["model"] = json!("nobody:m");
    let file = desk.put("a.json", &definition)?;
    let failed = desk.run(&file, &["--input", "hi"]).await?;
    assert_eq!(failed.status.code(), Some(3), "{}", err(&failed));
    assert!(out(&failed).contains("■ failed"), "{}", out(&failed));
    let wrong = desk.put("wrong.json", &json!({ "nodes": [{ "name": "x", "type": "nothing" }] }))?;
    let refused = desk.run(&wrong, &["--input", "hi"]).await?;
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        err(&refused).contains("/nodes/0") && err(&refused).contains("[DEFINITION_INVALID]"),
        "{}",
        err(&refused)
    );
    let usage = desk.run(&file, &["--resume", "x"]).await?;
    assert_eq!(usage.status.code(), Some(2), "an answer needs a thread: {}", err(&usage));
    let unknown = desk.run(&file, &["--thread", "nobody", "--resume", "x"]).await?;
    assert_eq!(unknown.status.code(), Some(3), "{}", err(&unknown));
    assert!(out(&unknown).contains("NOTHING_TO_RESUME"), "{}", out(&unknown));
    Ok(())
}
