//! A worker on in-memory twins of its neighbours: whole jobs without a server.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent_executor::{
    graph::Limits,
    ids::{Clock, ThreadId, UnixNanos},
    job,
    model::{self, Models, retry},
    queue::memory::Memory as Queue,
    run::{Graphs, Ports},
    store::memory::{Config as StoreConfig, CrashPoint, MemoryStore},
    stream::{TokenConfig, memory::Memory as Sink},
    tool::{Toolbox, memory::Outside},
    worker::{self, Orders, Parts, Worker},
};
use serde_json::Value as Json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The paused time of a test, so that waiting costs nothing.
struct TestClock(tokio::time::Instant);

impl Clock for TestClock {
    fn now(&self) -> UnixNanos {
        const START: u64 = 1_800_000_000_000_000_000;
        UnixNanos(START + u64::try_from(self.0.elapsed().as_nanos()).expect("tests are short"))
    }
}

/// Time between two looks at a worker's progress; paused time makes it free.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The neighbours of a worker. They outlive it, as real ones do.
pub(crate) struct Stage {
    pub(crate) queue: Arc<Queue>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) sink: Arc<Sink>,
    pub(crate) outside: Arc<Outside>,
    clock: Arc<dyn Clock>,
    deaths: AtomicUsize,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::around(Queue::new())
    }

    /// With a broker of one's own.
    pub(crate) fn around(queue: Queue) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(TestClock(tokio::time::Instant::now()));
        let store = MemoryStore::new(clock.clone(), StoreConfig::default(), "first");
        Self {
            queue: Arc::new(queue),
            store: Arc::new(store),
            sink: Arc::default(),
            outside: Arc::default(),
            clock,
            deaths: AtomicUsize::new(0),
        }
    }

    /// Runs a worker that is told to stop once `started` holds, without grace.
    pub(crate) async fn drain_when(&self, started: impl Fn() -> bool) {
        let draining = CancellationToken::new();
        let worker = self.worker(self.store.clone(), draining.clone(), Duration::ZERO);
        let worker = TaskTracker::new().spawn(worker.run());
        while !started() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        draining.cancel();
        worker.await.expect("the worker does not panic");
    }

    /// Runs a worker until `done` holds, within an hour of paused time, and lets it end what it runs.
    pub(crate) async fn run_until(&self, done: impl AsyncFn() -> bool) {
        let draining = CancellationToken::new();
        let worker = self.worker(self.store.clone(), draining.clone(), Duration::from_secs(1));
        let worker = TaskTracker::new().spawn(worker.run());
        let is_done = async {
            while !done().await {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(3600), is_done).await;
        draining.cancel();
        worker.await.expect("the worker does not panic");
        waited.expect("what the test waits for does not come");
    }

    /// Runs a worker that dies at its `n`-th write, then lets everything it held come back.
    pub(crate) async fn die_at_write(&self, n: u64, point: CrashPoint) {
        // Each process has an identity of its own, as its owner's name in the store.
        let doomed =
            Arc::new(self.store.process(&format!("doomed {}", self.deaths.fetch_add(1, Ordering::Relaxed))));
        doomed.die_at_write(n, point);
        let hurried = Duration::ZERO;
        let draining = CancellationToken::new();
        let worker = TaskTracker::new().spawn(self.worker(doomed.clone(), draining.clone(), hurried).run());
        while doomed.writes() < n && self.queue.unsettled() > 0 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        draining.cancel();
        worker.await.expect("the worker does not panic");
        self.queue.expire();
        self.queue.wake();
        self.store.expire_leases();
    }

    /// Runs a worker until every message is settled.
    pub(crate) async fn settle_all(&self) {
        let draining = CancellationToken::new();
        let tracker = TaskTracker::new();
        let grace = Duration::from_secs(1);
        let worker = tracker.spawn(self.worker(self.store.clone(), draining.clone(), grace).run());
        while self.queue.unsettled() > 0 {
            self.queue.wake();
            tokio::time::sleep(LOOK_EVERY).await;
        }
        draining.cancel();
        worker.await.expect("the worker does not panic");
    }

    fn worker(&self, store: Arc<MemoryStore>, draining: CancellationToken, grace: Duration) -> Arc<Worker> {
        let ports = Ports {
            store,
            models: Arc::new(Models::new(model::Config::default()).expect("the defaults are valid")),
            toolbox: Arc::new(Toolbox::in_memory(self.outside.clone())),
            sink: self.sink.clone(),
            clock: self.clock.clone(),
            graphs: Graphs::new(Limits::default()),
            tokens: TokenConfig::default(),
            retry: retry::Policy { base: Duration::ZERO, ..retry::Policy::default() },
            job_timeout: Duration::from_secs(60),
            tracker: TaskTracker::new(),
        };
        Worker::new(Parts {
            config: worker::Config { shutdown_grace: grace, ..worker::Config::default() },
            codec: job::Config::default(),
            public_url: "http://executor:8080".into(),
            queue: self.queue.clone(),
            ports: Arc::new(ports),
            result_sink: None,
            orders: Orders { drain: draining, hurry: CancellationToken::new() },
        })
    }
}

/// Takes out of `[{id, value}]` what differs from run to run: ids and keys follow from ids of checkpoints.
pub(crate) fn without_ids(interrupts: &mut Json) {
    for interrupt in interrupts.as_array_mut().into_iter().flatten() {
        interrupt["id"] = Json::from("…");
        if let Some(key) = interrupt.pointer_mut("/value/idempotency_key") {
            *key = Json::from("…");
        }
    }
}

/// A folder of `tests/cases`: a definition and the jobs that run on it.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) folder: std::path::PathBuf,
    jobs: Vec<Json>,
}

/// Every case; there is at least one.
pub(crate) fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let folders = std::fs::read_dir(&root).expect("tests/cases is there");
    let mut folders: Vec<_> = folders.map(|entry| entry.expect("a readable entry").path()).collect();
    folders.sort();
    assert!(!folders.is_empty(), "tests/cases holds no case");
    folders.into_iter().map(Case::read).collect()
}

impl Case {
    fn read(folder: std::path::PathBuf) -> Self {
        let read = |name: &str| -> Json {
            let file = folder.join(name);
            let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
        };
        let definition = read("definition.json");
        let mut jobs = read("jobs.json").as_array().expect("jobs.json is a list of requests").clone();
        for job in &mut jobs {
            job["agent_definition"] = definition.clone();
        }
        let name = folder.file_name().expect("a folder has a name").to_string_lossy().into_owned();
        Self { name, folder, jobs }
    }

    /// Puts the case's jobs into the queue.
    pub(crate) fn publish(&self, stage: &Stage) {
        for job in &self.jobs {
            stage.queue.push(Vec::new(), job.to_string().into());
        }
    }

    /// Threads of the case's jobs, without repeats, in their order.
    pub(crate) fn threads(&self) -> Vec<ThreadId> {
        let mut threads = Vec::new();
        for job in &self.jobs {
            let id = job.get("thread_id").unwrap_or(&job["job_id"]).as_str().expect("a thread id");
            let id = ThreadId::parse(id).expect("a valid thread id");
            if !threads.contains(&id) {
                threads.push(id);
            }
        }
        threads
    }
}
