//! HTTP under a session: the client of reqwest, and what servers say at its edges, put right.

use std::{collections::HashMap, sync::Arc};

use futures::stream::BoxStream;
use reqwest::{
    Client,
    header::{HeaderName, HeaderValue},
};
use rmcp::{
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage},
    transport::streamable_http_client::{
        SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
    },
};
use sse_stream::Sse;

type Headers = HashMap<HeaderName, HeaderValue>;
type Posted = Result<StreamableHttpPostResponse, StreamableHttpError<reqwest::Error>>;
type Streamed = Result<BoxStream<'static, Result<Sse, SseError>>, StreamableHttpError<reqwest::Error>>;

/// How the text begins of an answer to nobody.
pub(super) const UNKNOWN_SESSION: &str = "the server does not know the session";

/// Where each message of a session goes.
#[derive(Clone)]
pub(super) struct Wire(pub(super) Client);

/// What was answered to `message`. An error that names no request, or another one, is the server's way to say that it
/// knows nothing of the session; nobody would ever be told of it.
fn put_right(answered: StreamableHttpPostResponse, asked: Option<&rmcp::model::RequestId>) -> Posted {
    if let (StreamableHttpPostResponse::Json(ServerJsonRpcMessage::Error(error), _), Some(asked)) =
        (&answered, asked)
        // Some write the number of a request as a text.
        && error.id.as_ref().is_none_or(|id| id.to_string() != asked.to_string())
    {
        let text = format!("{UNKNOWN_SESSION}: error {}: {}", error.error.code.0, error.error.message);
        return Err(StreamableHttpError::UnexpectedServerResponse(text.into()));
    }
    Ok(answered)
}

impl StreamableHttpClient for Wire {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Posted {
        let limit = super::session::MAX_MESSAGE_BYTES;
        self.post_message_with_max_sse_event_size(
            uri,
            message,
            session_id,
            auth_header,
            custom_headers,
            limit,
        )
        .await
    }

    async fn post_message_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
        limit: usize,
    ) -> Posted {
        let asked = match &message {
            ClientJsonRpcMessage::Request(request) => Some(request.id.clone()),
            ClientJsonRpcMessage::Response(_)
            | ClientJsonRpcMessage::Notification(_)
            | ClientJsonRpcMessage::Error(_) => None,
        };
        let posted = self.0.post_message_with_max_sse_event_size(
            uri,
            message,
            session_id,
            auth_header,
            custom_headers,
            limit,
        );
        put_right(posted.await?, asked.as_ref())
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<(), StreamableHttpError<reqwest::Error>> {
        self.0.delete_session(uri, session_id, auth_header, custom_headers).await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Streamed {
        let limit = super::session::MAX_MESSAGE_BYTES;
        self.get_stream_with_max_sse_event_size(
            uri,
            session_id,
            last_event_id,
            auth_header,
            custom_headers,
            limit,
        )
        .await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
        limit: usize,
    ) -> Streamed {
        let streamed = self.0.get_stream_with_max_sse_event_size(
            uri,
            session_id,
            last_event_id,
            auth_header,
            custom_headers,
            limit,
        );
        streamed.await
    }
}
