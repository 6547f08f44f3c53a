//! Expressions and prompt templates over the state: minijinja, strict about names, with fuel.
//!
//! minijinja counts instructions, but one instruction may copy or repeat a text of any size. So a source is
//! parsed, checked and written out again with every operation that costs more than a moment metered
//! (`hardened.rs`), and what the meter allows is bounded (`meter.rs`).
//!
//! **Invariant:** neither can run for long or grow without bound, whatever its source says.

mod filters;
mod hardened;
mod meter;
mod objects;

use std::{
    collections::BTreeSet,
    fmt, io,
    sync::{Arc, LazyLock},
};

use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};

use crate::value::{State, Value};

/// Longest expression in bytes: a condition or a mapping of a screen; what needs more belongs in a tool.
const MAX_EXPRESSION_BYTES: usize = 8 << 10;
/// Longest template in bytes; the longest system prompts in use are about 100 KiB.
const MAX_TEMPLATE_BYTES: usize = 512 << 10;
/// Longest rendered text in bytes: more than any model reads.
const MAX_OUTPUT_BYTES: usize = 4 << 20;
/// Instructions of one evaluation; a loop over a thousand messages with ten operations each needs 20,000.
const FUEL: u64 = 50_000;
/// Deepest nesting of blocks and loops while rendering; each level costs native stack.
const MAX_RECURSION: usize = 64;
/// The name of the one template in a template's environment.
const TEMPLATE: &str = "template";

/// Why an expression or template is wrong, or failed on this state.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Error(String);

impl Error {
    /// The code operators find in TROUBLESHOOTING.md.
    pub fn code(&self) -> &'static str {
        "EXPRESSION"
    }
}

/// A parsed expression.
#[derive(Clone)]
pub struct Expression {
    source: Arc<str>,
    compiled: Arc<minijinja::Expression<'static, 'static>>,
    names: Arc<BTreeSet<String>>,
}

/// A parsed template.
#[derive(Clone)]
pub struct Template {
    source: Arc<str>,
    body: Body,
    names: Arc<BTreeSet<String>>,
    /// Names with the same value in every state.
    fixed: Arc<State>,
}

#[derive(Clone)]
enum Body {
    /// No template at all: the source as it is.
    Literal,
    Parsed(Arc<Environment<'static>>),
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.source).finish()
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Template").field(&self.source).finish()
    }
}

impl Expression {
    /// Parses `source`: at most 8 KiB, with filters and tests that exist and no calls but `range`.
    pub fn parse(source: &str) -> Result<Self, Error> {
        check_length(source, MAX_EXPRESSION_BYTES)?;
        let hardened = hardened::expression(source)?;
        let compiled = environment().compile_expression_owned(hardened.source).map_err(|e| wrong(&e))?;
        Ok(Self { source: source.into(), compiled: Arc::new(compiled), names: Arc::new(hardened.names) })
    }

    /// The text it was parsed from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The names it reads from the state.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The value of the expression over `state`; an undefined name is an error.
    ///
    /// Values of the state that pass through untouched stay what they are, chat messages included.
    pub fn eval(&self, state: &State) -> Result<Value, Error> {
        meter::start();
        let value = self.compiled.eval(objects::root(state)).map_err(|e| wrong(&e))?;
        let value = objects::to_value(&value).map_err(|e| wrong(&e))?;
        meter::finish().map_err(|e| wrong(&e))?;
        Ok(value)
    }

    /// Whether the expression holds over `state`, by Jinja's rules: empty texts, lists and maps, zero and none
    /// do not hold. An undefined name is an error.
    pub fn holds(&self, state: &State) -> Result<bool, Error> {
        meter::start();
        let value = self.compiled.eval(objects::root(state)).map_err(|e| wrong(&e))?;
        meter::finish().map_err(|e| wrong(&e))?;
        if value.is_undefined() {
            return Err(Error("the condition is undefined".into()));
        }
        Ok(value.is_true())
    }
}

impl Template {
    /// Parses `source`: texts, `{{ expressions }}`, `{% for %}` and `{% if %}`; at most 512 KiB.
    pub fn parse(source: &str) -> Result<Self, Error> {
        check_length(source, MAX_TEMPLATE_BYTES)?;
        if !["{{", "{%", "{#"].iter().any(|mark| source.contains(mark)) {
            return Ok(Self::literal(source));
        }
        let hardened = hardened::template(source)?;
        let mut environment = environment().clone();
        environment.add_template_owned(TEMPLATE, hardened.source).map_err(|e| wrong(&e))?;
        let body = Body::Parsed(Arc::new(environment));
        let (names, fixed) = (Arc::new(hardened.names), Arc::default());
        Ok(Self { source: source.into(), body, names, fixed })
    }

    /// The same with names that have the same value in every state; a channel of such a name is hidden.
    pub fn with(self, fixed: &Arc<State>) -> Self {
        Self { fixed: Arc::clone(fixed), ..self }
    }

    /// A template that renders as `text`, whatever marks are in it.
    pub fn literal(text: &str) -> Self {
        Self { source: text.into(), body: Body::Literal, names: Arc::default(), fixed: Arc::default() }
    }

    /// The text it was parsed from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The names it reads from the state.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The text of the template over `state`; an undefined name is an error, and so is more than 4 MiB.
    pub fn render(&self, state: &State) -> Result<String, Error> {
        self.render_with(state, None)
    }

    /// Like [`Template::render`], with every inserted value passed through `escape`, for texts with a syntax
    /// of their own such as addresses.
    pub fn render_escaped(&self, state: &State, escape: fn(&str) -> String) -> Result<String, Error> {
        self.render_with(state, Some(escape))
    }

    fn render_with(&self, state: &State, escape: Option<fn(&str) -> String>) -> Result<String, Error> {
        let Body::Parsed(environment) = &self.body else {
            return Ok(self.source.to_string());
        };
        meter::start();
        let template = environment.get_template(TEMPLATE).map_err(|e| wrong(&e))?;
        let mut output = Output(Vec::new());
        let rendered = meter::escaping(escape, || {
            template.render_captured_to(objects::root_with(state, &self.fixed), &mut output).map(drop)
        });
        rendered.and_then(|()| meter::finish()).map_err(|e| wrong(&e))?;
        Ok(String::from_utf8(output.0).expect("the engine writes whole texts"))
    }
}

/// A buffer that refuses to grow past [`MAX_OUTPUT_BYTES`].
struct Output(Vec<u8>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("the rendered text is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn check_length(source: &str, limit: usize) -> Result<(), Error> {
    if source.len() <= limit {
        return Ok(());
    }
    Err(Error(format!("is {} bytes long, at most {limit} are allowed", source.len())))
}

/// The environment all expressions share: our filters, nothing that reads files or other templates.
fn environment() -> &'static Environment<'static> {
    static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
        let mut environment = Environment::empty();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_formatter(meter::format);
        filters::install(&mut environment);
        environment
    });
    &ENVIRONMENT
}

/// The engine's error as one sentence of ours: never the source, which may be a prompt.
#[expect(clippy::wildcard_enum_match_arm, reason = "other kinds say themselves what is wrong")]
fn wrong(error: &minijinja::Error) -> Error {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "takes too many steps",
        ErrorKind::UndefinedError => "uses an undefined value",
        ErrorKind::SyntaxError => "does not parse",
        ErrorKind::WriteFailure => "makes a text that is too long",
        _ => return Error(error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)),
    };
    match error.detail() {
        Some(detail) => Error(format!("{what}: {detail}")),
        None => Error(what.into()),
    }
}

#[cfg(test)]
mod tests;
