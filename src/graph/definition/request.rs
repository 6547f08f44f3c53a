//! What tools that ask somebody outside say beside an address: subjects, pages, and how they log in.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::HeaderValue;

/// A request on a NATS subject, answered by whoever subscribes to it: a micro service, or a plain subscriber.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NatsTool {
    /// The subject, without wildcards; the operator must allow it (`NATS_TOOL_SUBJECTS`).
    #[schemars(length(min = 1, max = 255))]
    pub subject: String,
}

/// How an HTTP tool finds the pages that follow the first; one of `next_path` and `link_header`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pagination {
    /// Where a JSON answer has the address of the next page: names and indices joined by dots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub next_path: Option<String>,
    /// Whether the header `Link` has it, as `rel="next"`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub link_header: bool,
    /// Where a JSON answer has its list; the lists of all pages become one. Left out, the pages follow one another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub items_path: Option<String>,
    /// Most pages of one call; 10 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_pages: Option<u32>,
}

/// How an HTTP tool gets the token it sends as `Authorization: Bearer …`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Authorization {
    /// The kind: OAuth 2.0 client credentials (RFC 6749, 4.4).
    #[serde(rename = "type")]
    pub kind: AuthorizationKind,
    /// Where tokens are given out; the operator must allow its host, by name.
    #[schemars(length(min = 1, max = 2048))]
    pub token_url: String,
    /// The client.
    #[schemars(length(min = 1, max = 1024))]
    pub client_id: String,
    /// Its secret, as `{"secret": NAME}` or `{{ secrets.NAME }}`.
    pub client_secret: HeaderValue,
    /// What is asked for, words with spaces between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub scope: Option<String>,
    /// Whom the token is for, where the server wants to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub audience: Option<String>,
    /// How the client logs in: `basic`, a header, when left out, or `body`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_auth: Option<ClientAuth>,
}

/// A way to get a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuthorizationKind {
    /// OAuth 2.0 client credentials.
    #[serde(rename = "oauth2_client_credentials")]
    ClientCredentials,
}

/// Where a client's id and secret stand in its request for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// In the header `Authorization`.
    Basic,
    /// In the body, beside the rest.
    Body,
}
