//! Which records `sub` prints: several topics, the newest, and from one place to another.

use std::io::{BufRead as _, BufReader};

use anyhow::Result;
use millstream_e2e::Options;

#[test]
fn several_topics_and_patterns() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    for topic in ["orders-eu", "orders-us", "payments"] {
        broker.ok(&format!("topic create {topic} --partitions 2"))?;
        broker.ok(&format!("pub {topic} {topic}-1 {topic}-2"))?;
    }
    let sorted = |line: &str| -> Result<Vec<String>> {
        let mut lines: Vec<_> = broker.ok(line)?.lines().map(str::to_owned).collect();
        lines.sort();
        Ok(lines)
    };
    assert_eq!(
        sorted("sub orders-* --from start -e -f %t=%v\\n")?,
        [
            "orders-eu=orders-eu-1",
            "orders-eu=orders-eu-2",
            "orders-us=orders-us-1",
            "orders-us=orders-us-2"
        ]
    );
    assert_eq!(
        sorted("sub payments orders-u? --from start --until end")?,
        ["orders-us-1", "orders-us-2", "payments-1", "payments-2"]
    );
    let output = broker.cli(&["sub", "payments", "refunds-*", "-e"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("refunds-*"));
    Ok(())
}

#[test]
fn the_newest_and_from_here_to_there() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 2")
        .start()?;
    broker.ok("topic create t --partitions 3")?;
    // Ten records, each in a batch of its own and of a later append time, in turn on the partitions.
    let mut expected = Vec::new();
    for n in 0..10_u64 {
        let line = format!(
            r#"{{"value":"{n}","timestamp":{},"partition":{}}}"#,
            1_000 + n,
            n % 3
        );
        broker.ok_with("pub t --json", line.as_bytes())?;
        expected.push(n.to_string());
    }
    let lines = |line: &str| -> Result<Vec<String>> {
        Ok(broker.ok(line)?.lines().map(str::to_owned).collect())
    };
    assert_eq!(lines("sub t --last 4 -e")?, expected[6..]);
    assert_eq!(lines("sub t --last 100 -e")?, expected);
    assert_eq!(lines("sub t --last 0 -e")?, [""; 0]);
    // Then it goes on with what comes.
    let mut child = broker
        .command(&["sub", "t", "--last", "9", "-n", "10"])
        .spawn()?;
    let mut printed = BufReader::new(child.stdout.take().expect("piped")).lines();
    for newest in &expected[1..] {
        assert_eq!(printed.next().transpose()?.as_ref(), Some(newest));
    }
    broker.ok("pub t late --partition 0")?;
    assert_eq!(printed.next().transpose()?.as_deref(), Some("late"));
    assert!(printed.next().is_none() && child.wait()?.success());

    let of = |line: &str| -> Result<Vec<String>> {
        let mut lines = lines(line)?;
        lines.sort();
        Ok(lines)
    };
    // Partition 0 holds 0, 3, 6, 9, late.
    assert_eq!(of("sub t -p 0 --from 1 --until 3")?, ["3", "6"]);
    assert_eq!(of("sub t --from start --until 1")?, ["0", "1", "2"]);
    assert_eq!(of("sub t --from @1002 --until @1005")?, ["2", "3", "4"]);
    assert_eq!(of("sub t --from start --until -1h")?, expected);
    assert_eq!(of("sub t -p 1 --from 1 --until end")?, ["4", "7"]);
    assert_eq!(of("sub t --from 3 --until 2")?, [""; 0]);
    for wrong in [
        &["sub", "t", "--until", "start"][..],
        &["sub", "t", "--last", "3", "--from", "end"],
        &["sub", "t", "--group", "g", "--until", "7"],
    ] {
        assert_eq!(broker.cli(wrong)?.status.code(), Some(2), "{wrong:?}");
    }
    Ok(())
}

/// A topic goes with all its partitions: that is said once, by name, and is a failure.
#[test]
fn a_topic_that_is_deleted_while_it_is_read_is_told_once() -> Result<()> {
    const PARTITIONS: usize = 6;
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 3")
        .start()?;
    broker.ok(&format!("topic create t --partitions {PARTITIONS}"))?;
    for partition in 0..PARTITIONS {
        broker.ok_with(&format!("pub t --partition {partition}"), b"a\n")?;
    }
    let mut reader = broker.command(&["sub", "t", "--from", "start"]).spawn()?;
    let mut out = BufReader::new(reader.stdout.take().expect("piped"));
    for _ in 0..PARTITIONS {
        let mut line = String::new();
        out.read_line(&mut line)?;
        assert_eq!(line, "a\n");
    }
    broker.ok("topic delete t --yes")?;
    let output = reader.wait_with_output()?;
    let told = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert_eq!(told.matches("error: ").count(), 1, "{told}");
    assert!(told.contains("topic `t` was deleted"), "{told}");
    Ok(())
}
