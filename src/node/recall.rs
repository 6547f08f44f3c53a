//! Answers that were given before: found, told as if they came now, and kept for the next who asks.

use std::time::Instant;

use super::{
    Scope, TaskView,
    accounting::{Answered, tell_cached},
    asking::{Answer, is_heard},
};
use crate::{
    model::{Reply, Request},
    stream::{Piece, TokenBuffer},
    telemetry::metric,
};

/// The kept answer to the request, under a message id of its own. A node that is run again asks anew: what it has
/// heard before did not do.
pub(super) async fn find(scope: &Scope, task: TaskView<'_>, request: &Request) -> Option<Answer> {
    let started = Instant::now();
    let kept = scope.models.kept().filter(|_| task.tries.number() == 0)?;
    let reply = kept.find(request).await?;
    let message_id = format!("run-{}", uuid::Uuid::new_v4());
    tell(scope, task, (&message_id, &reply.text));
    let elapsed = started.elapsed();
    tell_cached(scope, task, &Answered { request, message_id: &message_id, reply: &reply, elapsed });
    Some(Answer { message_id, reply })
}

fn tell(scope: &Scope, task: TaskView<'_>, (message_id, text): (&str, &str)) {
    if text.is_empty() {
        return;
    }
    if let Some(seconds) = scope.spending.first_token() {
        metrics::histogram!(metric::FIRST_TOKEN_SECONDS).record(seconds);
    }
    if !is_heard(task) {
        return;
    }
    task.tries.says(message_id);
    let mut pieces = TokenBuffer::new(scope.emitter.tokens());
    let say = |piece: Piece<'_>| scope.emitter.token(task.origin(), message_id, &piece);
    pieces.push(text, Instant::now()).into_iter().for_each(say);
    pieces.finish().into_iter().for_each(say);
}

/// Keeps an answer, where its model asks for that.
pub(super) async fn keep(scope: &Scope, request: &Request, reply: &Reply) {
    if let Some(kept) = scope.models.kept() {
        kept.keep(request, reply).await;
    }
}
