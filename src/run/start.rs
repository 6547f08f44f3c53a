//! Where a run starts: new input on a thread, an older checkpoint, a command, or its own last checkpoint.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map as JsonMap, Value as Json, json};
use tokio::time::{Instant, timeout_at};

use super::{
    Error, Outcome, Report, Running, Untold, code, command,
    committer::{Committer, Step},
    definition, failure, halted, output,
    position::{Frame, Position, job_step},
    spent,
    superstep::{Ended, run_graph},
};
use crate::{
    graph::CompiledGraph,
    ids::{CheckpointId, Epoch, JobId, Namespace},
    job::{self, Failure, Spent},
    node::Calls,
    pregel::{
        self, Answers, Checkpoint, MESSAGES, Metadata, PendingWrite, REMOVE_ALL, Source, Stamp, Task,
        TaskInput, Write,
    },
    store::{Put, Saved, TaskWrites},
    value::{self, Map, Message, Name, Role, Value},
};

/// Metadata key: the epoch of the attempt that made the checkpoint.
pub(super) const EPOCH: &str = "executor_epoch";

/// Metadata key: supersteps the job has made in its graph, so that a crash does not give it more.
pub(super) const JOB_STEP: &str = "job_step";

/// Metadata key: tokens the job has taken so far, by `provider:model`.
const USAGE: &str = "usage";

/// Metadata key: the same by node.
const USAGE_BY_NODE: &str = "usage_by_node";
/// Metadata key: calls the job has made so far, when its definition limits them.
pub(super) const CALLS: &str = "calls";

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
    newest.iter().for_each(|saved| spent::restore(running, &saved.writes));
    if let Some(own) = own {
        restore_spending(running, own);
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
    match enter(running, &frame, committer, newest).await? {
        Ok(position) => to_the_end(running, &frame, committer, position).await,
        Err(failed) => Ok(failed_before_start(failed)),
    }
}

fn failed_before_start(failed: Failure) -> Report {
    Report::early(Outcome::Failed(failed))
}

async fn to_the_end(
    running: &Running,
    frame: &Frame,
    committer: &Committer,
    position: Position,
) -> Result<Report, Error> {
    let ended = run_graph(running, committer, frame, position).await?;
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

/// Whether the checkpoint was made by this job: then its input is in it.
pub(super) fn is_own(running: &Running, saved: &Saved) -> bool {
    let job_id = saved.metadata.extra.get("job_id").and_then(Json::as_str);
    job_id == Some(running.attempt.claim.job_id.as_str())
}

/// What earlier attempts have spent counts too.
pub(super) fn restore_spending(running: &Running, own: &Saved) {
    restore_from(running, &own.metadata.extra);
}

/// Takes over what [`spending`] has said in an earlier attempt.
pub(super) fn restore_from(running: &Running, stored: &JsonMap<String, Json>) {
    let sums = |key: &str| job::restored(stored.get(key));
    running.scope.spending.restore(&Spent { by_model: sums(USAGE), by_node: sums(USAGE_BY_NODE) });
    if let Some(calls) = stored.get(CALLS) {
        let count = |kind: &str| calls.get(kind).and_then(Json::as_u64).unwrap_or_default();
        running.scope.spending.restore_calls(Calls { model: count("model"), tool: count("tool") });
    }
}

/// What the job has spent so far, as it is stored; nothing for a job that has spent nothing.
pub(super) fn spending(running: &Running) -> impl Iterator<Item = (String, Json)> {
    let spending = &running.scope.spending;
    let spent = spending.spent();
    let sums = [(USAGE, job::stored(&spent.by_model)), (USAGE_BY_NODE, job::stored(&spent.by_node))];
    let calls = spending.limited_calls().map(|Calls { model, tool }| json!({ "model": model, "tool": tool }));
    let all = sums.into_iter().chain([(CALLS, calls)]);
    all.filter_map(|(key, stored)| Some((key.to_owned(), stored?)))
}

/// Finds the checkpoint the run starts from, and makes the job's input part of the thread.
async fn enter(
    running: &Running,
    frame: &Frame,
    committer: &Committer,
    newest: Option<Saved>,
) -> Result<Result<Position, Failure>, Error> {
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
        None => arrive_with_input(running, frame, base.as_ref(), stamps),
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

/// The input as a value; channels the graph does not have are left out. Input that names no channel of the
/// graph at all is a mistake, most likely in a name.
fn input_value(running: &Running, graph: &CompiledGraph) -> Result<Map, Failure> {
    let input = running.attempt.job.input.clone().unwrap_or_default();
    let (known, unknown): (Vec<_>, Vec<_>) =
        input.into_iter().partition(|(channel, _)| graph.channels.contains_key(channel.as_str()));
    let names = || unknown.iter().map(|(channel, _)| channel.as_str()).collect::<Vec<_>>().join(", ");
    if known.is_empty() && !unknown.is_empty() {
        let channels = graph.channels.keys().map(|name| &**name).collect::<Vec<_>>().join(", ");
        let message = format!("/input: no channel of the graph is named {}; it has {channels}", names());
        return Err(failure(code::BAD_REQUEST, message));
    }
    if !unknown.is_empty() {
        tracing::warn!(channels = %names(), "input names channels the graph does not have");
    }
    Ok(known.into_iter().map(|(channel, value)| (Name::from(channel), Value::from(value))).collect())
}

/// A job's input on its thread. Values that their channels cannot take are a mistake of the request.
fn arrive_with_input(
    running: &Running,
    frame: &Frame,
    base: Option<&Saved>,
    stamps: Stamps<'_>,
) -> Result<Arrival, Failure> {
    let input = input_value(running, &frame.graph)?;
    arrive(frame, base, input, stamps).map_err(|failed| match failed.code.as_str() {
        "STATE_UNFOLDABLE" => failure(code::BAD_REQUEST, format!("/input: {}", failed.message)),
        _ => failed,
    })
}

/// Makes the ids and times of checkpoints.
pub(super) struct Stamps<'a> {
    pub(super) running: &'a Running,
    /// The greatest id there is; every new one sorts above it.
    pub(super) floor: Option<CheckpointId>,
}

impl Stamps<'_> {
    pub(super) fn next(&mut self, step: i64) -> Stamp {
        let now = self.running.attempt.ports.clock.now();
        let id = CheckpointId::next(self.floor.as_ref(), now, step, fastrand::u64(..));
        self.floor = Some(id.clone());
        Stamp { id, ts: now.isoformat(), epoch: self.running.attempt.claim.epoch }
    }

    pub(super) fn job_id(&self) -> &JobId {
        &self.running.attempt.claim.job_id
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.running.attempt.claim.epoch
    }

    pub(super) fn metadata(
        &self,
        source: Source,
        (step, job_step): (i64, u64),
        parents: &BTreeMap<String, CheckpointId>,
    ) -> Metadata {
        let attempt = &self.running.attempt;
        let mut extra: JsonMap<String, Json> = attempt.job.config.metadata.clone();
        extra.insert("job_id".into(), attempt.claim.job_id.as_str().into());
        extra.insert(EPOCH.into(), attempt.claim.epoch.0.into());
        extra.insert("attempt".into(), attempt.claim.attempt.into());
        extra.insert(JOB_STEP.into(), job_step.into());
        if let Some(hash) = self.running.definition.get() {
            extra.insert(definition::DEFINITION.into(), (**hash).into());
        }
        extra.extend(spending(self.running));
        Metadata { source, step, parents: parents.clone(), extra }
    }
}

/// Input that has become part of a thread: where the run starts, and what must be stored first.
pub(super) struct Arrival {
    pub(super) position: Position,
    pub(super) step: Step,
    /// What the job answers, by interrupt id.
    pub(super) answers: Answers,
}

/// Turns input into the input checkpoint and the checkpoint after its first, trivial superstep.
/// Both are stored together: between them nothing happens that could be lost.
pub(super) fn arrive(
    frame: &Frame,
    base: Option<&Saved>,
    input: Map,
    mut stamps: Stamps<'_>,
) -> Result<Arrival, Failure> {
    let Frame { graph, ns, parents, .. } = frame;
    let empty = Checkpoint::empty();
    let (before, step) = base.map_or((&empty, -2), |saved| (&saved.checkpoint, saved.metadata.step));
    let value = Value::Map(Arc::new(input.clone()));
    let entered = pregel::accept_input(graph, ns, (before, step), value, stamps.next(step + 1))?;
    let mended = base.and_then(|saved| mended(graph, &saved.checkpoint));
    let writes = mended.into_iter().chain(start_writes(graph, &input)?).collect::<Vec<_>>();
    let task = pregel::plan(graph, ns, &entered.checkpoint, step + 2)
        .into_iter()
        .find(|task| matches!(task.input, TaskInput::Start(_)))
        .ok_or_else(|| failure(code::INTERNAL, "the input checkpoint plans no first task"))?;
    let stored = pending(&task, &writes);
    let tasks = [pregel::TaskWrites { task, writes }];
    let started = pregel::apply(graph, &entered.checkpoint, &tasks, stamps.next(step + 2))?;

    let entered_id = entered.checkpoint.id.clone();
    let put = |applied: pregel::Applied, source, step, parent| Put {
        ns: ns.clone(),
        checkpoint: Arc::new(applied.checkpoint),
        metadata: stamps.metadata(source, (step, 0), parents),
        parent,
        changed: applied.changed,
    };
    let puts = vec![
        put(entered, Source::Input, step + 1, base.map(|saved| saved.checkpoint.id.clone())),
        put(started, Source::Loop, step + 2, Some(entered_id.clone())),
    ];
    let writes = vec![TaskWrites { ns: ns.clone(), checkpoint_id: entered_id, writes: stored }];
    let position = Position::new(puts[1].checkpoint.clone(), step + 2, 0);
    Ok(Arrival { position, step: Step { puts, writes }, answers: Answers::new() })
}

/// The conversation with errors as the answers to its open calls: the tasks that would have answered them are
/// discarded by new input, as are those that other programs left. `None` when there are none.
fn mended(graph: &CompiledGraph, before: &Checkpoint) -> Option<Write> {
    let channel = graph.channels.get_key_value(MESSAGES).map(|(name, _)| name)?;
    let mut all = value::with_answers(before.values.get(channel)?.as_list()?)?;
    all.insert(0, Message::new(REMOVE_ALL, Role::Remove, "").into());
    Some(Write::new(channel.clone(), Value::list(all)))
}

/// What the first task writes: the input's channels, then the triggers of the first nodes.
fn start_writes(graph: &CompiledGraph, input: &Map) -> Result<Vec<Write>, Failure> {
    let written = input.iter().map(|(channel, value)| Write::new(channel.clone(), value.clone()));
    let state_writes: Vec<_> = written.collect();
    let defaults = pregel::view(graph, &Checkpoint::empty());
    let state = pregel::fold(graph, &defaults, &state_writes)?;
    let routes = super::task::route(&graph.start, pregel::START, &state)?;
    Ok(state_writes.into_iter().chain(routes).collect())
}

/// The writes of a finished task as they are stored.
pub(super) fn pending(task: &Task, writes: &[Write]) -> Vec<PendingWrite> {
    let stored = |(idx, write): (usize, &Write)| PendingWrite {
        task_id: task.id.clone(),
        task_path: task.path.clone(),
        idx: i32::try_from(idx).unwrap_or(i32::MAX),
        channel: write.channel.clone(),
        value: write.value.clone(),
    };
    writes.iter().enumerate().map(stored).collect()
}
