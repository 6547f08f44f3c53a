//! Where the database is and how much it is asked.

use std::{str::FromStr, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;

use crate::store::{Error, MAX_STATE_BYTES};

/// How the database is reached. `url`, when given, wins over the parts.
#[derive(Clone, Debug)]
pub struct Config {
    /// `postgres://user:password@host:port/database?sslmode=…`
    pub url: Option<SecretString>,
    /// Host name, or a folder with a socket.
    pub host: String,
    /// Port.
    pub port: u16,
    /// User.
    pub user: String,
    /// Password.
    pub password: Option<SecretString>,
    /// Database.
    pub database: String,
    /// Schema of all tables; `None` for the user's default (`public`).
    pub schema: Option<String>,
    /// Connections for everything but commits.
    pub max_connections: u32,
    /// Connections for commits; each has a task of its own and gathers batches of its own. While rows are locked by
    /// somebody else, each opens up to four more for the commits that wait for them.
    pub commit_connections: usize,
    /// How long a claim lasts unless it is renewed.
    pub lease: Duration,
    /// Most bytes of one commit: what a superstep changes.
    pub max_state_bytes: usize,
    /// After how many owners that vanished without progress a job is given up.
    pub max_crashes: i32,
    /// How long a caller waits for a connection before the database counts as unavailable.
    pub acquire_timeout: Duration,
    /// How long the server may work on one statement. A little later the connection is given up in any case.
    pub statement_timeout: Duration,
    /// Whether statements stay prepared on their connection.
    pub statements: Statements,
}

/// Whether statements stay prepared on their connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statements {
    /// Parsed and planned once per connection.
    Prepared,
    /// Sent anew each time, for poolers that hand every transaction to another connection. Poolers refuse
    /// start-up parameters they do not know, so none is sent but the schema, when there is one.
    Unnamed,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            host: "localhost".into(),
            port: 5432,
            user: "postgres".into(),
            password: None,
            database: "postgres".into(),
            schema: None,
            // Accepts, finishes and renewals are short; ten serve hundreds of jobs.
            max_connections: 10,
            // While one waits for the disk, the other gathers.
            commit_connections: 2,
            lease: Duration::from_secs(5),
            max_state_bytes: MAX_STATE_BYTES,
            max_crashes: 5,
            acquire_timeout: Duration::from_secs(5),
            // The longest honest statement writes a few megabytes; a lock is held for milliseconds.
            statement_timeout: Duration::from_secs(15),
            statements: Statements::Prepared,
        }
    }
}

impl Config {
    /// Options of a connection; `statement_timeout` of `None` leaves statements unlimited.
    pub(super) fn options(&self, statement_timeout: Option<Duration>) -> Result<PgConnectOptions, Error> {
        let mut options = match &self.url {
            // The cause is left out: it may quote the URL and with it the password.
            Some(url) => PgConnectOptions::from_str(url.expose_secret())
                .map_err(|_| Error::Refused("the database URL is not a PostgreSQL URL".into()))?,
            None => self.options_of_parts(),
        };
        options = options.application_name("agent-executor");
        if let Some(limit) = statement_timeout.filter(|_| self.statements == Statements::Prepared) {
            options = options.options([("statement_timeout", limit.as_millis())]);
        }
        if let Some(schema) = &self.schema {
            options = options.options([("search_path", quoted(schema)?)]);
        }
        Ok(match self.statements {
            Statements::Prepared => options,
            Statements::Unnamed => options.statement_cache_capacity(0).extra_float_digits(None),
        })
    }

    fn options_of_parts(&self) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .username(&self.user)
            .database(&self.database);
        match &self.password {
            Some(password) => options.password(password.expose_secret()),
            None => options,
        }
    }
}

/// A schema name in double quotes.
pub(super) fn quoted(schema: &str) -> Result<String, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    // Postgres cuts names after 63 bytes.
    if schema.is_empty() || schema.len() > 63 || !schema.chars().all(plain) {
        return Err(Error::Refused("a schema name has 1 to 63 letters, digits, _ or -".into()));
    }
    Ok(format!("\"{schema}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_name_cannot_break_out_of_its_quotes() {
        assert_eq!(quoted("agents").expect("plain"), "\"agents\"");
        for bad in ["", "a\"; drop", "a b", &"x".repeat(64)] {
            assert!(quoted(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_wrong_url_is_not_quoted_in_the_error() {
        let config = Config { url: Some("postgres://u:hunter2@[".to_owned().into()), ..Config::default() };
        let error = config.options(None).expect_err("not a URL");
        assert!(!format!("{error} {error:?} {config:?}").contains("hunter2"));
    }
}
