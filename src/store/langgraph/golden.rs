//! The codec against what Python wrote (`testdata/`, taken from real tables).

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value as Json;

use super::*;
use crate::{
    encoding::hex,
    value::{
        Content, Interrupt, InvalidToolCall, Map, Message, Role, Send, ToolCall, ToolStatus, Usage, Value,
    },
};

fn lines(text: &'static str) -> impl Iterator<Item = (&'static str, &'static str, Vec<u8>)> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_default();
        (word(), word(), unhex(word()))
    })
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    digits.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect()
}

fn encoded(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    encode_value(value, &mut out).expect("can be encoded");
    out
}

fn python(name: &str) -> Vec<u8> {
    let found = lines(include_str!("testdata/values.txt")).find(|(line, ..)| *line == name);
    found.expect("the value is in the file").2
}

fn map(json: Json) -> Map {
    Value::from(json).as_map().expect("an object").clone()
}

fn ai() -> Message {
    let mut message = Message::new(
        "a1",
        Role::Ai {
            tool_calls: vec![ToolCall {
                id: "call_1".into(),
                name: "search".into(),
                args: map(serde_json::json!({"q": "x", "n": 2})),
            }],
            invalid_tool_calls: vec![InvalidToolCall {
                id: "call_2".into(),
                name: "bad".into(),
                args: "{".into(),
                error: "parse".into(),
            }],
            usage: Some(Usage {
                input_tokens: 3,
                output_tokens: 4,
                total_tokens: 7,
                input_token_details: map(serde_json::json!({"cache_read": 1})),
                output_token_details: map(serde_json::json!({"reasoning": 2})),
            }),
        },
        "hi",
    );
    message.additional_kwargs = map(serde_json::json!({"refusal": null}));
    message.response_metadata = map(serde_json::json!({"model_name": "m", "finish_reason": "tool_calls"}));
    message
}

fn tool() -> Message {
    let artifact = Value::from(serde_json::json!({"raw": 1}));
    let role = Role::Tool { tool_call_id: "call_1".into(), status: ToolStatus::Success, artifact };
    let mut message = Message::new("t1", role, "42");
    message.name = Some("search".into());
    message
}

#[test]
fn our_values_have_the_bytes_that_python_writes() {
    let interrupt = Interrupt { id: "0".repeat(32).into(), value: "q".into(), response_schema: Value::Null };
    let send = Send { node: "w".into(), arg: Value::from(serde_json::json!({"x": 1})) };
    for (name, value) in [
        ("HumanMessage", Value::from(Message::new("h1", Role::Human, "hello"))),
        ("SystemMessage", Value::from(Message::new("s1", Role::System, "be nice"))),
        ("AIMessage-full", Value::from(ai())),
        ("ToolMessage", Value::from(tool())),
        ("Send", Value::Send(Arc::new(send))),
        ("Interrupt", Value::Interrupt(Arc::new(interrupt))),
        ("set", Value::Set(Arc::new(vec![1.into()]))),
        ("exception", "ValueError('boom')".into()),
        ("nested-bytes", Value::map([("b", Value::Bytes(Bytes::from_static(&[0, 1])))])),
    ] {
        assert_eq!(hex(encoded(&value)), hex(python(name)), "{name}");
        assert_eq!(decode_value(&python(name)), Ok(value), "{name}");
    }
}

#[test]
fn everything_python_wrote_is_written_back_unchanged() {
    let rows = lines(include_str!("testdata/rows.txt")).chain(lines(include_str!("testdata/values.txt")));
    let mut count = 0;
    for (name, kind, bytes) in rows {
        let value = typed(kind, bytes.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        if kind == "msgpack" {
            assert_eq!(hex(encoded(&value)), hex(&bytes), "{name}");
            count += 1;
        }
    }
    assert!(count > 60, "only {count} values were compared");
}

#[test]
fn python_objects_we_do_not_know_stay_opaque_and_alone() {
    for name in ["datetime-aware", "uuid", "Enum", "pydantic", "dataclass", "date", "decimal"] {
        let object = python(name);
        let list = [&[0x92, 0x01][..], &object].concat();
        let expected = Value::list(vec![1.into(), Value::Opaque(object.into())]);
        assert_eq!(decode_value(&list), Ok(expected), "{name}");
    }
}

#[test]
fn checkpoints_python_wrote_are_read_and_written_back() {
    let mut count = 0;
    for line in include_str!("testdata/checkpoints.txt").lines().filter(|line| !line.starts_with('#')) {
        let (column, json) = line.split_once(' ').expect("column and JSON");
        if json.contains("counters_since_delta_snapshot") {
            assert!(super::checkpoint::read_metadata(json).is_err(), "a difference is not a value");
            continue;
        }
        let written = if column == "metadata" {
            super::checkpoint::write_metadata(&super::checkpoint::read_metadata(json).expect("readable"))
        } else {
            let (checkpoint, sends) = super::checkpoint::read(json).expect("readable");
            assert_eq!(sends, Sends::InPlace);
            Ok(super::checkpoint::write(&checkpoint).expect("writable"))
        };
        let written: Json = serde_json::from_str(&written.expect("writable")).expect("JSON");
        assert_eq!(written, serde_json::from_str::<Json>(json).expect("JSON"));
        count += 1;
    }
    assert!(count > 40, "only {count} columns were compared");
}

#[test]
fn a_message_with_an_unknown_field_is_kept_as_it_is() {
    let known = encoded(&Value::from(Message::new("h1", Role::Human, "hello")));
    // The field `name` becomes `nama`, of which we know nothing.
    let at = known.windows(5).position(|window| window == b"\xa4name").expect("has a name");
    let mut unknown = known.clone();
    unknown[at + 4] = b'a';
    assert_eq!(decode_value(&unknown), Ok(Value::Opaque(unknown.clone().into())));
    assert!(decode_value(&known).expect("readable").as_message().is_some());
}

#[test]
fn a_streamed_message_is_a_message_of_the_model() {
    let mut chunk = encoded(&Value::from(Message::new(
        "c1",
        Role::Ai { tool_calls: vec![], invalid_tool_calls: vec![], usage: None },
        "hi",
    )));
    let class = chunk.windows(10).position(|window| window == b"\xa9AIMessage").expect("has its class");
    chunk.splice(class..class + 10, *b"\xaeAIMessageChunk");
    let kind = chunk.windows(3).position(|window| window == b"\xa2ai").expect("has its type");
    chunk.splice(kind..kind + 3, *b"\xaeAIMessageChunk");
    chunk[1] += 5 + 12;
    let message = decode_value(&chunk).expect("readable");
    assert_eq!(message.as_message().expect("a message").type_name(), "ai");
}

#[test]
fn a_message_needs_only_its_content() {
    let mut bytes = vec![0xc7, 0, 5, 0x94];
    for text in ["langchain_core.messages.human", "HumanMessage"] {
        rmp::encode::write_str(&mut bytes, text).expect("fits");
    }
    bytes.push(0x81);
    for text in ["content", "hi", "model_validate_json"] {
        rmp::encode::write_str(&mut bytes, text).expect("fits");
    }
    bytes[1] = u8::try_from(bytes.len() - 3).expect("short");
    let value = decode_value(&bytes).expect("readable");
    let message = value.as_message().expect("a message");
    assert_eq!((&*message.id, &message.content), ("", &Content::Text("hi".into())));
}

#[test]
fn an_overwrite_stays_opaque_and_gives_its_value() {
    let bytes = unhex(
        "c7370293af6c616e6767726170682e7479706573a94f766572777269746582a576616c75659101a4\
         74797065ad5f5f6f76657277726974655f5f",
    );
    assert_eq!(decode_value(&bytes), Ok(Value::Opaque(bytes.clone().into())));
    assert_eq!(decode::overwrite(&bytes), Some(Value::list(vec![1.into()])));
    assert_eq!(decode::overwrite(&python("Interrupt")), None);
    assert_eq!(decode::overwrite(&bytes[..bytes.len() - 1]), None);
}

#[test]
fn maps_without_text_keys_and_odd_floats_stay_opaque() {
    for bytes in
        [&[0x81, 0x01, 0x02][..], &[0x82, 0xa1, b'a', 0x91, 0x01, 0xc0, 0x01], b"\xcb\x7f\xf8\0\0\0\0\0\0"]
    {
        let list = [&[0x92][..], bytes, &[0xc3]].concat();
        let expected = Value::list(vec![Value::Opaque(bytes.to_vec().into()), true.into()]);
        assert_eq!(decode_value(&list), Ok(expected));
        assert_eq!(encoded(&decode_value(&list).expect("readable")), list);
    }
}

#[test]
fn bad_bytes_are_errors() {
    assert_eq!(decode_value(&[]), Err(Error::Truncated));
    assert_eq!(decode_value(&[0xc1]), Err(Error::Reserved));
    assert_eq!(decode_value(&[0x01, 0x02]), Err(Error::Trailing(1)));
    assert_eq!(decode_value(&[0xa1, 0xff]), Err(Error::NotUtf8));
    assert_eq!(decode_value(&[0xdd, 0xff, 0xff, 0xff, 0xff]), Err(Error::Truncated));
    assert_eq!(decode_value(&[0xdf, 0xff, 0xff, 0xff, 0xff, 0xa0]), Err(Error::Truncated));
    assert_eq!(decode_value(&[0xc6, 0xff, 0xff, 0xff, 0xff]), Err(Error::Truncated));
    assert_eq!(decode_value(&vec![0x91; 1 << 20]), Err(Error::TooDeep));
    assert_eq!(decode_value(&[0xdd, 0, 0, 0xff, 0].repeat(100_000)), Err(Error::TooDeep));
}

#[test]
fn what_can_be_written_can_be_read() {
    let nest = |levels| (0..levels).fold(Value::Null, |inner, _| Value::list(vec![inner]));
    let deepest = nest(MAX_DEPTH);
    assert_eq!(decode_value(&encoded(&deepest)), Ok(deepest));
    assert_eq!(encode_value(&nest(MAX_DEPTH + 1), &mut Vec::new()), Err(Error::TooDeep));
}

proptest::proptest! {
    #[test]
    fn any_json_comes_back(json in json(4)) {
        let value = Value::from(json);
        proptest::prop_assert_eq!(decode_value(&encoded(&value)), Ok(value));
    }

    #[test]
    fn any_bytes_are_a_value_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
        if let Ok(value) = decode_value(&bytes) {
            let again = encoded(&value);
            proptest::prop_assert_eq!(decode_value(&again), Ok(value));
        }
    }
}

fn json(depth: u32) -> impl proptest::strategy::Strategy<Value = Json> {
    use proptest::prelude::*;
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        proptest::num::f64::NORMAL.prop_map(Json::from),
        ".{0,40}".prop_map(Json::from),
    ];
    leaf.prop_recursive(depth, 64, 20, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..20).prop_map(Json::from),
            proptest::collection::vec((".{0,5}", inner), 0..20)
                .prop_map(|pairs| Json::Object(pairs.into_iter().collect())),
        ]
    })
}
