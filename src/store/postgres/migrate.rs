//! Brings the schema up to date.
//!
//! **Invariant:** all steps are one transaction under an advisory lock: many processes may start at once, a
//! transaction pooler may stand in between, and a schema is never half new.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection,
    error::DatabaseError,
    migrate::{MigrateError, Migrator},
};

use super::{
    config::{self, Config},
    failure::Failure,
};
use crate::store::Error;

static STEPS: Migrator = sqlx::migrate!("src/store/migrations");

/// Where the applied steps are noted.
const TABLE: &str = "executor_migrations";

/// Key of the advisory lock: "agentexe" as a number, so that it is ours alone.
const LOCK: i64 = 0x6167_656e_7465_7865;

/// Python's `setup()` does not take our lock; when both create the same table at once, one of us fails once.
const TRIES: u32 = 3;

/// Pause before the next try; `setup()` takes some tens of milliseconds.
const PAUSE: Duration = Duration::from_millis(200);

/// Applies what is missing; safe to call at every start.
pub(super) async fn run(config: &Config) -> Result<(), Error> {
    for _ in 1..TRIES {
        match once(config).await {
            Err(error) if is_race(&error) => tokio::time::sleep(PAUSE).await,
            result => return result.map_err(into_error),
        }
    }
    once(config).await.map_err(into_error)
}

async fn once(config: &Config) -> Result<(), sqlx::Error> {
    // Without a statement timeout: an index on an existing table takes its time.
    let options = config.options(None).map_err(|error| sqlx::Error::Configuration(Box::new(error)))?;
    let options = options.disable_statement_logging();
    let connecting = tokio::time::timeout(config.acquire_timeout, options.connect());
    let mut connection = connecting.await.map_err(|_| sqlx::Error::PoolTimedOut)??;
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    if let Some(schema) = &config.schema {
        create_schema(&mut transaction, schema).await?;
    }
    let mut steps = Migrator { migrations: STEPS.migrations.clone(), ..Migrator::DEFAULT };
    steps.dangerous_set_table_name(TABLE);
    // Ours is held already, and the built-in one outlives the transaction.
    steps.set_locking(false);
    // An older process must start beside a newer one's schema during a rolling update.
    steps.set_ignore_missing(true);
    steps.run_direct(None, &mut *transaction, false).await?;
    transaction.commit().await?;
    connection.close().await
}

/// Creating a schema needs a right on the database even when it exists; so look first.
async fn create_schema(connection: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    let exists = "SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)";
    if sqlx::query_scalar::<_, bool>(exists).bind(schema).fetch_one(&mut *connection).await? {
        return Ok(());
    }
    let quoted = config::quoted(schema).map_err(|error| sqlx::Error::Configuration(Box::new(error)))?;
    let statement = AssertSqlSafe(format!("CREATE SCHEMA {quoted}"));
    sqlx::query(statement).execute(connection).await.map(drop)
}

/// Somebody without our lock created the same thing: unique_violation, duplicate_table, duplicate_object.
fn is_race(error: &sqlx::Error) -> bool {
    let code = statement_error(error).as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| matches!(&*code, "23505" | "42P07" | "42710"))
}

/// The error of a statement, which the migrator wraps in one of its own.
fn statement_error(error: &sqlx::Error) -> &sqlx::Error {
    if let sqlx::Error::Migrate(outer) = error
        && let MigrateError::Execute(inner) | MigrateError::ExecuteMigration(inner, _) = &**outer
    {
        return inner;
    }
    error
}

fn into_error(error: sqlx::Error) -> Error {
    let sqlx::Error::Migrate(outer) = error else { return refused_or_away(error, None) };
    let text = with_causes(&*outer);
    // The database went away in the middle: it is waited for, like one that was never there.
    if let MigrateError::Execute(inner) | MigrateError::ExecuteMigration(inner, _) = *outer {
        return refused_or_away(inner, Some(text));
    }
    Error::Migration(text)
}

fn refused_or_away(error: sqlx::Error, text: Option<String>) -> Error {
    match Failure::from(error) {
        Failure::Refused(reason) => Error::Migration(text.unwrap_or(reason)),
        away @ (Failure::Away(_) | Failure::TooSlow(_)) => away.into_error(),
    }
}

/// An error and what caused it, in one line.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_goes_away_in_a_migration_is_waited_for_and_a_refusal_is_final() {
        let broken = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        for outer in [MigrateError::Execute(broken()), MigrateError::ExecuteMigration(broken(), 3)] {
            assert!(matches!(into_error(sqlx::Error::Migrate(Box::new(outer))), Error::Unavailable(_)));
        }
        let refused = MigrateError::ExecuteMigration(sqlx::Error::RowNotFound, 3);
        for outer in [refused, MigrateError::VersionMismatch(3)] {
            assert!(matches!(into_error(sqlx::Error::Migrate(Box::new(outer))), Error::Migration(_)));
        }
    }
}
