//! Damaged, truncated and missing files: a clear word each, the healthy rest served, nothing dropped silently.

use std::process::Command;

use anyhow::Result;
use millstream_batch::ids::{ShardId, group_home};
use millstream_crash::{flip_inside, truncate, wal_files, zero_around};
use millstream_e2e::{Options, binary, eventually, json_lines};

/// A flipped bit in an old batch: that range answers an error, everything else is served, and
/// `log verify` names the place.
#[test]
fn a_flipped_byte_is_reported_and_the_rest_is_served() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 1")
        .start()?;
    broker.ok("topic create t --partitions 1")?;
    broker.ok("topic create other --partitions 1")?;
    for word in ["before", "needle-in-the-middle", "after"] {
        broker.ok_with("pub t", format!("{word}\n").as_bytes())?;
    }
    broker.ok_with("pub other", b"healthy\n")?;
    let data = broker.kill()?;
    flip_inside(&wal_files(&data, 0)?[0], b"needle-in-the-middle")?;

    let verify = Command::new(binary())
        .args(["log", "verify"])
        .arg(&data)
        .output()?;
    assert!(!verify.status.success(), "verify finds the damage");
    let said = String::from_utf8_lossy(&verify.stdout).into_owned()
        + &String::from_utf8_lossy(&verify.stderr);
    assert!(said.contains("wal-"), "verify names the file: {said}");

    let broker = Options::on(data).start()?;
    assert_eq!(
        broker.ok("sub other --from start --count 1 -f %v\\n")?,
        "healthy\n"
    );
    assert_eq!(
        broker.ok("sub t --from start --count 1 -f %v\\n")?,
        "before\n"
    );
    assert_eq!(broker.ok("sub t --from 2 --count 1 -f %v\\n")?, "after\n");
    let output = broker.cli(&["sub", "t", "--from", "1", "--count", "1"])?;
    assert!(!output.status.success(), "the damaged offset is not served");
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .to_lowercase()
            .contains("damaged"),
        "{output:?}"
    );
    // Read from the start: what lies before it, then where to go on.
    let output = broker.cli(&[
        "sub",
        "t",
        "--from",
        "start",
        "--exit-at-end",
        "-f",
        "%v\\n",
    ])?;
    assert!(!output.status.success(), "the end was not reached");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "before\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("behind begins at offset 2"), "{said}");
    broker.ok_with("pub t", b"new\n")?;
    assert_eq!(broker.ok("sub t --from 3 --count 1 -f %v\\n")?, "new\n");
    Ok(())
}

/// A WAL file that lost its end below what was durable: said, not silently taken for the end.
#[test]
fn a_truncated_file_is_not_taken_for_the_end() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 1")
        .start()?;
    broker.ok("topic create t --partitions 1")?;
    for i in 0..20 {
        broker.ok_with("pub t", format!("record {i}\n").as_bytes())?;
    }
    let data = broker.stop()?;
    truncate(&wal_files(&data, 0)?[0], 16 << 10)?;
    let verify = Command::new(binary())
        .args(["log", "verify"])
        .arg(&data)
        .output()?;
    assert!(
        !verify.status.success(),
        "verify finds the truncation: {verify:?}"
    );
    let mut broker = Options::on(&data).spawn()?;
    // Either it serves read-only and says so, or it refuses to start and says so: never silence.
    let ready = broker.wait_ready();
    let log = broker.log();
    assert!(log.contains("wal-"), "the file is named: {log}");
    if ready.is_ok() {
        let output = broker.cli_with(&["pub", "t"], b"x\n")?;
        assert!(
            !output.status.success() || log.to_lowercase().contains("damage"),
            "{output:?}\n{log}"
        );
    }
    Ok(())
}

/// A missing WAL file is missed.
#[test]
fn a_missing_file_is_missed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let broker = Options::on(&data)
        .with("--shards 1")
        .setting("LOG__SEGMENT_BYTES", "16777216")
        .start()?;
    broker.ok("topic create t --partitions 1")?;
    let line = "x".repeat(1_000) + "\n";
    broker.ok_with("pub t", line.repeat(60_000).as_bytes())?;
    let data = broker.kill()?;
    let files = wal_files(&data, 0)?;
    assert!(files.len() >= 3, "several files: {files:?}");
    let missing = &files[files.len() / 2];
    std::fs::remove_file(missing)?;
    let verify = Command::new(binary())
        .args(["log", "verify"])
        .arg(&data)
        .output()?;
    assert!(
        !verify.status.success(),
        "verify misses the file: {verify:?}"
    );
    let mut broker = Options::on(&data).spawn()?;
    if broker.wait_ready().is_ok() {
        let output = broker.cli(&[
            "sub", "t", "--from", "start", "--count", "60000", "-f", "%o\\n",
        ])?;
        assert!(!output.status.success(), "the hole is not skipped silently");
    }
    let name = missing
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let log = broker.log().to_lowercase();
    assert!(
        log.contains(&name) || log.contains("missing"),
        "it is named: {log}"
    );
    Ok(())
}

/// A shard whose log has a hole does not know what came after: nothing takes its end for the end, and
/// whoever wanted all is told that it did not get it.
#[test]
fn what_lies_behind_a_hole_is_not_taken_for_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 2")
        .start()?;
    broker.ok("topic create t --partitions 2")?;
    let shards = broker.json("topic describe t")?;
    let holed = (0..2usize)
        .find(|at| shards["partitions"][*at]["shard"] == 1)
        .expect("one of two partitions is on shard 1");
    for partition in 0..2 {
        for word in ["before", "needle-in-the-middle", "after", "last"] {
            let line = format!("{word}\n");
            broker.ok_with(&format!("pub t --partition {partition}"), line.as_bytes())?;
        }
    }
    broker.ok("sub t --group g --count 2 --exit-at-end")?;
    let data = broker.kill()?;
    zero_around(&wal_files(&data, 1)?[0], b"needle-in-the-middle")?;

    let verify = Command::new(binary())
        .args(["log", "verify", "-o", "json"])
        .arg(&data)
        .output()?;
    let said: serde_json::Value = serde_json::from_slice(&verify.stdout)?;
    assert!(!verify.status.success() && said["ok"] == false, "{said}");
    assert!(said["shards"][1]["read_only"].is_string(), "{said}");

    // It serves, and is not ready: a shard takes no writes.
    let broker = Options::on(data).spawn()?;
    eventually("it serves", || {
        Ok::<_, anyhow::Error>(broker.log().contains(" serving "))
    })?;
    // A group needs its home.
    let healthy = (0..)
        .map(|n| format!("new-{n}"))
        .find(|group| group_home(group, 2) == ShardId(0))
        .expect("names enough");
    for arguments in ["--verify", "", &format!("--group {healthy}")] {
        let line = format!("sub t --from start --exit-at-end -f %v\\n {arguments}");
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = broker.cli(&words)?;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        assert_eq!(output.status.code(), Some(1), "{line}: {out}{err}");
        assert!(err.contains("READ_ONLY"), "{line}: {err}");
        // What can be read is: all of the healthy shard, the other's up to the hole.
        assert_eq!(out.matches("last").count(), 1, "{line}: {out}");
        // A group's claim is a write: nothing of the other is read.
        let befores = if arguments.starts_with("--group") {
            1
        } else {
            2
        };
        assert_eq!(out.matches("before").count(), befores, "{line}: {out}");
    }
    let topic = broker.cli(&["topic", "describe", "t", "-o", "json"])?;
    assert_eq!(topic.status.code(), Some(1));
    let topic: serde_json::Value = serde_json::from_slice(&topic.stdout)?;
    assert!(topic["partitions"][holed]["error"].is_string(), "{topic}");
    assert!(topic["partitions"][1 - holed]["error"].is_null(), "{topic}");
    let group = broker.cli(&["group", "describe", "g", "-o", "json"])?;
    assert_eq!(group.status.code(), Some(1));
    let group: serde_json::Value = serde_json::from_slice(&group.stdout)?;
    assert!(group["lag"].is_null(), "{group}");
    assert!(group["offsets"][holed]["lag"].is_null(), "{group}");
    assert!(group["offsets"][1 - holed]["lag"].is_u64(), "{group}");
    let groups = broker.cli(&["group", "list", "-o", "json"])?;
    assert_eq!(groups.status.code(), Some(1), "{groups:?}");
    let groups = json_lines(std::str::from_utf8(&groups.stdout)?)?;
    let known = groups.iter().filter(|row| row["group"] == "g");
    let known: Vec<_> = known.collect();
    assert_eq!(known.len(), 1, "{groups:?}");
    assert!(known[0]["lag"].is_null(), "{groups:?}");
    Ok(())
}

/// A shard's directory that is gone is not a new shard.
#[test]
fn a_missing_shard_is_missed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 2")
        .start()?;
    let data = broker.stop()?;
    std::fs::remove_dir_all(data.join("shard-1"))?;
    let verify = Command::new(binary())
        .args(["log", "verify"])
        .arg(&data)
        .output()?;
    assert!(!verify.status.success(), "{verify:?}");
    let mut broker = Options::on(&data).spawn()?;
    assert!(broker.wait_ready().is_err(), "it does not start");
    assert!(
        broker.log().contains("shard-1 is missing"),
        "{}",
        broker.log()
    );
    Ok(())
}

/// A directory that was closed in good order has no damage, however many shards there are; nor has a copy of
/// one of them. A shard that stands in another's place is not what a start takes.
#[test]
fn a_whole_directory_is_found_whole() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 2")
        .start()?;
    broker.ok("topic create t --partitions 2")?;
    broker.ok_with("pub t", b"a\nb\n")?;
    let data = broker.stop()?;
    let verify = |path: &std::path::Path| {
        Command::new(binary())
            .args(["log", "verify"])
            .arg(path)
            .output()
    };
    let whole = verify(&data)?;
    assert!(whole.status.success(), "{whole:?}");
    let copy = dir.path().join("copy");
    std::fs::rename(data.join("shard-1"), &copy)?;
    let alone = verify(&copy)?;
    assert!(alone.status.success(), "{alone:?}");
    std::fs::rename(data.join("shard-0"), data.join("shard-1"))?;
    std::fs::rename(&copy, data.join("shard-0"))?;
    let mixed = verify(&data)?;
    assert!(!mixed.status.success(), "{mixed:?}");
    Ok(())
}
