//! Gathers calls of many tasks into one statement after the other: nobody waits when alone, and a busy process
//! pays one round trip for all that came meanwhile.
//!
//! **Invariant:** calls are answered in the order in which they came, each exactly once.

use std::future::Future;

use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::failure::Failure;
use crate::store::Error;

/// Calls in one statement; as many as a pull brings.
const MAX_BATCH: usize = 64;

/// Calls that wait for the task; callers beyond it wait to hand theirs in.
const QUEUE: usize = 1_024;

/// A call on its way.
type Call<I, O> = (I, oneshot::Sender<Result<O, Error>>);

/// Hands calls to the task that makes statements of them.
#[derive(Debug)]
pub(super) struct Gather<I, O> {
    inbox: mpsc::Sender<Call<I, O>>,
}

impl<I: Clone + Send + 'static, O: Send + 'static> Gather<I, O> {
    /// Starts the task. `work` answers a batch: one answer or error per call, in their order, or an error
    /// for all of it.
    ///
    /// When the database refuses a batch or gives up on it, each of its calls is tried alone: one caller's fault is
    /// not the others', and one locked row does not hold up the rest.
    /// The task ends with `closing`, after what was handed in before.
    pub(super) fn start<F>(
        tasks: &TaskTracker,
        closing: CancellationToken,
        work: impl Fn(Vec<I>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Vec<Result<O, Error>>, Failure>> + Send,
    {
        let (inbox, mut arrivals) = mpsc::channel::<Call<I, O>>(QUEUE);
        tasks.spawn(async move {
            let mut calls = Vec::with_capacity(MAX_BATCH);
            loop {
                tokio::select! {
                    count = arrivals.recv_many(&mut calls, MAX_BATCH) => if count == 0 { return },
                    () = closing.cancelled(), if !arrivals.is_closed() => arrivals.close(),
                }
                if calls.is_empty() {
                    continue;
                }
                let (inputs, callers): (Vec<I>, Vec<_>) = calls.drain(..).unzip();
                let alone = (inputs.len() > 1).then(|| inputs.clone());
                match (work(inputs).await, alone) {
                    (Ok(answers), _) => {
                        for (caller, answer) in callers.into_iter().zip(answers) {
                            // Nobody listens when the caller went away.
                            let _ = caller.send(answer);
                        }
                    }
                    (Err(Failure::Refused(_) | Failure::TooSlow(_)), Some(inputs)) => {
                        for (caller, input) in callers.into_iter().zip(inputs) {
                            let answer = work(vec![input])
                                .await
                                .map_err(Failure::into_error)
                                .map(|mut answers| answers.pop());
                            let missing = || Error::Refused("the database gave no answer".into());
                            let _ = caller
                                .send(answer.and_then(|answer| answer.unwrap_or_else(|| Err(missing()))));
                        }
                    }
                    (Err(failure), _) => {
                        let error = failure.into_error();
                        for caller in callers {
                            let _ = caller.send(Err(again(&error)));
                        }
                    }
                }
            }
        });
        Self { inbox }
    }

    pub(super) async fn call(&self, input: I) -> Result<O, Error> {
        let closed = || Error::Unavailable("the store is closed".into());
        let (caller, answer) = oneshot::channel();
        self.inbox.send((input, caller)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

/// The same error for one more caller.
pub(super) fn again(error: &Error) -> Error {
    match error {
        Error::Refused(reason) => Error::Refused(reason.clone()),
        Error::Corrupt { thread_id, what, reason } => {
            Error::Corrupt { thread_id: thread_id.clone(), what, reason: reason.clone() }
        }
        Error::Unavailable(cause) => Error::Unavailable(cause.to_string().into()),
        Error::Fenced { .. } | Error::Unstorable { .. } | Error::TooLarge { .. } | Error::Migration(_) => {
            Error::Unavailable(error.to_string().into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn calls_that_come_meanwhile_share_a_batch_and_one_fault_stays_alone() {
        let tasks = TaskTracker::new();
        let sizes: Arc<Mutex<Vec<usize>>> = Arc::default();
        let seen = sizes.clone();
        let gather = Gather::start(&tasks, CancellationToken::new(), move |inputs: Vec<u32>| {
            seen.lock().expect("no test panics with it").push(inputs.len());
            async move {
                tokio::task::yield_now().await;
                if inputs.contains(&3) {
                    return Err(Failure::Refused("three".into()));
                }
                Ok(inputs.into_iter().map(Ok).collect())
            }
        });
        let calls = futures::future::join_all((0..5).map(|number| gather.call(number))).await;
        let told: Vec<_> =
            calls.into_iter().map(|answer| answer.map_err(|error| error.to_string())).collect();
        assert_eq!(told[2], Ok(2));
        assert!(told[3].as_ref().is_err_and(|error| error.contains("three")));
        assert_eq!(told[4], Ok(4));
        assert_eq!(*sizes.lock().expect("no test panics with it"), [5, 1, 1, 1, 1, 1]);
    }
}
