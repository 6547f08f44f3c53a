//! A process that dies at any of its writes is continued by another: the same results, at most the work that was
//! on its way repeated. Over every case folder.

use std::collections::BTreeMap;

use agent_executor::{ids::Namespace, store::Checkpoints, store::memory::CrashPoint};
use serde_json::{Value as Json, json};

use crate::stage::{Case, Stage, cases, deaths, without_ids};

/// Model calls that can be on their way when a process dies: as many as a case runs side by side.
const SIDE_BY_SIDE: usize = 2;

/// More checkpoints than any case makes.
const ALL: u32 = 1_000;

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_write_changes_no_result_and_repeats_no_finished_work() {
    for case in cases() {
        let calm = Stage::new();
        case.publish(&calm);
        calm.settle_all().await;
        let writes = calm.store.writes();
        assert!(writes > 0, "{}: a case writes", case.name);
        for (n, point) in deaths(writes) {
            let shaken = Stage::new();
            case.publish(&shaken);
            shaken.die_at_write(n, point).await;
            shaken.settle_all().await;
            compare(&case, &calm, &shaken, &format!("{}: crash {point:?} write {n}", case.name)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_corrections_of_an_answer_repeats_one_call_at_most() {
    let cases = cases();
    let case = cases.iter().find(|case| case.name == "schema-correction").expect("the case is there");
    let calm = Stage::new();
    case.publish(&calm);
    calm.settle_all().await;
    let [thread] = case.threads().try_into().expect("one thread");
    let expected = calls(&calm.sink.events(&thread));
    for n in 1..=calm.store.writes() {
        let shaken = Stage::new();
        case.publish(&shaken);
        shaken.die_at_write(n, CrashPoint::Before).await;
        shaken.settle_all().await;
        let made = calls(&shaken.sink.events(&thread));
        assert!(
            (expected..=expected + 1).contains(&made),
            "crash at write {n}: {made} calls, not {expected}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_write_forgets_nothing_that_was_spent() {
    let cases = cases();
    for name in ["spent-side-by-side", "map-of-subgraphs"] {
        let case = cases.iter().find(|case| case.name == name).expect("the case is there");
        let calm = Stage::new();
        case.publish(&calm);
        calm.settle_all().await;
        let expected = spent(&calm);
        assert!(expected > 0, "{name} asks models");
        for n in 1..=calm.store.writes() {
            for point in [CrashPoint::Before, CrashPoint::After] {
                let shaken = Stage::new();
                case.publish(&shaken);
                shaken.die_at_write(n, point).await;
                shaken.settle_all().await;
                let spent = spent(&shaken);
                assert!(
                    spent >= expected,
                    "{name}: crash {point:?} write {n}: {spent} tokens, not {expected}"
                );
            }
        }
    }
}

/// Tokens of all jobs.
fn spent(stage: &Stage) -> u64 {
    let results = stage.queue.results().into_iter();
    let events =
        results.map(|result| serde_json::from_slice::<Json>(&result.event).expect("results are JSON"));
    events.filter_map(|event| event["data"]["usage"]["total_tokens"].as_u64()).sum()
}

async fn compare(case: &Case, calm: &Stage, shaken: &Stage, what: &str) {
    assert_eq!(results(shaken), results(calm), "{what}");
    for thread in case.threads() {
        let events = shaken.sink.events(&thread);
        let calls = (calls(&events), calls(&calm.sink.events(&thread)));
        assert!(calls.0 <= calls.1 + SIDE_BY_SIDE, "{what}: {} model calls instead of {}", calls.0, calls.1);
        assert_eq!(events.last().map(|event| event["event_type"].clone()), Some(json!("end")), "{what}");
        ends_are_those_of_the_results(shaken, &events, what);
        let (calm, shaken) = (root(calm, &thread).await, root(shaken, &thread).await);
        assert_eq!(shaken, calm, "{what}");
    }
}

/// A job ends once, with the event that its result names.
fn ends_are_those_of_the_results(stage: &Stage, events: &[Json], what: &str) {
    let ends = events.iter().filter(|event| event["event_type"] == "end");
    let ends: BTreeMap<&str, &Json> =
        ends.map(|event| (event["job_id"].as_str().expect("a job id"), &event["id"])).collect();
    let count = events.iter().filter(|event| event["event_type"] == "end").count();
    assert_eq!(count, ends.len(), "{what}: one end per job");
    for result in stage.queue.results() {
        let event: Json = serde_json::from_slice(&result.event).expect("results are JSON");
        if let Some(end) = ends.get(result.job_id.as_str()) {
            assert_eq!(event["data"]["last_event_id"], **end, "{what}: {}", result.job_id);
        }
    }
}

/// What consumers see of each job, without what an attempt leaves in it. Every job has one result.
fn results(stage: &Stage) -> BTreeMap<String, Json> {
    let mut results = BTreeMap::new();
    for result in stage.queue.results() {
        let mut event: Json = serde_json::from_slice(&result.event).expect("results are JSON");
        let data = event["data"].as_object_mut().expect("data is an object");
        for volatile in ["last_event_id", "duration_ms", "checkpoint_id", "attempts", "usage"] {
            data.remove(volatile);
        }
        without_ids(&mut event["data"]["interrupts"]);
        if let Some(files) = event["data"].pointer_mut("/result/files").and_then(Json::as_object_mut) {
            for file in files.values_mut() {
                *file = file["content"].take();
            }
        }
        let before = results.insert(result.job_id.to_string(), event["data"].take());
        assert!(before.is_none(), "{} has two results", result.job_id);
    }
    results
}

/// Model calls that were answered: each has a message id of its own.
fn calls(events: &[Json]) -> usize {
    let ids = events.iter().filter_map(|event| event["data"]["message_id"].as_str());
    ids.collect::<std::collections::HashSet<_>>().len()
}

/// The root graph's history as steps and the texts of the messages; it must be one line.
async fn root(stage: &Stage, thread: &agent_executor::ids::ThreadId) -> Vec<(i64, Vec<String>)> {
    let mut history = stage.store.history(thread, &Namespace::root(), ALL).await.expect("the twin answers");
    history.reverse();
    let mut before = None;
    let mut line = Vec::new();
    for saved in history {
        assert_eq!(saved.parent, before, "the history of {thread} is one line");
        let messages = saved.checkpoint.values.get("messages");
        let texts =
            messages.into_iter().flat_map(|list| list.messages()).map(|m| m.content.text().to_string());
        line.push((saved.metadata.step, texts.collect()));
        before = Some(saved.checkpoint.id);
    }
    line
}
