//! The pages of an answer: where the next one is, and what all of them come to.
//!
//! **Invariant:** a next page is of the same origin as the first: it gets the same headers, secrets included.

use reqwest::{
    Method,
    header::{HeaderMap, LINK},
};
use serde_json::Value as Json;
use url::Url;

use crate::{graph::Pagination, tool::Error};

/// Pages of one call when the author does not say.
const DEFAULT_PAGES: u32 = 10;

/// Most pages of one call: what a model reads of hundreds of pages is the beginning.
const MAX_PAGES: u32 = 100;

/// Longest address of a page in bytes, as of the first.
const MAX_URL_BYTES: usize = 8 * 1024;

/// How pages follow one another.
#[derive(Debug)]
pub(super) struct Paging {
    next: Next,
    items: Option<Path>,
    max_pages: u32,
}

#[derive(Debug)]
enum Next {
    Path(Path),
    Link,
}

/// Names and indices that lead to a part of JSON, with the text they were read from.
#[derive(Debug)]
struct Path {
    text: String,
    parts: Vec<String>,
}

impl Path {
    fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<String> = text.split('.').map(str::to_owned).collect();
        if parts.iter().any(String::is_empty) {
            return Err(format!(
                "pagination: '{text}' is no path; write names joined by dots, such as meta.next"
            ));
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    fn of<'j>(&self, json: &'j Json) -> Option<&'j Json> {
        self.parts.iter().try_fold(json, |json, part| match json {
            Json::Object(map) => map.get(part),
            Json::Array(items) => items.get(part.parse::<usize>().ok()?),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => None,
        })
    }
}

impl Paging {
    /// Parses what a definition says of the pages of requests with `method`.
    pub(super) fn compile(definition: &Pagination, method: Option<&Method>) -> Result<Self, String> {
        if method.is_some_and(|method| method != Method::GET) {
            return Err("pagination is only for GET".into());
        }
        let next = match (&definition.next_path, definition.link_header) {
            (Some(path), false) => Next::Path(Path::parse(path)?),
            (None, true) => Next::Link,
            (Some(_), true) | (None, false) => {
                return Err("pagination needs either next_path or link_header".into());
            }
        };
        let max_pages = definition.max_pages.unwrap_or(DEFAULT_PAGES);
        if !(1..=MAX_PAGES).contains(&max_pages) {
            return Err(format!("pagination: max_pages must be 1 to {MAX_PAGES}"));
        }
        let items = definition.items_path.as_deref().map(Path::parse).transpose()?;
        Ok(Self { next, items, max_pages })
    }

    /// Whether the pages have to be read as JSON.
    fn needs_json(&self) -> bool {
        self.items.is_some() || matches!(self.next, Next::Path(_))
    }
}

/// One page as it came.
pub(super) struct Page<'a> {
    pub(super) url: &'a Url,
    pub(super) headers: &'a HeaderMap,
    pub(super) text: String,
    /// Whether all of it was read.
    pub(super) complete: bool,
}

/// Pages read so far.
pub(super) struct Pages<'a> {
    paging: &'a Paging,
    seen: Vec<Url>,
    bytes: u64,
    texts: Vec<String>,
    items: Vec<Json>,
    /// Why not all pages were read.
    note: Option<String>,
}

impl<'a> Pages<'a> {
    pub(super) fn new(paging: &'a Paging) -> Self {
        Self { paging, seen: Vec::new(), bytes: 0, texts: Vec::new(), items: Vec::new(), note: None }
    }

    /// Takes a page; the address of the next one, if it is to be read.
    pub(super) fn take(&mut self, page: Page<'_>, limit: u64) -> Result<Option<Url>, Error> {
        let number = self.seen.len() + 1;
        self.seen.push(page.url.clone());
        self.bytes += page.text.len() as u64;
        if !page.complete {
            self.note = Some(format!("the pages are larger than {limit} bytes"));
            // Half a list is no JSON; half a text can be read.
            if self.paging.items.is_none() {
                self.texts.push(page.text);
            }
            return Ok(None);
        }
        let json = match self.paging.needs_json() {
            true => serde_json::from_str(&page.text)
                .map_err(|error| Error::Failed(format!("page {number} is not JSON: {error}")))?,
            false => Json::Null,
        };
        let next = self.next(&page, &json)?;
        match &self.paging.items {
            None => self.texts.push(page.text),
            Some(path) => match path.of(&json) {
                Some(Json::Array(items)) => self.items.extend(items.iter().cloned()),
                Some(Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Object(_))
                | None => {
                    return Err(Error::Failed(format!("page {number} has no list at '{}'", path.text)));
                }
            },
        }
        Ok(next.and_then(|next| self.allowed(page.url, &next)))
    }

    /// Where the next page is, as the server says it.
    fn next(&self, page: &Page<'_>, json: &Json) -> Result<Option<String>, Error> {
        let path = match &self.paging.next {
            Next::Link => return Ok(next_link(page.headers)),
            Next::Path(path) => path,
        };
        match path.of(json) {
            None | Some(Json::Null | Json::Bool(false)) => Ok(None),
            Some(Json::String(address)) => Ok(Some(address.clone()).filter(|address| !address.is_empty())),
            Some(Json::Bool(true) | Json::Number(_) | Json::Array(_) | Json::Object(_)) => {
                let text = &path.text;
                Err(Error::Failed(format!("what the answer has at '{text}' is no address of a next page")))
            }
        }
    }

    /// The address of the next page, when it may be read; else a note is left.
    fn allowed(&mut self, from: &Url, next: &str) -> Option<Url> {
        let note = match from.join(next) {
            Err(_) => "the address of the next page cannot be read".to_owned(),
            Ok(url) if url.as_str().len() > MAX_URL_BYTES => {
                format!("the address of the next page is above {MAX_URL_BYTES} bytes")
            }
            Ok(url)
                if url.origin() != from.origin()
                    || !url.username().is_empty()
                    || url.password().is_some() =>
            {
                "the next page is at another host".to_owned()
            }
            Ok(url) if self.seen.contains(&url) => "the next page is one that was read already".to_owned(),
            Ok(_) if self.seen.len() >= self.paging.max_pages as usize => {
                format!("{} pages were read, and there are more", self.seen.len())
            }
            Ok(url) => return Some(url),
        };
        self.note = Some(note);
        None
    }

    /// Bytes taken so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All pages as one text, with a note when some are missing.
    pub(super) fn told(self) -> (String, Option<String>) {
        let text = match self.paging.items {
            Some(_) => Json::from(self.items).to_string(),
            None => self.texts.join("\n"),
        };
        (text, self.note.map(|note| format!("[cut: {note}]")))
    }
}

/// The address with `rel="next"` in the header `Link` (RFC 8288).
fn next_link(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(links).find(|(_, parameters)| is_next(parameters)).map(|(address, _)| address.to_owned())
}

/// The addresses of a `Link` header, each with its parameters.
fn links(value: &str) -> impl Iterator<Item = (&str, &str)> {
    value.split('<').skip(1).filter_map(|link| link.split_once('>'))
}

fn is_next(parameters: &str) -> bool {
    parameters.split([';', ',']).filter_map(|parameter| parameter.split_once('=')).any(|(name, value)| {
        let mut kinds = value.trim().trim_matches('"').split_whitespace();
        name.trim().eq_ignore_ascii_case("rel") && kinds.any(|kind| kind.eq_ignore_ascii_case("next"))
    })
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;
    use serde_json::json;

    use super::*;

    fn paging(definition: Json) -> Result<Paging, String> {
        Paging::compile(&serde_json::from_value(definition).expect("a pagination"), Some(&Method::GET))
    }

    fn take(pages: &mut Pages<'_>, url: &str, text: Json) -> Result<Option<String>, String> {
        let url = Url::parse(url).expect("an address");
        let page = Page { url: &url, headers: &HeaderMap::new(), text: text.to_string(), complete: true };
        let next = pages.take(page, 99).map_err(|error| error.to_string())?;
        Ok(next.map(String::from))
    }

    #[test]
    fn lists_of_all_pages_become_one() {
        let paging = paging(json!({"next_path": "meta.next", "items_path": "data"})).expect("no mistake");
        let mut pages = Pages::new(&paging);
        let first = json!({"data": [1, 2], "meta": {"next": "?page=2"}});
        let next = take(&mut pages, "https://a.org/x?page=1", first).expect("a page");
        assert_eq!(next.as_deref(), Some("https://a.org/x?page=2"));
        let last = json!({"data": [3], "meta": {"next": null}});
        assert_eq!(take(&mut pages, "https://a.org/x?page=2", last), Ok(None));
        assert_eq!(pages.told(), ("[1,2,3]".to_owned(), None));
    }

    #[test]
    fn a_next_page_is_never_elsewhere_and_never_the_same_again() {
        for (next, note) in [
            ("https://b.org/x", "the next page is at another host"),
            ("http://a.org/x", "the next page is at another host"),
            ("https://u:p@a.org/x", "the next page is at another host"),
            ("/x", "the next page is one that was read already"),
            ("https://[", "the address of the next page cannot be read"),
        ] {
            let paging = paging(json!({"next_path": "next"})).expect("no mistake");
            let mut pages = Pages::new(&paging);
            assert_eq!(take(&mut pages, "https://a.org/x", json!({"next": next})), Ok(None), "{next}");
            assert_eq!(pages.told().1, Some(format!("[cut: {note}]")));
        }
    }

    #[test]
    fn pages_end_at_their_number_and_say_so() {
        let paging = paging(json!({"next_path": "next", "max_pages": 2})).expect("no mistake");
        let mut pages = Pages::new(&paging);
        let next = take(&mut pages, "https://a.org/1", json!({"next": "/2"})).expect("a page");
        assert_eq!(next.as_deref(), Some("https://a.org/2"));
        assert_eq!(take(&mut pages, "https://a.org/2", json!({"next": "/3"})), Ok(None));
        let (text, note) = pages.told();
        assert_eq!(text, "{\"next\":\"/2\"}\n{\"next\":\"/3\"}");
        assert_eq!(note.as_deref(), Some("[cut: 2 pages were read, and there are more]"));
    }

    #[test]
    fn an_answer_without_the_list_or_the_address_is_an_error() {
        let paging = paging(json!({"next_path": "next", "items_path": "data.0"})).expect("no mistake");
        let wrong = |json| take(&mut Pages::new(&paging), "https://a.org/1", json).expect_err("it is wrong");
        assert_eq!(wrong(json!({"data": [{}]})), "page 1 has no list at 'data.0'");
        assert_eq!(wrong(json!({"next": 2})), "what the answer has at 'next' is no address of a next page");
        assert_eq!(take(&mut Pages::new(&paging), "https://a.org/1", json!({"data": [[1]]})), Ok(None));
    }

    #[test]
    fn the_next_page_is_found_in_the_header_link() {
        let next = |value: &str| {
            let value = HeaderValue::from_str(value).expect("a header");
            next_link(&HeaderMap::from_iter([(LINK, value)]))
        };
        let two = r#"<https://a.org/?page=1>; rel="prev", <https://a.org/?page=3&x=a,b>; title="x"; rel="last next""#;
        assert_eq!(next(two).as_deref(), Some("https://a.org/?page=3&x=a,b"));
        assert_eq!(next("</2>; rel=next").as_deref(), Some("/2"));
        assert_eq!(next("</2>; rel=prev"), None);
        assert_eq!(next("nonsense"), None);
    }

    #[test]
    fn what_makes_no_sense_is_a_mistake() {
        for definition in [
            json!({}),
            json!({"next_path": "a", "link_header": true}),
            json!({"next_path": "a..b"}),
            json!({"link_header": true, "max_pages": 101}),
        ] {
            assert!(paging(definition.clone()).is_err(), "{definition}");
        }
        let definition = serde_json::from_value(json!({"link_header": true})).expect("a pagination");
        assert!(Paging::compile(&definition, Some(&Method::POST)).is_err());
    }
}
