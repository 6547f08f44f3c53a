//! `worker-js`: one request to run JavaScript as a JSON line in, its answer out. Home of rquickjs. `serve` starts this
//! command of its own binary for every call, in a sandbox, and kills it when it does not end.
//!
//! **Invariant:** a script reaches nothing but its arguments: no files, no network, no environment, no other process.

use std::{
    io::{self, BufRead, Read, Write},
    time::{Duration, Instant},
};

use clap::Args;
use rquickjs::{CatchResultExt, CaughtError, Context, Ctx, Function, Runtime, Value, promise::MaybePromise};
use serde::Deserialize;
use serde_json::{Value as Json, value::RawValue};

use super::error::{Error, Exit};
use crate::tool::Reply;

/// Longest request in bytes: the largest state that a job may have, and room for a script.
const MAX_LINE_BYTES: u64 = 1 << 30;

/// Stack of a script in bytes; that of the thread it runs on is sixteen times larger.
const STACK_BYTES: usize = 512 << 10;

/// The function that is called when none has the tool's name.
const FALLBACK: &str = "run";

#[derive(Debug, Args)]
pub(super) struct Arguments {}

#[derive(Deserialize)]
struct Asked {
    op: Op,
    #[serde(default)]
    dependencies: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Op {
    Check,
    Describe,
    Call,
}

#[derive(Deserialize)]
struct Call {
    script: String,
    name: String,
    limit: usize,
    seconds: f64,
    memory: usize,
    args: Box<RawValue>,
    tool_call_id: Json,
    idempotency_key: Json,
    state: Box<RawValue>,
}

pub(super) fn run(_arguments: &Arguments) -> Result<Exit, Error> {
    let mut out = io::stdout();
    out.write_all(b"ready\n")?;
    out.flush()?;
    let mut line = Vec::new();
    io::stdin().lock().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(Exit::Success);
    }
    let mut reply = serde_json::to_vec(&answer(&line)).expect("a reply is made of texts and JSON");
    reply.push(b'\n');
    out.write_all(&reply)?;
    out.flush()?;
    Ok(Exit::Success)
}

fn answer(line: &[u8]) -> Reply {
    match carry_out(line) {
        Ok(reply) => reply,
        Err(error) => Reply::Failed { error: format!("the request cannot be read: {error}") },
    }
}

fn carry_out(line: &[u8]) -> Result<Reply, serde_json::Error> {
    let Asked { op, dependencies } = serde_json::from_slice(line)?;
    let failed = |error: String| Reply::Failed { error };
    Ok(match op {
        Op::Check => Reply::Checked { missing: dependencies },
        Op::Describe => failed("JavaScript has no types to describe".into()),
        Op::Call if !dependencies.is_empty() => {
            failed(format!("missing packages: {}; JavaScript has none here", dependencies.join(", ")))
        }
        Op::Call => serde_json::from_slice::<Call>(line)?.carried_out(),
    })
}

impl Call {
    fn carried_out(&self) -> Reply {
        let Ok(seconds) = Duration::try_from_secs_f64(self.seconds) else { return Reply::OutOfTime };
        let deadline = Instant::now() + seconds;
        match self.evaluated(deadline) {
            Ok(content) => Reply::Text { content, status: "success".into() },
            // What an interrupted script says of itself is that it was interrupted.
            Err(_) if Instant::now() >= deadline => Reply::OutOfTime,
            Err(error) => Reply::Failed { error: error.chars().take(self.limit).collect() },
        }
    }

    fn evaluated(&self, deadline: Instant) -> Result<String, String> {
        let told = |error: rquickjs::Error| error.to_string();
        let runtime = Runtime::new().map_err(told)?;
        runtime.set_memory_limit(self.memory);
        runtime.set_max_stack_size(STACK_BYTES);
        runtime.set_interrupt_handler(Some(Box::new(move || Instant::now() >= deadline)));
        let context = Context::full(&runtime).map_err(told)?;
        context.with(|ctx| self.called(&ctx).catch(&ctx).map_err(|error| said(&error)))
    }

    fn called(&self, ctx: &Ctx<'_>) -> rquickjs::Result<String> {
        ctx.eval::<(), _>(self.script.as_str())?;
        let function = self.function(ctx)?;
        let args: Value = ctx.json_parse(self.args.get())?;
        let call = serde_json::json!({
            "tool_call_id": self.tool_call_id, "idempotency_key": self.idempotency_key,
        });
        let call = ctx.json_parse(call.to_string())?;
        if let Some(call) = call.as_object() {
            call.set("state", ctx.json_parse(self.state.get())?)?;
        }
        let returned: MaybePromise = function.call((args, call))?;
        let value: Value = match returned.finish() {
            Err(rquickjs::Error::WouldBlock) => {
                return Err(rquickjs::Exception::throw_message(
                    ctx,
                    "the promise it returned is never settled",
                ));
            }
            settled => settled?,
        };
        let text = match value.as_string() {
            Some(text) => text.to_string()?,
            None => match ctx.json_stringify(value)? {
                Some(json) => json.to_string()?,
                None => "null".to_owned(),
            },
        };
        Ok(text.chars().take(self.limit + 1).collect())
    }

    /// The function with the tool's name, however it was declared.
    fn function<'js>(&self, ctx: &Ctx<'js>) -> rquickjs::Result<Function<'js>> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let is_name = self.name.chars().all(is_plain) && !self.name.starts_with(|c: char| c.is_ascii_digit());
        for name in [self.name.as_str(), FALLBACK].into_iter().skip(usize::from(!is_name)) {
            let found: Value = ctx.eval(format!("typeof {name} === 'function' ? {name} : undefined"))?;
            if let Some(function) = found.into_function() {
                return Ok(function);
            }
        }
        let text = format!("the script has no function '{}', and none '{FALLBACK}'", self.name);
        Err(rquickjs::Exception::throw_message(ctx, &text))
    }
}

/// An exception as the model reads it.
fn said(error: &CaughtError<'_>) -> String {
    let exception = match error {
        CaughtError::Exception(exception) => exception,
        CaughtError::Value(value) => {
            let text = value.as_string().and_then(|text| text.to_string().ok());
            return text.unwrap_or_else(|| "it threw something that is no error".into());
        }
        CaughtError::Error(error) => return error.to_string(),
    };
    let name: String = exception.get("name").unwrap_or_else(|_| "Error".into());
    let message = exception.message().unwrap_or_default();
    let place = exception.stack().unwrap_or_default();
    let place = place.lines().next().unwrap_or_default().trim();
    if place.is_empty() { format!("{name}: {message}") } else { format!("{name}: {message} ({place})") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn called(script: &str, seconds: f64) -> Reply {
        let request = json!({"op": "call", "script": script, "name": "t", "dependencies": [], "limit": 100,
            "seconds": seconds, "memory": 16 << 20, "args": {"n": 2}, "tool_call_id": "c1",
            "idempotency_key": "k", "state": {"files": {"/a": "text"}}});
        answer(request.to_string().as_bytes())
    }

    fn text(script: &str) -> String {
        let reply = called(script, 10.0);
        let Reply::Text { content, .. } = reply else { panic!("{script}: {reply:?}") };
        content
    }

    fn error(script: &str) -> String {
        let reply = called(script, 10.0);
        let Reply::Failed { error } = reply else { panic!("{script}: {reply:?}") };
        error
    }

    #[test]
    fn a_function_of_any_kind_answers_with_a_text_or_json() {
        assert_eq!(text("function t({n}) { return n * 21 }"), "42");
        assert_eq!(text("const t = async ({n}) => ({n: await n})"), "{\"n\":2}");
        assert_eq!(
            text("function run(args, call) { return call.state.files['/a'] + call.tool_call_id }"),
            "textc1"
        );
        assert_eq!(text("function t() {}"), "null");
        assert_eq!(
            text("function t() { return 'x'.repeat(1000) }"),
            "x".repeat(101),
            "one more shows the cut"
        );
    }

    #[test]
    fn what_is_wrong_with_a_script_is_said() {
        assert!(error("function t() {\n  throw new TypeError('no') }").starts_with("TypeError: no"));
        assert!(error("function t( {").starts_with("SyntaxError"));
        assert!(error("let x = 1").contains("the script has no"));
        assert!(error("function t() { throw 'plain' }").contains("plain"));
        assert!(error("function t() { return new Promise(() => {}) }").contains("the promise it"));
    }

    #[test]
    fn a_script_reaches_nothing() {
        for name in
            ["require", "process", "fetch", "std", "os", "console", "setTimeout", "WebAssembly", "Deno"]
        {
            assert_eq!(text(&format!("function t() {{ return typeof {name} }}")), "undefined", "{name}");
        }
        assert!(!matches!(
            called("async function t() { return (await import('os')).getcwd() }", 5.0),
            Reply::Text { .. }
        ));
    }

    #[test]
    fn time_memory_and_stack_are_limited() {
        assert_eq!(called("function t() { for (;;) {} }", 0.1), Reply::OutOfTime);
        assert_eq!(
            called("function t() { try { for (;;) {} } catch { return 'on' } }", 0.1),
            Reply::OutOfTime
        );
        let memory = error("function t() { const all = []; for (;;) all.push(new Uint8Array(1 << 20)) }");
        assert!(memory.contains("memory") || memory.contains("alloc"), "{memory}");
        assert!(error("function t() { return t() }").contains("stack"));
    }
}
