//! Answers questions whose deadline has passed: with a job of its own, as a person would.
//!
//! **Invariant:** the same deadline makes the same job, however often it is found.

use std::{sync::Arc, time::Duration};

use serde_json::Value as Json;

use super::{
    Error, Worker,
    upkeep::{EARLY, jittered},
};
use crate::{
    ids::{JobId, Namespace},
    job::{Command, Job, MultitaskStrategy, Task},
    pregel,
    run::DEFINITION,
    store::{self, AgentRef, Deadline, Saved},
};

/// Time between two looks; who waits for minutes may wait seconds longer.
const EVERY: Duration = Duration::from_secs(5);

/// Deadlines of one look.
const AT_ONCE: u32 = 64;

/// Stands between the id of the job that asked and the id of the question in the id of the job that answers.
const MARK: &str = "~deadline-";

/// Answers what nobody has answered in time, until the process drains.
pub(super) async fn watch(worker: Arc<Worker>) {
    let drain = &worker.orders.drain;
    while drain.run_until_cancelled(tokio::time::sleep(jittered(EVERY))).await.is_some() {
        if let Err(error) = round(&worker).await {
            tracing::warn!(%error, "questions whose deadline has passed could not be looked for");
        }
    }
}

async fn round(worker: &Worker) -> Result<(), Error> {
    let store = &worker.ports.store;
    if !store.take_duty("deadlines", EVERY.mul_f64(EARLY)).await? {
        return Ok(());
    }
    for deadline in store.passed(AT_ONCE).await? {
        let Deadline { thread_id, interrupt_id, .. } = &deadline;
        match answer(worker, &deadline).await {
            Ok(()) => {}
            Err(away @ store::Error::Unavailable(_)) => return Err(away.into()),
            // It must not stand in the way of the others, and would fail again.
            Err(error) => {
                tracing::error!(%thread_id, %interrupt_id, %error, "a question stays open after its deadline");
            }
        }
        store.clear_deadline(thread_id, interrupt_id).await?;
    }
    Ok(())
}

/// Records the job that answers, unless somebody has answered. The sweep of any process runs it.
async fn answer(worker: &Worker, deadline: &Deadline) -> Result<(), store::Error> {
    let Deadline { thread_id, interrupt_id, .. } = deadline;
    let newest = worker.ports.store.load(thread_id, &Namespace::root(), None).await?;
    // Where something else has failed, the job ended as failed and nobody was asked.
    let waits = |saved: &Saved| {
        let asked = pregel::waiting(&saved.writes);
        !pregel::has_failed(&saved.writes) && asked.iter().any(|interrupt| interrupt.id == *interrupt_id)
    };
    let Some(saved) = newest.filter(waits) else { return Ok(()) };
    let asked = asked(deadline)?;
    let task = same_definition(worker, &asked, &saved).await?;
    let job = answering(deadline, Job { task, ..asked });
    worker.record(&job, None).await?;
    tracing::info!(%thread_id, %interrupt_id, job_id = %job.job_id, "a deadline has passed: its answer is given");
    Ok(())
}

/// What the job that asked runs: a name may stand for another definition by now.
async fn same_definition(worker: &Worker, asked: &Job, saved: &Saved) -> Result<Task, store::Error> {
    let Task::Stored(name) = &asked.task else { return Ok(asked.task.clone()) };
    let named = AgentRef::parse(name);
    if matches!(named, AgentRef::Hash(_)) {
        return Ok(asked.task.clone());
    }
    let pinned = worker.ports.store.pin_agent(&asked.job_id, &named).await?;
    let made_with = || saved.metadata.extra.get(DEFINITION).and_then(Json::as_str).map(str::to_owned);
    Ok(Task::Stored(pinned.or_else(made_with).map_or_else(|| name.clone(), |hash| format!("sha256:{hash}"))))
}

/// The job that asked.
fn asked(deadline: &Deadline) -> Result<Job, store::Error> {
    let unreadable = |error: serde_json::Error| store::Error::Corrupt {
        thread_id: deadline.thread_id.to_string(),
        what: "request",
        reason: error.to_string(),
    };
    serde_json::from_slice(&deadline.request).map_err(unreadable)
}

/// The job that asked, once more, as one that answers.
fn answering(deadline: &Deadline, asked: Job) -> Job {
    let resume = serde_json::json!({ &*deadline.interrupt_id: deadline.answer });
    let job_id = job_id(&asked.job_id, &deadline.interrupt_id);
    Job {
        job_id,
        thread_id: deadline.thread_id.clone(),
        input: None,
        checkpoint_id: None,
        command: Some(Command { resume: Some(resume), update: None, goto: Vec::new() }),
        multitask_strategy: MultitaskStrategy::Enqueue,
        ..asked
    }
}

/// `<job that asked>~deadline-<question>`. A job that was made this way passes on the id it came from.
fn job_id(asked: &JobId, interrupt_id: &str) -> JobId {
    let origin = asked.as_str().split(MARK).next().unwrap_or_default();
    JobId::parse(&format!("{origin}{MARK}{interrupt_id}"))
        .or_else(|_| JobId::parse(&format!("job{MARK}{interrupt_id}")))
        .expect("ids of questions are 32 digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &str = "bb473537836d0fdb401bb8c19757bb97";

    fn id_of(asked: &str) -> String {
        job_id(&JobId::parse(asked).expect("valid"), QUESTION).to_string()
    }

    #[test]
    fn the_job_that_answers_is_named_after_the_one_that_asked_and_the_question() {
        assert_eq!(id_of("j1"), format!("j1~deadline-{QUESTION}"));
        assert_eq!(id_of("j1~deadline-600992ed5a475dc96982c5463d631c65"), format!("j1~deadline-{QUESTION}"));
        assert_eq!(id_of(&"x".repeat(250)), format!("job~deadline-{QUESTION}"));
    }
}
