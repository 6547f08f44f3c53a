//! Composition root: from a configuration to a running process, and from a signal to its end.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Config,
    embedded::{self, Session},
    http,
    ids::SystemClock,
    model::{Models, limit::ServerPool, retry},
    queue::{
        ResultSink,
        k_sink::KSink,
        nats::{Caller, Nats, Patience},
    },
    run::{Graphs, Ports},
    secrets::Secrets,
    store::{
        postgres::PostgresStore,
        sqlite::{self, SqliteStore},
    },
    stream::{
        Sink,
        dragonfly::{Dragonfly, DragonflyShelf},
    },
    telemetry::{self, scrub::Scrubber},
    tool::{self, Toolbox},
    worker::{Orders, Parts, Worker},
};

/// Longest wait for the last events to reach their readers: the results are safe by then.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Signs of life per ack wait: two may be lost before the broker delivers a message again.
const PROGRESS_PER_ACK_WAIT: u32 = 3;

/// Wait between two tries to reach the database at start.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Runs the service until it is told to stop and has settled everything.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let metrics = telemetry::metrics();
    let (tracker, closing) = (TaskTracker::new(), CancellationToken::new());
    let orders = Orders::default();
    tracker.spawn(obey_signals(orders.clone(), closing.clone()));
    let (models, toolbox) =
        (Models::new(config.models.clone()).context("model settings")?, Arc::new(toolbox(&config)?));
    let shelf = DragonflyShelf::open(config.dragonfly.clone()).context("settings of the stream server")?;
    let models = Arc::new(models.with_shelf(Arc::new(shelf)));
    let sink = Dragonfly::start(config.dragonfly.clone(), &tracker, closing.clone());
    let sink = sink.context("settings of the stream server")?;
    let process = incarnation(&config);
    let pool = ServerPool::open(&config.dragonfly, process.clone());
    models.share(Arc::new(pool.context("settings of the stream server")?));
    let port = config.http.port;
    let listener = http::bind(&config.http).await.with_context(|| format!("port {port} cannot be opened"))?;
    let address = listener.local_addr().context("the open port has no address")?;

    // Probes are answered while the neighbours are waited for.
    let (listener, neighbours) = tokio::select! {
        waited = http::meanwhile(listener, metrics.clone(), connect(&config, &process)) => waited?,
        () = orders.drain.cancelled() => return Ok(()),
    };
    let (store, nats) = neighbours?;
    let state = http::State {
        queue: nats.clone(),
        jobs: store.clone(),
        records: store.clone(),
        job_timeout: config.worker.job_timeout,
        sink: sink.clone(),
        metrics: metrics.clone(),
        draining: orders.drain.clone(),
        job: config.job.clone(),
        limits: config.limits.clone(),
        max_body_bytes: config.http.max_body_bytes,
    };
    let doors = tracker.spawn(http::serve(listener, state, closing.clone()));
    tracker.spawn(telemetry::run_upkeep(metrics, closing.clone()));
    let ports = Ports {
        store: store.clone(),
        models,
        toolbox: toolbox.clone(),
        sink: sink.clone(),
        clock: Arc::new(SystemClock),
        graphs: Graphs::new(config.limits.clone()),
        tokens: config.tokens,
        retry: retry::Policy::default(),
        job_timeout: config.worker.job_timeout,
        tracker: tracker.clone(),
    };
    let worker = worker(&config, &nats, ports, orders)?;
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "ready to run jobs");

    worker.run().await;
    toolbox.close().await;
    sink.flush(FLUSH_LIMIT).await;
    nats.close().await;
    store.close().await;
    closing.cancel();
    doors.await.context("the HTTP task panicked")?.context("the HTTP doors failed")?;
    tracker.close();
    tracker.wait().await;
    Ok(())
}

/// What runs jobs in this process over a database file, without any server; events go to `sink`.
pub async fn embedded(
    config: &Config,
    place: sqlite::Place,
    sink: Arc<dyn Sink>,
    notify: fn(embedded::Notice),
) -> anyhow::Result<Session> {
    let clock = Arc::new(SystemClock);
    // A person sees a job die, and asks for it again or does not: it is never given up.
    let settings = sqlite::Config {
        max_crashes: usize::MAX,
        max_state_bytes: config.postgres.max_state_bytes,
        ..sqlite::Config::at(place)
    };
    let owner = format!("run/{}", uuid::Uuid::new_v4());
    let store = Arc::new(SqliteStore::open(settings, clock.clone(), &owner).await?);
    let ports = Ports {
        store: store.clone(),
        models: Arc::new(Models::new(config.models.clone()).context("model settings")?),
        toolbox: Arc::new(toolbox(config)?),
        sink,
        clock,
        graphs: Graphs::new(config.limits.clone()),
        tokens: config.tokens,
        retry: retry::Policy::default(),
        job_timeout: config.worker.job_timeout,
        tracker: TaskTracker::new(),
    };
    Ok(Session { store, ports: Arc::new(ports), codec: config.job.clone(), notify })
}

/// The tools, with the secrets that they may ask for and a connection for those that are subjects.
pub(crate) fn toolbox(config: &Config) -> anyhow::Result<Toolbox> {
    let secrets = Secrets::new(config.secrets.clone(), Scrubber::process());
    let toolbox = Toolbox::new(tool::Config { secrets, ..config.tools.clone() }).context("tool settings")?;
    Ok(toolbox.with_broker(Arc::new(Caller::new(config.nats.clone()))))
}

/// Waits for the database, then for the broker; both may come up after this process.
async fn connect(config: &Config, process: &str) -> anyhow::Result<(Arc<PostgresStore>, Arc<Nats>)> {
    let store = Arc::new(connect_store(config, process).await?);
    let nats = Nats::connect(config.nats.clone(), Patience::Forever).await.context("message broker")?;
    Ok((store, Arc::new(nats)))
}

/// The name of this process where others see it, in claims and among those that share limits: one for each incarnation,
/// since a pod that restarts under the same name must not renew old claims.
fn incarnation(config: &Config) -> String {
    format!("{}/{}", config.worker.pod, uuid::Uuid::new_v4())
}

/// The database may come up after this process.
async fn connect_store(config: &Config, process: &str) -> anyhow::Result<PostgresStore> {
    loop {
        match PostgresStore::migrate(&config.postgres).await {
            Ok(()) => return PostgresStore::open(&config.postgres, process).context("database settings"),
            Err(error @ crate::store::Error::Unavailable(_)) => {
                tracing::warn!(code = error.code(), error = %format_args!("{:#}", anyhow::Error::from(error)), "the database is not available, trying again");
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            Err(error) => return Err(error).context("the schema cannot be brought up to date"),
        }
    }
}

fn worker(config: &Config, nats: &Arc<Nats>, ports: Ports, orders: Orders) -> anyhow::Result<Arc<Worker>> {
    let to_http = |url: &url::Url| KSink::new(url.clone()).map(|sink| Arc::new(sink) as Arc<dyn ResultSink>);
    let mut settings = config.worker.clone();
    // An existing consumer may have another ack wait than the configured one.
    settings.progress_every = settings.progress_every.min(nats.ack_wait() / PROGRESS_PER_ACK_WAIT);
    Ok(Worker::new(Parts {
        result_sink: config.worker.k_sink.as_ref().map(to_http).transpose()?,
        config: settings,
        codec: config.job.clone(),
        public_url: public_url(config),
        queue: nats.clone(),
        ports: Arc::new(ports),
        orders,
    }))
}

/// Where large results are fetched: what the operator says, or this process under its own name.
fn public_url(config: &Config) -> String {
    let own = || {
        let own = format!("http://{}:{}", config.worker.pod, config.http.port);
        tracing::warn!(url = %own, "PUBLIC_URL is not set; large results refer to this name, which consumers may not resolve");
        own
    };
    config.public_url.as_ref().map_or_else(own, ToString::to_string)
}

/// The first SIGTERM or SIGINT drains, a second one hurries.
async fn obey_signals(orders: Orders, closing: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be received; the process can only be killed");
        return;
    };
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if orders.drain.is_cancelled() {
            orders.hurry.cancel();
        } else {
            tracing::info!("told to stop");
            orders.drain.cancel();
        }
    }
}
