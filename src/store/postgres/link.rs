//! The pool, and how a statement gets its answer through it.
//!
//! **Invariant:** no caller can cancel a statement: it runs in a task of its own, and when its answer does not
//! come, the connection is closed with it and never used again. (sqlx 0.9 hands on a connection whose cancelled
//! transaction is still open, and what the next caller writes there is lost.)

use std::time::Duration;

use sqlx::{
    ConnectOptions, Connection, PgConnection, Postgres,
    postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions, PgRow},
    query::Query,
};
use tokio_util::task::TaskTracker;

use super::{
    config::{Config, Statements},
    failure::Failure,
};
use crate::{store::Error, telemetry::metric};

/// A statement with its arguments.
pub(super) type Statement = Query<'static, Postgres, PgArguments>;

/// How often a statement is sent before the database counts as unavailable. A restart of the server breaks all
/// idle connections at once, and each try finds out about one.
const TRIES: u32 = 3;

/// Pause before the second try, doubled for the third; long enough for a deadlock's other side to end.
const PAUSE: Duration = Duration::from_millis(50);

/// An idle connection older than this is asked for a sign of life first: proxies drop silent connections.
const TRUSTED_IDLE: Duration = Duration::from_secs(10);

/// Beyond the server's own limit: the time an answer may travel before the peer counts as dead.
const TRAVEL: Duration = Duration::from_secs(5);

/// How long `ping` waits; readiness probes ask often and must not pile up.
const PING_LIMIT: Duration = Duration::from_secs(2);

/// How long a clean close of a connection may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Access to the database; cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    pool: PgPool,
    options: PgConnectOptions,
    connect_timeout: Duration,
    answer_limit: Duration,
    persistent: bool,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Link {
    /// Without the options: they hold the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("pool_size", &self.pool.size()).finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn open(config: &Config) -> Result<Self, Error> {
        let options = config
            .options(Some(config.statement_timeout))?
            // Statements are logged by their callers; sqlx would log slow ones with their text.
            .disable_statement_logging();
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections)
            .acquire_timeout(config.acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for > TRUSTED_IDLE {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options.clone());
        Ok(Self {
            pool,
            options,
            connect_timeout: config.acquire_timeout,
            answer_limit: config.statement_timeout + TRAVEL,
            persistent: config.statements == Statements::Prepared,
            tasks: TaskTracker::new(),
        })
    }

    /// The tracker of everything that must not be cut off.
    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// The rows of a statement that may be sent more than once; `make` binds its arguments anew for each try.
    pub(super) async fn rows(
        &self,
        make: impl Fn() -> Statement + Send + Sync + 'static,
    ) -> Result<Vec<PgRow>, Error> {
        self.rows_or_failure(make).await.map_err(Failure::into_error)
    }

    /// The same for callers that can ask for less at once.
    pub(super) async fn rows_or_failure(
        &self,
        make: impl Fn() -> Statement + Send + Sync + 'static,
    ) -> Result<Vec<PgRow>, Failure> {
        let link = self.clone();
        let task = self.tasks.spawn(async move { link.try_rows(make).await });
        task.await.map_err(|error| Failure::Away(sqlx::Error::Io(std::io::Error::other(error))))?
    }

    async fn try_rows(&self, make: impl Fn() -> Statement) -> Result<Vec<PgRow>, Failure> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match self.once(make(), self.answer_limit).await {
                Err(Failure::Away(error)) => {
                    count_error();
                    if matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) {
                        return Err(Failure::Away(error));
                    }
                    tracing::debug!(%error, "database statement is tried again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                result => return result,
            }
        }
        self.once(make(), self.answer_limit).await.inspect_err(|_| count_error())
    }

    async fn once(&self, statement: Statement, limit: Duration) -> Result<Vec<PgRow>, Failure> {
        let mut connection = match tokio::time::timeout(limit, self.pool.acquire()).await {
            Ok(connection) => connection?,
            Err(_) => return Err(Failure::Away(sqlx::Error::PoolTimedOut)),
        };
        let answer = statement.persistent(self.persistent).fetch_all(&mut *connection);
        match tokio::time::timeout(limit, answer).await {
            Ok(result) => Ok(result?),
            Err(_) => {
                drop(connection.detach());
                Err(Failure::Away(no_answer()))
            }
        }
    }

    /// One short sign of life, without a second try.
    pub(super) async fn ping(&self) -> Result<(), Error> {
        let link = self.clone();
        let task = self.tasks.spawn(async move { link.once(sqlx::query("SELECT 1"), PING_LIMIT).await });
        let result = task.await.map_err(|error| Error::Unavailable(Box::new(error)))?;
        result.map(drop).map_err(|failure| {
            count_error();
            failure.into_error()
        })
    }

    /// A connection beside the pool, for the commit task.
    pub(super) async fn dedicated(&self) -> Result<Dedicated, Failure> {
        let connection = tokio::time::timeout(self.connect_timeout, self.options.connect()).await;
        let connection = connection.map_err(|_| Failure::Away(no_answer()))??;
        Ok(Dedicated { connection, last_used: tokio::time::Instant::now() })
    }

    /// The rows of a statement on a connection of one's own, which is gone when this fails.
    pub(super) async fn rows_on(
        &self,
        place: &mut Option<Dedicated>,
        statement: Statement,
    ) -> Result<Vec<PgRow>, Failure> {
        let mut own = match place.take() {
            Some(mut own) if own.last_used.elapsed() > TRUSTED_IDLE => {
                let alive = tokio::time::timeout(PING_LIMIT, own.connection.ping()).await;
                if matches!(alive, Ok(Ok(()))) { own } else { self.dedicated().await? }
            }
            Some(own) => own,
            None => self.dedicated().await?,
        };
        let answer = statement.persistent(self.persistent).fetch_all(&mut own.connection);
        let result = match tokio::time::timeout(self.answer_limit, answer).await {
            Ok(result) => result.map_err(Failure::from),
            // Behind a pooler nothing but this limits a statement, so it may be the statement's fault.
            Err(_) => return Err(Failure::TooSlow(no_answer())),
        };
        // After an answer the connection is sound; after anything else it is dropped here.
        if matches!(result, Ok(_) | Err(Failure::Refused(_) | Failure::TooSlow(_))) {
            own.last_used = tokio::time::Instant::now();
            *place = Some(own);
        }
        result
    }

    /// Waits until every started statement has its answer, then closes all connections.
    pub(super) async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        // A peer that does not answer must not hold up the end of the process.
        let _ = tokio::time::timeout(CLOSE_LIMIT, self.pool.close()).await;
    }
}

/// A connection that only its task uses.
#[derive(Debug)]
pub(super) struct Dedicated {
    connection: PgConnection,
    last_used: tokio::time::Instant,
}

/// Counts a failed attempt to reach the database.
pub(super) fn count_error() {
    metrics::counter!(metric::DB_ERRORS).increment(1);
}

fn no_answer() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the database does not answer"))
}
