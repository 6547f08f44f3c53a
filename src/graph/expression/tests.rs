use std::time::Instant;

use serde_json::json;

use super::*;
use crate::value::{Map, Message, Role, ToolCall};

fn state() -> State {
    let json = json!({
        "n": 3, "price": 2.5, "name": "Ada", "empty": [], "files": {"a": {"content": ["x", "y"]}},
        "list": [1, 2, 3], "big": "x".repeat(1 << 20), "nothing": null,
    });
    let Value::Map(map) = Value::from(json) else { unreachable!("an object") };
    let mut state: State = (*map).clone();
    let call = ToolCall { id: "c1".into(), name: "search".into(), args: Map::new() };
    let role = Role::Ai { tool_calls: vec![call], invalid_tool_calls: vec![], usage: None };
    let messages = vec![Message::new("1", Role::Human, "hello").into(), Message::new("2", role, "hi").into()];
    state.insert("messages".into(), Value::list(messages));
    state
}

fn eval(source: &str) -> Result<serde_json::Value, String> {
    let expression = Expression::parse(source).map_err(|e| format!("parse: {e}"))?;
    expression.eval(&state()).map(|value| value.to_json()).map_err(|e| e.to_string())
}

fn render(source: &str) -> Result<String, String> {
    let template = Template::parse(source).map_err(|e| format!("parse: {e}"))?;
    template.render(&state()).map_err(|e| e.to_string())
}

#[test]
fn expressions_compute_as_jinja_does() {
    for (source, expected) in [
        ("n + 1", json!(4)),
        ("n * 2 + n * price", json!(13.5)),
        ("-n ** 2", json!(9)),
        ("2 ** 3 ** 1", json!(8)),
        ("10 - 4 - 3", json!(3)),
        ("7 // 2 % 2", json!(1)),
        ("name ~ '!' ~ n", json!("Ada!3")),
        ("'a\\\\b\"' ~ \"'\"", json!("a\\b\"'")),
        ("not n == 3 or n > 2 and n < 4", json!(true)),
        ("1 < n < 4", json!(true)),
        ("'da' in name and 5 not in list", json!(true)),
        ("list + [4]", json!([1, 2, 3, 4])),
        ("{'a': n, 'b': [name]}", json!({"a": 3, "b": ["Ada"]})),
        ("list[1:]", json!([2, 3])),
        ("name[:2]|upper", json!("AD")),
        ("list[-1]", json!(3)),
        ("'yes' if n is odd else 'no'", json!("yes")),
        ("n is not divisibleby 2", json!(true)),
        ("missing is defined", json!(false)),
        ("[1, 3] is subset list", json!(true)),
        ("[1, 4] is subset list", json!(false)),
        ("empty is subset empty", json!(true)),
        ("missing|default('x')", json!("x")),
        ("files['a'].content|join('-')", json!("x-y")),
        ("(list|first) + (list|last)", json!(4)),
        ("list|map('string')|join(',')", json!("1,2,3")),
        ("list|select('odd')|list", json!([1, 3])),
        ("files|tojson", json!(r#"{"a":{"content":["x","y"]}}"#)),
        ("range(3)|list", json!([0, 1, 2])),
        ("nothing", json!(null)),
        ("messages|length", json!(2)),
        ("messages[-1].type ~ messages[0].content", json!("aihello")),
        ("messages[-1].tool_calls[0].name", json!("search")),
        ("messages|map(attribute='content')|list", json!(["hello", "hi"])),
        ("messages|selectattr('type', 'eq', 'ai')|map(attribute='id')|first", json!("2")),
    ] {
        assert_eq!(eval(source), Ok(expected), "{source}");
    }
}

#[test]
fn values_that_pass_through_are_the_same_objects() {
    let state = state();
    let same = Expression::parse("messages").expect("parses").eval(&state).expect("evaluates");
    assert_eq!(same, state["messages"]);
    let (Value::List(a), Value::List(b)) = (&same, &state["messages"]) else { panic!("lists") };
    assert!(Arc::ptr_eq(a, b));
    let added =
        Expression::parse("messages + [messages[0]]").expect("parses").eval(&state).expect("evaluates");
    assert_eq!(added.messages().count(), 3, "messages stay messages in a new list");
}

#[test]
fn undefined_names_are_errors() {
    for source in ["missing", "missing + 1", "files.b.c", "messages[7].content", "name.missing == 1"] {
        assert!(eval(source).is_err(), "{source}: {:?}", eval(source));
    }
    assert!(eval("files.b.c").expect_err("undefined").contains("files.b"), "{:?}", eval("files.b.c"));
}

#[test]
fn conditions_hold_as_in_jinja() {
    let holds = |source: &str| Expression::parse(source).expect("parses").holds(&state());
    assert_eq!(holds("empty"), Ok(false));
    assert_eq!(holds("messages"), Ok(true));
    assert_eq!(holds("messages[-1].tool_calls"), Ok(true));
    assert_eq!(holds("nothing"), Ok(false));
    assert!(holds("missing").is_err());
}

#[test]
fn wrong_sources_say_what_is_wrong() {
    for (source, part) in [
        ("n +", "does not parse"),
        ("n|shout", "unknown filter `shout`; known: abs,"),
        ("n is prime", "unknown test `prime`"),
        ("name.upper()", "values have no methods: `upper`"),
        ("dict(a=1)", "only function is `range`"),
        ("list|map('shout')", "unknown filter `shout`"),
        ("list|map(name)", "needs the name written out"),
        ("n|__weigh", "unknown filter"),
        ("range(*list)", "cannot be spread"),
        ("1e999", "too large"),
    ] {
        let error = eval(source).expect_err(source);
        assert!(error.contains(part), "{source}: {error}");
    }
    assert!(Expression::parse(&"n+".repeat(8 << 10)).is_err(), "too long");
    assert!(Expression::parse(&"(".repeat(4_000)).is_err(), "too deep");
}

#[test]
fn no_source_overflows_the_stack() {
    let nested = |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
    for source in [
        "1+".repeat(4_000) + "1",
        "1**".repeat(2_000) + "1",
        "not ".repeat(2_000) + "1",
        "-".repeat(8_000) + "1",
        nested("(", ")", 900),
        nested("[", "]", 400),
        nested("{1:", "}", 300),
        nested("(", ")", 100),
        format!("n{}", ".n".repeat(3_000)),
        format!("n{}", "[0]".repeat(2_000)),
        format!("n{}", "|abs".repeat(2_000)),
        "1 if 1 else ".repeat(600) + "1",
        "1 and ".repeat(100) + "1",
    ] {
        let _ = eval(&source);
        assert!(render(&format!("{{{{ {source} }}}}")).is_err() || source.len() < 1_000);
    }
    for source in [
        format!("{{{{ {}1 }}}}", "1+".repeat(200_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(400_000)),
        "{% if 1 %}".repeat(20_000),
        "{% if 1 %}".repeat(100) + &"{% endif %}".repeat(100),
        format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(390)),
        format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(20_000)),
        "{% for a in [1] %}".repeat(60) + &"{% endfor %}".repeat(60),
    ] {
        let _ = render(&source);
    }
    assert_eq!(eval(&("1+".repeat(50) + "1")), Ok(json!(51)), "what people write works");
    assert_eq!(render(&"{{ n }},".repeat(2_000)).map(|text| text.len()), Ok(4_000));
}

#[test]
fn templates_render_values_and_leave_json_alone() {
    assert_eq!(render(r#"Say {"a": 1} or {name}."#), Ok(r#"Say {"a": 1} or {name}."#.into()));
    assert_eq!(
        render("Hi {{ name }}, {\"a\": {{ n }}}\n  \"quoted\\\"\n"),
        Ok("Hi Ada, {\"a\": 3}\n  \"quoted\\\"".into())
    );
    let source =
        "{% for m in messages if m.content %}{{ loop.index }}:{{ m.content }};{% else %}-{% endfor %}";
    assert_eq!(render(source), Ok("1:hello;2:hi;".into()));
    assert_eq!(render("{% if n > 5 %}a{% elif n > 2 %}b{% else %}c{% endif %}"), Ok("b".into()));
    assert_eq!(
        render("{% for k, v in files|items %}{{ k }}={{ v }}{% endfor %}"),
        Ok(r#"a={"content":["x","y"]}"#.into())
    );
    assert_eq!(render("{ {{ n }}{\n{%- raw %} {{{% endraw %} }"), Ok("{ 3{ {{ }".into()));
    assert_eq!(render("<{{ '&<>' }}> {# no #}{% raw %}{{ x }}{% endraw %}"), Ok("<&<>> {{ x }}".into()));
    assert!(render("{{ missing }}").is_err());
    assert!(render("{% set x = 1 %}").expect_err("refused").contains("no other tags"));
    assert!(render("{{ unclosed").expect_err("refused").contains("does not parse"));
}

#[test]
fn inserted_values_can_be_escaped() {
    let template = Template::parse("/a b?q={{ name }}{{ n }}").expect("parses");
    let shout = |text: &str| format!("<{text}>");
    assert_eq!(template.render_escaped(&state(), shout), Ok("/a b?q=<Ada><3>".into()));
    assert_eq!(template.render(&state()), Ok("/a b?q=Ada3".into()), "the escape does not stay");
}

#[test]
fn names_read_from_the_state_are_known() {
    let template =
        Template::parse("{% for m in messages %}{{ m.content ~ n }}{{ loop.index }}{% endfor %}{{ m }}");
    assert_eq!(template.expect("parses").names().collect::<Vec<_>>(), ["m", "messages", "n"]);
    let expression = Expression::parse("a.b + c[d] + range(2)|length").expect("parses");
    assert_eq!(expression.names().collect::<Vec<_>>(), ["a", "c", "d"]);
}

#[test]
fn nothing_runs_long_or_grows() {
    let bombs = [
        "'x' * 100000000".to_owned(),
        "[0] * 100000000".into(),
        "1 in range(100000000)".into(),
        "big ~ big ~ big ~ big ~ big ~ big ~ big ~ big ~ big ~ big ~ big ~ big ~ big ~ big ~ big ~ big ~ big"
            .into(),
        "big|replace('x', big)".into(),
        "'xxxxxxxxxx'".to_owned() + &"|replace('x','xxxxxxxxxx')".repeat(20),
        "range(10000)|map('replace', '1', big)|join".into(),
        "range(10000)|join(big)".into(),
        "big|indent(1000000000)".into(),
        "list|batch(1000000000, 0)|list".into(),
        "list|slice(1000000000)|list".into(),
        "big|list|map('list')|map('list')|list".into(),
        "files|tojson(indent=1000000000)|length > 1000".into(),
        "10 ** 10 ** 10".into(),
        format!("[{}]|length", "big|list,".repeat(500)),
    ];
    for bomb in bombs {
        let started = Instant::now();
        let result = eval(&bomb);
        assert!(started.elapsed().as_secs() < 60, "{bomb}");
        assert!(result.is_err() || result == Ok(json!(false)), "{bomb}");
    }
    for bomb in [
        "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{{ big }}{% endfor %}",
        "{% for x in [big] %}{% for i in range(9999) %}{% if x ~ x == 'a' %}{% endif %}{% endfor %}{% endfor %}",
        "{{ messages.a.b }}",
    ] {
        let started = Instant::now();
        assert!(render(bomb).is_err(), "{bomb}");
        assert!(started.elapsed().as_secs() < 60, "{bomb}");
    }
}

#[test]
fn expressions_are_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Expression>();
    shared::<Template>();
}
