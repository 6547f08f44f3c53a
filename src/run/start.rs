//! Where a run starts: new input on a thread, an older checkpoint, a command, or its own last checkpoint.

use std::collections::BTreeMap;

use tokio::time::{Instant, timeout_at};

use super::{
    Error, Outcome, Report, Running, Untold,
    arrival::{Arrival, arrive_with_input},
    code, command,
    committer::Committer,
    definition, failure, halted,
    metadata::{is_own, job_step},
    output,
    position::{Frame, Here, Position},
    spent,
    stamps::Stamps,
    superstep::{Ended, run_graph},
};
use crate::{ids::Namespace, job::Failure, pregel, store::Saved, value::Value};

/// Runs the attempt's graph.
pub(super) async fn run(running: &Running) -> Result<Report, Error> {
    let root = Namespace::root();
    let claim = &running.attempt.claim;
    let newest = match &claim.head {
        // Nothing is stored on the thread yet.
        None => None,
        Some(_) => running.attempt.ports.store.load(&claim.thread_id, &root, None).await?,
    };
    let own = newest.as_ref().filter(|saved| is_own(running, saved));
    running.attempt.tell_start(own.map(|own| &own.checkpoint.id));
    // Also on a checkpoint of an earlier job, which this one went on from.
    newest.iter().for_each(|saved| spent::restore_from_writes(running, &saved.writes));
    if let Some(own) = own {
        spent::restore_from_metadata(running, &own.metadata);
        running.reach(job_step(&own.metadata), &own.checkpoint.id);
    }
    // What came before is worth telling even when no time is left.
    let deadline = Instant::now() + running.attempt.claim.time_left;
    match timeout_at(deadline, Box::pin(from(running, newest))).await {
        Ok(result) => result,
        Err(_) => running.timed_out().await,
    }
}

/// Runs the attempt's graph from the thread's newest checkpoint.
async fn from(running: &Running, newest: Option<Saved>) -> Result<Report, Error> {
    let prepared = match definition::graph_of(running).await? {
        Ok(prepared) => prepared,
        Err(failed) => return Ok(failed_before_start(failed)),
    };
    prepared.tools.prepare().await;
    running.definition.get_or_init(|| prepared.graph.hash.clone());
    running.scope.spending.limit(prepared.graph.limits);
    running.version.get_or_init(|| prepared.graph.version.clone());
    let head = newest.as_ref().map(|saved| saved.checkpoint.id.clone());
    let committer = running.committer.get_or_init(|| Committer::new(&running.attempt, head));
    let frame = Frame {
        limit: running.attempt.job.config.recursion_limit.unwrap_or(prepared.graph.recursion_limit),
        graph: prepared.graph.clone(),
        tools: prepared.tools.clone(),
        ns: Namespace::root(),
        parents: BTreeMap::new(),
    };
    let here = Here { running, committer, frame: &frame };
    match enter(here, newest).await? {
        Ok(position) => to_the_end(here, position).await,
        Err(failed) => Ok(failed_before_start(failed)),
    }
}

fn failed_before_start(failed: Failure) -> Report {
    Report::early(Outcome::Failed(failed))
}

async fn to_the_end(here: Here<'_>, position: Position) -> Result<Report, Error> {
    let Here { running, committer, frame } = here;
    let ended = run_graph(here, position).await?;
    let (outcome, untold, step) = match (ended.how, ended.last) {
        (Ended::Done(state), last) => {
            let completed = || Outcome::Completed(output(&frame.graph, &state));
            let outcome = halted(&frame.graph, &state).map_or_else(completed, Outcome::Failed);
            let (step, number) = last.map(|last| (last.step, last.number)).unzip();
            let untold = number.map(|step| Untold::new(state, step, &ended.checkpoint_id));
            (outcome, untold, step)
        }
        (Ended::Failed(failed), _) => (Outcome::Failed(failed), None, None),
        (Ended::Interrupted(interrupts), _) => {
            let interrupts = interrupts.into_iter().map(Value::Interrupt).collect();
            (Outcome::Interrupted(Value::list(interrupts).to_json()), None, None)
        }
    };
    let last = committer.last(step, ended.unfinished).await?;
    let untold = running.take_untold().into_iter().chain(untold).collect();
    let (steps, checkpoint_id) = (ended.steps, Some(ended.checkpoint_id.to_string()));
    Ok(Report { outcome, steps, checkpoint_id, last, untold, version: None })
}

/// Finds the checkpoint the run starts from, and makes the job's input part of the thread.
async fn enter(here: Here<'_>, newest: Option<Saved>) -> Result<Result<Position, Failure>, Error> {
    let Here { running, committer, frame } = here;
    let job = &running.attempt.job;
    let newest = match newest {
        Some(own) if is_own(running, &own) => return Ok(Ok(Position::resumed(own))),
        other => other,
    };
    let floor = newest.as_ref().map(|saved| saved.checkpoint.id.clone());
    let base = match &job.checkpoint_id {
        None => newest,
        Some(id) => {
            let claim = &running.attempt.claim;
            let older =
                running.attempt.ports.store.load(&claim.thread_id, &Namespace::root(), Some(id)).await?;
            if older.is_none() {
                let message = format!("thread {} has no checkpoint {id}", claim.thread_id);
                return Ok(Err(failure(code::CHECKPOINT_NOT_FOUND, message)));
            }
            older
        }
    };
    if let Some(base) = base.as_ref().filter(|_| !job.config.allow_incompatible)
        && let Err(failed) = definition::check(&frame.graph, base)
    {
        return Ok(Err(failed));
    }
    let stamps = Stamps { running, floor };
    let arrival = match &job.command {
        Some(command) => command::arrive(frame, command, base, stamps),
        None => arrive_with_input(frame, base.as_ref(), stamps),
    };
    let Arrival { position, step, answers } = match arrival {
        Ok(arrival) => arrival,
        Err(failed) => return Ok(Err(failed)),
    };
    let waiting = pregel::waiting(&position.pending).into_iter().map(|interrupt| interrupt.id.clone());
    running.unanswered.get_or_init(|| {
        // What answers nothing goes on from everything.
        waiting.filter(|id| !answers.is_empty() && !answers.contains_key(id)).collect()
    });
    // Set once per attempt; only the command that starts a run gives answers.
    running.answers.get_or_init(|| answers);
    match (step.puts.is_empty(), step.writes.is_empty()) {
        (true, true) => {}
        // What a command said is found again by whoever continues the run.
        (true, false) => committer.at_once(step.writes).await?,
        (false, _) => {
            if let Err(step) = committer.gather(step) {
                committer.step(step).await?;
            }
        }
    }
    Ok(Ok(position))
}
