//! The loop between queue and runs: takes messages while slots are free, runs jobs, settles deliveries.
//!
//! **Invariant:** nothing but this module answers a delivery, and only one function in it (`settle.rs`) decides how.
//! **Invariant:** a message is acked only after its job's result is in the results stream.

mod config;
mod delivery;
mod error;
mod job;
mod keepalive;
mod posts;
mod report;
mod retell;
mod settle;
mod turns;

pub use config::Config;
pub use error::Error;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ids::ThreadId,
    job as codec,
    queue::{Delivery, Queue, ResultSink},
    run::Ports,
    telemetry::metric,
};
use delivery::Arrived;
use keepalive::Keepalive;
use posts::Posts;
use turns::Turns;

/// Most messages of one pull; more would wait in this process while others are idle.
const PULL_BATCH: usize = 64;

/// Wait after a failed pull or while Postgres is away: short beside any outage, long beside a round trip.
const PAUSE: Duration = Duration::from_millis(250);

/// Messages held for threads that are busy. Each costs a few kilobytes and a look at the database per second;
/// past this number they go back to the queue.
const MAX_PARKED: usize = 256;

/// Runs jobs from a queue.
pub struct Worker {
    config: Config,
    codec: codec::Config,
    public_url: String,
    queue: Arc<dyn Queue>,
    ports: Arc<Ports>,
    result_sink: Option<Arc<dyn ResultSink>>,
    slots: Arc<Semaphore>,
    parking: Arc<Semaphore>,
    keepalive: Keepalive,
    turns: Turns,
    posts: Posts,
    /// Jobs and what they leave to do; a drain waits for all of them.
    tracker: TaskTracker,
    orders: Orders,
    /// Whether the last thing heard from the store was that it is away.
    store_away: AtomicBool,
    /// Wakes deliveries that wait for a thread.
    freed: Mutex<HashMap<ThreadId, Weak<Notify>>>,
}

/// What a [`Worker`] is made of.
pub struct Parts {
    /// How much, how long.
    pub config: Config,
    /// How messages are read and results written.
    pub codec: codec::Config,
    /// Where `GET /jobs/{job_id}/result` is reached from outside.
    pub public_url: String,
    /// Messages in, settlements and results out.
    pub queue: Arc<dyn Queue>,
    /// What runs need.
    pub ports: Arc<Ports>,
    /// Where results are also posted.
    pub result_sink: Option<Arc<dyn ResultSink>>,
    /// When to stop.
    pub orders: Orders,
}

/// How a process is told to stop.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// Take no more work, let running jobs go on for the grace period.
    pub drain: CancellationToken,
    /// Stop running jobs now.
    pub hurry: CancellationToken,
}

impl Worker {
    /// A worker that has not started.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { config, codec, public_url, queue, ports, result_sink, orders } = parts;
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(config.max_concurrent_jobs)),
            parking: Arc::new(Semaphore::new(MAX_PARKED)),
            keepalive: Keepalive::default(),
            turns: Turns::default(),
            posts: Posts::default(),
            tracker: TaskTracker::new(),
            store_away: AtomicBool::new(false),
            freed: Mutex::default(),
            // A trailing slash would double in every reference.
            public_url: public_url.trim_end_matches('/').to_owned(),
            config,
            codec,
            queue,
            ports,
            result_sink,
            orders,
        })
    }

    /// Takes and runs jobs until told to drain; returns when nothing is left to settle.
    pub async fn run(self: Arc<Self>) {
        let (alive, end) = (TaskTracker::new(), CancellationToken::new());
        alive.spawn(keepalive::renew_claims(self.clone(), end.clone()));
        alive.spawn(keepalive::report_progress(self.clone(), end.clone()));
        while !self.orders.drain.is_cancelled() {
            let Some(permits) = self.free_slots().await else { break };
            if !self.store_answers().await {
                continue;
            }
            match self.queue.next(permits.len()).await {
                Ok(deliveries) => self.start(deliveries, permits),
                Err(error) => {
                    tracing::warn!(code = error.code(), %error, "no messages can be taken");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        self.drain().await;
        end.cancel();
        alive.close();
        alive.wait().await;
    }

    /// Waits for at least one free slot; `None` when the process drains.
    async fn free_slots(&self) -> Option<Vec<OwnedSemaphorePermit>> {
        let first = tokio::select! {
            () = self.orders.drain.cancelled() => return None,
            permit = self.slots.clone().acquire_owned() => permit.ok()?,
        };
        let mut permits = vec![first];
        while permits.len() < PULL_BATCH {
            let Ok(permit) = self.slots.clone().try_acquire_owned() else { break };
            permits.push(permit);
        }
        Some(permits)
    }

    /// Pulling while Postgres is away would only burn deliveries.
    async fn store_answers(&self) -> bool {
        if !self.store_away.load(Ordering::Relaxed) {
            return true;
        }
        let answers = self.ports.store.ping().await.is_ok();
        self.store_away.store(!answers, Ordering::Relaxed);
        if !answers {
            tokio::time::sleep(PAUSE).await;
        }
        answers
    }

    fn start(self: &Arc<Self>, mut deliveries: Vec<Delivery>, permits: Vec<OwnedSemaphorePermit>) {
        deliveries.sort_by_key(|delivery| delivery.stream_seq);
        for (delivery, permit) in deliveries.into_iter().zip(permits) {
            if delivery.deliveries > 1 {
                metrics::counter!(metric::REDELIVERIES).increment(1);
            }
            let arrived = Arrived::new(self, delivery);
            self.tracker.spawn(delivery::handle(self.clone(), arrived, permit));
        }
    }

    /// Gives running jobs the grace period, then stops what is left; nothing stays unsettled.
    async fn drain(&self) {
        tracing::info!(in_flight = self.keepalive.running(), "draining");
        let grace = self.config.shutdown_grace;
        tokio::select! {
            () = self.idle() => {}
            () = tokio::time::sleep(grace) => tracing::warn!("the grace period is over, stopping running jobs"),
            () = self.orders.hurry.cancelled() => tracing::warn!("told to hurry, stopping running jobs"),
        }
        self.orders.hurry.cancel();
        self.keepalive.stop_all();
        self.idle().await;
        self.posts.close().await;
        tracing::info!("drained");
    }

    /// Waits until no job task is left.
    async fn idle(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Resolves when a job of the thread has ended in this process.
    fn freed(&self, thread_id: &ThreadId) -> Arc<Notify> {
        let mut freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        if freed.len() > 2 * MAX_PARKED {
            freed.retain(|_, waiting| waiting.strong_count() > 0);
        }
        let held = freed.get(thread_id).and_then(Weak::upgrade);
        let waiting = held.unwrap_or_default();
        freed.insert(thread_id.clone(), Arc::downgrade(&waiting));
        waiting
    }

    /// Wakes whoever waits for the thread.
    fn announce(&self, thread_id: &ThreadId) {
        let freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = freed.get(thread_id).and_then(Weak::upgrade) {
            waiting.notify_waiters();
        }
    }
}
