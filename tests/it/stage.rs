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
    job::{self, Durability},
    model::{self, Models, Prices, retry},
    queue::memory::Memory as Queue,
    run::{Graphs, Ports},
    store::memory::{Config as StoreConfig, CrashPoint, MemoryStore},
    stream::{MemoryShelf, TokenConfig, memory::Memory as Sink},
    tool::{Toolbox, memory::Outside},
    worker::{self, Orders, Parts, Worker},
};
use serde_json::Value as Json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A scripted model that costs something: a tenth of a cent for each token it reads, a cent for each it writes.
const PRICES: &str = r#"
    [[price]]
    provider = "scripted"
    models = ["dear"]
    input = 1000
    output = 10000
"#;

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

/// Longest wait for a worker, of paused time: the longest retries of any test take less, and a test that waits for what
/// never comes ends with a word about it.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// Lets paused time go by until `is_done` holds; panics with what was waited for if it never does.
async fn wait_until(what: &str, is_done: impl Fn() -> bool) {
    let looking = async {
        while !is_done() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, looking).await;
    assert!(waited.is_ok(), "within four hours of paused time, {what}");
}

pub(crate) const DURABILITIES: [Durability; 3] = [Durability::Sync, Durability::Async, Durability::Exit];

/// The newest result.
pub(crate) struct Ended {
    pub(crate) job_id: String,
    pub(crate) subject: String,
    pub(crate) data: Json,
}

/// A death before and one after each write, from the first to the last of `writes`.
pub(crate) fn deaths(writes: u64) -> impl Iterator<Item = (u64, CrashPoint)> {
    (1..=writes).flat_map(|n| [(n, CrashPoint::Before), (n, CrashPoint::After)])
}

/// The neighbours of a worker. They outlive it, as real ones do.
pub(crate) struct Stage {
    pub(crate) queue: Arc<Queue>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) sink: Arc<Sink>,
    pub(crate) outside: Arc<Outside>,
    /// Kept answers of models.
    shelf: Arc<MemoryShelf>,
    /// Settings of the workers.
    pub(crate) config: worker::Config,
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
            shelf: Arc::default(),
            config: worker::Config::default(),
            clock,
            deaths: AtomicUsize::new(0),
        }
    }

    /// Puts a request into the queue; its place in the stream.
    pub(crate) fn push(&self, request: &Json) -> u64 {
        self.queue.push(Vec::new(), request.to_string().into())
    }

    /// The newest result; there is one.
    pub(crate) fn last_result(&self) -> Ended {
        let result = self.queue.results().pop().expect("a job has ended");
        let mut event: Json = serde_json::from_slice(&result.event).expect("results are JSON");
        let (job_id, subject) = (result.job_id.to_string(), result.subject);
        Ended { job_id, subject, data: event["data"].take() }
    }

    /// What a person answers who looks what became of each call that `asked` asks about.
    pub(crate) fn what_happened(&self, asked: &Json) -> Json {
        let done = self.outside.requests();
        let answer = |interrupt: &Json| {
            let key = interrupt["value"]["idempotency_key"].as_str().expect("the question names the call");
            let happened = done.iter().any(|request| request.key == key);
            let word = if happened { "happened" } else { "did_not_happen" };
            (interrupt["id"].as_str().expect("an id").to_owned(), Json::from(word))
        };
        asked["interrupts"].as_array().expect("a list of questions").iter().map(answer).collect()
    }

    /// Runs a worker that is told to stop once `started` holds, without grace.
    pub(crate) async fn drain_when(&self, started: impl Fn() -> bool) {
        let draining = CancellationToken::new();
        let worker = self.worker(self.store.clone(), draining.clone(), Duration::ZERO);
        let worker = TaskTracker::new().spawn(worker.run());
        wait_until("what the worker is to be stopped in did not start", started).await;
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
        let is_over = || doomed.writes() >= n || self.queue.unsettled() == 0;
        wait_until("the worker neither came to its last write nor settled every message", is_over).await;
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
        let is_settled = || {
            self.queue.wake();
            self.queue.unsettled() == 0
        };
        wait_until("a message was not settled", is_settled).await;
        draining.cancel();
        worker.await.expect("the worker does not panic");
    }

    /// What runs of a worker need, with `store` as their durable state.
    pub(crate) fn ports(&self, store: Arc<MemoryStore>) -> Arc<Ports> {
        Arc::new(Ports {
            store,
            models: self.models(),
            toolbox: Arc::new(Toolbox::in_memory(self.outside.clone())),
            sink: self.sink.clone(),
            clock: self.clock.clone(),
            graphs: Graphs::new(Limits::default()),
            tokens: TokenConfig::default(),
            retry: retry::Policy { base: Duration::ZERO, ..retry::Policy::default() },
            job_timeout: Duration::from_secs(60),
            tracker: TaskTracker::new(),
        })
    }

    fn models(&self) -> Arc<Models> {
        let prices = Arc::new(Prices::with(PRICES).expect("valid"));
        let models = Models::new(model::Config { prices, ..model::Config::default() });
        Arc::new(models.expect("the defaults are valid").with_shelf(self.shelf.clone()))
    }

    fn worker(&self, store: Arc<MemoryStore>, draining: CancellationToken, grace: Duration) -> Arc<Worker> {
        Worker::new(Parts {
            config: worker::Config { shutdown_grace: grace, ..self.config.clone() },
            codec: job::Config::default(),
            public_url: "http://executor:8080".into(),
            queue: self.queue.clone(),
            ports: self.ports(store),
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
        // A model's own id of its call stays; one that was made for a `tool` node follows from the task.
        if let Some(id) = interrupt.pointer_mut("/value/tool_call_id")
            && id.as_str().is_some_and(|id| id.len() == "call_".len() + 32)
        {
            *id = Json::from("…");
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
        // A job may bring a definition of its own, for threads that live through a change.
        for job in jobs.iter_mut().filter(|job| job.get("agent_definition").is_none()) {
            job["agent_definition"] = definition.clone();
        }
        let name = folder.file_name().expect("a folder has a name").to_string_lossy().into_owned();
        Self { name, folder, jobs }
    }

    /// Puts the case's jobs into the queue.
    pub(crate) fn publish(&self, stage: &Stage) {
        for job in &self.jobs {
            stage.push(job);
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
