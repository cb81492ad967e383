//! Damaged, truncated and missing files: a clear word each, the healthy rest served, nothing dropped silently.

use std::collections::BTreeSet;
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
    // It is counted once by who met it, however often it is read.
    let damaged = || -> Result<String> {
        let (_, metrics) = broker.http("/metrics")?;
        let sample = |line: &&str| line.starts_with("millstream_shard_damaged_ranges{");
        Ok(metrics.lines().find(sample).expect("a sample").to_owned())
    };
    let once = damaged()?;
    assert!(!once.ends_with(" 0"), "{once}");
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
/// whoever wanted all is told that it did not get it. With the only shard that is the whole broker.
#[test]
fn what_lies_behind_a_hole_is_not_taken_for_nothing() -> Result<()> {
    for shards in [1, 3] {
        a_hole_is_told(shards)?;
    }
    Ok(())
}

fn a_hole_is_told(shards: u16) -> Result<()> {
    const PARTITIONS: usize = 4;
    let holed_shard = shards / 2;
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with(&format!("--shards {shards}"))
        .start()?;
    broker.ok(&format!("topic create t --partitions {PARTITIONS}"))?;
    let described = broker.json("topic describe t")?;
    let (holed, whole): (Vec<usize>, Vec<usize>) =
        (0..PARTITIONS).partition(|at| described["partitions"][*at]["shard"] == holed_shard);
    assert!(!holed.is_empty(), "{described}");
    for word in ["before", "needle-in-the-middle", "after", "last"] {
        for partition in 0..PARTITIONS {
            let line = format!("{word}\n");
            broker.ok_with(&format!("pub t --partition {partition}"), line.as_bytes())?;
        }
    }
    broker.ok("sub t --group g --count 2 --exit-at-end")?;
    let data = broker.kill()?;
    let first = &wal_files(&data, holed_shard)?[0];
    zero_around(first, b"needle-in-the-middle")?;

    let verify = Command::new(binary())
        .args(["log", "verify", "-o", "json"])
        .arg(&data)
        .output()?;
    let said: serde_json::Value = serde_json::from_slice(&verify.stdout)?;
    assert!(!verify.status.success() && said["ok"] == false, "{said}");
    let of_shard = &said["shards"][usize::from(holed_shard)];
    assert!(of_shard["read_only"].is_string(), "{said}");

    // It serves, and is not ready: a shard takes no writes.
    let broker = Options::on(data).spawn()?;
    eventually("it serves", || {
        Ok::<_, anyhow::Error>(broker.log().contains(" serving "))
    })?;
    let (_, metrics) = broker.http("/metrics")?;
    for shard in 0..shards {
        let stopped = u8::from(shard == holed_shard);
        let sample = format!("millstream_shard_stopped{{shard=\"{shard}\"}} {stopped}\n");
        assert!(metrics.contains(&sample), "{sample}: {metrics}");
    }
    let places = |words: &str| -> BTreeSet<String> {
        let lines = words.lines().map(str::to_owned);
        lines.collect()
    };
    let with = |word: &str, partitions: &[usize]| -> BTreeSet<String> {
        partitions.iter().map(|at| format!("{at}{word}")).collect()
    };
    for arguments in ["--verify", ""] {
        let line = format!("sub t --from start --exit-at-end -f %p%v\\n {arguments}");
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = broker.cli(&words)?;
        let read = places(&String::from_utf8_lossy(&output.stdout));
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            output.status.code(),
            Some(1),
            "{shards}, {line}: {read:?}{err}"
        );
        assert!(err.contains("READ_ONLY"), "{shards}, {line}: {err}");
        // What can be read is: all of the healthy shards, the other's up to the hole.
        let all: Vec<usize> = (0..PARTITIONS).collect();
        assert!(read.is_superset(&with("before", &all)), "{line}: {read:?}");
        assert!(read.is_superset(&with("last", &whole)), "{line}: {read:?}");
        assert!(read.is_disjoint(&with("last", &holed)), "{line}: {read:?}");
    }
    // One that cannot follow the catalogue refuses nobody a change of it.
    if holed_shard != 0 {
        broker.ok("topic create later --partitions 1")?;
        broker.ok("topic config t --set retention.ms=5d")?;
    }
    // A group needs its home, which is on a healthy shard if there is one.
    let healthy = (0..)
        .map(|n| format!("new-{n}"))
        .find(|group| shards == 1 || group_home(group, shards) != ShardId(holed_shard))
        .expect("names enough");
    let member = || {
        let words = [
            "sub",
            "t",
            "--from",
            "start",
            "--exit-at-end",
            "--group",
            &healthy,
        ];
        let mut command = broker.command(&words);
        command.args(["-f", "%p%v\\n"]).spawn()
    };
    // Two at once, each to its end, and one that comes after them: a member that had only the holed one may
    // end before it is given more.
    let (mut read, mut codes, mut said) = (BTreeSet::new(), Vec::new(), String::new());
    for count in [2, 1] {
        let members: Vec<_> = (0..count).map(|_| member()).collect::<Result<_, _>>()?;
        for member in members {
            let output = member.wait_with_output()?;
            read.extend(places(&String::from_utf8_lossy(&output.stdout)));
            said.push_str(&String::from_utf8_lossy(&output.stderr));
            codes.push(output.status.code());
        }
    }
    assert!(codes[..2].contains(&Some(1)), "{shards}: {codes:?} {said}");
    assert_eq!(codes[2], Some(1), "{shards}: {said}");
    assert!(said.contains("READ_ONLY"), "{shards}: {said}");
    // A claim is a write: nothing of the holed shard is read, and all of the others.
    assert!(read.is_superset(&with("last", &whole)), "{read:?} {said}");
    assert!(read.is_disjoint(&with("before", &holed)), "{read:?}");

    let failed = |line: &str| -> Result<Vec<serde_json::Value>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = broker.cli(&words)?;
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{shards}, {line}: {err}");
        assert!(err.contains("read-only"), "{shards}, {line}: {err}");
        // Who can say nothing at all says only why.
        json_lines(std::str::from_utf8(&output.stdout)?)
    };
    let one = |line: &str| -> Result<serde_json::Value> {
        let said = failed(line)?;
        assert!(
            said.len() == 1 || shards == 1 && said.is_empty(),
            "{said:?}"
        );
        Ok(said.into_iter().next().unwrap_or_default())
    };
    let topic = one("topic describe t -o json")?;
    let group = one("group describe g -o json")?;
    let groups = failed("group list -o json")?;
    assert!(group["lag"].is_null(), "{group}");
    if shards > 1 {
        for &at in &holed {
            assert!(topic["partitions"][at]["error"].is_string(), "{topic}");
            assert!(group["offsets"][at]["lag"].is_null(), "{group}");
        }
        for &at in &whole {
            assert!(topic["partitions"][at]["error"].is_null(), "{topic}");
            assert!(group["offsets"][at]["lag"].is_u64(), "{group}");
        }
        let known = groups.iter().filter(|row| row["group"] == "g");
        let known: Vec<_> = known.collect();
        assert_eq!(known.len(), 1, "{groups:?}");
        assert!(known[0]["lag"].is_null(), "{groups:?}");
    }
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
