//! Asking models: tries, fallbacks, the text as it comes, and what readers are told when it is void.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use serde_json::json;
use tokio::time::timeout;
use tracing::Instrument;

use super::{
    Error, Scope, TaskView,
    accounting::{self, UnderWay},
    recall,
};
use crate::{
    graph::{FailureClass, ModelSettings, NodeKind},
    model::{self, ChatModel, Chunk, Reply, Request, Turn, retry},
    stream::{EventType, Piece, TokenBuffer},
    telemetry::{label, metric},
};

/// Waits for a call's turn that are longer than this are told to whoever watches.
const SLOW_TURN: Duration = Duration::from_secs(5);
/// How long a call without a fallback waits for a provider that is not asked for a while: as long as all its tries would
/// wait at most.
const BREAKER_PATIENCE: Duration = Duration::from_secs(120);

/// A model's answer under the message id its text was streamed with.
pub(super) struct Answer {
    pub(super) message_id: String,
    pub(super) reply: Reply,
}

/// A question of a node to models.
struct Question<'a> {
    scope: &'a Scope,
    task: TaskView<'a>,
    /// As it is put to the model that is asked now.
    request: Arc<Request>,
    /// Tries, of all models.
    tries: u32,
    /// Models that can still be asked after this one.
    others: usize,
}

/// A try that failed.
struct Failed {
    error: model::Error,
    /// The id its text went out with.
    message_id: String,
}

/// Why a model is not asked any more.
enum Stopped {
    Failed(Failed),
    Here(Error),
}

/// Asks the request's model, then its fallbacks, each as often as the retry policy allows.
pub(super) async fn ask(scope: &Scope, task: TaskView<'_>, request: Arc<Request>) -> Result<Answer, Error> {
    let first = request.settings.clone();
    let mut fallbacks = first.fallbacks.iter();
    let mut question = Question { scope, task, request, tries: 0, others: fallbacks.len() };
    loop {
        let failed = match question.ask_one().await {
            Ok(answer) => return accept(answer),
            Err(Stopped::Failed(failed)) => failed,
            Err(Stopped::Here(error)) => return Err(error),
        };
        let Some(settings) = fallbacks.next().filter(|_| failed.error.is_retryable()) else {
            return Err(failed.error.into());
        };
        question.others = fallbacks.len();
        let request = Arc::make_mut(&mut question.request);
        (request.settings, request.retry) = (Arc::new(settings.clone()), task.tries.number());
        question.tell_retry(&failed, Duration::ZERO);
    }
}

impl Question<'_> {
    /// Asks one model, as often as it may be asked.
    async fn ask_one(&mut self) -> Result<Answer, Stopped> {
        let Self { scope, task, .. } = *self;
        if let Some(answer) = recall::find(scope, task, &self.request).await {
            return Ok(answer);
        }
        let need = accounting::need(scope, &self.request).map_err(Stopped::Here)?;
        let policy = retry_policy(scope, task);
        // Whoever asks again otherwise need not wait here.
        let patience = if self.others > 0 || policy.tries == 1 { Duration::ZERO } else { BREAKER_PATIENCE };
        let mut failed = 0;
        loop {
            let model = &self.request.settings.model;
            // Who waits for others of its own job takes no place of other jobs meanwhile.
            scope.spending.room(need, model).await.map_err(Stopped::Here)?;
            let turn = match Box::pin(self.turn(patience)).await {
                Ok(turn) => turn,
                Err(error) => {
                    wait_between_runs(task, &error, &policy);
                    return Err(Stopped::Failed(Failed { error, message_id: message_id() }));
                }
            };
            let admitted = scope.spending.try_admit(need, model).map_err(Stopped::Here)?;
            let Some(admitted) = admitted else { continue };
            self.tries += 1;
            let message_id = message_id();
            let error = match self.call(turn, &message_id).await {
                Ok(reply) => {
                    recall::keep(scope, &self.request, &reply).await;
                    return Ok(Answer { message_id, reply });
                }
                Err(Error::Model(error)) => error,
                Err(other) => return Err(Stopped::Here(other)),
            };
            drop(admitted);
            let delay = policy.delay(failed, &error, fastrand::u64(..));
            let this = Failed { error, message_id };
            let Some(wait) = delay else {
                wait_between_runs(task, &this.error, &policy);
                return Err(Stopped::Failed(this));
            };
            failed += 1;
            // A try that failed has let go of it: nothing is copied.
            Arc::make_mut(&mut self.request).retry += 1;
            self.tell_retry(&this, wait);
            tokio::time::sleep(wait).await;
        }
    }

    /// Waits for the call's turn, and tells when that takes long; a provider that is not asked for a while is waited
    /// for as long as `patience`.
    async fn turn(&self, patience: Duration) -> Result<Turn, model::Error> {
        let Self { scope, request, .. } = self;
        let mut waited = Duration::ZERO;
        loop {
            let mut waiting = pin!(scope.models.turn(request, &scope.thread_id));
            let came = match timeout(SLOW_TURN, &mut waiting).await {
                Ok(came) => came,
                Err(_) => {
                    self.tell_wait("limit", SLOW_TURN);
                    waiting.await
                }
            };
            let error = match came {
                Ok(turn) => return Ok(turn),
                Err(error) => error,
            };
            let model::Error::BreakerOpen { retry_in, .. } = &error else { return Err(error) };
            // Not all at once, as soon as it closes.
            let wait = *retry_in + scope.retry.base.mul_f64(fastrand::f64());
            if waited + wait > patience {
                return Err(error);
            }
            waited += wait;
            self.tell_wait("breaker", wait);
            tokio::time::sleep(wait).await;
        }
    }

    /// Says that the call waits, for its turn already or for the provider from now on.
    fn tell_wait(&self, reason: &str, wait: Duration) {
        let (task, ModelSettings { provider, model, .. }) = (self.task, &*self.request.settings);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(node = %task.node.name, %provider, %model, reason, wait_ms, "a model call waits");
        if is_heard(task) {
            let data = json!({
                "kind": "model_wait", "provider": provider, "model": model, "reason": reason,
                "wait_ms": wait_ms,
            });
            self.scope.emitter.emit(EventType::Custom, task.origin(), data);
        }
    }

    /// Says that a model is asked again, and which text is no more.
    fn tell_retry(&self, failed: &Failed, wait: Duration) {
        let (task, ModelSettings { provider, model, .. }) = (self.task, &*self.request.settings);
        let Failed { error, message_id } = failed;
        let (code, attempt) = (error.code(), self.tries + 1);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(node = %task.node.name, %provider, %model, code, %error, attempt, wait_ms, "model call failed, trying again");
        if is_heard(task) {
            let data = json!({
                "attempt": attempt, "reason": code, "superseded_message_id": message_id,
                "had_text": task.tries.has_said(message_id), "provider": provider, "model": model,
                "wait_ms": wait_ms,
            });
            self.scope.emitter.emit(EventType::LlmRetry, task.origin(), data);
        }
    }

    /// One try: streams the text as it comes, under a message id of its own so that a retry never doubles text.
    async fn call(&self, mut turn: Turn, message_id: &str) -> Result<Reply, Error> {
        let Self { scope, task, request, .. } = self;
        let ModelSettings { provider, model, .. } = &*request.settings;
        let span = tracing::info_span!(
            "model_call",
            otel.name = format!("chat {model}"),
            gen_ai.operation.name = "chat",
            gen_ai.provider.name = provider,
            gen_ai.request.model = model,
            gen_ai.usage.input_tokens = tracing::field::Empty,
            gen_ai.usage.output_tokens = tracing::field::Empty,
            node = %task.node.name,
        );
        // Only configured providers become label values; models are bounded.
        let adapter = scope.models.provider(provider)?;
        let label = label::MODEL.value(model);
        let started = Instant::now();
        let mut under_way = UnderWay::new(scope, *task, request, message_id);
        let result = self.stream(&*adapter, &mut turn, &mut under_way).instrument(span.clone()).await;
        match &result {
            Ok(reply) => turn.answered(reply.usage.as_ref()),
            Err(Error::Model(error)) => turn.failed(error),
            // The node's own limit of time says nothing about the provider.
            Err(_) => drop(turn),
        }
        let elapsed = started.elapsed().as_secs_f64();
        metrics::histogram!(metric::LLM_SECONDS, "provider" => provider.clone(), "model" => label.clone())
            .record(elapsed);
        let reply = result.inspect_err(|error| {
            let labels = [("provider", provider.clone()), ("code", label::CODE.value(error.code()))];
            metrics::counter!(metric::LLM_FAILURES, &labels).increment(1);
        })?;
        if let Some(usage) = &reply.usage {
            span.record("gen_ai.usage.input_tokens", usage.input_tokens);
            span.record("gen_ai.usage.output_tokens", usage.output_tokens);
        }
        let elapsed = started.elapsed();
        under_way.answered(&reply, elapsed);
        Ok(reply)
    }

    async fn stream(
        &self,
        adapter: &dyn ChatModel,
        turn: &mut Turn,
        under_way: &mut UnderWay<'_>,
    ) -> Result<Reply, Error> {
        let Self { scope, task, ref request, .. } = *self;
        let message_id = under_way.message_id;
        let idle = task.node.policy.idle_timeout;
        let silent = |limit: Duration| Error::Idle(limit.as_secs_f64());
        let mut chunks = match idle {
            None => adapter.call(request.clone()).await?,
            Some(limit) => {
                timeout(limit, adapter.call(request.clone())).await.map_err(|_| silent(limit))??
            }
        };
        let mut heard = tokio::time::Instant::now();
        let mut text = TokenBuffer::new(scope.emitter.tokens());
        let is_heard = is_heard(task);
        let say = |piece: &Piece| {
            if is_heard {
                scope.emitter.token(task.origin(), message_id, piece);
            }
        };
        let mut is_first = true;
        loop {
            let chunk = tokio::select! {
                // The clock is read only when the model has nothing to say.
                biased;
                chunk = chunks.next() => chunk,
                limit = silence(heard, idle) => return Err(silent(limit)),
                () = due(&text) => {
                    if let Some(piece) = text.tick(Instant::now()) {
                        say(&piece);
                    }
                    continue;
                }
            };
            if idle.is_some() {
                heard = tokio::time::Instant::now();
            }
            match chunk {
                Some(Ok(Chunk::Begun)) => {
                    turn.hears();
                    under_way.says("");
                }
                Some(Ok(Chunk::Text(piece))) => {
                    under_way.says(&piece);
                    if is_first && is_heard {
                        task.tries.says(message_id);
                    }
                    if let Some(seconds) = is_first.then(|| scope.spending.first_token()).flatten() {
                        metrics::histogram!(metric::FIRST_TOKEN_SECONDS).record(seconds);
                    }
                    is_first = false;
                    if let Some(piece) = text.push(&piece, Instant::now()) {
                        say(&piece);
                    }
                }
                Some(Ok(Chunk::Done(reply))) => {
                    if let Some(piece) = text.finish() {
                        say(&piece);
                    }
                    return Ok(*reply);
                }
                Some(Err(error)) => return Err(error.into()),
                None => {
                    let message = "the answer ended without an end".to_owned();
                    return Err(model::Error::Protocol { provider: "model".into(), message }.into());
                }
            }
        }
    }
}

/// Lets the next run of the node wait as long as is asked.
fn wait_between_runs(task: TaskView<'_>, error: &model::Error, policy: &retry::Policy) {
    let asked = error.retry_after();
    asked.into_iter().for_each(|asked| task.tries.waits(asked.min(policy.longest_asked)));
}

fn message_id() -> String {
    format!("run-{}", uuid::Uuid::new_v4())
}

/// How often a model is asked in one run of the node: as the operator says, unless the node says when it is run
/// again; both together would multiply.
fn retry_policy(scope: &Scope, task: TaskView<'_>) -> retry::Policy {
    let retry = task.node.policy.retry.as_ref();
    let is_covered = retry.is_some_and(|retry| retry.covers(FailureClass::ModelUnavailable));
    retry::Policy { tries: if is_covered { 1 } else { scope.retry.tries }, ..scope.retry }
}

/// A summary is part of the conversation, and nobody's answer.
pub(super) fn is_heard(task: TaskView<'_>) -> bool {
    !matches!(task.node.kind, NodeKind::Summary(_))
}

fn accept(answer: Answer) -> Result<Answer, Error> {
    match &answer.reply.refusal {
        // What was said before is no answer, and calls beside a refusal are not made.
        Some(refusal) => Err(Error::Refused(refusal.clone())),
        None => Ok(answer),
    }
}

/// Waits until nothing has come for as long as the node allows; for ever when it says nothing.
async fn silence(heard: tokio::time::Instant, idle: Option<Duration>) -> Duration {
    let Some(limit) = idle else { return std::future::pending().await };
    tokio::time::sleep(limit.saturating_sub(heard.elapsed())).await;
    limit
}

/// Waits until the text that waits may be sent; for ever when none does.
async fn due(text: &TokenBuffer) {
    match text.due_in(Instant::now()) {
        Some(due) => tokio::time::sleep(due).await,
        None => std::future::pending().await,
    }
}
