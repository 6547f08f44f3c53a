//! What a model call may take and what it took: estimates before it, and after it the sums, metrics and events.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{
    Error, Scope, TaskView,
    spending::Need,
    summary::{CHARS_PER_TOKEN, TOKENS_PER_MESSAGE},
};
use crate::{
    graph::{ModelSettings, SharedSchema},
    job::Expense,
    model::{Price, Reply, Request},
    stream::EventType,
    telemetry::{label, metric},
    value::{Cost, Map, Role, Usage, Value, map_to_json},
};

/// What a call may take of the job's budget: an estimate of what it reads, and the longest answer it may get. Where no
/// longest one is known it is a single token.
pub(super) fn need(scope: &Scope, request: &Request) -> Result<Need, Error> {
    let settings = &request.settings;
    if !scope.spending.has_budget() {
        return Ok(Need::default());
    }
    let adapter = scope.models.provider(&settings.provider)?;
    let (input, output) = (prompt_tokens(request), adapter.longest_answer(settings).unwrap_or(1));
    let price = scope.models.prices().of(&settings.provider, &settings.model);
    let most = if settings.cache_control.is_some() { Price::most_written } else { Price::most };
    let cost = price.map(|price| most(price, input, output));
    Ok(Need { tokens: input.saturating_add(output), cost })
}

/// Tokens that a provider is going to read, by the length of the texts. Images count nothing.
fn prompt_tokens(request: &Request) -> u64 {
    let schema = |schema: &SharedSchema| count(&schema.json().to_string());
    let tools = request
        .tools
        .iter()
        .map(|tool| count(&tool.name) + count(&tool.description) + schema(&tool.parameters));
    let messages = request.messages.iter().map(|message| {
        let calls = match &message.role {
            Role::Ai { tool_calls, .. } => {
                let args = |args| serde_json::to_string(args).map_or(0, |text| count(&text));
                tool_calls.iter().map(|call| count(&call.name) + args(&call.args)).sum()
            }
            Role::Human | Role::System | Role::Tool { .. } | Role::Remove => 0,
        };
        count(&message.content.text()) + calls + TOKENS_PER_MESSAGE * CHARS_PER_TOKEN
    });
    let system = request.system_prompt.as_deref().map_or(0, count);
    let answer = request.output_schema.as_ref().map_or(0, schema);
    (system + answer + tools.sum::<u64>() + messages.sum::<u64>()) / CHARS_PER_TOKEN
}

fn count(text: &str) -> u64 {
    text.chars().count().try_into().unwrap_or(u64::MAX)
}

/// A call that was answered.
pub(super) struct Answered<'a> {
    pub(super) request: &'a Request,
    pub(super) message_id: &'a str,
    pub(super) reply: &'a Reply,
    pub(super) elapsed: Duration,
}

/// A call that is under way. Dropped before it was answered, it counts what its provider had read and said by then, since
/// that is paid for all the same; before anything was said it counts nothing. Readers are told by the retry.
pub(super) struct UnderWay<'a> {
    scope: &'a Scope,
    task: TaskView<'a>,
    request: &'a Request,
    /// The id its text goes out with.
    pub(super) message_id: &'a str,
    /// Characters of the answer so far; none before it began.
    said: Option<u64>,
}

impl<'a> UnderWay<'a> {
    /// A call that is about to be made.
    pub(super) fn new(
        scope: &'a Scope,
        task: TaskView<'a>,
        request: &'a Request,
        message_id: &'a str,
    ) -> Self {
        Self { scope, task, request, message_id, said: None }
    }

    /// The answer goes on with `text`, which may be empty.
    pub(super) fn says(&mut self, text: &str) {
        *self.said.get_or_insert_default() += count(text);
    }

    /// Counts what the call took, and tells readers.
    pub(super) fn answered(mut self, reply: &Reply, elapsed: Duration) {
        self.said = None;
        let answered = Answered { request: self.request, message_id: self.message_id, reply, elapsed };
        let (usage, is_estimated) = match &reply.usage {
            Some(counted) => (counted.clone(), false),
            None => (estimated(self.request, said(reply)), true),
        };
        let cost = self.spend(&usage, is_estimated);
        let mut data = ended(&answered, &usage, cost);
        data["cached"] = false.into();
        if is_estimated {
            data["estimated"] = true.into();
        }
        self.scope.emitter.emit(EventType::LlmEnd, self.task.origin(), data);
    }

    /// Counts a call of so many tokens; what it cost, when a price is known.
    fn spend(&self, usage: &Usage, is_estimated: bool) -> Option<Cost> {
        let Self { scope, task, .. } = self;
        let ModelSettings { provider, model, .. } = &*self.request.settings;
        let price = scope.models.prices().of(provider, model);
        let cost = price.map(|price| price.cost(usage));
        if cost.is_none() && scope.models.prices().is_first_without(provider, model) {
            tracing::warn!(%provider, %model, "no price is known for this model: its calls are missing from every cost_usd; MODEL_PRICES_FILE may name one");
        }
        measure(provider, &label::MODEL.value(model), (usage, cost));
        let expense = Expense { estimated: u64::from(is_estimated), ..Expense::of_call(usage.clone(), cost) };
        scope.spending.add(format!("{provider}:{model}"), task.path(), &expense);
        cost
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(said) = self.said {
            self.spend(&estimated(self.request, said), true);
        }
    }
}

/// Tells readers of an answer that was given before; it costs nothing and counts nowhere.
pub(super) fn tell_cached(scope: &Scope, task: TaskView<'_>, answered: &Answered<'_>) {
    let mut data = ended(answered, &Usage::default(), Some(Cost::ZERO));
    data["cached"] = true.into();
    scope.emitter.emit(EventType::LlmEnd, task.origin(), data);
}

fn ended(answered: &Answered<'_>, usage: &Usage, cost: Option<Cost>) -> Json {
    let ModelSettings { provider, model, .. } = &*answered.request.settings;
    json!({
        "message_id": answered.message_id,
        "provider": provider,
        "model": model,
        "usage": map_to_json(&usage.to_map()),
        "cost_usd": cost.map(Cost::dollars),
        "finish_reason": answered.reply.finish_reason,
        "duration_ms": u64::try_from(answered.elapsed.as_millis()).unwrap_or(u64::MAX),
    })
}

/// Tokens of an answer of so many characters whose provider has not counted them: a budget must not pass over it.
fn estimated(request: &Request, said: u64) -> Usage {
    let (input_tokens, output_tokens) = (prompt_tokens(request), said.div_ceil(CHARS_PER_TOKEN));
    let total_tokens = input_tokens.saturating_add(output_tokens);
    Usage { input_tokens, output_tokens, total_tokens, ..Usage::default() }
}

/// Characters of an answer.
fn said(reply: &Reply) -> u64 {
    let calls = reply.tool_calls.iter();
    let calls = calls
        .map(|call| count(&call.name) + serde_json::to_string(&call.args).map_or(0, |text| count(&text)));
    count(&reply.text) + calls.sum::<u64>()
}

fn measure(provider: &str, model: &str, (usage, cost): (&Usage, Option<Cost>)) {
    let detail = |details: &Map, key: &str| match details.get(key) {
        Some(Value::Number(tokens)) => tokens.as_u64().unwrap_or_default(),
        Some(_) | None => 0,
    };
    let kinds = [
        ("input", usage.input_tokens),
        ("output", usage.output_tokens),
        ("cache_read", detail(&usage.input_token_details, "cache_read")),
        ("reasoning", detail(&usage.output_token_details, "reasoning")),
    ];
    for (kind, tokens) in kinds {
        let labels =
            [("provider", provider.to_owned()), ("model", model.to_owned()), ("kind", kind.to_owned())];
        metrics::counter!(metric::LLM_TOKENS, &labels).increment(tokens);
    }
    let labels = [("provider", provider.to_owned()), ("model", model.to_owned())];
    metrics::gauge!(metric::LLM_COST, &labels).increment(cost.unwrap_or_default().dollars());
    metrics::counter!(metric::LLM_UNPRICED, &labels).increment(u64::from(cost.is_none()));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        model::ToolSpec,
        value::{Message, ToolCall},
    };

    #[test]
    fn all_that_is_sent_counts_for_the_estimate() {
        let message = |role, text: &str| Arc::new(Message::new("m", role, text));
        let args = Map::from_iter([("q".into(), "x".into())]);
        let call = ToolCall { id: "c".into(), name: "find".into(), args };
        let ai = Role::Ai { tool_calls: vec![call], invalid_tool_calls: Vec::new(), usage: None };
        let mut request = Request {
            settings: Arc::new(ModelSettings::parse("openai:m")),
            system_prompt: Some("x".repeat(40)),
            messages: vec![message(Role::Human, &"é".repeat(40))],
            tools: Vec::new(),
            output_schema: None,
            retry: 0,
        };
        assert_eq!(prompt_tokens(&request), 10 + 10 + 3);
        // {"q":"x"} and the name are 13 characters.
        request.messages.push(message(ai, &"x".repeat(11)));
        assert_eq!(prompt_tokens(&request), 23 + 6 + 3);
        let tool =
            ToolSpec { name: "find".into(), description: "finds".into(), parameters: json!({}).into() };
        request.tools.push(tool);
        request.output_schema = Some(json!({"type": "object"}).into());
        assert_eq!(prompt_tokens(&request), 32 + 7);
    }
}
