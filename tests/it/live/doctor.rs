//! A person asks what is wrong: nothing, or everything at once; and has it mended.

use anyhow::Result;
use serde_json::{Value as Json, json};

use super::world::{WITHIN, World, orchestrator, request};
use crate::servers;

fn definition(delay_ms: u32) -> Json {
    orchestrator(json!([{ "text": "done", "delay_ms": delay_ms }]))
}

fn on_thread(job_id: &str, thread_id: &str, delay_ms: u32) -> Json {
    let mut request = request(job_id, &definition(delay_ms), "hi");
    request["thread_id"] = json!(thread_id);
    request
}

/// Exit code, and the codes of what was found with what was done.
async fn doctor(world: &World, more: &[&str]) -> Result<(Option<i32>, Vec<(String, bool)>, Json)> {
    let arguments = [&["doctor", "--json"], more].concat();
    let (code, printed, errors) = world.run_command(&arguments).await?;
    let report: Json =
        serde_json::from_str(&printed).map_err(|error| anyhow::anyhow!("{error}: {errors}"))?;
    let found = report["findings"].as_array().into_iter().flatten();
    let found = found.map(|found| {
        let code = found["code"].as_str().unwrap_or_default().to_owned();
        (code, !found["repaired"].is_null())
    });
    Ok((code, found.collect(), report.clone()))
}

#[tokio::test]
async fn a_healthy_system_is_passed_over_in_silence() -> Result<()> {
    let world = World::start().await?;
    let (code, found, report) = doctor(&world, &[]).await?;
    assert!(code == Some(1) && found.iter().any(|(code, _)| code == "schema"), "{report}");
    assert_eq!(
        world.sql("select count(*) from pg_tables where tablename = 'executor_job'").await?.trim(),
        "0"
    );

    let executor = world.executor().await?;
    world.run(&request("j", &definition(0), "hi")).await?;
    world.all_settled().await?;
    let (code, printed, errors) = world.run_command(&["doctor"]).await?;
    assert_eq!((code, printed.as_str()), (Some(0), ""), "{errors}");
    let (_, printed, _) = world.run_command(&["doctor", "--verbose"]).await?;
    for part in ["postgres: 1", "nats: 2", "dragonfly: redis ", "pending: 0", "tables checkpoints: "] {
        assert!(printed.contains(part), "{part:?} is not among the numbers:\n{printed}");
    }
    let (code, _, report) = doctor(&world, &["--repair"]).await?;
    assert_eq!((code, &report["healthy"]), (Some(0), &json!(true)), "{report}");

    // A server that is away is named, and the others are looked at all the same.
    let nobody = format!("DRAGONFLY_URL=redis://127.0.0.1:{}", servers::free_port()?);
    let (code, found, report) = doctor(&world, &["--set", &nobody]).await?;
    assert_eq!((code, found), (Some(0), vec![("server".to_owned(), false)]), "jobs run without it: {report}");
    let nobody = format!("NATS_URL=nats://127.0.0.1:{}", servers::free_port()?);
    let (code, found, report) = doctor(&world, &["--set", &nobody]).await?;
    assert_eq!((code, found), (Some(1), vec![("server".to_owned(), false)]), "{report}");
    assert_eq!(world.run_command(&["doctor", "--no-such-flag"]).await?.0, Some(2));
    assert!(executor.terminate().await?.success());
    Ok(())
}

/// Leaves everything behind that can be left behind, long ago.
async fn wreck(world: &World) -> Result<()> {
    let executor = world.executor().await?;
    world.run(&request("late", &definition(0), "hi")).await?;
    for (job_id, thread_id) in [("dead", "t"), ("lost", "t"), ("stuck", "u")] {
        world.publish(&on_thread(job_id, thread_id, 2000)).await?;
        let known = || async {
            let count = format!("select count(*) from executor_job where job_id = '{job_id}'");
            world.sql(&count).await.is_ok_and(|count| count.trim() == "1")
        };
        servers::until(&format!("{job_id} is known"), WITHIN, known).await?;
    }
    executor.kill()?;
    // A last renewal may still be under way inside the database.
    let others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    let gone = || async { world.sql(others).await.is_ok_and(|count| count.trim() == "0") };
    servers::until("the database has noticed the death", WITHIN, gone).await?;
    world.lose_requests().await?;
    // The result of "late" is to be seen when it comes: under an id that the stream does not know.
    world
        .sql(
            "update executor_job set accepted_at = accepted_at - interval '5 minutes'; \
             update executor_job set published_at = null, finished_at = now() - interval '5 minutes', \
                 result_event_id = 'late:once more' where job_id = 'late'; \
             update executor_thread set lease_until = now() - interval '5 minutes' where owner is not null; \
             update executor_thread set owner = null, nonce = null where thread_id = 'u'",
        )
        .await
        .map(drop)
}

#[tokio::test]
async fn everything_that_is_left_behind_is_found_and_mended() -> Result<()> {
    let world = World::start().await?;
    wreck(&world).await?;
    let names = |found: &[(String, bool)]| found.iter().map(|(code, _)| code.clone()).collect::<Vec<_>>();
    let expected = ["dead_leases", "stuck_threads", "unpublished_results", "nobody_asks", "lost_messages"];
    let before = "select owner, lease_until from executor_thread order by thread_id";
    let owners = world.sql(before).await?;
    for _ in 0..2 {
        let (code, found, report) = doctor(&world, &[]).await?;
        assert_eq!((code, names(&found)), (Some(1), expected.map(str::to_owned).to_vec()), "{report}");
    }
    assert_eq!(world.sql(before).await?, owners, "looking changes nothing");
    let (_, printed, _) = world.run_command(&["doctor"]).await?;
    assert!(printed.contains("dead_leases: 1 threads") && printed.contains("    do: "), "{printed}");

    let (code, found, report) = doctor(&world, &["--repair"]).await?;
    assert_eq!(code, Some(0), "{report}");
    let left: Vec<_> = found.iter().filter(|(_, repaired)| !repaired).map(|(code, _)| code).collect();
    assert_eq!(left, ["nobody_asks"], "{report}");
    // One message for each open job: what scales the executors sees work.
    assert_eq!(world.unsettled().await?, (0, 3));
    assert_eq!(world.results_of("late").await?.len(), 2);
    let (code, ..) = doctor(&world, &["--repair"]).await?;
    assert_eq!((code, world.unsettled().await?), (Some(0), (0, 3)), "a second time changes nothing");

    let executor = world.executor().await?;
    for job_id in ["dead", "lost", "stuck"] {
        assert_eq!(world.result_of(job_id).await?["data"]["result"]["status"], "completed");
    }
    world.all_settled().await?;
    let order = "select string_agg(job_id, ' ' order by finished_at) from executor_job where thread_id = 't'";
    assert_eq!(world.sql(order).await?.trim(), "dead lost");
    let (code, printed, errors) = world.run_command(&["doctor"]).await?;
    assert_eq!((code, printed.as_str()), (Some(0), ""), "{errors}");
    assert!(executor.terminate().await?.success());
    Ok(())
}
