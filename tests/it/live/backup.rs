//! Backup and restore as docs/operations.md tells them: its own lines are run, by a shell, on real databases.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value as Json, json};

use super::world::{WITHIN, World, orchestrator, request};
use crate::servers;

/// The lines of code in the document's section about backups.
fn code_of_the_guide() -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let text = fs::read_to_string(path)?;
    let section = text.split("\n## Backup and restore\n").nth(1).context("the guide tells of backups")?;
    let section = section.split("\n### ").next().unwrap_or_default();
    Ok(section.lines().filter_map(|line| line.strip_prefix("    ")).map(str::to_owned).collect())
}

/// Runs lines of the guide in `folder`, on the database of `world`.
async fn shell(world: &World, folder: &Path, lines: &[String]) -> Result<()> {
    // Debian keeps PostgreSQL's own programs where no PATH leads.
    let path = "for bin in /usr/lib/postgresql/*/bin; do PATH=\"$bin:$PATH\"; done\n";
    let mut command = tokio::process::Command::new("sh");
    command.args(["-euc", &format!("{path}{}", lines.join("\n"))]).current_dir(folder);
    command.env("DATABASE_URL", &world.database_url).kill_on_drop(true);
    let done = tokio::time::timeout(WITHIN, command.output()).await??;
    ensure!(done.status.success(), "{lines:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

fn on_thread(job_id: &str, thread_id: &str, delay_ms: u32) -> Json {
    // One reply for each turn that a thread has here.
    let answer = json!({ "text": "answer", "delay_ms": delay_ms });
    let definition = orchestrator(json!([answer, answer, answer]));
    let mut request = request(job_id, &definition, &format!("question of {job_id}"));
    request["thread_id"] = json!(thread_id);
    request
}

/// What people and models said on a thread.
async fn conversation(world: &World, thread_id: &str) -> Result<Vec<String>> {
    let (code, printed, errors) = world.run_command(&["threads", "state", thread_id, "--json"]).await?;
    ensure!(code == Some(0), "{errors}");
    let state: Json = serde_json::from_str(&printed)?;
    let messages = state["values"]["messages"].as_array().context("the thread has messages")?;
    Ok(messages.iter().map(|message| message["content"].as_str().unwrap_or_default().to_owned()).collect())
}

/// The program's own word on what is wrong: the codes.
async fn findings(world: &World, more: &[&str]) -> Result<Vec<String>> {
    let (_, printed, errors) = world.run_command(&[&["doctor", "--json"], more].concat()).await?;
    let report: Json = serde_json::from_str(&printed).context(errors)?;
    let found = report["findings"].as_array().into_iter().flatten();
    Ok(found.filter_map(|finding| finding["code"].as_str()).map(str::to_owned).collect())
}

#[tokio::test]
async fn a_backup_restored_elsewhere_goes_on_with_its_conversations_and_its_open_jobs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let guide = code_of_the_guide()?;
    let lines = |program: &str| -> Vec<String> {
        guide.iter().filter(|line| line.starts_with(program)).cloned().collect()
    };
    let lost = World::start().await?;
    let executor = lost.executor().await?;
    lost.run(&on_thread("first", "kept", 0)).await?;
    lost.publish(&on_thread("runs", "busy", 60_000)).await?;
    lost.publish(&on_thread("waits", "busy", 0)).await?;
    let open = || async {
        let states =
            lost.sql("select job_id, state from executor_job where thread_id = 'busy' order by 1").await;
        states.is_ok_and(|states| states.contains("runs|running") && states.contains("waits|"))
    };
    servers::until("one job runs and one waits for it", WITHIN, open).await?;
    shell(&lost, folder.path(), &lines("pg_dump ")).await?;
    executor.kill()?;

    let world = World::start().await?;
    shell(&world, folder.path(), &lines("pg_restore ")).await?;
    // Somebody has noticed, found the backup and restored it meanwhile.
    world
        .sql(
            "update executor_job set accepted_at = accepted_at - interval '5 minutes'; \
             update executor_thread set lease_until = now() - interval '5 minutes' where owner is not null",
        )
        .await?;
    world.run_command(&["migrate", "--queue"]).await?;
    let found = findings(&world, &[]).await?;
    assert!(found.contains(&"dead_leases".to_owned()), "{found:?}");
    findings(&world, &["--repair"]).await?;
    assert_eq!(world.unsettled().await?, (0, 2), "the open jobs have messages again");

    let _executor = world.executor().await?;
    world.publish(&on_thread("second", "kept", 0)).await?;
    world.result_of("second").await?;
    let said = ["question of first", "answer", "question of second", "answer"];
    assert_eq!(conversation(&world, "kept").await?, said);
    let taken = || async {
        let owned = "select count(*) from executor_thread where thread_id = 'busy' and owner is not null";
        world.sql(owned).await.is_ok_and(|count| count.trim() == "1")
    };
    servers::until("the open job runs again", WITHIN, taken).await
}

#[tokio::test]
async fn one_thread_copied_out_comes_back_as_it_was() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let world = World::start().await?;
    let _executor = world.executor().await?;
    world.run(&on_thread("one", "THREAD", 0)).await?;
    world.run(&on_thread("two", "THREAD", 0)).await?;
    let export = ["threads", "export", "THREAD"];
    let (_, before, _) = world.run_command(&export).await?;
    assert!(before.lines().count() > 5, "{before}");

    let guide = code_of_the_guide()?;
    let copies = guide.iter().filter(|line| line.starts_with("\\copy (")).count();
    let from = guide.iter().position(|line| line.starts_with("psql ")).context("the guide uses psql")?;
    let out: Vec<String> = guide[from..from + copies + 2].to_vec();
    shell(&world, folder.path(), &out).await?;
    let (code, _, errors) = world.run_command(&["threads", "delete", "THREAD", "--yes"]).await?;
    assert_eq!(code, Some(0), "{errors}");
    assert_ne!(world.run_command(&export).await?.1, before, "it is gone");

    let back = |table: &str| format!("psql \"$DATABASE_URL\" -c \"\\copy {table} from '{table}.tsv'\"");
    let tables = ["checkpoints", "checkpoint_blobs", "checkpoint_writes"];
    shell(&world, folder.path(), &tables.map(back)).await?;
    assert_eq!(world.run_command(&export).await?.1, before);
    world.run(&on_thread("three", "THREAD", 0)).await?;
    assert_eq!(conversation(&world, "THREAD").await?.len(), 6);
    Ok(())
}
