//! The components that ship with the broker, through the whole sandbox. What they must keep is computed
//! here, by other means.

mod common;

use common::{Batch, CONTEXT, budget, engine, filter, subscription};
use millstream_sandbox::{FilterError, PlugPoint, StartError};
use serde_json::{Value, json};

#[test]
fn key_filter_keeps_by_prefix() {
    let engine = engine();
    let mut filter = filter(
        &engine,
        &common::bundled("key-filter"),
        &[("prefix", "eu-,us-")],
    );
    let keys = [Some("eu-1"), None, Some("asia-1"), Some("us-7")];
    let records = keys.map(|key| (key.map(str::as_bytes), Some(&b"value"[..]), &[][..]));
    let batch = Batch::of(records);
    let kept: Vec<usize> = batch.ask(&mut filter).unwrap().iter_kept().collect();
    assert_eq!(kept, [0, 3]);
}

/// Logs of a service, some of them wanted.
fn logs(records: usize) -> Vec<Value> {
    (0..records)
        .map(|i| {
            json!({
                "level": (["debug", "info", "warn", "error"][i * 7 % 4]),
                "message": format!("request {i} said \"{}\"\n", i % 3),
                "latency_ms": (i * 37) % 400,
                "http": {"method": (["GET", "POST"][i % 2]), "path": format!("/api/v1/users/{i}")},
                "tags": ["a", i % 5, {"nested": [1, 2, {"level": "error"}]}],
            })
        })
        .collect()
}

#[test]
fn json_filter_keeps_what_serde_json_says() {
    let engine = engine();
    let component = engine.compile(&common::bundled("json-filter")).unwrap();
    assert_eq!(component.plug_points(), [PlugPoint::FilterView]);
    type Wanted = fn(&Value) -> bool;
    let cases: [(&str, Wanted); 4] = [
        ("level == 'error' && latency_ms > 100", |log| {
            log["level"] == "error" && log["latency_ms"].as_u64().unwrap() > 100
        }),
        ("http.method == 'POST' || tags contains 3", |log| {
            log["http"]["method"] == "POST" || log["tags"][1] == 3
        }),
        (
            "http.path matches '*/users/1*' && !(level == 'debug')",
            |log| {
                let path = log["http"]["path"].as_str().unwrap();
                path.contains("/users/1") && log["level"] != "debug"
            },
        ),
        ("exists(absent) || message contains '\"2\"'", |log| {
            log["message"].as_str().unwrap().contains("\"2\"")
        }),
    ];
    // 1 and 7, 8, 9 around the bitmap's bytes; 5,000 records need more than the guest's first memory.
    for records in [1, 7, 8, 9, 100, 5_000] {
        let logs = logs(records);
        let texts: Vec<Vec<u8>> = logs
            .iter()
            .map(|log| log.to_string().into_bytes())
            .collect();
        let batch = Batch::of_values(texts.iter().map(Vec::as_slice));
        for (expr, wanted) in cases {
            let mut filter = common::filter_with(&component, &[("expr", expr)], budget());
            let expected: Vec<usize> = (0..records).filter(|i| wanted(&logs[*i])).collect();
            for context in [CONTEXT, subscription(1 << 40)] {
                let kept = batch.ask_as(&mut filter, &context).unwrap();
                assert_eq!(kept.iter_kept().collect::<Vec<_>>(), expected, "{expr}");
                assert_eq!(kept.records(), records);
            }
            assert_eq!(filter.instances_made(), 1, "the instance stays warm");
        }
    }
}

#[test]
fn bad_parameters_are_refused_at_the_start_with_the_components_words() {
    let engine = engine();
    let component = engine.compile(&common::bundled("json-filter")).unwrap();
    for (pairs, says) in [
        (&[][..], "the parameter `expr` is missing"),
        (&[("expr", "level = 'error'")], "at character 7"),
        (&[("expr", "a"), ("exprr", "b")], "`exprr` is unknown"),
    ] {
        let log = millstream_sandbox::GuestLog::new("test");
        let parameters = common::parameters(pairs);
        let refused = millstream_sandbox::Filter::new(&component, parameters, budget(), &log);
        match refused.unwrap_err() {
            StartError::Refused(text) => assert!(text.contains(says), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_refused_batch_names_its_record_and_leaves_the_instance_warm() {
    let engine = engine();
    let wasm = common::bundled("json-filter");
    let mut filter = filter(&engine, &wasm, &[("expr", "a == 1")]);
    let batch = Batch::of_values([&b"{\"a\":1}"[..], b"{\"a\":1"]);
    match batch.ask(&mut filter).unwrap_err() {
        FilterError::Refused(text) => assert!(text.starts_with("record 1: "), "{text}"),
        other => panic!("{other:?}"),
    }
    let good = Batch::of_values([&b"{\"a\":1}"[..], b"{\"a\":2}"]);
    assert_eq!(
        good.ask(&mut filter)
            .unwrap()
            .iter_kept()
            .collect::<Vec<_>>(),
        [0]
    );
    assert_eq!(filter.instances_made(), 1);
}

#[test]
fn records_without_value_and_empty_values() {
    let engine = engine();
    let wasm = common::bundled("json-filter");
    let mut filter = filter(
        &engine,
        &wasm,
        &[("expr", "!exists(a)"), ("on_invalid", "drop")],
    );
    let batch = Batch::of([
        (Some(&b"k"[..]), None, &[][..]),
        (None, Some(&b""[..]), &[][..]),
        (
            None,
            Some(&b"{}"[..]),
            &[("h", None), ("g", Some(&b"1"[..]))][..],
        ),
    ]);
    let kept = batch.ask(&mut filter).unwrap();
    assert_eq!(kept.iter_kept().collect::<Vec<_>>(), [0, 2]);
}
