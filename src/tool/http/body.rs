//! The body of a request: a text with arguments in it, or JSON with arguments in its texts.

use reqwest::header::HeaderValue;
use serde_json::Value as Json;

use super::request::{open_template, render, without_secrets};
use crate::{
    graph::{Expression, Template},
    tool::Error,
    value::State,
};

/// Largest body in bytes; what a model writes as arguments is far smaller.
const MAX_BODY_BYTES: usize = 1 << 20;

/// A definition's body, parsed.
#[derive(Debug)]
pub(super) enum Body {
    Text(Template),
    Json(JsonTemplate),
}

#[derive(Debug)]
pub(super) enum JsonTemplate {
    Fixed(Json),
    Text(Template),
    /// A text that is one expression and nothing else: its value keeps its type.
    Typed(Expression),
    List(Vec<JsonTemplate>),
    Object(Vec<(String, JsonTemplate)>),
}

impl Body {
    /// Parses a definition's body: a text is one template, other JSON is kept with its texts as templates.
    pub(super) fn compile(body: &Json) -> Result<Self, String> {
        match body.as_str() {
            Some(text) => Ok(Self::Text(open_template(text, "body")?)),
            None => Ok(Self::Json(JsonTemplate::compile(body)?)),
        }
    }

    /// The body as it is sent.
    pub(super) fn fill(&self, state: &State) -> Result<String, Error> {
        match self {
            Self::Text(template) => {
                let text = render(template, state, "body")?;
                check_size(&text)?;
                Ok(text)
            }
            Self::Json(template) => {
                let mut out = String::new();
                template.fill(state, &mut out)?;
                Ok(out)
            }
        }
    }

    /// The type of `text`, this body filled in, when the definition's headers name none.
    pub(super) fn content_type(&self, text: &str) -> HeaderValue {
        let json = match self {
            Self::Json(_) => true,
            Self::Text(_) => serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(),
        };
        HeaderValue::from_static(if json { "application/json" } else { "text/plain; charset=utf-8" })
    }
}

impl JsonTemplate {
    fn compile(json: &Json) -> Result<Self, String> {
        Ok(match json {
            Json::String(text) => match expression_of(text) {
                Some(source) => {
                    let expression = Expression::parse(source).map_err(|why| format!("body: {why}"))?;
                    without_secrets(expression.names(), "body")?;
                    Self::Typed(expression)
                }
                None => Self::Text(open_template(text, "body")?),
            },
            Json::Array(items) => Self::List(items.iter().map(Self::compile).collect::<Result<_, _>>()?),
            Json::Object(map) => {
                let entries = map.iter().map(|(key, item)| Ok((key.clone(), Self::compile(item)?)));
                Self::Object(entries.collect::<Result<_, String>>()?)
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => Self::Fixed(json.clone()),
        })
    }

    /// Writes the value at the end of `out`. Its size is checked at each leaf: thousands of leaves that insert
    /// the same long argument must not add up first.
    fn fill(&self, state: &State, out: &mut String) -> Result<(), Error> {
        match self {
            Self::Fixed(json) => out.push_str(&json.to_string()),
            Self::Text(template) => out.push_str(&Json::from(render(template, state, "body")?).to_string()),
            Self::Typed(expression) => {
                let value = expression.eval(state).map_err(|why| Error::Arguments(format!("body: {why}")))?;
                out.push_str(&value.to_json().to_string());
            }
            Self::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    item.fill(state, out)?;
                }
                out.push(']');
            }
            Self::Object(entries) => {
                out.push('{');
                for (index, (key, item)) in entries.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    out.push_str(&Json::from(key.as_str()).to_string());
                    out.push(':');
                    item.fill(state, out)?;
                }
                out.push('}');
            }
        }
        check_size(out)
    }
}

fn check_size(body: &str) -> Result<(), Error> {
    if body.len() > MAX_BODY_BYTES {
        return Err(Error::Arguments(format!("the body of the request is above {MAX_BODY_BYTES} bytes")));
    }
    Ok(())
}

/// The expression when `text` is `{{ expression }}` and nothing else.
fn expression_of(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let inner = inner.trim_start_matches('-').trim_end_matches('-').trim();
    (!inner.contains("{{") && !inner.contains("}}") && !inner.contains("%}")).then_some(inner)
}
