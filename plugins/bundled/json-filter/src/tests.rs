//! The filter against `serde_json`, which knows nothing of it: what is JSON, and what an expression says
//! of a value.

use millstream_plugin::testing::BatchBuilder;
use serde_json::{Value as Tree, json};

use super::*;

fn kept(parameters: &[(&str, &str)], values: &[&[u8]]) -> Result<Vec<usize>, String> {
    let batch = values
        .iter()
        .fold(BatchBuilder::new(), |batch, value| batch.value(value));
    batch.kept_by::<JsonFilter>(&parameters.iter().copied().collect())
}

fn holds(expr: &str, text: &str) -> bool {
    let expression = Expression::parse(expr).unwrap_or_else(|error| panic!("{expr}: {error}"));
    let mut scanner = Scanner::new(expression.paths());
    let found = scanner.scan(text.as_bytes());
    expression.holds(&found.unwrap_or_else(|error| panic!("{text}: {error}")))
}

#[test]
fn comparisons() {
    let text = r#" {"level":"error","latency_ms":250,"ok":true,"none":null,"neg":-1.5e1,
        "user":{"name":"Zo\u00eb","tags":["a","b\n",7,null]},"items":[{"price":3},{"price":12}],
        "a.b":1,"exists":"yes","":"empty"} "#;
    for (expr, expected) in [
        ("level == 'error'", true),
        ("level == \"error\" && latency_ms > 100", true),
        ("level == 'error' && latency_ms > 250", false),
        ("latency_ms >= 250 && latency_ms <= 250.0", true),
        ("level != 'warn' || latency_ms < 0", true),
        ("!(level == 'error')", false),
        ("ok", true),
        ("!ok", false),
        ("ok == true && ok != false", true),
        ("none == null", true),
        ("absent == null", true),
        ("exists(none)", true),
        ("exists(absent)", false),
        ("exists(user.name) && !exists(user.name.first)", true),
        ("absent < 5 || absent > 5 || absent == 5", false),
        ("absent != 5", true),
        ("neg == -15", true),
        ("user.name == 'Zoë'", true),
        ("user.tags contains 'b\n'", true),
        ("user.tags contains 7 && user.tags contains null", true),
        ("user.tags contains 'c'", false),
        ("user.tags contains '7'", false),
        ("user.name contains 'oë'", true),
        ("items.1.price > items.0.price", true),
        ("items.2.price == null", true),
        ("items.0 == items.1", false),
        ("level matches 'err*'", true),
        ("level matches 'rr*'", false),
        ("level matches '*ro*'", true),
        ("`a.b` == 1 && `exists` == 'yes' && `` == 'empty'", true),
        ("level == 5 || latency_ms == '250'", false),
        ("'f' > 'error' && level < 'f'", true),
        ("true && 1 < 2", true),
        ("ok || ok && false", true),
    ] {
        assert_eq!(holds(expr, text), expected, "{expr}");
    }
}

#[test]
fn the_last_of_two_equal_keys_counts() {
    assert!(holds("a == 2", r#"{"a":1,"\u0061":2}"#));
    assert!(holds(
        "a.b == null && !exists(a.b)",
        r#"{"a":{"b":1},"a":{"c":2}}"#
    ));
    assert!(holds("!exists(a.b)", r#"{"a":{"b":1},"a":3}"#));
}

#[test]
fn bad_expressions_say_where() {
    for (expr, at, what) in [
        ("", 0, "a path or a value"),
        ("a ==", 4, "a path or a value"),
        ("a = 1", 2, "="),
        ("a == 1 b", 7, "the end"),
        ("a == 'x", 5, "closing"),
        ("(a == 1", 7, "`)`"),
        ("exists a", 7, "`(`"),
        ("5", 1, "a comparison"),
        ("a == 01", 5, "a number"),
        ("a == 1 && %", 10, "%"),
    ] {
        let error = Expression::parse(expr).unwrap_err();
        assert_eq!(error.at, at, "{expr}: {error}");
        assert!(error.what.contains(what), "{expr}: {error}");
    }
    assert!(Expression::parse(&"(".repeat(10_000)).is_err());
    assert!(Expression::parse(&"!".repeat(10_000)).is_err());
}

#[test]
fn values_that_are_not_json_are_treated_as_asked() {
    let values: [&[u8]; 4] = [b"{\"a\":1}", b"{\"a\":1", b"\xff", b"{\"a\":1} x"];
    let expr = ("expr", "a == 1");
    assert_eq!(kept(&[expr, ("on_invalid", "drop")], &values), Ok(vec![0]));
    assert_eq!(
        kept(&[expr, ("on_invalid", "keep")], &values),
        Ok(vec![0, 1, 2, 3])
    );
    let error = kept(&[expr], &values).unwrap_err();
    assert!(
        error.contains("record 1") && error.contains("byte 6"),
        "{error}"
    );
    assert!(kept(&[expr, ("on_invalid", "x")], &values).is_err());
    assert!(
        kept(&[("expr", "a ==")], &values)
            .unwrap_err()
            .contains("character 5")
    );
}

#[test]
fn a_tombstone_is_null() {
    let batch = BatchBuilder::new().record(Some(b"k"), None, &[]);
    let kept = |expr: &str| {
        let parameters = [("expr", expr)].into_iter().collect();
        batch.kept_by::<JsonFilter>(&parameters).unwrap().len()
    };
    assert_eq!((kept("a == 1"), kept("!exists(a)")), (0, 1));
}

/// Small numbers from a seed, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn tree(&mut self, depth: usize) -> Tree {
        match self.roll(if depth == 0 { 6 } else { 8 }) {
            0 => Tree::Null,
            1 => json!(self.roll(2) == 0),
            2 => json!(self.roll(5) as i64 - 2),
            3 => json!(self.roll(100) as f64 / 8.0),
            4 | 5 => json!(["", "a", "ab", "x\"y\\z\n", "ünï", "\u{1F600}"][self.roll(6)]),
            6 => (0..self.roll(4)).map(|_| self.tree(depth - 1)).collect(),
            _ => (0..self.roll(5))
                .map(|_| {
                    (
                        ["a", "b", "c", "k\"", "0"][self.roll(5)].to_owned(),
                        self.tree(depth - 1),
                    )
                })
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
}

/// Random values, random comparisons: the same verdict as by walking `serde_json`'s tree.
#[test]
fn agrees_with_serde_json_on_values() {
    let mut dice = Dice(1);
    let paths = [
        "a", "b", "a.b", "b.0", "a.a.c", "c.1.a", "`0`", "a.0.0", "`k\"`.a",
    ];
    let literals = ["null", "true", "0", "1.5", "'a'", "'ab'", "''"];
    let mut held = 0;
    for _ in 0..20_000 {
        let tree = dice.tree(4);
        let text = if dice.roll(2) == 0 {
            serde_json::to_string(&tree)
        } else {
            serde_json::to_string_pretty(&tree)
        };
        let path = paths[dice.roll(paths.len())];
        let literal = literals[dice.roll(literals.len())];
        let operator = ["==", "!=", "<", ">=", "contains"][dice.roll(5)];
        let pointer = format!("/{}", path.replace('`', "").replace('.', "/"));
        let expected = verdict(tree.pointer(&pointer), operator, literal);
        let expr = format!("{path} {operator} {literal}");
        let text = text.unwrap();
        assert_eq!(holds(&expr, &text), expected, "{expr} of {text}");
        assert_eq!(
            holds(&format!("exists({path})"), &text),
            tree.pointer(&pointer).is_some()
        );
        held += usize::from(expected);
    }
    assert!(
        (4_000..16_000).contains(&held),
        "the test is one-sided: {held}"
    );
}

fn verdict(value: Option<&Tree>, operator: &str, literal: &str) -> bool {
    let literal: Tree = serde_json::from_str(&literal.replace('\'', "\"")).unwrap();
    let equal = |value: &Tree, literal: &Tree| match (value.as_f64(), literal.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => value == literal,
    };
    let value = value.unwrap_or(&Tree::Null);
    let order = match (value, &literal) {
        (Tree::Number(a), Tree::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Tree::String(a), Tree::String(b)) => Some(a.cmp(b)),
        _ => None,
    };
    match operator {
        "==" => equal(value, &literal),
        "!=" => !equal(value, &literal),
        "<" => order.is_some_and(|order| order.is_lt()),
        ">=" => order.is_some_and(|order| order.is_ge()),
        _ => match (value, &literal) {
            (Tree::Array(all), part) => all.iter().any(|element| equal(element, part)),
            (Tree::String(whole), Tree::String(part)) => whole.contains(part),
            _ => false,
        },
    }
}

/// Damaged texts: JSON to us exactly if it is JSON to `serde_json`.
#[test]
fn agrees_with_serde_json_on_what_is_json() {
    let mut dice = Dice(2);
    let mut scanner = Scanner::new(&[vec!["a".into(), "b".into()]]);
    let mut valid = 0;
    for _ in 0..50_000 {
        let mut text = serde_json::to_vec(&dice.tree(3)).unwrap();
        for _ in 0..dice.roll(3) {
            let at = dice.roll(text.len());
            let byte = br#"{}[]":,\0-.eEtfu +"#[dice.roll(18)];
            match dice.roll(4) {
                0 => text[at] = byte,
                1 => text.insert(at, byte),
                2 => text.truncate(at + 1),
                _ => text[at] = dice.roll(256) as u8,
            }
        }
        let expected = str::from_utf8(&text)
            .is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
        let shown = String::from_utf8_lossy(&text);
        assert_eq!(scanner.scan(&text).is_ok(), expected, "{shown}");
        valid += usize::from(expected);
    }
    assert!(
        (10_000..45_000).contains(&valid),
        "the test is one-sided: {valid}"
    );
}

#[test]
fn nesting_is_bounded() {
    let mut scanner = Scanner::new(&[]);
    let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
    assert!(scanner.scan(&nested(128)).is_ok());
    assert!(scanner.scan(&nested(129)).is_err());
    assert!(scanner.scan(&vec![b'['; 1 << 20]).is_err());
}
