//! The loop between queue and runs: takes messages while slots are free, runs jobs, settles deliveries.
//!
//! **Invariant:** nothing but this module answers a delivery, and only one function in it (`settle.rs`) decides how.
//! **Invariant:** a message is acked only after its job's result is in the results stream.

mod budget;
mod config;
mod control;
mod deadlines;
mod delivery;
mod error;
mod handback;
mod job;
mod keepalive;
mod letter;
mod parking;
mod posts;
mod repair;
mod report;
mod retention;
mod retell;
mod settle;
mod turns;
mod upkeep;

pub use config::{Config, DAY, ThreadRetention};
pub use error::Error;
pub use parking::MAX_PARKED;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ids::ThreadId,
    job as codec,
    queue::{Delivery, PULL_BYTES, Queue, ResultSink},
    run::Ports,
    store::{self, Record},
    telemetry::{Gate, Limited, Reserved, metric},
};
use budget::Budget;
use delivery::Arrived;
use keepalive::Keepalive;
use parking::Parking;
use posts::Posts;
use turns::Turns;

/// Most messages of one pull; more would wait in this process while others are idle.
const PULL_BATCH: usize = 64;

/// Wait after a failed pull or while Postgres is away: short beside any outage, long beside a round trip.
const PAUSE: Duration = Duration::from_millis(250);

/// The part of the grace period in which jobs may end by themselves: a third.
const SHORT_WORK: u32 = 3;

/// Runs jobs from a queue.
pub struct Worker {
    config: Config,
    codec: codec::Config,
    public_url: String,
    queue: Arc<dyn Queue>,
    ports: Arc<Ports>,
    result_sink: Option<Arc<dyn ResultSink>>,
    slots: Gate,
    budget: Budget,
    parking: Parking,
    /// The one place of jobs that are suspected to kill their process, so that one of them cannot take down many.
    lane: Gate,
    keepalive: Keepalive,
    turns: Turns,
    posts: Posts,
    /// Places of claims that wait to be given back.
    returns: Arc<Semaphore>,
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
            slots: Gate::new(Limited::Slots, config.max_concurrent_jobs),
            budget: Budget::new(config.max_bytes_in_flight),
            parking: Parking::new(config.max_bytes_in_flight),
            lane: Gate::new(Limited::Suspects, 1),
            keepalive: Keepalive::default(),
            turns: Turns::default(),
            posts: Posts::default(),
            returns: Arc::new(Semaphore::new(handback::MOST)),
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
        // Duties end when the process drains; signs of life and what serves others end after the last job.
        let (duties, alive, end) = (TaskTracker::new(), TaskTracker::new(), CancellationToken::new());
        alive.spawn(keepalive::renew_claims(self.clone(), end.clone()));
        alive.spawn(keepalive::report_progress(self.clone(), end.clone()));
        alive.spawn(control::serve(self.clone(), end.clone()));
        alive.spawn(control::hear(self.clone(), end.clone()));
        duties.spawn(repair::reconcile(self.clone()));
        duties.spawn(repair::hear_advisories(self.clone()));
        duties.spawn(upkeep::sweep(self.clone()));
        alive.spawn(upkeep::relay(self.clone(), end.clone()));
        duties.spawn(deadlines::watch(self.clone()));
        duties.spawn(retention::keep_tidy(self.clone()));
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
        duties.close();
        duties.wait().await;
        // A duty may have started a job in the moment in which the drain began: still renewed, it hands it back.
        self.idle().await;
        end.cancel();
        alive.close();
        alive.wait().await;
    }

    /// Waits for at least one free slot, and for room for its message; `None` when the process drains.
    async fn free_slots(&self) -> Option<Vec<Reserved>> {
        // Room first: a slot held meanwhile could be the one that a parked message needs to make room.
        let first = async {
            self.budget.room().await;
            self.slots.reserve().await
        };
        let first = tokio::select! {
            () = self.orders.drain.cancelled() => return None,
            slot = first => slot,
        };
        let mut slots = vec![first];
        // Only this loop takes messages, so that there is room still.
        let most = if self.budget.room().await < PULL_BYTES { 1 } else { PULL_BATCH };
        while slots.len() < most {
            // One is left to jobs whose owner has died, which come by no pull.
            let Some(slot) = self.slots.try_reserve_but_last() else { break };
            slots.push(slot);
        }
        Some(slots)
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

    fn start(self: &Arc<Self>, mut deliveries: Vec<Delivery>, permits: Vec<Reserved>) {
        deliveries.sort_by_key(|delivery| delivery.stream_seq);
        for (delivery, permit) in deliveries.into_iter().zip(permits) {
            if delivery.deliveries > 1 {
                metrics::counter!(metric::REDELIVERIES).increment(1);
            }
            let arrived = Arrived::new(self, delivery);
            self.tracker.spawn(delivery::handle(self.clone(), arrived, permit.take()));
        }
    }

    /// Gives running jobs a part of the grace period to end, the rest to reach the next boundary of supersteps, then
    /// stops what is left; nothing stays unsettled.
    async fn drain(&self) {
        tracing::info!(in_flight = self.keepalive.running(), "draining");
        let grace = self.config.shutdown_grace;
        let short = grace / SHORT_WORK;
        tokio::select! {
            () = self.idle() => {}
            () = tokio::time::sleep(short) => tracing::info!("running jobs are handed on at their next superstep"),
            () = self.orders.hurry.cancelled() => {}
        }
        self.keepalive.leave_all();
        tokio::select! {
            () = self.idle() => {}
            () = tokio::time::sleep(grace - short) => tracing::warn!("the grace period is over, stopping running jobs"),
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

    /// Makes a job known to the store, with the place of its message in the stream if it has one; the sweep runs it.
    async fn record(&self, job: &codec::Job, stream_seq: Option<u64>) -> Result<bool, store::Error> {
        self.ports.store.record(&Record::of(job, stream_seq, self.config.job_timeout)).await
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

    /// Lets the owner of a thread hear at once that its job is to end; it would hear with its next renewal.
    async fn tell_owner(&self, thread_id: &ThreadId) {
        if self.keepalive.owned(thread_id).is_some() {
            self.keepalive.look();
        } else {
            self.queue.notice(std::slice::from_ref(thread_id)).await;
        }
    }

    /// Wakes whoever waits for the thread.
    fn announce(&self, thread_id: &ThreadId) {
        let freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = freed.get(thread_id).and_then(Weak::upgrade) {
            waiting.notify_waiters();
        }
    }
}
