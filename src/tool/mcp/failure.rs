//! What went wrong with a server, in words, and whether it can have done what was asked.
//!
//! **Invariant:** the text of somebody else's error loses its secrets before it is shortened; a cut hides none.

use std::error::Error as StdError;

use rmcp::{
    model::ErrorData,
    service::{ClientInitializeError, ServiceError},
    transport::{DynamicTransportError, streamable_http_client::StreamableHttpError},
};

use super::wire::UNKNOWN_SESSION;
use crate::tool::{http::Redaction, shorten};

/// Characters of the text of somebody else's error.
const MAX_CAUSE_CHARS: usize = 500;

/// Status codes of gateways that got no answer and know as little as we do.
const UNKNOWING: [u16; 2] = [502, 504];

/// What is known of a request that failed.
#[derive(Debug, PartialEq)]
pub(super) enum Fate {
    /// The server has answered that it does not do it.
    Refused(String),
    /// It has not reached the server, or not the session that it was for.
    NotMade(String),
    /// Nobody knows.
    Unknown(String),
}

/// What became of a request that ended with `error`, without secrets.
pub(super) fn fate(error: &ServiceError, redaction: &Redaction) -> Fate {
    if let ServiceError::McpError(error) = error {
        return Fate::Refused(refusal(error, redaction));
    }
    if let ServiceError::TransportSend(error) = error {
        return sent(error, redaction);
    }
    if matches!(error, ServiceError::TransportClosed) {
        return Fate::Unknown("the connection was closed before the answer came".into());
    }
    if matches!(error, ServiceError::UnexpectedResponse | ServiceError::InputRequiredRoundsExceeded { .. }) {
        return Fate::Refused("it wants something that this executor does not offer".into());
    }
    Fate::Unknown(cause(error, redaction))
}

fn sent(error: &DynamicTransportError, redaction: &Redaction) -> Fate {
    let cause = |error: &(dyn StdError + 'static)| cause(error, redaction);
    let Some(http) = error.error.downcast_ref::<StreamableHttpError<reqwest::Error>>() else {
        return Fate::Unknown(cause(&*error.error));
    };
    if let StreamableHttpError::HttpStatus(answered) = http {
        let text = format!("the server answered {}", answered.status);
        return if UNKNOWING.contains(&answered.status) { Fate::Unknown(text) } else { Fate::Refused(text) };
    }
    if let StreamableHttpError::Client(error) = http {
        return if error.is_connect() { Fate::NotMade(cause(error)) } else { Fate::Unknown(cause(error)) };
    }
    let is_turned_away = matches!(
        http,
        StreamableHttpError::SessionExpired
            | StreamableHttpError::AuthRequired(_)
            | StreamableHttpError::InsufficientScope(_)
            | StreamableHttpError::ReservedHeaderConflict(_)
    ) || matches!(http, StreamableHttpError::UnexpectedServerResponse(text) if is_turned_away(text));
    if is_turned_away { Fate::NotMade(cause(http)) } else { Fate::Unknown(cause(http)) }
}

/// Whether an answer that is none of the protocol says that nothing was done: a redirection, a fault of ours, or an
/// error that is about the session.
fn is_turned_away(text: &str) -> bool {
    ["HTTP 3", "HTTP 4", UNKNOWN_SESSION].iter().any(|start| text.starts_with(start))
}

/// Why there is no session, without secrets.
pub(super) fn refused_session(error: &ClientInitializeError, redaction: &Redaction) -> String {
    const CLOSED: &str = "it closed the connection before it answered";
    if let ClientInitializeError::TransportError { error, .. } = error {
        let is_closed = |error: &(dyn StdError + 'static)| {
            let io = error.downcast_ref::<std::io::Error>();
            io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
        };
        let mut causes = std::iter::successors(Some(&*error.error as &(dyn StdError + 'static)), |error| {
            (*error).source()
        });
        return if causes.any(is_closed) { CLOSED.to_owned() } else { cause(&*error.error, redaction) };
    }
    if let ClientInitializeError::JsonRpcError(error) = error {
        return refusal(error, redaction);
    }
    if let ClientInitializeError::ConnectionClosed(_) = error {
        return CLOSED.to_owned();
    }
    cause(error, redaction)
}

fn refusal(error: &ErrorData, redaction: &Redaction) -> String {
    let message = shorten(redaction.apply(error.message.to_string()), MAX_CAUSE_CHARS);
    format!("the server answered with the error {}: {message}", error.code.0)
}

/// The innermost cause; those around it quote addresses.
fn cause(error: &(dyn StdError + 'static), redaction: &Redaction) -> String {
    let root = std::iter::successors(Some(error), |error| (*error).source()).last();
    shorten(redaction.apply(root.map(ToString::to_string).unwrap_or_default()), MAX_CAUSE_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Http = StreamableHttpError<reqwest::Error>;

    fn fate_of(error: Http) -> Fate {
        let error =
            DynamicTransportError::from_parts("http", std::any::TypeId::of::<Http>(), Box::new(error));
        fate(&ServiceError::TransportSend(error), &Redaction::with(None))
    }

    #[test]
    fn only_what_was_turned_away_was_not_made() {
        let odd = |text: &'static str| fate_of(Http::UnexpectedServerResponse(text.into()));
        for text in ["HTTP 400 Bad Request: x", "HTTP 307 Temporary Redirect: ", UNKNOWN_SESSION] {
            assert!(matches!(odd(text), Fate::NotMade(_)), "{text}");
        }
        assert!(matches!(fate_of(Http::SessionExpired), Fate::NotMade(_)));
        assert!(matches!(odd("could not parse JSON response"), Fate::Unknown(_)));
        assert!(matches!(fate_of(Http::UnexpectedEndOfStream), Fate::Unknown(_)));
        let none = Redaction::with(None);
        assert!(matches!(fate(&ServiceError::TransportClosed, &none), Fate::Unknown(_)));
        let refused = fate(&ServiceError::McpError(ErrorData::invalid_params("no", None)), &none);
        assert_eq!(refused, Fate::Refused("the server answered with the error -32602: no".into()));
    }
}
