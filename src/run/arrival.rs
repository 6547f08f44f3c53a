//! How input becomes part of a thread, whether it is a job's own or what a nested graph is given.

use std::sync::Arc;

use super::{
    Running, code,
    committer::Step,
    failure,
    position::{Frame, Position},
    stamps::Stamps,
    task,
    tasks::pending,
};
use crate::{
    graph::CompiledGraph,
    job::Failure,
    pregel::{self, Answers, Checkpoint, MESSAGES, REMOVE_ALL, Source, TaskInput, Write},
    store::{Put, Saved, TaskWrites},
    value::{self, Map, Message, Name, Role, Value},
};

/// Input that has become part of a thread: where the run starts, and what must be stored first.
pub(super) struct Arrival {
    pub(super) position: Position,
    pub(super) step: Step,
    /// What the job answers, by interrupt id.
    pub(super) answers: Answers,
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
pub(super) fn arrive_with_input(
    frame: &Frame,
    base: Option<&Saved>,
    stamps: Stamps<'_>,
) -> Result<Arrival, Failure> {
    let input = input_value(stamps.running, &frame.graph)?;
    arrive(frame, base, input, stamps).map_err(|failed| match failed.code.as_str() {
        "STATE_UNFOLDABLE" => failure(code::BAD_REQUEST, format!("/input: {}", failed.message)),
        _ => failed,
    })
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
    let routes = task::route(&graph.start, pregel::START, &state)?;
    Ok(state_writes.into_iter().chain(routes).collect())
}
