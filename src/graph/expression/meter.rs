//! What one evaluation may cost in text and items, counted beside minijinja's fuel.
//!
//! The count is kept per OS thread: an evaluation never waits, so no other can come between.
//!
//! **Invariant:** an operation is charged before it does its work.

#![expect(clippy::wildcard_enum_match_arm, reason = "only texts and containers cost more than a moment")]

use std::cell::Cell;

use minijinja::{Error, ErrorKind, Output, State, Value, value::ValueKind};

/// Bytes of text one evaluation may touch: what a processor copies in about 20 ms.
const BUDGET: u64 = 32 << 20;
/// What touching one item of a list or map costs, in bytes of text: about the size of an item.
pub(super) const ITEM: u64 = 32;

/// How inserted values are written.
pub(super) type Escape = fn(&str) -> String;

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(0) };
    static EXHAUSTED: Cell<bool> = const { Cell::new(false) };
    static ESCAPE: Cell<Option<Escape>> = const { Cell::new(None) };
}

/// Begins an evaluation with a full budget.
pub(super) fn start() {
    LEFT.set(BUDGET);
    EXHAUSTED.set(false);
}

/// Ends an evaluation: fails when the budget ran out where no error could be returned.
pub(super) fn finish() -> Result<(), Error> {
    if EXHAUSTED.get() { Err(exhausted()) } else { Ok(()) }
}

/// What is left of the budget.
pub(super) fn left() -> u64 {
    LEFT.get()
}

fn exhausted() -> Error {
    Error::new(ErrorKind::InvalidOperation, "works on too much text or too many items")
}

/// Takes `cost` bytes from the budget of the evaluation.
pub(super) fn charge(cost: u64) -> Result<(), Error> {
    match LEFT.get().checked_sub(cost) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => {
            LEFT.set(0);
            EXHAUSTED.set(true);
            Err(exhausted())
        }
    }
}

/// Charges what an operation that reads all of `value` costs.
pub(super) fn charge_value(value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::String => charge(value.as_str().map_or(0, |text| bytes(text.len()))),
        ValueKind::Bytes => charge(value.as_bytes().map_or(0, |data| bytes(data.len()))),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => charge_items(value),
        _ => charge(1),
    }
}

/// Charges the items of a list or map, and the texts in it that are not read from the state: those are
/// charged when they are read.
fn charge_items(value: &Value) -> Result<(), Error> {
    let Some(count) = value.len() else {
        return Err(Error::new(ErrorKind::InvalidOperation, "a sequence of unknown length"));
    };
    charge(bytes(count).saturating_mul(ITEM))?;
    if super::objects::is_from_state(value) {
        return Ok(());
    }
    for item in value.try_iter()? {
        match value.kind() {
            ValueKind::Map => charge_value(&value.get_item(&item)?)?,
            _ => charge_value(&item)?,
        }
    }
    Ok(())
}

/// A size as a cost.
pub(super) fn bytes(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}

/// Runs `render` with `escape` applied to every inserted value.
pub(super) fn escaping<T>(escape: Option<Escape>, render: impl FnOnce() -> T) -> T {
    ESCAPE.set(escape);
    let rendered = render();
    ESCAPE.set(None);
    rendered
}

/// Writes an inserted value: metered, strict about undefined, escaped when the template asks for it.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    charge_value(value)?;
    let Some(escape) = ESCAPE.get() else {
        return minijinja::escape_formatter(out, state, value);
    };
    if value.is_undefined() {
        return minijinja::escape_formatter(out, state, value);
    }
    out.write_str(&escape(&value.to_string())).map_err(Error::from)
}
