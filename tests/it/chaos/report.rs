//! What a run tells whoever started it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use super::history::{Event, History};
use super::nemesis::Nemesis;

/// Faults, jobs, repeats and recovery times.
pub(super) fn summary(
    seed: u64,
    history: &History,
    (calm_at, quiet_at): (Duration, Duration),
    nemesis: &Nemesis,
) -> String {
    let kinds = nemesis.by_kind();
    let faults: usize = kinds.values().sum();
    let mut text = format!("chaos: {faults} faults in {:.0} s (seed {seed})\n", calm_at.as_secs_f64());
    for (kind, count) in kinds {
        let _ = writeln!(text, "    {count:>4}  {kind}");
    }
    let mut jobs: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for asked in &history.asked {
        let attempts = history.job(&asked.job_id).map_or(0, |job| job.attempt);
        let (count, more) = jobs.entry(format!("{:?}", asked.kind).to_lowercase()).or_default();
        *count += 1;
        *more += attempts.saturating_sub(1);
    }
    let retries: u64 = jobs.values().map(|(_, more)| more).sum();
    let _ =
        writeln!(text, "chaos: {} jobs accepted, {retries} attempts beyond the first", history.asked.len());
    for (kind, (count, more)) in jobs {
        let _ = writeln!(text, "    {count:>4}  {kind}, {more} more attempts");
    }
    let _ = writeln!(text, "chaos: {}", repeats("model calls", history, |key| key.is_none()));
    let _ = writeln!(text, "chaos: {}", repeats("effects", history, |key| key.is_some()));
    let _ =
        writeln!(text, "chaos: {} checkpoints, {} events", history.checkpoints.len(), history.events.len());
    let _ = writeln!(text, "chaos: {}, {} holes", unheard(history), holes(history));
    let gaps = recoveries(history);
    let at = |share: f64| {
        gaps.get(((gaps.len() as f64 - 1.0) * share).round() as usize).copied().unwrap_or(0.0) / 1000.0
    };
    let _ = writeln!(
        text,
        "chaos: from the last sign of an attempt to the next attempt: p50 {:.1} s, p90 {:.1} s, longest {:.1} s",
        at(0.5),
        at(0.9),
        at(1.0)
    );
    let _ = write!(text, "chaos: quiet {:.1} s after the last fault", (quiet_at - calm_at).as_secs_f64());
    text
}

fn repeats(what: &str, history: &History, sort: impl Fn(&Option<String>) -> bool) -> String {
    let mut times: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for call in history.calls.iter().filter(|call| sort(&call.key)) {
        *times.entry((&call.job_id, &call.label)).or_default() += 1;
    }
    let (calls, repeats): (u64, u64) =
        times.values().fold((0, 0), |(calls, more), n| (calls + n, more + n - 1));
    let share = if calls == 0 { 0.0 } else { 100.0 * repeats as f64 / calls as f64 };
    format!("{calls} {what}, {repeats} of them repeats ({share:.1} %)")
}

/// Started jobs whose `end` is in no stream: overtaken by a later claim of the thread, or never sent.
fn unheard(history: &History) -> String {
    let heard: BTreeSet<&str> = history
        .events
        .iter()
        .filter(|event| event.event_type == "end")
        .map(|event| event.job_id.as_str())
        .collect();
    let newest: BTreeMap<&str, u64> =
        history.events.iter().map(|event| (event.thread_id.as_str(), event.epoch)).collect();
    let (mut overtaken, mut unsent) = (0, 0);
    for result in &history.results {
        let data = &result.event["data"];
        let text = |name: &str| data[name].as_str().unwrap_or_default();
        let epoch = text("last_event_id").split('-').next().and_then(|epoch| epoch.parse::<u64>().ok());
        if let Some(epoch) = epoch.filter(|_| !heard.contains(text("job_id"))) {
            let later = newest.get(text("thread_id")).is_some_and(|newest| *newest > epoch);
            if later { overtaken += 1 } else { unsent += 1 }
        }
    }
    format!("{overtaken} ends overtaken by a later job, {unsent} never sent")
}

/// Places where `seq` jumps within a claim.
fn holes(history: &History) -> usize {
    let jumps = |pair: &&[Event]| {
        let same = (&pair[0].thread_id, pair[0].epoch) == (&pair[1].thread_id, pair[1].epoch);
        same && pair[1].seq != pair[0].seq + 1
    };
    history.events.windows(2).filter(jumps).count()
}

/// Milliseconds between the last event of an attempt and the first of the next one, sorted.
fn recoveries(history: &History) -> Vec<f64> {
    let mut last: BTreeMap<&str, (u64, f64)> = BTreeMap::new();
    let mut gaps = Vec::new();
    for event in &history.events {
        if let Some((attempt, at)) = last.insert(&event.job_id, (event.attempt, event.at_ms))
            && attempt + 1 == event.attempt
        {
            gaps.push((event.at_ms - at).max(0.0));
        }
    }
    gaps.sort_by(f64::total_cmp);
    gaps
}

/// Every fault with its time.
pub(super) fn fault_log(history: &History) -> String {
    let mut text = String::from("chaos: the faults, in seconds since the start\n");
    for fault in &history.happened {
        let to = fault.to.map_or("…".to_owned(), |to| format!("{:.1}", to.as_secs_f64()));
        let _ = writeln!(text, "    {:>6.1} to {to:>6}  {}", fault.from.as_secs_f64(), fault.text);
    }
    text
}

/// How to see it again.
pub(super) fn replay(seed: u64, lasts: Duration) -> String {
    format!("CHAOS_SEED={seed} CHAOS_SECONDS={} make chaos", lasts.as_secs())
}
