//! What an error of the database means for what was asked.

use sqlx::error::DatabaseError;

use crate::store::Error;

/// What to do about an error.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection or the server is gone or overloaded: the same statement may succeed on a new connection.
    Away(sqlx::Error),
    /// The statement took too long, or waited too long for a lock: a smaller one may succeed.
    TooSlow(sqlx::Error),
    /// The statement will never succeed; the text names the cause without the data.
    Refused(String),
}

impl Failure {
    /// What the caller gets when nobody tries again.
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Away(error) | Self::TooSlow(error) => Error::Unavailable(Box::new(error)),
            Self::Refused(text) => Error::Refused(text),
        }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        if let Some(database) = error.as_database_error() {
            return match fate(database) {
                Fate::Retry => Self::Away(error),
                Fate::Split => Self::TooSlow(error),
                Fate::Refuse => Self::Refused(describe(database)),
            };
        }
        let permanent = matches!(
            error,
            sqlx::Error::Encode(_)
                | sqlx::Error::Decode(_)
                | sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::ColumnIndexOutOfBounds { .. }
                | sqlx::Error::TypeNotFound { .. }
                | sqlx::Error::InvalidArgument(_)
                | sqlx::Error::RowNotFound
        );
        // Everything else is about the connection: I/O, TLS, protocol, pool.
        if permanent { Self::Refused(error.to_string()) } else { Self::Away(error) }
    }
}

enum Fate {
    Retry,
    Split,
    Refuse,
}

fn fate(error: &dyn DatabaseError) -> Fate {
    let code = error.code().unwrap_or_default();
    match &*code {
        // query_canceled: statement_timeout, or an operator. lock_not_available: lock_timeout.
        "57014" | "55P03" => Fate::Split,
        // serialization_failure, deadlock_detected.
        "40001" | "40P01" => Fate::Retry,
        // read_only_sql_transaction: we still talk to a server that is a standby now.
        "25006" => Fate::Retry,
        // invalid_sql_statement_name, duplicate_prepared_statement: the pooler gave us another connection.
        "26000" | "42P05" => Fate::Retry,
        // invalid_password and friends: passwords are rotated.
        "28000" | "28P01" => Fate::Retry,
        other => match other.get(..2).unwrap_or_default() {
            // Connection exceptions, lack of resources, operator intervention (shutdown), system errors.
            "08" | "53" | "57" | "58" => Fate::Retry,
            _ => Fate::Refuse,
        },
    }
}

/// The message and the code; the detail would quote the data.
fn describe(error: &dyn DatabaseError) -> String {
    format!("{} ({})", error.message(), error.code().unwrap_or_default())
}
