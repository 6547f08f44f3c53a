//! JSON pointers (RFC 6901): how a key stands in one, and which keys one goes through.

use std::borrow::Cow;

/// A key as a part of a pointer.
pub(crate) fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// The keys that `pointer` goes through; none at the root, and none in a text that is no pointer.
pub(super) fn parts(pointer: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let parts = pointer.strip_prefix('/').map(|rest| rest.split('/'));
    parts.into_iter().flatten().map(|part| match part.contains('~') {
        true => part.replace("~1", "/").replace("~0", "~").into(),
        false => part.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_is_one_part_and_read_again() {
        for key in ["", "a", "a/b", "~", "~1", "~01/", "/~0"] {
            let pointer = format!("/x/{}/y", escape(key));
            assert_eq!(parts(&pointer).collect::<Vec<_>>(), ["x", key, "y"], "{pointer}");
        }
        assert_eq!(parts("").count() + parts("a/b").count(), 0);
        assert_eq!(parts("/").collect::<Vec<_>>(), [""]);
    }
}
