//! The three forms of a message: structured CloudEvent, binary CloudEvent, bare data.
//!
//! **Invariant:** the form follows from `Content-Type`, `specversion` and `ce-*` headers alone; nothing is
//! tried and taken back.
//! **Invariant:** nothing of a message is copied to open it, however large it is, and members that nobody reads are
//! not kept: a message of any size costs no more than itself.

use std::{collections::BTreeMap, fmt};

use cloudevents::{Data, Event};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value as Json, value::RawValue};

use super::Config;
use crate::encoding::from_percent;

/// The members of a JSON object that somebody reads, each as it was written. A repeated name counts once: the last
/// one.
pub(super) type RawObject<'a> = BTreeMap<&'static str, &'a RawValue>;

/// Members of a message, or of its data, that somebody reads.
const MEMBERS: [&str; 18] = [
    "specversion",
    "id",
    "source",
    "type",
    "traceparent",
    "data",
    "data_base64",
    "job_id",
    "thread_id",
    "agent_definition",
    "agent",
    "input",
    "input_payload",
    "command",
    "checkpoint_id",
    "config",
    "multitask_strategy",
    "trace_id",
];

/// Attributes the SDK needs to read an event at all; only `data_base64` is of interest to us.
const BASE64_EVENT: [(&str, &str); 4] = [("specversion", "1.0"), ("id", "-"), ("source", "-"), ("type", "-")];

/// What an opened message holds.
#[derive(Debug, Default)]
pub(super) struct Envelope<'a> {
    /// The members of the data; empty when there is no data that could be read.
    pub(super) data: RawObject<'a>,
    /// W3C `traceparent`, when it is well-formed.
    pub(super) traceparent: Option<String>,
    /// What is wrong with the envelope.
    pub(super) problems: Vec<String>,
    /// The dead letter's reason should the data hold no job id.
    pub(super) reason: Option<&'static str>,
}

/// Why a message holds nothing: the reason for the dead letter and a sentence.
pub(super) type Closed = (&'static str, String);

/// Opens a message of any form. Data that came as base64 is decoded into `decoded`.
pub(super) fn open<'a>(
    headers: &[(String, String)],
    payload: &'a [u8],
    config: &Config,
    decoded: &'a mut Vec<u8>,
) -> Result<Envelope<'a>, Closed> {
    let content_type = header(headers, "content-type").unwrap_or_default().to_ascii_lowercase();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if media_type.starts_with("application/cloudevents") && media_type != "application/cloudevents+json" {
        return Err(("bad_cloudevent", format!("content type {media_type:?} is not supported")));
    }
    let body = object(payload)?;
    let mut envelope = if media_type == "application/cloudevents+json" || body.contains_key("specversion") {
        structured(body, config, decoded)
    } else if headers.iter().any(|(name, _)| attribute_name(name).is_some()) {
        binary(headers, body, config)
    } else {
        Envelope { data: body, ..Envelope::default() }
    };
    let carried = envelope.traceparent.take().or_else(|| header(headers, "traceparent").map(Into::into));
    // The W3C rule for a malformed traceparent is to go on without one.
    envelope.traceparent = carried.filter(|text| is_traceparent(text));
    Ok(envelope)
}

fn structured<'a>(mut event: RawObject<'a>, config: &Config, decoded: &'a mut Vec<u8>) -> Envelope<'a> {
    let mut envelope = Envelope::default();
    let mut attributes = BTreeMap::new();
    for name in ["specversion", "id", "source", "type", "traceparent"] {
        let Some(raw) = event.get(name).filter(|raw| raw.get() != "null") else { continue };
        match serde_json::from_str::<String>(raw.get()) {
            Ok(text) => drop(attributes.insert(name.to_owned(), text)),
            Err(_) => envelope.fault("bad_cloudevent", format!("CloudEvent attribute {name} must be a text")),
        }
    }
    envelope.check_attributes(&attributes, config);
    envelope.traceparent = attributes.remove("traceparent");
    let mut given = |name| event.remove(name).filter(|raw| raw.get() != "null");
    let data = match (given("data"), given("data_base64")) {
        (Some(_), Some(_)) => Err(("bad_cloudevent", "data and data_base64 exclude each other".into())),
        (None, None) => Err(("bad_cloudevent", "the CloudEvent has no data".into())),
        (Some(raw), None) => object(raw.get().as_bytes()),
        (None, Some(raw)) => base64(raw).and_then(|bytes| {
            *decoded = bytes;
            object(decoded)
        }),
    };
    match data {
        Ok(data) => envelope.data = data,
        Err((reason, error)) => envelope.fault(reason, format!("CloudEvent data: {error}")),
    }
    envelope
}

fn binary<'a>(headers: &[(String, String)], data: RawObject<'a>, config: &Config) -> Envelope<'a> {
    let mut envelope = Envelope { data, ..Envelope::default() };
    let mut attributes = BTreeMap::new();
    for (name, value) in headers {
        let Some(attribute) = attribute_name(name) else { continue };
        match from_percent(value.trim()) {
            Some(text) => drop(attributes.insert(attribute, text)),
            None => {
                let error = format!("CloudEvent attribute {attribute} is not percent-encoded UTF-8");
                envelope.fault("bad_cloudevent", error);
            }
        }
    }
    envelope.check_attributes(&attributes, config);
    envelope.traceparent = attributes.remove("traceparent");
    envelope
}

impl Envelope<'_> {
    fn fault(&mut self, reason: &'static str, problem: String) {
        self.reason.get_or_insert(reason);
        self.problems.push(problem);
    }

    /// The SDK accepts an empty `id`, an empty `source` and any `type`, so these are checked here.
    fn check_attributes(&mut self, attributes: &BTreeMap<String, String>, config: &Config) {
        let wanted = format!("{}.agent.execute", config.type_prefix);
        match attributes.get("type") {
            Some(text) if *text == wanted => {}
            Some(_) => self.fault("unknown_type", format!("CloudEvent attribute type must be {wanted:?}")),
            None => self.fault("bad_cloudevent", "CloudEvent attribute type is missing".into()),
        }
        match attributes.get("specversion").map(String::as_str) {
            Some("1.0") => {}
            _ => self.fault("bad_cloudevent", "CloudEvent attribute specversion must be \"1.0\"".into()),
        }
        for name in ["id", "source"] {
            if attributes.get(name).is_none_or(|text| text.trim().is_empty()) {
                self.fault("bad_cloudevent", format!("CloudEvent attribute {name} must not be empty"));
            }
        }
    }
}

/// The members of the JSON object in `bytes`.
fn object(bytes: &[u8]) -> Result<RawObject<'_>, Closed> {
    // Members that are passed over would not be looked at as text.
    let text = std::str::from_utf8(bytes).map_err(|_| ("not_json", "is not JSON: it is not UTF-8".into()))?;
    match serde_json::from_str::<Members>(text) {
        Ok(Members(members)) => Ok(members),
        Err(error) if error.is_data() => Err(("not_an_object", "must be a JSON object".into())),
        // serde_json's text names a place and never quotes the payload here.
        Err(error) => Err(("not_json", format!("is not JSON: {error}"))),
    }
}

/// Reads a [`RawObject`].
struct Members<'a>(RawObject<'a>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = RawObject::new();
                while let Some(Member(name)) = map.next_key()? {
                    match name {
                        Some(name) => drop(members.insert(name, map.next_value()?)),
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The name of a member, when somebody reads it.
struct Member(Option<&'static str>);

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Member;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Member(MEMBERS.into_iter().find(|known| *known == name)))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

fn base64(raw: &RawValue) -> Result<Vec<u8>, Closed> {
    let invalid = || ("bad_cloudevent", "data_base64 is not base64".to_owned());
    let encoded = serde_json::from_str::<String>(raw.get()).map_err(|_| invalid())?;
    let attributes = BASE64_EVENT.map(|(name, value)| (name.to_owned(), Json::from(value)));
    let mut event = serde_json::Map::from_iter(attributes);
    event.insert("datacontenttype".into(), "application/octet-stream".into());
    event.insert("data_base64".into(), encoded.into());
    let mut event: Event = serde_json::from_value(Json::Object(event)).map_err(|_| invalid())?;
    match event.take_data() {
        (_, _, Some(Data::Binary(bytes))) => Ok(bytes),
        _ => Err(invalid()),
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// `specversion` for `CE-SpecVersion`.
fn attribute_name(header: &str) -> Option<String> {
    let lower = header.to_ascii_lowercase();
    lower.strip_prefix("ce-").filter(|name| !name.is_empty()).map(Into::into)
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, or a later version that starts so; ids of zeros are invalid.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, span, flags, more @ ..] = parts.as_slice() else { return false };
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let zeros = |part: &str| part.bytes().all(|b| b == b'0');
    let shape_holds = hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    shape_holds && *version != "ff" && (more.is_empty() || *version != "00") && !zeros(trace) && !zeros(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_traceparents_are_told_from_good_ones() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good));
        assert!(is_traceparent(&format!("01{}-more", &good[2..])));
        let bad = [
            format!("{good}-more"),
            good.to_uppercase(),
            good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            format!("ff{}", &good[2..]),
            "00-1-2-3".into(),
        ];
        for text in bad {
            assert!(!is_traceparent(&text), "{text}");
        }
    }
}
