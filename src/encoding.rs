//! How bytes stand in texts that others read: in percent code and in hex.

/// What an address has as it is, beside letters and digits, in each of its parts.
pub const UNRESERVED: &[u8] = b"-._~";

/// `text` with every byte but ASCII letters, digits and the `kept` ones as `%XX`.
pub fn percent(text: &str, kept: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.extend(digits(byte, b"0123456789ABCDEF"));
        }
    }
    out
}

/// Undoes percent code; `None` when a `%` stands without two hex digits or the bytes are not UTF-8.
pub fn from_percent(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let code = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(code).expect("two hex digits fit a byte"));
    }
    String::from_utf8(bytes).ok()
}

/// Two digits for each of the `bytes`, in lower case.
pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().flat_map(|byte| digits(*byte, b"0123456789abcdef")).collect()
}

fn digits(byte: u8, digits: &[u8; 16]) -> [char; 2] {
    [byte >> 4, byte & 0xf].map(|digit| char::from(digits[usize::from(digit)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_code_leaves_letters_digits_and_what_is_kept() {
        assert_eq!(percent("job-1_a.b~c", UNRESERVED), "job-1_a.b~c");
        assert_eq!(percent("a/b?c é%", UNRESERVED), "a%2Fb%3Fc%20%C3%A9%25");
        assert_eq!(percent("a.b-c", b"-"), "a%2Eb-c");
    }

    #[test]
    fn percent_code_is_undone_or_refused() {
        assert_eq!(from_percent("a%20b%C3%A9%c3%a9").as_deref(), Some("a béé"));
        assert_eq!(from_percent("100%"), None);
        assert_eq!(from_percent("%ff"), None);
        assert_eq!(from_percent("%+1"), None);
    }

    #[test]
    fn hex_has_two_digits_a_byte() {
        assert_eq!(hex([0x00, 0x0a, 0x9f, 0xff]), "000a9fff");
    }
}
