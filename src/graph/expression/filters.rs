//! The filters, tests and functions of expressions, each charged for what it reads and makes.
//!
//! **Invariant:** a filter whose result can be far larger than its arguments checks that before it works.

#![expect(clippy::wildcard_enum_match_arm, reason = "an allow-list: only numbers pass")]

use minijinja::{
    Environment, Error, ErrorKind, State, Value, filters, functions, tests,
    value::{Kwargs, Rest, ValueKind, ValueOrKwargs},
};

use super::meter;

/// Most spaces of one step of indentation.
const MAX_INDENT: usize = 16;
/// Most numbers of one `range`.
const MAX_RANGE: usize = 10_000;
/// Most columns or rows that `batch` and `slice` fill up to.
const MAX_COLUMNS: usize = 1_000;

/// Adds everything an expression may use to `environment`.
pub(super) fn install(environment: &mut Environment<'static>) {
    install_text_filters(environment);
    install_item_filters(environment);
    install_tests(environment);
    environment.add_filter(super::hardened::WEIGH, weigh);
    environment.add_filter(super::hardened::NUMBER, number);
    environment.add_function("range", range);
}

/// Whether an expression may use a filter of that name.
pub(super) fn is_filter(name: &str) -> bool {
    filter_names().any(|known| known == name)
}

/// Whether an expression may use a test of that name.
pub(super) fn is_test(name: &str) -> bool {
    TESTS.contains(&name)
}

/// All filters, for messages.
pub(super) fn filter_names() -> impl Iterator<Item = &'static str> {
    TEXT_FILTERS.iter().chain(ITEM_FILTERS).copied()
}

/// All tests, for messages.
pub(super) const TESTS: &[&str] = &[
    "boolean",
    "defined",
    "divisibleby",
    "endingwith",
    "eq",
    "even",
    "false",
    "float",
    "ge",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sequence",
    "startingwith",
    "string",
    "subset",
    "true",
    "undefined",
    "upper",
];

const TEXT_FILTERS: &[&str] = &[
    "abs",
    "bool",
    "capitalize",
    "d",
    "default",
    "float",
    "indent",
    "int",
    "length",
    "count",
    "lower",
    "replace",
    "round",
    "string",
    "title",
    "tojson",
    "trim",
    "upper",
];

const ITEM_FILTERS: &[&str] = &[
    "attr",
    "batch",
    "dictsort",
    "first",
    "groupby",
    "items",
    "join",
    "last",
    "lines",
    "list",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
    "slice",
    "sort",
    "split",
    "sum",
    "unique",
];

/// What a filter costs besides reading its arguments.
#[derive(Clone, Copy)]
enum Cost {
    /// Nothing more: its result is about as large as its arguments.
    Read,
    /// It may make an item of every character.
    Items,
    /// What the function says.
    Growth(fn(&[Value]) -> Result<u64, Error>),
}

fn metered(environment: &mut Environment<'static>, name: &'static str, cost: Cost, filter: Value) {
    let run = move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| -> Result<Value, Error> {
        let args = args.into_values();
        for arg in &args {
            meter::charge_value(arg)?;
        }
        match cost {
            Cost::Read => {}
            Cost::Items => meter::charge(characters(&args).saturating_mul(meter::ITEM))?,
            Cost::Growth(growth) => meter::charge(growth(&args)?)?,
        }
        filter.call(state, &args)
    };
    environment.add_filter(name, run);
}

macro_rules! filters {
    ($environment:expr, $($name:ident: $cost:expr),+ $(,)?) => {
        $(metered($environment, stringify!($name), $cost, Value::from_function(filters::$name));)+
    };
}

fn install_text_filters(environment: &mut Environment<'static>) {
    filters!(environment,
        abs: Cost::Read, bool: Cost::Read, capitalize: Cost::Read, default: Cost::Read, float: Cost::Read,
        indent: Cost::Growth(indented), int: Cost::Read, length: Cost::Read, lower: Cost::Read,
        replace: Cost::Growth(replaced), round: Cost::Read, string: Cost::Read, title: Cost::Read,
        trim: Cost::Read, upper: Cost::Read,
    );
    metered(environment, "tojson", Cost::Read, Value::from_function(tojson));
    metered(environment, "d", Cost::Read, Value::from_function(filters::default));
    metered(environment, "count", Cost::Read, Value::from_function(filters::length));
}

fn install_item_filters(environment: &mut Environment<'static>) {
    filters!(environment,
        attr: Cost::Read, batch: Cost::Growth(columns), dictsort: Cost::Items, first: Cost::Read,
        groupby: Cost::Items, items: Cost::Read, join: Cost::Growth(joined), last: Cost::Read,
        lines: Cost::Items, list: Cost::Items, map: Cost::Items, max: Cost::Items, min: Cost::Items,
        reject: Cost::Items, rejectattr: Cost::Items, reverse: Cost::Items, select: Cost::Items,
        selectattr: Cost::Items, slice: Cost::Growth(columns), sort: Cost::Items, split: Cost::Items,
        sum: Cost::Items, unique: Cost::Items,
    );
}

fn install_tests(environment: &mut Environment<'static>) {
    macro_rules! tests {
        ($($name:literal: $test:ident),+ $(,)?) => {
            $(environment.add_test($name, tests::$test);)+
        };
    }
    tests!(
        "boolean": is_boolean, "defined": is_defined, "divisibleby": is_divisibleby, "endingwith": is_endingwith,
        "eq": is_eq, "even": is_even, "false": is_false, "float": is_float, "ge": is_ge, "gt": is_gt, "in": is_in,
        "integer": is_integer, "iterable": is_iterable, "le": is_le, "lower": is_lower, "lt": is_lt,
        "mapping": is_mapping, "ne": is_ne, "none": is_none, "number": is_number, "odd": is_odd,
        "sequence": is_sequence, "startingwith": is_startingwith, "string": is_string, "true": is_true,
        "undefined": is_undefined, "upper": is_upper,
    );
    environment.add_test("subset", is_subset);
}

/// Whether every item of a list is in another one. Charged for each comparison.
fn is_subset(items: &Value, of: &Value) -> Result<bool, Error> {
    let of: Vec<Value> = of.try_iter()?.collect();
    for item in items.try_iter()? {
        for other in &of {
            meter::charge_value(other)?;
            meter::charge_value(&item)?;
            meter::charge(meter::ITEM)?;
        }
        if !of.contains(&item) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Charges an operand that is about to be read as a whole, and passes it on.
fn weigh(value: Value) -> Result<Value, Error> {
    meter::charge_value(&value)?;
    Ok(value)
}

/// Passes on a factor: a text or list times a number is a bomb, and nobody needs it.
fn number(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Number | ValueKind::Bool | ValueKind::Undefined => Ok(value),
        kind => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("only numbers can be multiplied, not a {kind}"),
        )),
    }
}

fn range(lower: isize, upper: Option<isize>, step: Option<isize>) -> Result<Value, Error> {
    let numbers = functions::range(lower, upper, step)?;
    match numbers.len() {
        Some(count) if count <= MAX_RANGE => Ok(numbers),
        _ => Err(Error::new(ErrorKind::InvalidOperation, format!("a range has at most {MAX_RANGE} numbers"))),
    }
}

/// JSON as models read it; the engine's own filter escapes `<`, `>`, `&` and `'` for web pages.
fn tojson(value: &Value, indent: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get("indent")?,
    };
    kwargs.assert_all_used()?;
    let value = super::objects::to_value(value)?;
    // What comes from the state is only charged when it is read.
    meter::charge(super::objects::size(&value))?;
    let pretty = indent.is_some_and(|indent| indent.is_true());
    let json = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
    json.map_err(|_| Error::new(ErrorKind::InvalidOperation, "cannot be written as JSON"))
}

fn text(args: &[Value], index: usize) -> &str {
    args.get(index).and_then(Value::as_str).unwrap_or_default()
}

fn characters(args: &[Value]) -> u64 {
    args.iter().filter_map(Value::as_str).map(|text| meter::bytes(text.len())).sum()
}

/// The number given by position or by name.
fn count(args: &[Value], name: &str) -> Option<usize> {
    let named = args.iter().filter(|arg| arg.is_kwargs()).find_map(|kwargs| kwargs.get_attr(name).ok());
    let positional = args.get(1).filter(|arg| !arg.is_kwargs());
    positional.cloned().or(named).and_then(|value| value.as_usize())
}

fn replaced(args: &[Value]) -> Result<u64, Error> {
    let (value, from, to) = (text(args, 0), text(args, 1), text(args, 2));
    let places = if from.is_empty() { value.len() + 1 } else { value.matches(from).count() };
    Ok(meter::bytes(places).saturating_mul(meter::bytes(to.len())))
}

fn joined(args: &[Value]) -> Result<u64, Error> {
    let items = args.first().and_then(Value::len).unwrap_or(0);
    Ok(meter::bytes(items).saturating_mul(characters(args.get(1..).unwrap_or_default()) + meter::ITEM))
}

fn indented(args: &[Value]) -> Result<u64, Error> {
    let width = count(args, "width").unwrap_or(4);
    if width > MAX_INDENT {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("indent has at most {MAX_INDENT} spaces"),
        ));
    }
    Ok(meter::bytes((text(args, 0).matches('\n').count() + 1) * width))
}

fn columns(args: &[Value]) -> Result<u64, Error> {
    let wanted = count(args, "count").unwrap_or(1);
    if wanted > MAX_COLUMNS {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("at most {MAX_COLUMNS} parts")));
    }
    Ok((characters(args) + meter::bytes(wanted)).saturating_mul(meter::ITEM))
}
