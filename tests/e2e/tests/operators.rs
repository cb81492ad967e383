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
    assert!(
        String::from_utf8_lossy(&inspect.stdout).contains("BatchAppended"),
        "{}",
        String::from_utf8_lossy(&inspect.stdout)
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
