//! Summaries: when a model node hands its conversation over, what of it is replaced, and by what.
//!
//! **Invariant:** a call of a tool and its answers are summarised together or not at all.
//! **Invariant:** a conversation that has just been summarised is not handed over again.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use super::{Error, Scope, TaskView, asking::ask, model_call::render};
use crate::{
    graph::{ModelNode, SummaryLimits, SummaryNode, Trigger},
    model::Request,
    pregel::{MESSAGES, Write},
    value::{Content, Map, Message, Role, Value, map_to_json, open_calls},
};

/// Characters that count as a token where the provider has not counted; as LangChain estimates.
pub(super) const CHARS_PER_TOKEN: u64 = 4;

/// Tokens of a message besides its text: role and marks.
pub(super) const TOKENS_PER_MESSAGE: u64 = 3;

/// Most characters of the conversation that are summarised in one call, whatever the trigger: about 250,000 tokens.
const MAX_TRANSCRIPT_CHARS: usize = 1_000_000;

/// Key and word by which LangChain marks summaries among a person's messages.
const MARK: (&str, &str) = ("lc_source", "summarization");

/// What a model node writes instead of calling its model: that the conversation is to be summarised first.
pub(super) fn hand_over(task: TaskView<'_>, node: &ModelNode) -> Option<Vec<Write>> {
    let handover = node.summary.as_ref()?;
    let messages = task.state.get(MESSAGES)?.as_list()?;
    if tokens(messages) <= handover.limits.trigger_tokens {
        return None;
    }
    older(messages, handover.limits)?;
    Some(vec![Write::new(Trigger::Branch(&handover.node).channel(), Value::Null)])
}

/// Replaces the older messages by a summary, which takes the place and the id of the first of them.
pub(super) async fn run(scope: &Scope, task: TaskView<'_>, node: &SummaryNode) -> Result<Vec<Write>, Error> {
    let messages = task.state.get(MESSAGES).and_then(Value::as_list).unwrap_or_default();
    let Some(range) = older(messages, node.limits) else { return Ok(Vec::new()) };
    let replaced: Vec<&Arc<Message>> = messages[range].iter().filter_map(removable).collect();
    let share = node.limits.trigger_tokens.saturating_mul(CHARS_PER_TOKEN);
    let share = usize::try_from(share).unwrap_or(usize::MAX).min(MAX_TRANSCRIPT_CHARS);
    let question = Message::new(format!("{}-prompt", task.id), Role::Human, transcript(&replaced, share));
    let request = Request {
        settings: node.model.clone(),
        system_prompt: Some(render("summarize.prompt", &node.prompt, task.state)?),
        messages: vec![Arc::new(question)],
        tools: Vec::new(),
        output_schema: None,
        retry: task.tries.number(),
    };
    let text = Box::pin(ask(scope, task, Arc::new(request))).await?.reply.text;
    if text.trim().is_empty() {
        return Err(Error::Summary);
    }
    let removed = replaced.iter().skip(1).map(|message| Message::new(message.id.clone(), Role::Remove, ""));
    let written = replaced.first().map(|first| summary(&first.id, &text));
    Ok(vec![Write::new(MESSAGES, Value::list(written.into_iter().chain(removed).map(Value::from).collect()))])
}

fn summary(id: &Arc<str>, text: &str) -> Message {
    let text = format!("Summary of the conversation so far:\n\n{}", text.trim());
    let additional_kwargs = Map::from_iter([(MARK.0.into(), MARK.1.into())]);
    Message { additional_kwargs, ..Message::new(id.clone(), Role::Human, text) }
}

fn is_summary(message: &Message) -> bool {
    message.additional_kwargs.get(MARK.0).and_then(Value::as_str) == Some(MARK.1)
}

/// A message that can be removed by its id.
fn removable(value: &Value) -> Option<&Arc<Message>> {
    value.as_message().filter(|message| !message.id.is_empty())
}

/// The messages that a summary would replace; `None` when there are none beside an earlier summary.
fn older(messages: &[Value], limits: SummaryLimits) -> Option<Range<usize>> {
    let is_system =
        |value: &&Value| value.as_message().is_some_and(|message| matches!(message.role, Role::System));
    let first = messages.iter().take_while(is_system).count();
    let mut end = messages.len().saturating_sub(limits.keep_messages);
    // Somebody else's tools may still be at work on a call.
    end = open_calls(messages).first().map_or(end, |open| end.min(open.at));
    // What asks for an answer that stays, stays; and so on with the answers behind that.
    while let Some(asks) = messages.get(first..end).and_then(|old| asked_by(old, &messages[end..])) {
        end = first + asks;
    }
    let old = messages.get(first..end)?;
    let is_news = old.iter().filter_map(removable).any(|message| !is_summary(message));
    is_news.then_some(first..end)
}

/// The first message of `old` with a call whose answer is among `kept`, where nothing in `kept` asks for it.
fn asked_by(old: &[Value], kept: &[Value]) -> Option<usize> {
    let mut answered: BTreeSet<&str> = BTreeSet::new();
    let mut asked: BTreeSet<&str> = BTreeSet::new();
    for message in kept.iter().filter_map(Value::as_message) {
        match &message.role {
            Role::Tool { tool_call_id, .. } if !asked.contains(&**tool_call_id) => {
                answered.insert(tool_call_id);
            }
            Role::Ai { .. } => asked.extend(calls(message)),
            Role::Tool { .. } | Role::Human | Role::System | Role::Remove => {}
        }
    }
    let last = |id: &&str| {
        old.iter().rposition(|value| value.as_message().is_some_and(|m| calls(m).any(|c| c == *id)))
    };
    answered.iter().filter_map(last).min()
}

fn calls(message: &Message) -> impl Iterator<Item = &str> {
    let (valid, invalid) = match &message.role {
        Role::Ai { tool_calls, invalid_tool_calls, .. } => {
            (tool_calls.as_slice(), invalid_tool_calls.as_slice())
        }
        Role::Human | Role::System | Role::Tool { .. } | Role::Remove => (&[][..], &[][..]),
    };
    valid.iter().map(|call| &*call.id).chain(invalid.iter().map(|call| &*call.id))
}

/// How long the conversation is: as the provider counted it for the last answer, with an estimate of what came
/// since; without its count an estimate of everything.
fn tokens(messages: &[Value]) -> u64 {
    let mut since = 0;
    for message in messages.iter().rev().filter_map(Value::as_message) {
        if let Role::Ai { usage, .. } = &message.role {
            let counted = usage.as_ref().map(|usage| usage.total_tokens).filter(|total| *total > 0);
            return match counted {
                Some(counted) => counted.saturating_add(since),
                None => messages.iter().filter_map(Value::as_message).map(|m| estimate(m)).sum(),
            };
        }
        since += estimate(message);
    }
    since
}

fn estimate(message: &Message) -> u64 {
    let count = |text: &str| u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
    let chars = count(&message.content.text()) + count(&arguments(message));
    chars / CHARS_PER_TOKEN + TOKENS_PER_MESSAGE
}

/// The calls of a message as a model reads them.
fn arguments(message: &Message) -> String {
    let call = |name: &str, args: &str| format!("\n[calls {name} {args}]");
    match &message.role {
        Role::Ai { tool_calls, invalid_tool_calls, .. } => {
            let valid = tool_calls.iter().map(|one| call(&one.name, &map_to_json(&one.args).to_string()));
            valid.chain(invalid_tool_calls.iter().map(|one| call(&one.name, &one.args))).collect()
        }
        Role::Human | Role::System | Role::Tool { .. } | Role::Remove => String::new(),
    }
}

/// The messages as one text of about `limit` characters: the longest ones are cut.
fn transcript(messages: &[&Arc<Message>], limit: usize) -> String {
    let texts: Vec<String> = messages.iter().map(|message| line(message)).collect();
    let share = share(texts.iter().map(|text| text.chars().count()).collect(), limit);
    let cut = |text: &String| match text.char_indices().nth(share) {
        Some((end, _)) => format!("{} […]", &text[..end]),
        None => text.clone(),
    };
    texts.iter().map(cut).collect::<Vec<_>>().join("\n\n")
}

fn line(message: &Message) -> String {
    let who = match &message.role {
        Role::Human if is_summary(message) => "earlier summary",
        Role::Human => "user",
        Role::System => "system",
        Role::Ai { .. } => "assistant",
        Role::Tool { .. } => "tool",
        Role::Remove => "removed",
    };
    let name = message.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let content = match &message.content {
        Content::Text(text) => text.clone(),
        Content::Blocks(_) => message.content.text(),
    };
    format!("{who}{name}: {content}{}", arguments(message))
}

/// The greatest length of one text with which all of them together stay within `limit`.
fn share(mut lengths: Vec<usize>, limit: usize) -> usize {
    lengths.sort_unstable();
    let (mut left, mut count) = (limit, lengths.len());
    for length in lengths {
        if length > left / count {
            return left / count;
        }
        left -= length;
        count -= 1;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::value::{ToolCall, ToolStatus, Usage};

    fn said(id: &str, role: Role, text: &str) -> Value {
        Message::new(id, role, text).into()
    }

    fn asks(id: &str, calls: &[&str], total_tokens: u64) -> Value {
        let call = |id: &&str| ToolCall { id: (*id).into(), name: "t".into(), args: Map::new() };
        let usage = (total_tokens > 0).then(|| Usage { total_tokens, ..Usage::default() });
        let tool_calls = calls.iter().map(call).collect();
        said(id, Role::Ai { tool_calls, invalid_tool_calls: Vec::new(), usage }, "")
    }

    fn answers(call: &str) -> Value {
        let role =
            Role::Tool { tool_call_id: call.into(), status: ToolStatus::Success, artifact: Value::Null };
        said(&format!("to-{call}"), role, "done")
    }

    fn limits(keep_messages: usize) -> SummaryLimits {
        SummaryLimits { trigger_tokens: 10, keep_messages }
    }

    #[test]
    fn the_newest_messages_stay_and_calls_keep_their_answers() {
        let talk = [
            said("s", Role::System, "rules"),
            said("h", Role::Human, "go"),
            asks("a", &["1", "2"], 0),
            answers("1"),
            answers("2"),
            asks("b", &[], 0),
        ];
        assert_eq!(older(&talk, limits(1)), Some(1..5), "the system's message stays");
        assert_eq!(older(&talk, limits(2)), Some(1..2), "the call stays with the second of its answers");
        assert_eq!(older(&talk, limits(4)), Some(1..2));
        assert_eq!(older(&talk, limits(5)), None);
        assert_eq!(older(&talk, limits(9)), None);
        assert_eq!(older(&talk[..3], limits(1)), Some(1..2), "a call without an answer stays");
    }

    #[test]
    fn a_summary_alone_is_not_summarised_again() {
        let summarised = Value::from(summary(&"h".into(), "all of it"));
        let talk = [summarised, asks("b", &["1"], 900), answers("1")];
        assert_eq!(older(&talk, limits(2)), None);
        assert_eq!(older(&talk, limits(1)), None);
        assert!(older(&[talk.to_vec(), vec![asks("c", &[], 0)]].concat(), limits(1)).is_some());
    }

    #[test]
    fn tokens_are_those_of_the_last_answer_and_an_estimate_of_what_came_since() {
        let talk = [said("h", Role::Human, "12345678"), asks("a", &["1"], 0), answers("1")];
        assert_eq!(tokens(&talk), (8 / 4 + 3) + (13 / 4 + 3) + (4 / 4 + 3));
        let talk = [talk[0].clone(), asks("a", &["1"], 50), answers("1")];
        assert_eq!(tokens(&talk), 50 + 1 + 3);
        assert_eq!(tokens(&[]), 0);
    }

    #[test]
    fn long_texts_are_cut_so_that_short_ones_stay_whole() {
        assert_eq!(share(vec![5, 100, 5], 30), 20);
        assert_eq!(share(vec![100, 100], 30), 15);
        assert_eq!(share(vec![1, 2], 30), usize::MAX);
        let long = Arc::new(Message::new("1", Role::Human, "x".repeat(50)));
        let short = Arc::new(Message::new("2", Role::Human, "short"));
        assert_eq!(transcript(&[&long, &short], 30), format!("user: {} […]\n\nuser: short", "x".repeat(13)));
    }

    proptest! {
        #[test]
        fn no_call_is_separated_from_its_answers(
            turns in prop::collection::vec((0..4_usize, 0..4_usize), 1..12), keep in 1..30_usize,
        ) {
            let mut talk = Vec::new();
            for (turn, (calls, answered)) in turns.into_iter().enumerate() {
                talk.push(said(&format!("h{turn}"), Role::Human, "go"));
                let ids: Vec<String> = (0..calls).map(|call| format!("{turn}-{call}")).collect();
                talk.push(asks(&format!("a{turn}"), &ids.iter().map(String::as_str).collect::<Vec<_>>(), 0));
                talk.extend(ids.iter().take(answered).map(|id| answers(id)));
            }
            let Some(range) = older(&talk, limits(keep)) else { return Ok(()) };
            prop_assert!(talk.len() - range.end >= keep.min(talk.len()));
            prop_assert!(asked_by(&talk[..range.end], &talk[range.end..]).is_none());
            prop_assert!(open_calls(&talk[range.clone()]).is_empty());
            let mut after = vec![Value::from(summary(&"s".into(), "x"))];
            after.extend_from_slice(&talk[range.end..]);
            prop_assert!(older(&after, limits(keep)).is_none());
        }
    }
}
