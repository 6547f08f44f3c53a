//! The connection to the database file, and how a transaction is done on it.
//!
//! **Invariant:** no caller can cancel a transaction: it runs in a task of its own to its commit or rollback.
//! **Invariant:** a transaction that may write takes the write lock before it reads (`BEGIN IMMEDIATE`), so what it
//! decides on is not being changed by another process.

use std::{
    fs::{DirBuilder, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use sqlx::{
    ConnectOptions, Connection, SqliteConnection,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::sync::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::failure::Failure;
use crate::store::Error;

static STEPS: Migrator = sqlx::migrate!("src/store/sqlite/migrations");

/// Where the applied steps are noted.
const TABLE: &str = "executor_migrations";

/// How long a call waits for another process's lock. Locks are held for milliseconds, unless a disk hangs.
const BUSY: Duration = Duration::from_secs(5);

/// Tries to open the file: the first processes on a new one meet while its journal is set up.
const TRIES: u32 = 20;

/// Pause between two tries, of opening and of writes that must not be lost.
const PAUSE: Duration = Duration::from_millis(100);

/// What a transaction does; its error undoes all of it.
pub(super) type Work<'c, T> = BoxFuture<'c, Result<T, Failure>>;

/// Where the database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this file, which is made when it is missing.
    File(PathBuf),
    /// In memory, and gone with its process.
    Memory,
}

/// Access to the database; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// One connection: SQLite writes one transaction at a time anyway, and a database in memory is its connection's.
    connection: Arc<Mutex<Option<SqliteConnection>>>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// How a transaction starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// It only reads, all of it from one moment.
    Read,
    /// It writes, and gives up when another process holds the lock for too long.
    Write,
    /// It writes, and waits for the lock for as long as it takes.
    Insist,
}

impl Link {
    /// Opens the database and brings its schema up to date.
    pub(super) async fn open(place: &Place) -> Result<Self, Error> {
        let options = options(place)?;
        let connected = connect(&options).await.map_err(Failure::into_error);
        let mut connection = connected.map_err(into_migration)?;
        if !is_current(&mut connection).await {
            migrate(&mut connection).await?;
        }
        let connection = Arc::new(Mutex::new(Some(connection)));
        Ok(Self { connection, tasks: TaskTracker::new(), closing: CancellationToken::new() })
    }

    /// Reads from one moment of the database.
    pub(super) async fn read<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        self.run(Begin::Read, work).await
    }

    /// Writes all of it or nothing.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        self.run(Begin::Write, work).await
    }

    /// As [`Link::write`], for what must not be lost: while another process holds the lock, this waits.
    pub(super) async fn insist<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        self.run(Begin::Insist, work).await
    }

    async fn run<T, F>(&self, how: Begin, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        let link = self.clone();
        let task = self.tasks.spawn(async move {
            let mut place = link.connection.lock().await;
            let Some(connection) = place.as_mut() else {
                return Err(Failure::Store(Error::Unavailable("the store is closed".into())));
            };
            link.transact(connection, how, work).await
        });
        let done = task.await.map_err(|error| Error::Unavailable(Box::new(error)))?;
        done.map_err(Failure::into_error)
    }

    async fn transact<T, F>(
        &self,
        connection: &mut SqliteConnection,
        how: Begin,
        work: F,
    ) -> Result<T, Failure>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T>,
    {
        loop {
            let begun = match how {
                Begin::Read => connection.begin().await,
                Begin::Write | Begin::Insist => connection.begin_with("BEGIN IMMEDIATE").await,
            };
            match begun.map_err(Failure::from) {
                Ok(transaction) => return finish(transaction, work).await,
                Err(failure) if how == Begin::Insist && failure.is_lock() && !self.closing.is_cancelled() => {
                    tracing::warn!("another process holds the database's lock; waiting for it");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Waits until every started transaction is over, then closes the file.
    pub(super) async fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(connection) = self.connection.lock().await.take()
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "the database file could not be closed");
        }
    }
}

async fn finish<T, F>(mut transaction: sqlx::Transaction<'_, sqlx::Sqlite>, work: F) -> Result<T, Failure>
where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T>,
{
    match work(&mut transaction).await {
        Ok(done) => {
            transaction.commit().await?;
            Ok(done)
        }
        Err(failure) => {
            transaction.rollback().await?;
            Err(failure)
        }
    }
}

/// The pragmas of a connection:
/// - `journal_mode=WAL`: readers do not wait for the writer, and a killed process leaves a log that the next one
///   reads on;
/// - `synchronous=FULL`: a commit has reached the disk before it is answered, also when the power goes; the
///   intent of a call with effects outside relies on it;
/// - `busy_timeout`: how long a call waits for another process's lock;
/// - `foreign_keys` stays as sqlx sets it: no table refers to another.
fn options(place: &Place) -> Result<SqliteConnectOptions, Error> {
    let options = SqliteConnectOptions::new().busy_timeout(BUSY).disable_statement_logging();
    match place {
        Place::Memory => Ok(options.in_memory(true)),
        Place::File(path) => {
            prepare(path).map_err(|error| {
                let text = format!("{} cannot be opened: {error}", path.display());
                Error::Unavailable(Box::new(io::Error::new(error.kind(), text)))
            })?;
            Ok(options
                .filename(path)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full))
        }
    }
}

/// Makes the folder and the file, for their owner alone: threads hold prompts and answers.
fn prepare(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // Never truncated: it may be another process's.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, Failure> {
    for _ in 1..TRIES {
        match options.connect().await.map_err(Failure::from) {
            Err(failure) if failure.is_lock() => tokio::time::sleep(PAUSE).await,
            connected => return connected,
        }
    }
    Ok(options.connect().await?)
}

/// Whether every step has been applied. Asked first, so that opening a file does not wait for who writes to it.
async fn is_current(connection: &mut SqliteConnection) -> bool {
    let applied = "SELECT count(*) FROM executor_migrations WHERE success";
    let applied: Result<i64, _> = sqlx::query_scalar(applied).fetch_one(connection).await;
    // Without the table nothing has been applied; any other trouble is met again by who applies the steps.
    applied.is_ok_and(|count| usize::try_from(count).is_ok_and(|count| count >= STEPS.migrations.len()))
}

/// Applies what is missing, in one transaction: many processes may start at once.
async fn migrate(connection: &mut SqliteConnection) -> Result<(), Error> {
    let begun = connection.begin_with("BEGIN IMMEDIATE").await;
    let mut transaction = begun.map_err(|error| Failure::from(error).into_error()).map_err(into_migration)?;
    let mut steps = Migrator { migrations: STEPS.migrations.clone(), ..Migrator::DEFAULT };
    steps.dangerous_set_table_name(TABLE);
    steps.set_locking(false);
    // An older program must open the file of a newer one.
    steps.set_ignore_missing(true);
    steps
        .run_direct(None, &mut *transaction, false)
        .await
        .map_err(|error| Error::Migration(format!("{:#}", anyhow::Error::from(error))))?;
    transaction.commit().await.map_err(|error| Failure::from(error).into_error())
}

/// A file that is no database cannot be brought up to date, ever.
fn into_migration(error: Error) -> Error {
    match error {
        Error::Refused(reason) => Error::Migration(reason),
        Error::Fenced { .. }
        | Error::Unavailable(_)
        | Error::Corrupt { .. }
        | Error::Unstorable { .. }
        | Error::TooLarge { .. }
        | Error::Migration(_) => error,
    }
}
