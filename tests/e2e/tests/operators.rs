//! What an operator meets: health, metrics, offline tools, configuration, clean stops.

use anyhow::Result;
use millstream_e2e::{Options, binary};

#[test]
fn health_and_metrics() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    assert_eq!(broker.http("/livez")?.0, 200);
    assert_eq!(broker.http("/readyz")?.0, 200);
    assert_eq!(broker.http("/nothing")?.0, 404);
    broker.ok("topic create t --partitions 1")?;
    broker.ok_with("pub t", b"a\nb\n")?;
    broker.ok("sub t --group g --from start --count 1")?;
    let (status, metrics) = broker.http("/metrics")?;
    assert_eq!(status, 200);
    for family in [
        "millstream_produce_seconds_bucket",
        "millstream_sync_seconds_bucket",
        "millstream_fetch_seconds_bucket",
        "millstream_group_lag",
    ] {
        assert!(metrics.contains(family), "no {family} in:\n{metrics}");
    }
    // The exposition format: every sample line is `name{labels} number`.
    for line in metrics
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        let value = line.rsplit(' ').next().unwrap_or_default();
        assert!(value.parse::<f64>().is_ok(), "not a sample: {line}");
    }
    Ok(())
}

/// `log inspect` and `log verify` read a directory that no broker uses.
#[test]
fn a_log_is_inspected_and_verified_offline() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 1")?;
    broker.ok_with("pub t", b"a\nb\nc\n")?;
    let data = broker.kill()?;
    let run = |arguments: &[&str]| {
        std::process::Command::new(binary())
            .args(arguments)
            .arg(&data)
            .output()
    };
    let verify = run(&["log", "verify"])?;
    assert!(verify.status.success(), "{verify:?}");
    let inspect = run(&["log", "inspect"])?;
    assert!(inspect.status.success(), "{inspect:?}");
    let words = String::from_utf8_lossy(&inspect.stdout);
    assert!(
        words.contains("batch-appended ") && words.contains(" slot=0 "),
        "{words}"
    );
    // Facts are fields.
    let inspect = run(&["log", "inspect", "-o", "json"])?;
    let facts: Vec<serde_json::Value> = lines(&inspect.stdout)?
        .iter()
        .map(|line| line["entry"]["fact"].clone())
        .collect();
    let batch = facts.iter().find(|fact| fact["kind"] == "batch-appended");
    assert_eq!(batch.expect("a batch")["kept"], 3, "{facts:?}");
    let topic = facts.iter().find(|fact| fact["kind"] == "topic-applied");
    assert_eq!(topic.expect("a topic")["name"], "t");
    Ok(())
}

fn lines(output: &[u8]) -> Result<Vec<serde_json::Value>> {
    let lines = String::from_utf8(output.to_vec())?;
    Ok(lines
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?)
}

/// What stands in a directory comes out as records, and can be produced again as it was.
#[test]
fn records_of_a_directory_are_shown_and_carried_over() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 1")?;
    broker.ok("topic create other --partitions 1")?;
    broker.ok_with("pub t --key k", b"a\nb\n")?;
    broker.ok_with("pub other", b"not this\n")?;
    // The names come from a snapshot as well as from the log.
    let broker = Options::on(broker.stop()?).start()?;
    broker.ok_with("pub t", b"c\n")?;
    let data = broker.kill()?;
    let run = |arguments: &[&str]| {
        std::process::Command::new(binary())
            .args(["log", "inspect", "--records"])
            .args(arguments)
            .arg(&data)
            .output()
    };
    let text = run(&["--topic", "t"])?;
    let text = String::from_utf8(text.stdout)?;
    let words: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(words.len(), 3, "{text}");
    assert_eq!((words[0][0], words[0][1]), ("t/0", "0"), "{text}");
    assert_eq!((words[1][3], words[1][4]), ("k", "b"), "{text}");
    assert_eq!((words[2][1], words[2][4]), ("2", "c"), "{text}");
    let unknown = run(&["--topic", "no-such"])?;
    assert!(!unknown.status.success() && unknown.stdout.is_empty());
    let json = run(&["--topic", "t", "-o", "json"])?;
    assert_eq!(lines(&json.stdout)?.len(), 3);
    assert_eq!(lines(&run(&["-o", "json"])?.stdout)?.len(), 4);
    assert_eq!(
        lines(&run(&["-o", "json", "--limit", "1"])?.stdout)?.len(),
        1
    );

    let broker = Options::on(dir.path().join("new")).start()?;
    broker.ok("topic create t --partitions 1")?;
    broker.ok_with("pub t --json", &json.stdout)?;
    assert_eq!(
        broker.ok("sub t --from start --count 3 -f %k=%v\\n")?,
        "k=a\nk=b\n=c\n"
    );
    Ok(())
}

/// A group or a shard that is gone leaves no record to complain of: it is named, and the command fails.
#[test]
fn records_that_are_missing_are_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 2")
        .start()?;
    broker.ok("topic create t --partitions 2")?;
    for value in [b"a\n", b"b\n", b"c\n"] {
        broker.ok_with("pub t --partition 0", value)?;
        broker.ok_with("pub t --partition 1", value)?;
    }
    let data = broker.stop()?;
    let run = |arguments: &[&str]| {
        std::process::Command::new(binary())
            .args(["log", "inspect"])
            .args(arguments)
            .arg(&data)
            .output()
    };
    let whole = run(&["--records"])?;
    assert!(whole.status.success(), "{whole:?}");
    assert_eq!(String::from_utf8(whole.stdout)?.lines().count(), 6);

    // The header of a group amid others.
    let mut file = String::new();
    let mut groups = Vec::new();
    for item in lines(&run(&["--files", "-o", "json", "--shard", "0"])?.stdout)? {
        if let Some(name) = item["file"].as_str().filter(|_| groups.is_empty()) {
            file = name.to_owned();
        }
        groups.extend(item["group"]["at"].as_u64());
    }
    let at = groups[groups.len() / 2];
    let wal = std::fs::OpenOptions::new().write(true).open(&file)?;
    std::os::unix::fs::FileExt::write_all_at(&wal, &[0; 64], at)?;
    let damaged = run(&["--records"])?;
    let words = String::from_utf8(damaged.stderr)?;
    assert_eq!(damaged.status.code(), Some(1), "{words}");
    let place = format!("at byte {at}: no valid group");
    assert!(words.contains(&place), "{place}: {words}");

    std::fs::remove_dir_all(data.join("shard-1"))?;
    let gone = run(&["--records"])?;
    let words = String::from_utf8(gone.stderr)?;
    assert_eq!(gone.status.code(), Some(1), "{words}");
    assert!(words.contains("shard-1 is missing"), "{words}");
    Ok(())
}

/// Times and sizes are written as people write them, wherever there are any.
#[test]
fn times_and_sizes_have_units() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .setting("LOG__SEGMENT_BYTES", "32MiB")
        .setting("TOPICS__RETENTION_MS", "12h")
        .start()?;
    broker.ok("topic create t --config retention.ms=5d --config retention.bytes=2GiB")?;
    let config = &broker.json("topic describe t")?["config"];
    assert_eq!(config["retention.ms"], "432000000");
    assert_eq!(config["retention.bytes"], "2147483648");
    let refused = broker.cli(&["topic", "config", "t", "--set", "retention.ms=5 dogs"])?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("5d"), "{words}");
    Ok(())
}

/// A right clock can be accepted at any time, and it is said in the log who did.
#[test]
fn a_clock_is_accepted() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 2")
        .start()?;
    broker.ok("topic create t")?;
    assert_eq!(broker.http("/readyz")?.1, "ready\n");
    let accepted = broker.json("clock accept")?;
    assert!(
        accepted["time_ms"].as_i64() > Some(1_700_000_000_000),
        "{accepted}"
    );
    assert!(
        broker.log().contains("accepted as it is"),
        "{}",
        broker.log()
    );
    let (_, metrics) = broker.http("/metrics")?;
    assert!(
        metrics.contains("millstream_clock_doubted{shard=\"1\"} 0"),
        "{metrics}"
    );
    let data = broker.stop()?;
    let output = std::process::Command::new(binary())
        .args(["log", "inspect"])
        .arg(&data)
        .output()?;
    let words = String::from_utf8(output.stdout)?;
    assert_eq!(
        words.matches("clock-accepted").count(),
        2,
        "each shard: {words}"
    );
    Ok(())
}

#[test]
fn configuration_is_checked() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("millstream.toml");
    std::fs::write(&file, "no_such_setting = 1\n")?;
    let run = |arguments: &[&str]| {
        std::process::Command::new(binary())
            .args(arguments)
            .arg("--config")
            .arg(&file)
            .output()
    };
    let output = run(&["config", "check"])?;
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("no_such_setting"),
        "{output:?}"
    );
    std::fs::write(&file, "")?;
    assert!(run(&["config", "check"])?.status.success());
    assert!(run(&["config", "show"])?.status.success());
    Ok(())
}

/// A directory made with one number of shards is not opened with another.
#[test]
fn another_number_of_shards_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = Options::on(dir.path().join("data"))
        .with("--shards 2")
        .start()?
        .stop()?;
    let mut broker = Options::on(&data).with("--shards 3").spawn()?;
    assert!(!broker.wait_end()?.success());
    millstream_e2e::eventually("it says why", || Ok(broker.log().contains("shards")))?;
    drop(broker);
    Options::on(data).start()?;
    Ok(())
}

/// SIGTERM ends the broker with 0 and what was acknowledged is there.
#[test]
fn a_graceful_stop_is_clean() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t")?;
    broker.ok_with("pub t", b"a\n")?;
    let data = broker.stop()?;
    // A copy of one shard is judged as well as all of them.
    let copy = dir.path().join("shard-0");
    std::fs::create_dir(&copy)?;
    for file in std::fs::read_dir(data.join("shard-0"))? {
        let file = file?;
        std::fs::copy(file.path(), copy.join(file.file_name()))?;
    }
    for directory in [&data, &copy] {
        let verify = std::process::Command::new(binary())
            .args(["log", "verify"])
            .arg(directory)
            .output()?;
        assert!(verify.status.success(), "{verify:?}");
    }
    Ok(())
}

#[test]
fn help_and_completions() -> Result<()> {
    for arguments in [
        &["--help"][..],
        &["pub", "--help"],
        &["sub", "--help"],
        &["completions", "bash"],
        &["--version"],
    ] {
        let output = std::process::Command::new(binary())
            .args(arguments)
            .output()?;
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "{arguments:?}: {output:?}"
        );
    }
    Ok(())
}

/// The same broker without io_uring: chosen by configuration, said in one line.
#[test]
fn the_portable_storage_serves_too() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .setting("LOG__STORAGE", "portable")
        .start()?;
    broker.ok("topic create t")?;
    broker.ok_with("pub t", b"a\n")?;
    assert!(broker.log().contains("portable"), "{}", broker.log());
    let broker = Options::on(broker.kill()?).start()?;
    assert_eq!(broker.ok("sub t --from start --count 1 -f %v\\n")?, "a\n");
    Ok(())
}
