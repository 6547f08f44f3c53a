//! The pieces of a streamed answer put together to one reply. Pure.
//!
//! **Invariant:** the reply's text is the emitted pieces joined.
//! **Invariant:** every tool call has an id of its own, the same on every reading of the same stream.

use std::{collections::VecDeque, sync::Arc};

use super::wire::{Answer, CallDelta, usage};
use crate::{
    model::{
        Chunk, Reply,
        answer::{Assemble, Fault, MAX_TOOL_CALLS, Progress, Size, arguments, too_many_calls, unreadable},
    },
    value::{InvalidToolCall, ToolCall},
};

/// An answer as far as it came.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    reply: Reply,
    calls: Vec<PartialCall>,
    size: Size,
    progress: Progress,
}

#[derive(Debug, Default)]
struct PartialCall {
    index: Option<u32>,
    id: String,
    name: String,
    args: String,
}

impl Assemble for Assembly {
    fn progress(&self) -> Progress {
        self.progress
    }

    fn close(&mut self) {
        self.progress = Progress::Closed;
    }

    fn event(&mut self, name: &str, data: &str, ready: &mut VecDeque<Chunk>) -> Result<(), Fault> {
        let data = data.trim();
        if self.progress == Progress::Closed || data.is_empty() {
            return Ok(());
        }
        if data == "[DONE]" {
            if self.progress > Progress::Silent {
                self.progress = Progress::Closed;
            }
            return Ok(());
        }
        if name == "error" {
            return Err(Fault::Complaint(serde_json::from_str(data).unwrap_or_else(|_| data.into())));
        }
        match serde_json::from_str::<Answer<'_>>(data) {
            Ok(answer) => self.answer(answer, ready),
            // Pings and other events of gateways are not ours to read.
            Err(_) if !matches!(name, "" | "message") => Ok(()),
            Err(error) => Err(unreadable("an event is not a chunk", &error)),
        }
    }

    fn whole(&mut self, body: &[u8], ready: &mut VecDeque<Chunk>) -> Result<(), Fault> {
        let text = String::from_utf8_lossy(body);
        let answer = serde_json::from_str::<Answer<'_>>(&text)
            .map_err(|error| unreadable("the answer is not a completion", &error))?;
        self.answer(answer, ready)?;
        if self.progress == Progress::Silent {
            return Err(Fault::Unreadable("the answer is not a completion: it has no choices".into()));
        }
        self.progress = Progress::Closed;
        Ok(())
    }

    fn finish(self: Box<Self>, earlier_calls: usize) -> Reply {
        let Self { mut reply, mut calls, .. } = *self;
        calls.retain(|call| !(call.name.is_empty() && call.args.is_empty()));
        calls.sort_by_key(|call| call.index.unwrap_or(u32::MAX));
        let mut ids: Vec<Arc<str>> = Vec::with_capacity(calls.len());
        for (at, call) in calls.into_iter().enumerate() {
            let given = Some(call.id.as_str())
                .filter(|id| !id.is_empty() && !ids.iter().any(|known| **known == **id));
            let id: Arc<str> =
                given.map_or_else(|| format!("call_{}", earlier_calls + at + 1).into(), Arc::from);
            ids.push(id.clone());
            match arguments(&call.name, &call.args) {
                Ok(args) => reply.tool_calls.push(ToolCall { id, name: call.name.into(), args }),
                Err(error) => reply.invalid_tool_calls.push(InvalidToolCall {
                    id,
                    name: call.name.into(),
                    args: call.args.into(),
                    error: error.into(),
                }),
            }
        }
        reply
    }
}

impl Assembly {
    fn answer(&mut self, answer: Answer<'_>, ready: &mut VecDeque<Chunk>) -> Result<(), Fault> {
        if let Some(complaint) = answer.complaint() {
            return Err(Fault::Complaint(complaint));
        }
        if self.reply.model.is_none() && !answer.model.0.is_empty() {
            self.reply.model = Some(answer.model.0.clone().into_owned());
        }
        // Some servers count anew in every chunk; the last count is the whole.
        if let Some(usage) = answer.usage.and_then(usage) {
            self.reply.usage = Some(usage);
        }
        let Some(mut choice) = answer.choice() else {
            return Ok(());
        };
        self.progress = self.progress.max(Progress::Started);
        let news = choice.take_news();
        if !news.content.0.is_empty() {
            self.size.grow(news.content.0.len())?;
            self.reply.text.push_str(&news.content.0);
            ready.push_back(Chunk::Text(news.content.0.into_owned()));
        }
        if !news.refusal.0.is_empty() {
            self.size.grow(news.refusal.0.len())?;
            self.reply.refusal.get_or_insert_default().push_str(&news.refusal.0);
        }
        let deltas = news.tool_calls.unwrap_or_default();
        let alone = deltas.len() == 1;
        for (place, delta) in deltas.into_iter().enumerate() {
            self.call(delta, (!alone).then_some(place))?;
        }
        if !choice.finish_reason.0.is_empty() {
            self.reply.finish_reason = Some(choice.finish_reason.0.into_owned());
            self.progress = self.progress.max(Progress::Finished);
        }
        Ok(())
    }

    /// Takes a piece of a tool call; `place` is its place among the pieces that came together.
    fn call(&mut self, delta: CallDelta<'_>, place: Option<usize>) -> Result<(), Fault> {
        let index = delta.index();
        let function = delta.function.unwrap_or_default();
        let (id, name) = (&*delta.id.0, &*function.name.0);
        let known = match (index, id) {
            (Some(index), _) => self.calls.iter().rposition(|call| call.index == Some(index)),
            (None, "") => place.or(self.calls.len().checked_sub(1)).filter(|at| *at < self.calls.len()),
            (None, id) => self.calls.iter().position(|call| call.id == id),
        };
        let at = match known.filter(|at| self.calls[*at].continues(index, id, name)) {
            Some(at) => at,
            None if self.calls.len() == MAX_TOOL_CALLS => {
                return Err(too_many_calls());
            }
            None => {
                self.calls.push(PartialCall { index, ..PartialCall::default() });
                self.calls.len() - 1
            }
        };
        let arguments = function.arguments();
        self.size.grow(id.len() + name.len() + arguments.len())?;
        let call = &mut self.calls[at];
        if call.id.is_empty() {
            call.id.push_str(id);
        }
        // Most send the name once, some in pieces, some again with every piece.
        if call.name != name {
            call.name.push_str(name);
        }
        call.args.push_str(&arguments);
        Ok(())
    }
}

impl PartialCall {
    /// Whether a piece with this id and name goes on with this call, rather than beginning another one in the
    /// same place: some servers number every call 0, some number none.
    fn continues(&self, index: Option<u32>, id: &str, name: &str) -> bool {
        if name.is_empty() || self.name.is_empty() {
            return true;
        }
        if !id.is_empty() && !self.id.is_empty() {
            return id == self.id;
        }
        let whole = || serde_json::from_str::<serde::de::IgnoredAny>(&self.args).is_ok();
        index.is_some() || (name == self.name && !whole())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::model::answer::MAX_REPLY_BYTES;

    /// The reply of a stream whose chunks bring these `tool_calls`.
    fn calls(deltas: &[&str]) -> Reply {
        let (mut assembly, mut ready) = (Assembly::default(), VecDeque::new());
        for delta in deltas {
            let data = format!(r#"{{"choices":[{{"delta":{{"tool_calls":{delta}}}}}]}}"#);
            assembly.event("", &data, &mut ready).expect(delta);
        }
        Box::new(assembly).finish(2)
    }

    fn check(deltas: &[&str], expected: Expect) {
        let reply = calls(deltas);
        let valid = reply.tool_calls.iter().map(|call| {
            let args = serde_json::to_string(&call.args).expect("JSON");
            format!("{} {}({args})", call.id, call.name)
        });
        let invalid = reply
            .invalid_tool_calls
            .iter()
            .map(|call| format!("{} {}: {:?}: {}", call.id, call.name, call.args, call.error));
        expected.assert_eq(&valid.chain(invalid).collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn parallel_calls_are_told_apart_by_index() {
        check(
            &[
                r#"[{"index":1,"id":"b","function":{"name":"g","arguments":""}}]"#,
                r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\""}}]"#,
                r#"[{"index":1,"function":{"arguments":"{}"}},{"index":0,"function":{"arguments":":1}"}}]"#,
            ],
            expect![[r#"
                a f({"x":1})
                b g({})"#]],
        );
    }

    #[test]
    fn calls_that_all_have_index_0_are_told_apart_by_id() {
        check(
            &[
                r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}]"#,
                r#"[{"index":0,"id":"b","function":{"name":"f","arguments":"{\"x\""}}]"#,
                r#"[{"index":0,"id":"","function":{"name":"","arguments":":2}"}}]"#,
            ],
            expect![[r#"
                a f({})
                b f({"x":2})"#]],
        );
    }

    #[test]
    fn calls_without_index_are_told_apart_by_id_then_place() {
        check(
            &[
                r#"[{"id":"a","function":{"name":"f","arguments":"{\"x\""}}]"#,
                r#"[{"id":"b","function":{"name":"g","arguments":""}}]"#,
                r#"[{"id":"a","function":{"arguments":":1}"}}]"#,
                r#"[{"function":{"arguments":"{}"}}]"#,
            ],
            expect![[r#"
                a f({"x":1})
                b g({})"#]],
        );
        check(
            &[
                r#"[{"function":{"name":"f","arguments":"{"}},{"function":{"name":"g","arguments":"{"}}]"#,
                r#"[{"function":{"arguments":"}"}},{"function":{"arguments":"\"y\":2}"}}]"#,
            ],
            expect![[r#"
                call_3 f({})
                call_4 g({"y":2})"#]],
        );
        check(
            &[
                r#"[{"function":{"name":"f","arguments":{"x":1}}}]"#,
                r#"[{"function":{"name":"f","arguments":{"x":2}}}]"#,
            ],
            expect![[r#"
                call_3 f({"x":1})
                call_4 f({"x":2})"#]],
        );
    }

    #[test]
    fn names_may_come_in_pieces_or_again_and_again() {
        check(
            &[
                r#"[{"index":0,"id":"a","function":{"name":"get_"}}]"#,
                r#"[{"index":0,"id":"a","function":{"name":"time","arguments":"{"}}]"#,
                r#"[{"index":1,"id":"b","function":{"name":"f","arguments":"{"}}]"#,
                r#"[{"index":1,"id":"b","function":{"name":"f","arguments":"}"}}]"#,
                r#"[{"index":0,"function":{"name":null,"arguments":"}"}}]"#,
            ],
            expect![[r#"
                a get_time({})
                b f({})"#]],
        );
    }

    #[test]
    fn ids_that_are_missing_or_taken_are_made_up() {
        check(
            &[r#"[{"index":0,"id":"a","function":{"name":"f"}},{"index":1,"id":"a","function":{"name":"g"}},
                  {"index":2,"function":{"name":"h","arguments":" "}},{"index":3}]"#],
            expect![[r#"
                a f({})
                call_4 g({})
                call_5 h({})"#]],
        );
    }

    #[test]
    fn arguments_that_are_no_object_are_kept_with_the_reason() {
        check(
            &[r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":"}},
                  {"index":1,"id":"b","function":{"name":"g","arguments":"[1]"}},
                  {"index":2,"id":"c","function":{"arguments":"{}"}}]"#],
            expect![[r#"
                a f: "{\"x\":": the arguments are not valid JSON: EOF while parsing a value at line 1 column 5
                b g: "[1]": the arguments are not a JSON object
                c : "{}": the call names no tool"#]],
        );
    }

    #[test]
    fn a_reply_has_limits() {
        let (mut assembly, mut ready) = (Assembly::default(), VecDeque::new());
        let text = "x".repeat(MAX_REPLY_BYTES / 2);
        let data = format!(r#"{{"choices":[{{"delta":{{"content":"{text}"}}}}]}}"#);
        assembly.event("", &data, &mut ready).expect("half");
        assembly.event("", &data, &mut ready).expect("full");
        assert!(matches!(assembly.event("", &data, &mut ready), Err(Fault::Unreadable(_))));

        let mut assembly = Assembly::default();
        let many: Vec<_> =
            (0..=MAX_TOOL_CALLS).map(|at| format!(r#"{{"index":{at},"id":"{at}"}}"#)).collect();
        let data = format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{}]}}}}]}}"#, many.join(","));
        assert!(matches!(assembly.event("", &data, &mut ready), Err(Fault::Unreadable(_))));
    }

    #[test]
    fn events_that_are_no_chunks_are_passed_over_or_refused() {
        let (mut assembly, mut ready) = (Assembly::default(), VecDeque::new());
        for (name, data) in [
            ("ping", "pong"),
            ("ping", "{}"),
            ("", ""),
            ("", "{\"object\":\"x\"}"),
            ("", "[DONE]"),
            ("", "null"),
        ] {
            let _ = assembly.event(name, data, &mut ready);
            assert_eq!((assembly.progress(), ready.len()), (Progress::Silent, 0), "{name} {data}");
        }
        let secret = assembly.event("", r#"{"choices":"my secret"}"#, &mut ready).expect_err("no chunk");
        assert!(!format!("{secret:?}").contains("secret"), "{secret:?}");
        let complaint = assembly.event("error", r#"{"message":"m"}"#, &mut ready);
        assert_eq!(complaint, Err(Fault::Complaint(serde_json::json!({"message": "m"}))));
    }
}
