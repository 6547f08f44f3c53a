//! Writes text as the inside of a JSON string.

/// What the control characters U+0000 to U+001F become.
#[rustfmt::skip]
const CONTROL: [&str; 32] = [
    r"\u0000", r"\u0001", r"\u0002", r"\u0003", r"\u0004", r"\u0005", r"\u0006", r"\u0007",
    r"\b",     r"\t",     r"\n",     r"\u000b", r"\f",     r"\r",     r"\u000e", r"\u000f",
    r"\u0010", r"\u0011", r"\u0012", r"\u0013", r"\u0014", r"\u0015", r"\u0016", r"\u0017",
    r"\u0018", r"\u0019", r"\u001a", r"\u001b", r"\u001c", r"\u001d", r"\u001e", r"\u001f",
];

/// Hands `text` in the spelling of JSON, without the quotes around it, to `append`, part after part.
pub(super) fn escape(text: &str, mut append: impl FnMut(&str)) {
    let mut plain_from = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escaped = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            control @ 0..0x20 => CONTROL[usize::from(control)],
            _ => continue,
        };
        append(&text[plain_from..at]);
        append(escaped);
        plain_from = at + 1;
    }
    append(&text[plain_from..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quoted(text: &str) -> String {
        let mut out = String::from("\"");
        escape(text, |part| out.push_str(part));
        out.push('"');
        out
    }

    #[test]
    fn every_control_character_is_written_as_serde_writes_it() {
        let all: String = (0..0x80_u8).map(char::from).collect();
        assert_eq!(quoted(&all), serde_json::to_string(&all).expect("text is JSON"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_back_unchanged(text in any::<String>()) {
            let read: String = serde_json::from_str(&quoted(&text)).expect("valid JSON");
            prop_assert_eq!(read, text);
        }
    }
}
