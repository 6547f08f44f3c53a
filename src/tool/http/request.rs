//! From a definition's templates and a call's arguments to a request.
//!
//! **Invariant:** arguments never reach the scheme, the host or the port of the address, and cannot climb in
//! its path; secrets reach nothing but header values.

use std::time::Duration;

use reqwest::{
    Method,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use url::Url;

use super::{body::Body, pages::Paging, token::Login};
use crate::{
    encoding::{UNRESERVED, percent},
    graph::{HeaderValue as Written, HttpTool as Definition, SECRET, Template, secret_names},
    secrets,
    tool::Error,
    value::{Map, State, Value},
};

/// Longest address in bytes; servers commonly refuse more.
const MAX_URL_BYTES: usize = 8 * 1024;

/// Most headers a definition may set.
const MAX_HEADERS: usize = 50;

/// The name under which headers see secrets; an argument of that name is out of their sight.
const SECRETS: &str = "secrets";

/// Headers that decide where a request goes, where it ends or how its answer is packed; the client sets them.
const RESERVED: [&str; 12] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "keep-alive",
    "expect",
    "proxy-authorization",
    "proxy-connection",
    "accept-encoding",
];

/// A definition's request, parsed.
#[derive(Debug)]
pub(in crate::tool) struct RequestTemplate {
    pub(super) method: Method,
    /// The address up to its path: what no argument changes.
    pub(in crate::tool) origin: Url,
    /// The same as it was written.
    prefix: String,
    /// Path and query.
    rest: Template,
    headers: Vec<Header>,
    body: Option<Body>,
    pub(super) timeout: Option<Duration>,
    pub(super) max_response_bytes: Option<u64>,
    /// How further pages are found.
    pub(super) paging: Option<Paging>,
    /// Who gets it a token.
    pub(super) login: Option<Login>,
}

#[derive(Debug)]
struct Header {
    name: HeaderName,
    value: Filling,
    secrets: Vec<String>,
}

/// What a header is filled with.
#[derive(Debug)]
enum Filling {
    Template(Template),
    /// The one secret it names.
    Secret,
}

/// A request with every template filled in.
#[derive(Clone, Debug)]
pub(super) struct Filled {
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<String>,
}

impl RequestTemplate {
    /// Parses a definition; fails with every mistake in it.
    pub(in crate::tool) fn compile(definition: &Definition) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let method = keep(method(definition), &mut mistakes);
        let address = keep(address(&definition.url), &mut mistakes);
        let headers = headers(definition, &mut mistakes);
        let body = keep(definition.body.as_ref().map(Body::compile).transpose(), &mut mistakes);
        let timeout = keep(timeout(definition), &mut mistakes);
        if definition.max_response_bytes == Some(0) {
            mistakes.push("max_response_bytes must be above 0".into());
        }
        let paging = definition.pagination.as_ref().map(|paging| Paging::compile(paging, method.as_ref()));
        let paging = keep(paging.transpose(), &mut mistakes);
        let login = keep(login(definition, &headers), &mut mistakes);
        match (method, address, body, timeout, paging, login) {
            (
                Some(method),
                Some((origin, prefix, rest)),
                Some(body),
                Some(timeout),
                Some(paging),
                Some(login),
            ) if mistakes.is_empty() => {
                let max_response_bytes = definition.max_response_bytes;
                Ok(Self {
                    method,
                    origin,
                    prefix,
                    rest,
                    headers,
                    body,
                    timeout,
                    max_response_bytes,
                    paging,
                    login,
                })
            }
            _ => Err(mistakes),
        }
    }

    /// Names of the secrets that the headers ask for.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &str> {
        self.headers.iter().flat_map(|header| header.secrets.iter().map(String::as_str))
    }

    /// Fills the templates in. `secret` gives the value of each name of [`Self::secrets`].
    pub(super) fn fill<'s>(
        &self,
        args: &Map,
        secret: impl Fn(&str) -> Option<&'s str>,
    ) -> Result<Filled, Error> {
        let url = self.url(args)?;
        let state = state_of(args.clone());
        let mut headers = HeaderMap::new();
        for header in &self.headers {
            headers.insert(header.name.clone(), header.fill(&state, &secret)?);
        }
        let body = self.body.as_ref().map(|body| body.fill(&state)).transpose()?;
        if let (Some(body), Some(text)) = (&self.body, &body) {
            headers.entry(CONTENT_TYPE).or_insert(body.content_type(text));
        }
        Ok(Filled { url, headers, body })
    }

    fn url(&self, args: &Map) -> Result<Url, Error> {
        let rest = self.rest.render_escaped(&state_of(args.clone()), |text| percent(text, UNRESERVED));
        let rest = rest.map_err(|why| Error::Arguments(format!("url: {why}")))?;
        // Parsers drop these, so they must not hide a dot segment from the check below.
        let rest = rest.replace(['\t', '\n', '\r'], "");
        if self.prefix.len() + rest.len() > MAX_URL_BYTES {
            return Err(Error::Arguments(format!(
                "the address of the request is above {MAX_URL_BYTES} bytes"
            )));
        }
        if climbs(&rest) {
            return Err(Error::Arguments("an argument must not make a '.' or '..' part in the path".into()));
        }
        let url = Url::parse(&format!("{}{rest}", self.prefix))
            .map_err(|_| Error::Arguments("the arguments do not make a valid address".into()))?;
        // Cannot happen: the prefix ends before the path. Checked again where it is used.
        if url.origin() != self.origin.origin() || !url.username().is_empty() || url.password().is_some() {
            return Err(Error::Arguments("an argument must not change the host of the address".into()));
        }
        Ok(url)
    }
}

impl Header {
    fn fill<'s>(
        &self,
        state: &State,
        secret: impl Fn(&str) -> Option<&'s str>,
    ) -> Result<HeaderValue, Error> {
        let mut known =
            self.secrets.iter().filter_map(|name| Some((name.as_str(), Value::from(secret(name)?))));
        let what = self.name.as_str();
        let text = match &self.value {
            Filling::Secret => {
                known.next().and_then(|(_, value)| Some(value.as_str()?.to_owned())).unwrap_or_default()
            }
            Filling::Template(template) => {
                let mut state = state.clone();
                if !self.secrets.is_empty() {
                    state.insert(SECRETS.into(), Value::map(known));
                }
                render(template, &state, what)?
            }
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| {
            Error::Arguments(format!("the header '{what}' may only have printable ASCII characters"))
        })?;
        value.set_sensitive(!self.secrets.is_empty());
        Ok(value)
    }
}

fn keep<T>(result: Result<T, String>, mistakes: &mut Vec<String>) -> Option<T> {
    result.map_err(|mistake| mistakes.push(mistake)).ok()
}

fn method(definition: &Definition) -> Result<Method, String> {
    let name = definition.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let method = known.into_iter().find(|method| method.as_str() == name);
    let method = method.ok_or("method must be GET, HEAD, POST, PUT, PATCH or DELETE")?;
    if definition.body.is_some() && (method == Method::GET || method == Method::HEAD) {
        return Err(format!("{method} carries no body; name another method, or leave the body out"));
    }
    Ok(method)
}

/// The address cut where arguments may begin: the origin, the text of it, and the template of the rest.
fn address(url: &str) -> Result<(Url, String, Template), String> {
    let url = url.trim();
    let scheme_end = url
        .find("://")
        .map(|at| at + 3)
        .filter(|end| ["http://", "https://"].iter().any(|scheme| url[..*end].eq_ignore_ascii_case(scheme)));
    let scheme_end = scheme_end.ok_or("url must start with http:// or https://, written out")?;
    let end = url[scheme_end..].find(['/', '?', '#', '\\']).map_or(url.len(), |at| scheme_end + at);
    let (prefix, rest) = url.split_at(end);
    let authority = &prefix[scheme_end..];
    if authority.contains(['{', '}', '%']) {
        return Err(
            "the host in url must be written out: arguments may only stand in its path and query".into()
        );
    }
    if authority.contains('@') {
        return Err("url must not carry a user or password; use a header with a secret".into());
    }
    if authority.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("the host in url must not have white space in it".into());
    }
    let origin = Url::parse(prefix).map_err(|why| format!("url is no valid address: {why}"))?;
    Ok((origin, prefix.to_owned(), open_template(rest, "url")?))
}

fn headers(definition: &Definition, mistakes: &mut Vec<String>) -> Vec<Header> {
    if definition.headers.len() > MAX_HEADERS {
        mistakes.push(format!("headers may have at most {MAX_HEADERS} entries"));
        return Vec::new();
    }
    definition.headers.iter().filter_map(|(name, value)| keep(header(name, value), mistakes)).collect()
}

fn header(name: &str, value: &Written) -> Result<Header, String> {
    let parsed =
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("'{name}' is no header name"))?;
    if RESERVED.contains(&parsed.as_str()) {
        return Err(format!("the header '{name}' is set by the client and cannot be defined"));
    }
    let value = match value {
        Written::Template(value) => value,
        Written::Secret(named) if secrets::is_name(&named.secret) => {
            return Ok(Header { name: parsed, value: Filling::Secret, secrets: vec![named.secret.clone()] });
        }
        Written::Secret(_) => {
            return Err(format!(
                "the secret of the header '{name}' needs a name of letters, digits, '_', '-' and '.'"
            ));
        }
    };
    let secrets = secret_names(value);
    let rest = template(&SECRET.replace_all(value, ""), name)?;
    if rest.names().any(|name| name == SECRETS) {
        return Err(format!(
            "the header '{name}' may insert a secret only as {{{{ secrets.NAME }}}}, unchanged"
        ));
    }
    Ok(Header { name: parsed, value: Filling::Template(template(value, name)?), secrets })
}

fn login(definition: &Definition, headers: &[Header]) -> Result<Option<Login>, String> {
    let Some(auth) = &definition.auth else { return Ok(None) };
    if headers.iter().any(|header| header.name == AUTHORIZATION) {
        return Err("auth sets the header 'Authorization'; leave it out of headers".into());
    }
    Login::compile(auth).map(Some)
}

fn timeout(definition: &Definition) -> Result<Option<Duration>, String> {
    let Some(seconds) = definition.timeout_seconds else { return Ok(None) };
    match Duration::try_from_secs_f64(seconds) {
        Ok(timeout) if !timeout.is_zero() => Ok(Some(timeout)),
        Ok(_) | Err(_) => Err("timeout_seconds must be above 0".into()),
    }
}

fn template(source: &str, what: &str) -> Result<Template, String> {
    Template::parse(source).map_err(|why| format!("{what}: {why}"))
}

/// A template of a part that servers log and pass on: no secret may stand in it.
pub(super) fn open_template(source: &str, what: &str) -> Result<Template, String> {
    let template = template(source, what)?;
    without_secrets(template.names(), what)?;
    Ok(template)
}

/// Fails when one of the names that `what` reads is the secrets'.
pub(super) fn without_secrets<'a>(
    mut names: impl Iterator<Item = &'a str>,
    what: &str,
) -> Result<(), String> {
    if names.any(|name| name == SECRETS) {
        return Err(format!("{what} must not name secrets; they may only stand in headers"));
    }
    Ok(())
}

/// The text of a template, or what the model did wrong.
pub(super) fn render(template: &Template, state: &State, what: &str) -> Result<String, Error> {
    template.render(state).map_err(|why| Error::Arguments(format!("{what}: {why}")))
}

/// What templates see: each argument by its name, and all of them as `args` for names that are no identifiers.
fn state_of(args: Map) -> State {
    let all = Value::Map(args.clone().into());
    let mut state = args;
    state.entry("args".into()).or_insert(all);
    state
}

/// Whether a path, the part before the query, has a part that parsers resolve (`..`, also as `%2e`).
fn climbs(rest: &str) -> bool {
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    path.split(['/', '\\'])
        .any(|part| matches!(part.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | ".."))
}

#[cfg(test)]
mod tests;
