//! Checks a parsed expression or template and writes it out again with its costly operations metered.
//!
//! Filters, tests and functions that do not exist are mistakes of the source here, not of the run. Statements
//! that bind names (`set`, `with`, macros) are refused: they let a short text double itself.
//!
//! **Invariant:** a source written here applies no operation to a text or list that was not charged first.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an allow-list: whatever syntax is not listed is refused"
)]

use std::{collections::BTreeSet, fmt::Write};

use minijinja::{
    Value,
    machinery::{
        self, Token,
        ast::{BinOpKind, CallArg, CompareOpKind, Expr, ForLoop, Map, Slice, Stmt, UnaryOpKind},
    },
    value::ValueKind,
};

use super::{Error, filters, wrong};

/// The filter that charges an operand.
pub(super) const WEIGH: &str = "__weigh";
/// The filter that lets only numbers pass.
pub(super) const NUMBER: &str = "__number";

/// Most tokens of one expression: the engine takes native stack for each operator of a chain.
const MAX_TOKENS: usize = 1_000;
/// Most `{% … %}` of one template, for the same reason: each `elif` is nested in the one before.
const MAX_TAGS: usize = 400;
/// Deepest nesting of operators and brackets, and of blocks; written out, one level becomes two.
const MAX_DEPTH: usize = 64;

/// A source that is safe to compile.
pub(super) struct Hardened {
    /// The text for the engine.
    pub(super) source: String,
    /// Names it reads that it does not bind itself.
    pub(super) names: BTreeSet<String>,
}

/// Hardens an expression.
pub(super) fn expression(source: &str) -> Result<Hardened, Error> {
    check_tokens(source, Within::Expression)?;
    let parsed = machinery::parse_expr(source).map_err(|e| wrong(&e))?;
    let mut writer = Writer::default();
    writer.expr(&parsed)?;
    Ok(Hardened { source: writer.out, names: writer.names })
}

/// Hardens a template.
pub(super) fn template(source: &str) -> Result<Hardened, Error> {
    check_tokens(source, Within::Template)?;
    let parsed = machinery::parse(source, "template", Default::default()).map_err(|e| wrong(&e))?;
    let mut writer = Writer::default();
    writer.stmt(&parsed)?;
    Ok(Hardened { source: writer.out, names: writer.names })
}

/// Where tokens begin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Expression,
    Template,
}

/// Refuses what would take too much native stack to parse.
fn check_tokens(source: &str, within: Within) -> Result<(), Error> {
    let (mut tokens, mut tags) = (0, 0);
    for token in machinery::tokenize(source, within == Within::Expression, Default::default()) {
        match token.map_err(|e| wrong(&e))?.0 {
            Token::TemplateData(_) | Token::VariableStart => tokens = 0,
            Token::BlockStart => {
                tokens = 0;
                tags += 1;
            }
            _ => tokens += 1,
        }
        if tokens > MAX_TOKENS {
            return Err(Error(format!("has an expression of more than {MAX_TOKENS} words and signs")));
        }
        if tags > MAX_TAGS {
            return Err(Error(format!("has more than {MAX_TAGS} tags")));
        }
    }
    Ok(())
}

#[derive(Default)]
struct Writer<'a> {
    depth: usize,
    out: String,
    names: BTreeSet<String>,
    bound: Vec<&'a str>,
}

type Written = Result<(), Error>;

impl<'a> Writer<'a> {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn stmts(&mut self, stmts: &[Stmt<'a>]) -> Written {
        stmts.iter().try_for_each(|stmt| self.stmt(stmt))
    }

    fn deeper(&mut self, write: impl FnOnce(&mut Self) -> Written) -> Written {
        if self.depth == MAX_DEPTH {
            return Err(Error(format!("is nested deeper than {MAX_DEPTH} levels")));
        }
        self.depth += 1;
        let written = write(self);
        self.depth -= 1;
        written
    }

    fn stmt(&mut self, stmt: &Stmt<'a>) -> Written {
        self.deeper(|writer| writer.any_stmt(stmt))
    }

    fn expr(&mut self, expr: &Expr<'a>) -> Written {
        self.deeper(|writer| writer.any_expr(expr))
    }

    fn any_stmt(&mut self, stmt: &Stmt<'a>) -> Written {
        match stmt {
            Stmt::Template(template) => self.stmts(&template.children),
            Stmt::EmitRaw(raw) => {
                // It cannot contain `{% endraw %}`: outside of a raw block that is a mistake.
                self.put("{% raw %}");
                self.put(raw.raw);
                self.put("{% endraw %}");
                Ok(())
            }
            Stmt::EmitExpr(emit) => {
                self.put("{{ ");
                self.expr(&emit.expr)?;
                self.put(" }}");
                Ok(())
            }
            Stmt::ForLoop(for_loop) => self.for_loop(for_loop),
            Stmt::IfCond(cond) => {
                self.put("{% if ");
                self.expr(&cond.expr)?;
                self.put(" %}");
                self.stmts(&cond.true_body)?;
                self.put("{% else %}");
                self.stmts(&cond.false_body)?;
                self.put("{% endif %}");
                Ok(())
            }
            _ => Err(Error(
                "templates know `{{ … }}`, `{% for %}`, `{% if %}`, `{% raw %}` and no other tags".into(),
            )),
        }
    }

    fn for_loop(&mut self, for_loop: &ForLoop<'a>) -> Written {
        if for_loop.recursive {
            return Err(Error("loops cannot be `recursive`".into()));
        }
        let outside = self.bound.len();
        self.put("{% for ");
        let mut targets = Vec::new();
        loop_targets(&for_loop.target, &mut targets)?;
        self.put(&targets.join(", "));
        self.put(" in ");
        self.operand(&for_loop.iter, WEIGH)?;
        self.bound.extend(targets);
        if let Some(filter) = &for_loop.filter_expr {
            self.put(" if ");
            self.nested(filter)?;
        }
        self.bound.push("loop");
        self.put(" %}");
        self.stmts(&for_loop.body)?;
        self.bound.truncate(outside);
        self.put("{% else %}");
        self.stmts(&for_loop.else_body)?;
        self.put("{% endfor %}");
        Ok(())
    }

    fn any_expr(&mut self, expr: &Expr<'a>) -> Written {
        match expr {
            Expr::Var(var) => {
                if !self.bound.contains(&var.id) {
                    self.names.insert(var.id.to_owned());
                }
                self.put(var.id);
                Ok(())
            }
            Expr::Const(constant) => self.constant(&constant.value),
            Expr::Slice(slice) => self.slice(slice),
            Expr::UnaryOp(unary) => {
                self.put(match unary.op {
                    UnaryOpKind::Not => "not ",
                    UnaryOpKind::Neg => "-",
                });
                self.nested(&unary.expr)
            }
            Expr::BinOp(op) => self.binary(op.op, &op.left, &op.right),
            Expr::Compare(compare) => {
                self.operand(&compare.expr, WEIGH)?;
                for op in &compare.ops {
                    self.put(comparison(op.op));
                    self.operand(&op.expr, WEIGH)?;
                }
                Ok(())
            }
            Expr::IfExpr(choice) => {
                self.nested(&choice.true_expr)?;
                self.put(" if ");
                self.nested(&choice.test_expr)?;
                choice.false_expr.as_ref().map_or(Ok(()), |other| {
                    self.put(" else ");
                    self.nested(other)
                })
            }
            Expr::Filter(_) | Expr::Test(_) | Expr::Call(_) => self.applied(expr),
            Expr::GetAttr(get) => {
                self.nested(&get.expr)?;
                self.put(".");
                self.put(get.name);
                Ok(())
            }
            Expr::GetItem(get) => {
                self.nested(&get.expr)?;
                self.put("[");
                self.expr(&get.subscript_expr)?;
                self.put("]");
                Ok(())
            }
            Expr::List(list) => self.items("[", &list.items, "]"),
            Expr::Tuple(tuple) => self.items("(", &tuple.items, ",)"),
            Expr::Map(map) => self.map(map),
        }
    }

    fn slice(&mut self, slice: &Slice<'a>) -> Written {
        self.put("(");
        self.operand(&slice.expr, WEIGH)?;
        self.put(")[");
        for (index, bound) in [&slice.start, &slice.stop, &slice.step].into_iter().enumerate() {
            if index > 0 {
                self.put(":");
            }
            bound.as_ref().map_or(Ok(()), |bound| self.nested(bound))?;
        }
        self.put("]");
        Ok(())
    }

    fn map(&mut self, map: &Map<'a>) -> Written {
        self.put("{");
        for (key, value) in map.keys.iter().zip(&map.values) {
            self.nested(key)?;
            self.put(": ");
            self.nested(value)?;
            self.put(", ");
        }
        self.put("}");
        Ok(())
    }

    /// A filter, a test or a call.
    fn applied(&mut self, expr: &Expr<'a>) -> Written {
        match expr {
            Expr::Filter(filter) => {
                known("filter", filter.name, filters::is_filter(filter.name), filters::filter_names())?;
                let input = filter.expr.as_ref().ok_or_else(|| Error("a filter needs a value".into()))?;
                self.nested(input)?;
                self.put("|");
                self.put(filter.name);
                self.indirect_filter(filter.name, &filter.args)?;
                self.args(&filter.args)
            }
            Expr::Test(test) => {
                known("test", test.name, filters::is_test(test.name), filters::TESTS.iter().copied())?;
                self.operand(&test.expr, WEIGH)?;
                self.put(" is ");
                self.put(test.name);
                if test.args.is_empty() { Ok(()) } else { self.args(&test.args) }
            }
            Expr::Call(call) => {
                let callable = match &call.expr {
                    Expr::Var(var) if var.id == "range" && !self.bound.contains(&"range") => {
                        "range".to_owned()
                    }
                    Expr::GetAttr(get) => match &get.expr {
                        Expr::Var(var) if var.id == "loop" && self.bound.contains(&"loop") => {
                            format!("loop.{}", get.name)
                        }
                        _ => {
                            return Err(Error(format!(
                                "values have no methods: `{}`; use a filter",
                                get.name
                            )));
                        }
                    },
                    _ => return Err(Error("the only function is `range`".into())),
                };
                self.put(&callable);
                self.args(&call.args)
            }
            _ => self.any_expr(expr),
        }
    }

    /// `map` and `select` take the name of a filter or test as a text.
    fn indirect_filter(&self, name: &str, args: &[CallArg<'a>]) -> Written {
        let position = match name {
            "map" | "select" | "reject" => 0,
            "selectattr" | "rejectattr" => 1,
            _ => return Ok(()),
        };
        let Some(CallArg::Pos(argument)) = args.get(position) else { return Ok(()) };
        match argument {
            Expr::Const(constant) => {
                let used = constant.value.as_str().unwrap_or_default();
                if name == "map" {
                    known("filter", used, filters::is_filter(used), filters::filter_names())
                } else {
                    known("test", used, filters::is_test(used), filters::TESTS.iter().copied())
                }
            }
            // A computed name could reach a filter that is not for authors.
            _ => Err(Error(format!("`{name}` needs the name written out"))),
        }
    }

    fn args(&mut self, args: &[CallArg<'a>]) -> Written {
        self.put("(");
        for (index, arg) in args.iter().enumerate() {
            if index > 0 {
                self.put(", ");
            }
            match arg {
                CallArg::Pos(value) => self.nested(value)?,
                CallArg::Kwarg(name, value) => {
                    self.put(name);
                    self.put("=");
                    self.nested(value)?;
                }
                CallArg::PosSplat(_) | CallArg::KwargSplat(_) => {
                    return Err(Error("arguments cannot be spread with `*`".into()));
                }
            }
        }
        self.put(")");
        Ok(())
    }

    fn binary(&mut self, op: BinOpKind, left: &Expr<'a>, right: &Expr<'a>) -> Written {
        let (sign, filter) = match op {
            BinOpKind::Eq => (" == ", Some(WEIGH)),
            BinOpKind::Ne => (" != ", Some(WEIGH)),
            BinOpKind::Lt => (" < ", Some(WEIGH)),
            BinOpKind::Lte => (" <= ", Some(WEIGH)),
            BinOpKind::Gt => (" > ", Some(WEIGH)),
            BinOpKind::Gte => (" >= ", Some(WEIGH)),
            BinOpKind::In => (" in ", Some(WEIGH)),
            BinOpKind::Add => (" + ", Some(WEIGH)),
            BinOpKind::Concat => (" ~ ", Some(WEIGH)),
            BinOpKind::Mul => (" * ", Some(NUMBER)),
            BinOpKind::Sub => (" - ", None),
            BinOpKind::Div => (" / ", None),
            BinOpKind::FloorDiv => (" // ", None),
            BinOpKind::Rem => (" % ", None),
            BinOpKind::Pow => (" ** ", None),
            BinOpKind::ScAnd => (" and ", None),
            BinOpKind::ScOr => (" or ", None),
        };
        self.side(left, filter)?;
        self.put(sign);
        self.side(right, filter)
    }

    fn side(&mut self, expr: &Expr<'a>, filter: Option<&str>) -> Written {
        match filter {
            Some(filter) => self.operand(expr, filter),
            None => self.nested(expr),
        }
    }

    /// An operand that passes through `filter` first; numbers written out need not.
    fn operand(&mut self, expr: &Expr<'a>, filter: &str) -> Written {
        self.nested(expr)?;
        let is_small = matches!(expr, Expr::Const(constant) if constant.value.kind() != ValueKind::String);
        if !is_small {
            self.put("|");
            self.put(filter);
        }
        Ok(())
    }

    /// The expression in brackets, where it needs them to stay one operand.
    fn nested(&mut self, expr: &Expr<'a>) -> Written {
        if matches!(expr, Expr::Var(_) | Expr::Const(_) | Expr::List(_) | Expr::Tuple(_) | Expr::Map(_)) {
            return self.expr(expr);
        }
        self.put("(");
        self.expr(expr)?;
        self.put(")");
        Ok(())
    }

    fn items(&mut self, open: &str, items: &[Expr<'a>], close: &str) -> Written {
        self.put(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.put(", ");
            }
            self.nested(item)?;
        }
        self.put(if items.is_empty() { close.trim_start_matches(',') } else { close });
        Ok(())
    }

    fn constant(&mut self, value: &Value) -> Written {
        match value.kind() {
            ValueKind::None => self.put("none"),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Bool => self.put(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if f64::try_from(value.clone()).is_ok_and(|number| !number.is_finite()) => {
                return Err(Error("a number is too large".into()));
            }
            ValueKind::Number => {
                let _ = write!(self.out, "{value}");
            }
            _ => return Err(Error("a constant that is no value".into())),
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            if matches!(character, '"' | '\\') {
                self.out.push('\\');
            }
            self.out.push(character);
        }
        self.out.push('"');
    }
}

fn comparison(op: CompareOpKind) -> &'static str {
    match op {
        CompareOpKind::Eq => " == ",
        CompareOpKind::Ne => " != ",
        CompareOpKind::Lt => " < ",
        CompareOpKind::Lte => " <= ",
        CompareOpKind::Gt => " > ",
        CompareOpKind::Gte => " >= ",
        CompareOpKind::In => " in ",
        CompareOpKind::NotIn => " not in ",
    }
}

fn loop_targets<'a>(target: &Expr<'a>, targets: &mut Vec<&'a str>) -> Written {
    match target {
        Expr::Var(var) => targets.push(var.id),
        Expr::List(list) => list.items.iter().try_for_each(|item| loop_targets(item, targets))?,
        Expr::Tuple(tuple) => tuple.items.iter().try_for_each(|item| loop_targets(item, targets))?,
        _ => return Err(Error("a loop binds names".into())),
    }
    Ok(())
}

fn known(what: &str, name: &str, exists: bool, all: impl Iterator<Item = &'static str>) -> Written {
    if exists {
        return Ok(());
    }
    let mut all: Vec<_> = all.collect();
    all.sort_unstable();
    Err(Error(format!("unknown {what} `{name}`; known: {}", all.join(", "))))
}
