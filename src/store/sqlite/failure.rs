//! What an error of SQLite means to callers of the ports.

use crate::store::Error;

/// Why a transaction did not happen. SQLite's own errors and those of the rules travel the same way out.
#[derive(Debug)]
pub(super) enum Failure {
    Sql(sqlx::Error),
    Store(Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// Primary result codes (the low byte of an extended one) that say nothing about the data: no memory, somebody
/// else's lock, a file that cannot be written or opened, a full disk, a lock protocol that gave up.
const PASSING: [i32; 8] = [5, 6, 7, 8, 10, 13, 14, 15];

/// Primary codes of a lock that somebody else holds: BUSY and LOCKED.
const LOCKS: [i32; 2] = [5, 6];

impl Failure {
    /// Whether another process holds the lock, so that the same call may be made again at once.
    pub(super) fn is_lock(&self) -> bool {
        match self {
            Self::Sql(error) => primary_code(error).is_some_and(|code| LOCKS.contains(&code)),
            Self::Store(_) => false,
        }
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Store(error) => error,
            Self::Sql(error) => match primary_code(&error) {
                Some(code) if PASSING.contains(&code) => Error::Unavailable(Box::new(error)),
                Some(_) => Error::Refused(error.to_string()),
                None => without_code(error),
            },
        }
    }
}

/// An error that SQLite itself did not report: a row that is not what was written, or a connection that is gone.
fn without_code(error: sqlx::Error) -> Error {
    let is_decoding = matches!(
        error,
        sqlx::Error::Decode(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::RowNotFound
    );
    if is_decoding {
        return Error::Corrupt { thread_id: String::new(), what: "request", reason: error.to_string() };
    }
    Error::Unavailable(Box::new(error))
}

fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}
