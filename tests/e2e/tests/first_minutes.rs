//! What a person does in the first five minutes, through the real binary.

use anyhow::Result;
use millstream_e2e::{Options, json_lines};

/// Acknowledged records survive kill -9 and come out once, in order.
#[test]
fn acknowledged_records_survive_kill_9() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create orders --partitions 1")?;
    let input: String = (0..1_000).map(|i| format!("order {i}\n")).collect();
    let acknowledged: serde_json::Value =
        serde_json::from_str(&broker.ok_with("pub orders -o json", input.as_bytes())?)?;
    assert_eq!(acknowledged["acknowledged"], 1_000, "{acknowledged}");
    let data = broker.kill()?;

    let broker = Options::on(data).start()?;
    let out = broker.ok("sub orders --from start --count 1000 -o json")?;
    for (i, record) in json_lines(&out)?.iter().enumerate() {
        assert_eq!(record["offset"], i, "{record}");
        assert_eq!(record["value"], format!("order {i}"), "{record}");
        assert_eq!(record["partition"], 0, "{record}");
        assert_eq!(record["topic"], "orders", "{record}");
    }
    let topic = broker.json("topic describe orders")?;
    assert_eq!(topic["partitions"][0]["start_offset"], 0, "{topic}");
    assert_eq!(topic["partitions"][0]["end_offset"], 1_000, "{topic}");
    broker.stop()?;
    Ok(())
}

/// A demo that cannot run is what was asked for: the broker does not go on without it.
#[test]
fn dev_ends_with_a_demo_that_fails() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut dev = std::process::Command::new(millstream_e2e::binary())
        .args(["dev", "--demo", "--shards", "1", "--expr", "a ==", "--data"])
        .arg(dir.path().join("data"))
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let ended = millstream_e2e::eventually("it ends", || Ok(dev.try_wait()?.is_some()));
    dev.kill()?;
    let output = dev.wait_with_output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ended?;
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(
        words.contains("error: ") && words.contains("expr"),
        "{words}"
    );
    Ok(())
}

/// A clean stop and start changes nothing either.
#[test]
fn a_clean_restart_keeps_everything() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 2")
        .start()?;
    broker.ok("topic create a --partitions 4")?;
    broker.ok("topic create b --partitions 1 --config retention.ms=60000")?;
    broker.ok("topic add-partitions a --total 6")?;
    let input: String = (0..300).map(|i| format!("k{i}:v{i}\n")).collect();
    broker.ok_with("pub a --key-separator :", input.as_bytes())?;
    let data = broker.stop()?;

    let broker = Options::on(data).start()?;
    let topics = broker.list("topic list")?;
    let text = topics.to_string();
    assert!(text.contains("\"a\"") && text.contains("\"b\""), "{text}");
    let topic = broker.json("topic describe a")?;
    let partitions = topic["partitions"].as_array().expect("partitions");
    assert_eq!(partitions.len(), 6);
    let total: u64 = partitions
        .iter()
        .map(|p| p["end_offset"].as_u64().unwrap_or(0))
        .sum();
    assert_eq!(total, 300, "{topic}");
    let out = json_lines(&broker.ok("sub a --from start --count 300 -o json")?)?;
    let mut keys: Vec<String> = out
        .iter()
        .map(|r| r["key"].as_str().unwrap_or("?").to_owned())
        .collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 300);
    for record in &out {
        assert_eq!(
            record["key"].as_str().map(|k| k.replace('k', "v")),
            record["value"].as_str().map(str::to_owned)
        );
    }
    Ok(())
}

/// The same key always goes to the same partition, in order.
#[test]
fn records_of_one_key_stay_in_order() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create keyed --partitions 4")?;
    let input: String = (0..500).map(|i| format!("k{}:{i}\n", i % 7)).collect();
    broker.ok_with("pub keyed --key-separator :", input.as_bytes())?;
    let out = json_lines(&broker.ok("sub keyed --from start --count 500 -o json")?)?;
    for key in 0..7 {
        let of_key: Vec<_> = out
            .iter()
            .filter(|r| r["key"] == format!("k{key}"))
            .collect();
        let partitions: std::collections::BTreeSet<_> =
            of_key.iter().map(|r| r["partition"].as_u64()).collect();
        assert_eq!(partitions.len(), 1, "key k{key}");
        let values: Vec<u64> = of_key
            .iter()
            .filter_map(|r| r["value"].as_str()?.parse().ok())
            .collect();
        assert!(values.is_sorted(), "key k{key}: {values:?}");
        assert!(!values.is_empty());
    }
    Ok(())
}

/// Bytes that are not text come out as they went in; headers, format strings and offsets work.
#[test]
fn formats_headers_and_positions() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 1")?;
    broker.ok_with(
        "pub t --header source=test --partition 0",
        b"plain\n\xff\xfe\x00raw\nlast\n",
    )?;
    let out = json_lines(&broker.ok("sub t --from start --count 3 -o json")?)?;
    assert_eq!(
        out[0]["headers"][0]["key"]
            .as_str()
            .or(out[0]["headers"]["source"].as_str().map(|_| "source")),
        Some("source")
    );
    assert_eq!(out[1]["value_base64"], "//4AcmF3", "{}", out[1]);
    assert_eq!(
        broker.ok("sub t --from 2 --count 1 -f %o=%v\\n")?,
        "2=last\n"
    );
    assert_eq!(
        broker.ok("sub t --from start --exit-at-end -f %p/%o\\n")?,
        "0/0\n0/1\n0/2\n"
    );
    Ok(())
}

/// Errors say what is wrong and exit non-zero; nothing is created behind the user's back.
#[test]
fn errors_are_clear() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    for (line, code, says) in [
        ("topic describe nothing", 1, "nothing"),
        ("topic delete nothing", 1, "nothing"),
        ("topic create bad/name", 1, "name"),
        ("topic create t --partitions 0", 1, "partition"),
        ("topic frobnicate", 2, "frobnicate"),
        ("sub nothing --from start --count 1", 1, "nothing"),
    ] {
        let output = broker.cli(&line.split_whitespace().collect::<Vec<_>>())?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let expected =
            output.status.code() == Some(code) || (code == 1 && output.status.code() == Some(2));
        assert!(expected, "`{line}`: {:?}: {stderr}", output.status);
        assert!(
            stderr.contains(says),
            "`{line}` does not say `{says}`: {stderr}"
        );
    }
    let output = broker.cli_with(&["pub", "nothing"], b"x\n")?;
    assert!(
        !output.status.success(),
        "publishing to a topic that is not there fails"
    );
    broker.ok("topic create t")?;
    let output = broker.cli(&["topic", "create", "t"])?;
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("exists"),
        "{output:?}"
    );
    Ok(())
}

/// A port that another program has is named once, with what to do.
#[test]
fn a_port_that_is_taken_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let taken = std::net::UdpSocket::bind(("127.0.0.1", 0))?;
    let port = taken.local_addr()?.port();
    let started = Options::on(dir.path().join("data")).listen(port).start();
    let error = started.expect_err("the port is taken").to_string();
    assert!(
        error.contains(&format!("cannot listen on 127.0.0.1:{port}: "))
            && error.contains("choose another address"),
        "{error}"
    );
    assert_eq!(
        error.matches("Address already in use").count(),
        1,
        "{error}"
    );
    Ok(())
}

/// Deleting a topic really deletes: a new one of the same name begins empty.
#[test]
fn a_deleted_topic_is_gone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t")?;
    broker.ok_with("pub t", b"old\n")?;
    broker.ok("topic delete t")?;
    assert!(!broker.cli(&["topic", "describe", "t"])?.status.success());
    broker.ok("topic create t")?;
    broker.ok_with("pub t", b"new\n")?;
    assert_eq!(
        broker.ok("sub t --from start --exit-at-end -f %v\\n")?,
        "new\n"
    );
    let broker = Options::on(broker.kill()?).start()?;
    assert_eq!(
        broker.ok("sub t --from start --exit-at-end -f %v\\n")?,
        "new\n"
    );
    Ok(())
}

/// What scripts read line by line: an entry a line, and nothing where there is none.
#[test]
fn lists_are_one_object_a_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    let lists = [
        "topic list",
        "topic list --names",
        "group list",
        "plugin list",
    ];
    for list in lists {
        assert_eq!(broker.ok(&format!("{list} -o json"))?, "", "{list}");
    }
    for name in ["a", "b"] {
        broker.ok(&format!("topic create {name}"))?;
        broker.ok(&format!("sub {name} --group {name} --exit-at-end"))?;
        let deploy = format!("plugin deploy key-filter --topic {name} --param prefix=x");
        broker.ok(&deploy)?;
    }
    for list in lists {
        let key = if list.starts_with("group") {
            "group"
        } else {
            "topic"
        };
        let entries = json_lines(&broker.ok(&format!("{list} -o json"))?)?;
        let names: Vec<_> = entries.iter().map(|entry| &entry[key]).collect();
        assert_eq!(names, ["a", "b"], "{list}");
    }
    Ok(())
}
