//! How a command continues a thread: an answer, changes of the state, a jump to other nodes.

use std::sync::Arc;

use serde_json::Value as Json;

use super::{
    arrival::Arrival,
    code,
    committer::Step,
    failure,
    metadata::paused_after,
    position::{Frame, Position},
    stamps::Stamps,
    tasks::{RESUME_IDX, pending},
};
use crate::{
    graph::{CompiledGraph, Trigger},
    ids::{self, Epoch, JobId, Namespace, TaskId},
    job::{Command, Failure},
    pregel::{self, Answers, Checkpoint, PendingWrite, RESUME, Source, Stamp, Task, Write},
    store::{Put, Saved, TaskWrites},
    value::Value,
};

/// Where `command` continues from `base`.
///
/// On the newest checkpoint, what the command writes is stored as LangGraph does, as writes of nobody's task on
/// that checkpoint: tasks that had finished keep their ids and are not run again. When that leaves nothing to
/// run, and on an older checkpoint, it becomes a checkpoint of its own.
pub(super) fn arrive(
    frame: &Frame,
    command: &Command,
    base: Option<Saved>,
    stamps: Stamps<'_>,
) -> Result<Arrival, Failure> {
    let Some(saved) = base else {
        return Err(failure(code::NOTHING_TO_RESUME, "the thread has no checkpoint to continue from"));
    };
    check(&frame.graph, command)?;
    let is_newest = stamps.floor.as_ref() == Some(&saved.checkpoint.id);
    let writes = writes(command);
    if is_newest {
        let answers = Answered::of(frame, command, &saved, stamps.job_id())?;
        let stored = stored(&saved);
        // A command that crashed before its first checkpoint finds its own writes here.
        let news = if answers.is_noted { &[][..] } else { &writes[..] };
        let all = [&stored[..], news].concat();
        let arrival = in_place(frame, saved.clone(), &all, stamps.epoch())?;
        let position = &arrival.position;
        let tasks = pregel::plan(&frame.graph, &frame.ns, &position.checkpoint, position.step + 1);
        if writes.is_empty() || !tasks.is_empty() {
            let says = command.resume.is_some() || !writes.is_empty();
            let record = answers.record.filter(|_| says);
            let told = told(stored.len(), news).into_iter().chain(record);
            let arrival = arrival.with_writes(&frame.ns, told.collect());
            return Ok(Arrival { answers: answers.by_id, ..arrival });
        }
    } else if command.resume.is_some() {
        let message = "/command/resume: an answer belongs to the newest checkpoint; leave checkpoint_id out";
        return Err(failure(code::BAD_REQUEST, message));
    }
    as_checkpoint(frame, saved, writes, stamps)
}

/// What a command says, once per job: a later attempt must not take its answer for one to a question that was asked
/// since, nor its writes for those of another command.
#[derive(Default)]
struct Answered {
    by_id: Answers,
    /// Whether an earlier attempt of the job has stored it.
    is_noted: bool,
    /// What notes them, when nothing does yet.
    record: Option<PendingWrite>,
}

impl Answered {
    /// Finds the interrupts of `saved` that `command` answers.
    fn of(frame: &Frame, command: &Command, saved: &Saved, job_id: &JobId) -> Result<Self, Failure> {
        let task_id = TaskId::from_digest(ids::digest(&[b"answers|", job_id.as_str().as_bytes()]));
        if let Some(noted) = saved.writes.iter().find(|write| write.task_id == task_id) {
            let by_id = noted.value.as_map().into_iter().flatten();
            return Ok(Self {
                by_id: by_id.map(|(id, answer)| (id.clone(), answer.clone())).collect(),
                is_noted: true,
                record: None,
            });
        }
        let by_id = match &command.resume {
            Some(resume) => Self::resumed(frame, resume, saved)?,
            None => Answers::new(),
        };
        let pairs = by_id.iter().map(|(id, answer)| (id.clone(), answer.clone()));
        let value = Value::map(pairs);
        let record =
            PendingWrite { task_id, task_path: "".into(), idx: RESUME_IDX, channel: RESUME.into(), value };
        Ok(Self { by_id, is_noted: false, record: Some(record) })
    }

    /// The answers of `resume` by the interrupts of `saved` that they belong to.
    fn resumed(frame: &Frame, resume: &Json, saved: &Saved) -> Result<Answers, Failure> {
        let tasks = pregel::plan(&frame.graph, &frame.ns, &saved.checkpoint, saved.metadata.step + 1);
        let of_graph = |write: &&PendingWrite| tasks.iter().any(|task| task.id == write.task_id);
        let pending: Vec<_> = saved.writes.iter().filter(of_graph).cloned().collect();
        let mut waiting: Vec<_> =
            pregel::waiting(&pending).iter().map(|interrupt| interrupt.id.clone()).collect();
        if waiting.is_empty() {
            let ran = paused_after(&saved.metadata);
            let paused = pregel::pause((&frame.graph, &frame.ns), &saved.checkpoint, &ran, &tasks);
            waiting.extend(paused.map(|interrupt| interrupt.id));
        }
        by_id(resume, &waiting)
    }
}

/// Which of the `waiting` interrupts `resume` answers: those it names, or else the only one there is.
fn by_id(resume: &Json, waiting: &[Arc<str>]) -> Result<Answers, Failure> {
    if waiting.is_empty() {
        return Err(failure(code::NOTHING_TO_RESUME, "no interrupt of the thread waits for an answer"));
    }
    let named =
        resume.as_object().filter(|map| !map.is_empty() && map.keys().all(|key| is_interrupt_id(key)));
    let Some(named) = named else {
        let [id] = waiting else {
            let message = format!(
                "/command/resume: {} interrupts wait, so the answer must be an object with the id of each that it \
                 answers: {}",
                waiting.len(),
                waiting.join(", ")
            );
            return Err(failure(code::RESUME_AMBIGUOUS, message));
        };
        return Ok(Answers::from([(id.clone(), Value::from(resume.clone()))]));
    };
    let unknown: Vec<_> = named.keys().filter(|id| !waiting.iter().any(|waits| **waits == ***id)).collect();
    if let Some(id) = unknown.first() {
        let message =
            format!("/command/resume: no interrupt {id} waits; those that wait: {}", waiting.join(", "));
        return Err(failure(code::RESUME_UNKNOWN, message));
    }
    Ok(named.iter().map(|(id, answer)| (id.as_str().into(), Value::from(answer.clone()))).collect())
}

fn is_interrupt_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// What earlier commands wrote on the checkpoint and no superstep has taken up.
fn stored(saved: &Saved) -> Vec<Write> {
    let nobody = TaskId::null();
    let writes = saved.writes.iter().filter(|write| write.task_id == nobody && write.idx >= 0);
    writes.map(|write| Write::new(write.channel.clone(), write.value.clone())).collect()
}

fn check(graph: &CompiledGraph, command: &Command) -> Result<(), Failure> {
    if let Some(unknown) = command.goto.iter().find(|node| graph.node(node).is_none()) {
        return Err(failure(code::BAD_REQUEST, format!("/command/goto: unknown node {unknown:?}")));
    }
    let channels = command.update.iter().flat_map(|update| update.keys());
    if let Some(unknown) = channels.into_iter().find(|channel| !graph.channels.contains_key(channel.as_str()))
    {
        return Err(failure(code::BAD_REQUEST, format!("/command/update: unknown channel {unknown:?}")));
    }
    Ok(())
}

/// What the command writes: channels of the state, and the triggers of the nodes it jumps to.
fn writes(command: &Command) -> Vec<Write> {
    let updates = command.update.iter().flatten();
    let updates = updates.map(|(channel, value)| Write::new(channel.as_str(), Value::from(value.clone())));
    let jumps =
        command.goto.iter().map(|node| Write::new(Trigger::Branch(node).channel(), pregel::START.into()));
    updates.chain(jumps).collect()
}

/// `writes` as they are stored on the checkpoint, behind the `before` that are there already.
fn told(before: usize, writes: &[Write]) -> Vec<PendingWrite> {
    let before = i32::try_from(before).unwrap_or(i32::MAX);
    let behind = |write: PendingWrite| PendingWrite { idx: write.idx.saturating_add(before), ..write };
    pending(&Task::outside(""), writes).into_iter().map(behind).collect()
}

impl Arrival {
    /// The same with writes that are stored on the checkpoint it starts from.
    fn with_writes(mut self, ns: &Namespace, writes: Vec<PendingWrite>) -> Self {
        if !writes.is_empty() {
            let checkpoint_id = self.position.checkpoint.id.clone();
            self.position.pending.extend(writes.iter().cloned());
            self.step.writes.push(TaskWrites { ns: ns.clone(), checkpoint_id, writes });
        }
        self
    }
}

fn in_place(frame: &Frame, saved: Saved, writes: &[Write], epoch: Epoch) -> Result<Arrival, Failure> {
    let mut position = Position { job_step: 0, ..Position::resumed(saved) };
    if !writes.is_empty() {
        let before = &position.checkpoint;
        let stamp = Stamp { id: before.id.clone(), ts: before.ts.clone(), epoch };
        let tasks = [pregel::TaskWrites { task: Task::outside(""), writes: writes.to_vec() }];
        let applied = pregel::apply(&frame.graph, before, &tasks, stamp)?;
        position.checkpoint = Arc::new(applied.checkpoint);
        position.carried = applied.changed;
    }
    // What the command changes is no reason to pause again.
    pregel::mark_resumed(Arc::make_mut(&mut position.checkpoint));
    Ok(Arrival { position, step: Step { puts: Vec::new(), writes: Vec::new() }, answers: Answers::new() })
}

fn as_checkpoint(
    frame: &Frame,
    saved: Saved,
    writes: Vec<Write>,
    mut stamps: Stamps<'_>,
) -> Result<Arrival, Failure> {
    let source = if writes.is_empty() { Source::Fork } else { Source::Update };
    let step = saved.metadata.step + 1;
    let before = saved.checkpoint;
    let tasks = [pregel::TaskWrites { task: Task::outside(""), writes }];
    let applied = pregel::apply(&frame.graph, &before, &tasks, stamps.next(step))?;
    // Unknown to readers that would otherwise run only what this change triggers.
    let mut checkpoint = Checkpoint { updated: None, ..applied.checkpoint };
    pregel::mark_resumed(&mut checkpoint);
    let checkpoint = Arc::new(checkpoint);
    let put = Put {
        ns: frame.ns.clone(),
        checkpoint: checkpoint.clone(),
        metadata: stamps.metadata(source, (step, 0), &frame.parents),
        parent: Some(before.id),
        changed: applied.changed,
    };
    let position = Position::new(checkpoint, step, 0);
    Ok(Arrival { position, step: Step { puts: vec![put], writes: Vec::new() }, answers: Answers::new() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FIRST: &str = "bb473537836d0fdb401bb8c19757bb97";
    const SECOND: &str = "600992ed5a475dc96982c5463d631c65";

    fn resume(resume: Json, waiting: &[&str]) -> Result<Vec<String>, String> {
        let waiting: Vec<_> = waiting.iter().map(|id| Arc::from(*id)).collect();
        let answers =
            by_id(&resume, &waiting).map_err(|failed| format!("{}: {}", failed.code, failed.message))?;
        let mut lines: Vec<_> =
            answers.iter().map(|(id, answer)| format!("{id}={}", answer.to_json())).collect();
        lines.sort();
        Ok(lines)
    }

    #[test]
    fn one_value_answers_the_only_question() {
        assert_eq!(resume(json!("yes"), &[FIRST]), Ok(vec![format!("{FIRST}=\"yes\"")]));
        assert_eq!(resume(json!({"result": 1}), &[FIRST]), Ok(vec![format!("{FIRST}={{\"result\":1}}")]));
        assert!(resume(json!("yes"), &[]).is_err_and(|error| error.starts_with("NOTHING_TO_RESUME")));
        let several = resume(json!("yes"), &[FIRST, SECOND]).expect_err("for whom?");
        assert!(several.starts_with("RESUME_AMBIGUOUS: ") && several.contains(SECOND), "{several}");
    }

    #[test]
    fn answers_by_id_go_to_the_questions_they_name() {
        let both = resume(json!({FIRST: 1, SECOND: 2}), &[FIRST, SECOND]);
        assert_eq!(both, Ok(vec![format!("{SECOND}=2"), format!("{FIRST}=1")]));
        assert_eq!(resume(json!({SECOND: 2}), &[FIRST, SECOND]), Ok(vec![format!("{SECOND}=2")]));
        let unknown = resume(json!({SECOND: 2}), &[FIRST]).expect_err("it does not wait");
        assert!(unknown.starts_with("RESUME_UNKNOWN: ") && unknown.contains(FIRST), "{unknown}");
    }
}
