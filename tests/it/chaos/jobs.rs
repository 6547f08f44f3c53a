//! What is asked for, drawn from a seed: the n-th job is the same in every run with that seed.
//!
//! Models are of two kinds. Scripted ones live in the executor and cost nothing; counted ones are asked over HTTP, so
//! that the test knows how often each question was put. What a counted model answers follows from the last human
//! message alone (`counter.rs`): `verb job-id more`.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::plan::rng;

/// Threads whose jobs come as they are drawn, several at a time.
const CROWDED_THREADS: usize = 4;
/// Threads whose next job is asked for when the last one has ended: their order must be exact.
const POLITE_THREADS: usize = 3;
/// Threads whose jobs do not want to wait for each other.
const IMPATIENT_THREADS: usize = 2;
/// One job in so many kills whoever runs it.
const POISON_EVERY: u64 = 200;
/// The first one: early, since it takes nine processes to find out.
const FIRST_POISON: u64 = 12;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One turn of a conversation on a shared thread, by a scripted model.
    Talk,
    /// A deep agent with two specialists side by side, by counted models, with an effect each.
    Deep,
    /// An agent with turns of parallel effects, by a counted model.
    Tally,
    /// A graph of many supersteps without a model.
    Loop,
    /// Parallel branches and a join, by scripted models.
    Join,
    /// One long model call: longer than a renewal of the lease.
    Slow,
    /// A turn that does not want to wait, on a thread of such turns.
    Impatient,
    /// A long model call that somebody cancels.
    Unwanted,
    /// Not JSON, or JSON without a job id: a dead letter and no result.
    Unreadable,
    /// A definition with mistakes: a dead letter and a failed result.
    Mistaken,
    /// Kills whoever runs it.
    Poison,
}

/// How a job must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// With this output.
    Completed(Json),
    /// As failed with this code, and as a dead letter with this reason.
    Failed(&'static str, &'static str),
    /// As a dead letter with one of these reasons, without a result.
    Letter(&'static [&'static str]),
}

/// When supersteps become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    Sync,
    Async,
    Exit,
}

/// A job that is asked for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) job_id: String,
    pub(super) thread_id: String,
    pub(super) kind: Kind,
    pub(super) durability: Durability,
    pub(super) expected: Expected,
    /// Asked for only after the job before it on the thread has ended.
    pub(super) polite: bool,
    /// Sent to `POST /` of a member instead of the broker.
    pub(super) by_http: bool,
    /// Codes with which it may fail or be cancelled instead.
    pub(super) or: &'static [&'static str],
    /// The job it was asked for as, before questions were answered.
    pub(super) family: String,
    /// When somebody wants it cancelled, after it was asked for.
    pub(super) cancel_after: Option<Duration>,
    /// Labels of the effects it must have when it completes.
    pub(super) effects: Vec<String>,
    /// Whether an effect of it must not happen twice, so that a crash makes it ask.
    pub(super) irreversible: bool,
    pub(super) payload: String,
}

impl Asked {
    /// Counted model calls that may be under way at a time.
    pub(super) fn width(&self) -> u64 {
        if self.kind == Kind::Deep { 2 } else { 1 }
    }

    /// The job that answers the questions of this one.
    pub(super) fn answered(&self, number: usize, resume: &Json) -> Self {
        let mut request: Json = serde_json::from_str(&self.payload).unwrap_or_default();
        let job_id = format!("{}-r{number}", self.family);
        request["job_id"] = json!(job_id);
        request["command"] = json!({ "resume": resume });
        request.as_object_mut().and_then(|request| request.remove("input"));
        Self { job_id, payload: request.to_string(), by_http: false, ..self.clone() }
    }
}

/// Where members find what the test serves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) effects_port: u16,
}

/// The `number`-th job of `seed`.
pub(super) fn job(seed: u64, number: u64, places: Places) -> Asked {
    let mut rng = rng(seed, number, 2);
    let kind = if number % POISON_EVERY == FIRST_POISON { Kind::Poison } else { kind(&mut rng) };
    let durability = match rng.u32(0..100) {
        0..65 => Durability::Sync,
        65..85 => Durability::Async,
        _ => Durability::Exit,
    };
    let name = format!("{kind:?}").to_lowercase();
    let job_id = format!("j{number:05}-{name}");
    let shared = shared_thread(kind, &mut rng);
    let thread_id = shared.map_or_else(|| job_id.clone(), |place| format!("{name}-{place}"));
    // A new job on a thread would drop the questions of the one before it.
    let irreversible = matches!(kind, Kind::Deep | Kind::Tally) && shared.is_none();
    let made = make(kind, &job_id, &mut rng, Effects { port: places.effects_port, irreversible });
    let mut request = json!({
        "job_id": job_id,
        "thread_id": thread_id,
        "agent_definition": made.definition,
        "input": made.input,
        "config": { "durability": format!("{durability:?}").to_lowercase() }
    });
    let mut or: &[&str] = if kind == Kind::Unwanted { &["JOB_CANCELLED"] } else { &[] };
    if kind == Kind::Impatient {
        let strategies = ["enqueue", "reject", "interrupt", "rollback"];
        request["multitask_strategy"] = json!(strategies[rng.usize(0..strategies.len())]);
        or = &["THREAD_BUSY", "JOB_INTERRUPTED", "JOB_ROLLED_BACK"];
    }
    let payload = if kind == Kind::Unreadable { unreadable(&job_id, &mut rng) } else { request.to_string() };
    Asked {
        thread_id,
        kind,
        durability,
        expected: made.expected,
        polite: kind != Kind::Impatient && shared.is_some_and(|place| place >= CROWDED_THREADS),
        by_http: rng.u32(0..10) == 0 && !matches!(kind, Kind::Unreadable | Kind::Mistaken),
        or,
        family: job_id.clone(),
        cancel_after: (kind == Kind::Unwanted).then(|| Duration::from_millis(rng.u64(0..2000))),
        effects: made.effects,
        irreversible,
        payload,
        job_id,
    }
}

fn kind(rng: &mut fastrand::Rng) -> Kind {
    match rng.u32(0..100) {
        0..25 => Kind::Talk,
        25..43 => Kind::Deep,
        43..64 => Kind::Tally,
        64..71 => Kind::Loop,
        71..78 => Kind::Join,
        78..82 => Kind::Slow,
        82..90 => Kind::Impatient,
        90..94 => Kind::Unwanted,
        94..97 => Kind::Unreadable,
        _ => Kind::Mistaken,
    }
}

/// The number of the thread that a job shares with others of its kind.
fn shared_thread(kind: Kind, rng: &mut fastrand::Rng) -> Option<usize> {
    let place = rng.usize(0..CROWDED_THREADS + POLITE_THREADS);
    match kind {
        Kind::Talk => Some(place),
        Kind::Tally => Some(place).filter(|_| rng.bool()),
        Kind::Impatient => Some(place % IMPATIENT_THREADS),
        Kind::Deep
        | Kind::Loop
        | Kind::Join
        | Kind::Slow
        | Kind::Unwanted
        | Kind::Unreadable
        | Kind::Mistaken
        | Kind::Poison => None,
    }
}

/// The id is in it, so that its dead letter can be found.
fn unreadable(job_id: &str, rng: &mut fastrand::Rng) -> String {
    if rng.bool() {
        format!("{job_id} is not JSON")
    } else {
        json!({ "input": { "messages": [] }, "trace_id": job_id }).to_string()
    }
}

/// The tool whose calls the test counts.
#[derive(Clone, Copy, Debug)]
struct Effects {
    port: u16,
    irreversible: bool,
}

struct Made {
    definition: Json,
    input: Json,
    expected: Expected,
    effects: Vec<String>,
}

impl Made {
    fn new(definition: Json, input: Json, expected: Expected) -> Self {
        Self { definition, input, expected, effects: Vec::new() }
    }
}

fn make(kind: Kind, job_id: &str, rng: &mut fastrand::Rng, effects: Effects) -> Made {
    let says = |text: String| json!({ "messages": [{ "role": "user", "content": text }] });
    let done = |text: &str| Expected::Completed(json!(format!("{text} {job_id}")));
    let ms = |rng: &mut fastrand::Rng, range: std::ops::Range<u64>| Duration::from_millis(rng.u64(range));
    match kind {
        Kind::Talk => {
            Made::new(talk(job_id, ms(rng, 10..200)), says(format!("turn {job_id}")), done("heard"))
        }
        Kind::Impatient => {
            Made::new(talk(job_id, ms(rng, 50..600)), says(format!("turn {job_id}")), done("heard"))
        }
        Kind::Slow | Kind::Unwanted => {
            Made::new(talk(job_id, ms(rng, 1000..2000)), says(format!("turn {job_id}")), done("heard"))
        }
        Kind::Deep => Made {
            effects: vec!["effect research".into(), "effect writing".into()],
            ..Made::new(deep(effects), says(format!("lead {job_id}")), done("led"))
        },
        Kind::Tally => {
            let (turns, calls) = (rng.u32(1..4), rng.u32(1..4));
            let labels =
                (0..turns).flat_map(|turn| (0..calls).map(move |call| format!("effect {turn}-{call}")));
            let asked = says(format!("tally {job_id} {turns} {calls}"));
            Made { effects: labels.collect(), ..Made::new(tally(effects), asked, done("tallied")) }
        }
        Kind::Poison => {
            let killed = Expected::Failed("POISON", "poison");
            Made::new(tally(effects), says(format!("poison {job_id}")), killed)
        }
        Kind::Loop => {
            let rounds = rng.u32(5..20);
            let counted = Expected::Completed(json!({ "count": rounds }));
            Made::new(rounds_of(rounds), json!({ "count": 0 }), counted)
        }
        Kind::Join => {
            let joined = Expected::Completed(json!({ "text": format!("joined {job_id}") }));
            let delays = [ms(rng, 10..300), ms(rng, 10..300)];
            Made::new(join(job_id, delays), json!({ "topic": job_id }), joined)
        }
        Kind::Unreadable => Made::new(json!({}), json!({}), Expected::Letter(&["not_json", "no_job_id"])),
        Kind::Mistaken => {
            let broken = json!({ "nodes": [{ "id": "a", "type": "agent" }], "edges": [{ "from": "a", "to": "nowhere" }] });
            let refused = Expected::Failed("DEFINITION_INVALID", "definition_invalid");
            Made::new(broken, says("hi".to_owned()), refused)
        }
    }
}

fn says(text: String, delay: Duration) -> Json {
    json!({ "text": text, "delay_ms": delay.as_millis() as u64 })
}

fn scripted(script: Json) -> Json {
    json!({ "provider": "scripted", "model": "chaos", "script": script })
}

fn counted() -> Json {
    json!({ "provider": "counted", "model": "chaos" })
}

fn talk(job_id: &str, delay: Duration) -> Json {
    let script = json!({ "by_user_text": { job_id: [says(format!("heard {job_id}"), delay)] } });
    json!({
        "nodes": [{ "type": "orchestrator", "name": "main", "system_prompt": "Listen.", "tools": [], "model": scripted(script) }],
        "edges": []
    })
}

fn charge(effects: Effects) -> Json {
    let effect = if effects.irreversible { "irreversible" } else { "idempotent" };
    let url = format!("http://127.0.0.1:{}/effect/{{{{ job }}}}/{{{{ call }}}}", effects.port);
    json!([{
        "name": "charge", "description": "Has an effect outside.", "effect": effect,
        "parameters": { "type": "object", "required": ["job", "call"],
            "properties": { "job": { "type": "string" }, "call": { "type": "string" } } },
        "http": { "method": "POST", "url": url }
    }])
}

fn tally(effects: Effects) -> Json {
    json!({
        "tool_definitions": charge(effects),
        "nodes": [{ "id": "clerk", "type": "agent", "model": counted(), "system_prompt": "Count.", "tools": ["charge"] }],
        "edges": [{ "from": "START", "to": "clerk" }, { "from": "clerk", "to": "END" }]
    })
}

fn deep(effects: Effects) -> Json {
    let specialist = |name: &str| {
        json!({ "id": name, "type": "Specialist", "config": { "name": name, "description": format!("does {name}"),
            "system_prompt": "Work.", "tools": ["charge"], "model": counted() } })
    };
    json!({
        "tool_definitions": charge(effects),
        "nodes": [
            { "id": "main", "type": "Orchestrator",
              "config": { "name": "main", "system_prompt": "Lead.", "tools": [], "model": counted() } },
            specialist("research"),
            specialist("writing")
        ],
        "edges": [
            { "source": "main", "target": "research", "type": "orchestrator" },
            { "source": "main", "target": "writing", "type": "specialists" }
        ]
    })
}

fn rounds_of(rounds: u32) -> Json {
    json!({
        "channels": { "count": { "reducer": "add" } },
        "nodes": [{ "id": "step", "type": "transform", "writes": { "count": "1" } }],
        "edges": [
            { "source": "START", "target": "step" },
            { "source": "step", "target": "step", "when": format!("count < {rounds}") },
            { "source": "step", "target": "END", "otherwise": true }
        ],
        "output": ["count"]
    })
}

fn join(job_id: &str, delays: [Duration; 2]) -> Json {
    let model = |id: &str, delay: Duration, writes: &str, text: String| {
        json!({ "id": id, "type": "model", "model": scripted(json!({ "replies": [says(text, delay)] })),
            "prompt": "About {{ topic }}.", "writes": writes })
    };
    json!({
        "channels": { "topic": {}, "notes": { "reducer": "append" }, "text": {} },
        "nodes": [
            model("left", delays[0], "notes", "left".into()),
            model("right", delays[1], "notes", "right".into()),
            model("both", Duration::ZERO, "text", format!("joined {job_id}"))
        ],
        "edges": [
            { "source": "START", "target": "left" },
            { "source": "START", "target": "right" },
            { "sources": ["left", "right"], "target": "both" },
            { "source": "both", "target": "END" }
        ],
        "output": ["text"]
    })
}

#[test]
fn a_seed_gives_the_same_jobs_again_and_every_kind_comes_up() {
    let places = Places { effects_port: 1 };
    let drawn = |seed: u64| (0..200).map(|number| job(seed, number, places).payload).collect::<Vec<_>>();
    assert_eq!(drawn(7), drawn(7));
    assert_ne!(drawn(7), drawn(8));
    let kinds: std::collections::BTreeSet<String> =
        (0..200).map(|number| format!("{:?}", job(7, number, places).kind)).collect();
    assert_eq!(kinds.len(), 11, "{kinds:?}");
}
