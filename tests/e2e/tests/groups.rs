//! Consumer groups through the real binary: sharing, resuming, moving, describing, resetting.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Output;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use millstream_client::{Client, Consumer, ConsumerEvent, Context};
use millstream_e2e::{Broker, Options, bundled, eventually, json_lines};

/// A group goes on where it committed, also after the broker was killed.
#[test]
fn a_group_resumes_where_it_committed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 2")?;
    let input: String = (0..100).map(|i| format!("{i}\n")).collect();
    broker.ok_with("pub t", input.as_bytes())?;
    let first = json_lines(&broker.ok("sub t --group g --from start --count 60 -o json")?)?;
    let broker = Options::on(broker.kill()?).start()?;
    let rest = json_lines(&broker.ok("sub t --group g --from start --count 40 -o json")?)?;
    let values: BTreeSet<u64> = first
        .iter()
        .chain(&rest)
        .filter_map(|r| r["value"].as_str()?.parse().ok())
        .collect();
    assert_eq!(values.len(), 100, "no record twice, none lost");
    let group = broker.json("group describe g")?;
    let lag: u64 = group["offsets"]
        .as_array()
        .expect("offsets")
        .iter()
        .filter_map(|o| o["lag"].as_u64())
        .sum();
    assert_eq!(lag, 0, "{group}");
    Ok(())
}

/// Two members share the partitions; when one dies, the other gets what it had.
#[test]
fn members_share_and_take_over() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 4")?;
    let member = || {
        broker
            .command(&[
                "sub", "t", "--group", "g", "--from", "start", "-f", "%p %v\\n",
            ])
            .spawn()
    };
    let mut first = member()?;
    let held = |members: usize| {
        // Before the first member has joined there is no group.
        let Ok(group) = broker.json("group describe g") else {
            return Ok(false);
        };
        let members_now = group["members"].as_array().cloned().unwrap_or_default();
        let each: Vec<usize> = members_now
            .iter()
            .map(|m| m["partitions"].as_array().map_or(0, Vec::len))
            .collect();
        Ok::<_, anyhow::Error>(
            each.len() == members
                && each.iter().sum::<usize>() == 4
                && each.iter().all(|n| *n == 4 / members),
        )
    };
    eventually("the first member owns all four", || held(1))?;
    let mut second = member()?;
    eventually("each owns two", || held(2))?;
    let input: String = (0..40).map(|i| format!("k{i}:{i}\n")).collect();
    broker.ok_with("pub t --key-separator :", input.as_bytes())?;
    first.kill()?;
    first.wait()?;
    eventually("the second owns all four", || held(1))?;
    let mut seen: BTreeSet<u64> = BTreeSet::new();
    let mut lines = BufReader::new(first.stdout.take().expect("piped")).lines();
    while let Some(Ok(line)) = lines.next() {
        seen.extend(line.split(' ').nth(1).and_then(|v| v.parse::<u64>().ok()));
    }
    let mut lines = BufReader::new(second.stdout.take().expect("piped")).lines();
    while seen.len() < 40 {
        let line = lines.next().expect("the second member goes on")?;
        seen.extend(line.split(' ').nth(1).and_then(|v| v.parse::<u64>().ok()));
    }
    second.kill()?;
    second.wait()?;
    Ok(())
}

/// An operator sets a group back; a running group is refused.
#[test]
fn a_group_is_reset_by_command() -> Result<()> {
    for shards in ["1", "3"] {
        let dir = tempfile::tempdir()?;
        let broker = Options::on(dir.path().join("data"))
            .with(&format!("--shards {shards}"))
            .start()?;
        broker.ok("topic create t --partitions 3")?;
        for partition in 0..3 {
            broker.ok_with(&format!("pub t --partition {partition}"), b"a\nb\nc\n")?;
        }
        broker.ok("sub t --group g --from start --count 9")?;
        broker.ok("group reset g --topic t --partition 1 --to start")?;
        // What the members say of where to begin is of no meaning any more.
        let again = broker.ok("sub t --group g --from end --exit-at-end -f %p%v\\n")?;
        assert_eq!(again, "1a\n1b\n1c\n", "{shards} shards");
        let groups = broker.list("group list")?;
        assert!(groups.to_string().contains("\"g\""), "{groups}");
        // A name that was mistyped is no new group.
        let words = ["group", "reset", "G", "--topic", "t", "--to", "start"];
        let mistyped = broker.cli(&words)?;
        let told = String::from_utf8_lossy(&mistyped.stderr).into_owned();
        assert_eq!(mistyped.status.code(), Some(1), "{told}");
        for words in ["UNKNOWN_GROUP", "is `g` meant?", "--create"] {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert_eq!(broker.list("group list")?.as_array().map(Vec::len), Some(1));
        let words = ["group", "reset", "g", "--topic", "t", "--to", "99"];
        let told = broker.cli(&words)?;
        let told = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(told.contains("99 is outside of what is kept"), "{told}");
    }
    Ok(())
}

/// With a group, only its own end bounds what its members read.
#[test]
fn a_group_takes_no_until_but_the_end() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 2")?;
    broker.ok_with("pub t", b"a\nb\n")?;
    for until in ["1", "@1700000000000"] {
        let words = ["sub", "t", "--group", "g", "--until", until];
        let output = broker.cli(&words)?;
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains("--group"), "{told}");
    }
    let all = broker.ok("sub t --group g --until end -f %v\\n")?;
    let mut all: Vec<&str> = all.lines().collect();
    all.sort_unstable();
    assert_eq!(all, ["a", "b"]);
    Ok(())
}

/// A group whose filter drops nearly all of a topic is behind by what is new, and reads nothing twice.
#[test]
fn what_a_groups_filter_drops_is_committed() -> Result<()> {
    for shards in ["1", "3"] {
        let dir = tempfile::tempdir()?;
        let broker = Options::on(dir.path().join("data"))
            .with(&format!("--shards {shards}"))
            .start()?;
        broker.ok("topic create t --partitions 4")?;
        let component = bundled("json-filter");
        let component = component.display();
        broker.ok(&format!(
            "plugin deploy {component} --topic t --stage subscribe --name few --param expr=n==777"
        ))?;
        let input: String = (0..20_000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
        broker.ok_with("pub t", input.as_bytes())?;
        let once = two_members_to_the_end(&broker, "t")?;
        assert_eq!(once, BTreeSet::from(["{\"n\":777}".to_owned()]));
        let group = broker.json("group describe g")?;
        assert_eq!(group["lag"], 0, "{shards} shards: {group}");
        let again = two_members_to_the_end(&broker, "t")?;
        assert!(again.is_empty(), "{shards} shards: {again:?}");
    }
    Ok(())
}

/// The different records that two members of `g` read together, each to its end, in order.
fn two_members_to_the_end(broker: &Broker, topic: &str) -> Result<BTreeSet<String>> {
    let words = ["sub", topic, "--group", "g", "--exit-at-end", "-f", "%v\\n"];
    let member = || broker.command(&words).spawn();
    let members = [member()?, member()?];
    let mut seen = BTreeSet::new();
    for member in members {
        let output = member.wait_with_output()?;
        assert!(output.status.success(), "{output:?}");
        seen.extend(String::from_utf8(output.stdout)?.lines().map(str::to_owned));
    }
    Ok(seen)
}

/// Two members of a topic on several shards, each to its end: together they read all, and commit it.
#[test]
fn members_that_exit_at_the_end_leave_nothing() -> Result<()> {
    for shards in ["1", "3"] {
        let dir = tempfile::tempdir()?;
        let broker = Options::on(dir.path().join("data"))
            .with(&format!("--shards {shards}"))
            .start()?;
        broker.ok("topic create t --partitions 5")?;
        let input: String = (0..500).map(|i| format!("k{i}:{i}\n")).collect();
        broker.ok_with("pub t --key-separator :", input.as_bytes())?;
        let seen = two_members_to_the_end(&broker, "t")?;
        assert_eq!(seen.len(), 500, "{shards} shards");
        let group = broker.json("group describe g")?;
        assert_eq!(group["lag"], 0, "{group}");
    }
    Ok(())
}

/// A member to whom two others have yet to let go one partition each is not through with the first of them.
#[test]
fn a_member_that_exits_at_the_end_reads_what_others_have_yet_to_let_go() -> Result<()> {
    for shards in ["1", "3"] {
        let dir = tempfile::tempdir()?;
        let broker = Options::on(dir.path().join("data"))
            .with(&format!("--shards {shards}"))
            .start()?;
        broker.ok("topic create t --partitions 6")?;
        for partition in 0..6 {
            broker.ok_with(&format!("pub t --partition {partition}"), b"a\nb\n")?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let output = runtime.block_on(to_the_end_beside_two(Arc::new(broker)))?;
        assert!(output.status.success(), "{output:?}");
        let read = String::from_utf8(output.stdout)?;
        assert_eq!(read, "a\nb\na\nb\n", "{shards} shards");
    }
    Ok(())
}

/// What a member reads to the end that joins two others, of whom one lets go late.
async fn to_the_end_beside_two(broker: Arc<Broker>) -> Result<Output> {
    let client = Client::connect(Context::load(broker.context())?).await?;
    let member = || client.consumer().group("g").topic("t").auto_commit(None);
    let (mut one, mut other) = (member().build().await?, member().build().await?);
    while one.assignment().len() != 3 || other.assignment().len() != 3 {
        let event = tokio::select! {
            event = one.next_event() => event,
            event = other.next_event() => event,
        };
        event.context("a member ended")??;
    }
    let third = broker
        .command(&["sub", "t", "--group", "g", "--exit-at-end"])
        .spawn()?;
    asked_back(&mut one).await?;
    asked_back(&mut other).await?;
    // A partition is let go when its reader comes back for more.
    tokio::spawn(async move { while one.next_event().await.is_some() {} });
    let asked = Arc::clone(&broker);
    let read_and_committed = move || {
        let group = asked.json("group describe g")?;
        let offsets = group["offsets"].as_array().cloned().unwrap_or_default();
        let committed = offsets.iter().filter_map(|o| o["committed"].as_u64());
        Ok(committed.sum::<u64>() == 2)
    };
    tokio::task::spawn_blocking(|| eventually("the first is read", read_and_committed)).await??;
    tokio::spawn(async move { while other.next_event().await.is_some() {} });
    Ok(tokio::task::spawn_blocking(|| third.wait_with_output()).await??)
}

async fn asked_back(member: &mut Consumer) -> Result<()> {
    while let Some(event) = member.next_event().await {
        if let ConsumerEvent::Revoking(partitions) = event? {
            assert_eq!(partitions.len(), 1);
            return Ok(());
        }
    }
    anyhow::bail!("a member ended")
}

/// Records that retention took before a group read them: it fails with their number, once; told to, it goes
/// on. Without a group that is the default.
#[test]
fn lost_records_are_told_with_their_number() -> Result<()> {
    for shards in ["1", "3"] {
        let dir = tempfile::tempdir()?;
        let broker = Options::on(dir.path().join("data"))
            .with(&format!("--shards {shards}"))
            .setting("LOG__SEGMENT_BYTES", "16777216")
            .start()?;
        broker.ok("topic create t --partitions 1 --config retention.bytes=1000000")?;
        broker.ok_with("pub t", b"first\n")?;
        broker.ok("sub t --group g --from start --count 1")?;
        let line = "x".repeat(1_000) + "\n";
        let start = || -> Result<u64> {
            let topic = broker.json("topic describe t")?;
            Ok(topic["partitions"][0]["start_offset"].as_u64().unwrap_or(0))
        };
        eventually("retention takes what the group did not read", || {
            broker.ok_with("pub t", line.repeat(20_000).as_bytes())?;
            Ok::<_, anyhow::Error>(start()? > 1)
        })?;
        let start = start()?;
        let lost = format!("{} records (offsets 1 to {})", start - 1, start - 1);
        let said = |line: &str| -> Result<(Option<i32>, String)> {
            let words: Vec<&str> = line.split_whitespace().collect();
            let output = broker.cli(&words)?;
            Ok((output.status.code(), String::from_utf8(output.stderr)?))
        };
        let (code, err) = said("sub t --group g --count 1")?;
        assert_eq!(code, Some(1), "{err}");
        assert_eq!(err.matches(&lost).count(), 1, "{lost}: {err}");
        assert!(
            err.contains("RECORDS_LOST") && err.contains("--on-lost"),
            "{err}"
        );
        // Failing has changed nothing.
        let (code, err) = said("sub t --group g --count 1 --on-lost oldest")?;
        assert_eq!(code, Some(0), "{err}");
        assert_eq!(err.matches(&lost).count(), 1, "{lost}: {err}");
        let group = broker.json("group describe g")?;
        assert_eq!(group["offsets"][0]["committed"], start + 1, "{group}");

        let (code, err) = said("sub t --from 1 --count 1")?;
        assert_eq!((code, err.matches(&lost).count()), (Some(0), 1), "{err}");
        let (code, err) = said("sub t --from 1 --count 1 --verify")?;
        assert_eq!((code, err.matches(&lost).count()), (Some(1), 1), "{err}");
        let (code, err) = said("sub t --from 1 --count 1 --on-lost fail")?;
        assert_eq!((code, err.matches(&lost).count()), (Some(1), 1), "{err}");
    }
    Ok(())
}

/// From a time on means from the first record of that time, wherever it is in its batch.
#[test]
fn from_a_time_begins_with_its_record() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 1")?;
    let input: String = (0..100)
        .map(|n| format!("{{\"value\":\"{n}\",\"timestamp\":{}}}\n", 1_000 + n))
        .collect();
    broker.ok_with("pub t --json", input.as_bytes())?;
    let read = broker.ok("sub t --from @1090 --exit-at-end -f %v\\n")?;
    let expected: String = (90..100).map(|n| format!("{n}\n")).collect();
    assert_eq!(read, expected);
    Ok(())
}

/// A group's place is taken over from another's, or from a file; a dry run changes nothing.
#[test]
fn a_group_is_reset_to_another_groups_place_and_from_a_file() -> Result<()> {
    for shards in ["1", "3"] {
        let dir = tempfile::tempdir()?;
        let broker = Options::on(dir.path().join("data"))
            .with(&format!("--shards {shards}"))
            .start()?;
        broker.ok("topic create t --partitions 2")?;
        broker.ok("topic create u --partitions 1")?;
        for topic in ["t", "u"] {
            let input: String = (0..40).map(|i| format!("{i}\n")).collect();
            broker.ok_with(&format!("pub {topic}"), input.as_bytes())?;
        }
        let mut read_by_old = BTreeSet::new();
        for topic in ["t", "u"] {
            let read = broker.ok(&format!("sub {topic} --group old --count 10 -f %v\\n"))?;
            if topic == "t" {
                read_by_old.extend(read.lines().map(str::to_owned));
            }
        }
        let committed = |group: &str| -> Result<Vec<(String, u64, Option<u64>)>> {
            let described = broker.json(&format!("group describe {group}"))?;
            let rows = described["offsets"].as_array().expect("offsets").clone();
            let row = |row: &serde_json::Value| {
                let topic = row["topic"].as_str().unwrap_or_default().to_owned();
                let partition = row["partition"].as_u64().unwrap_or(99);
                (topic, partition, row["committed"].as_u64())
            };
            Ok(rows.iter().map(row).collect())
        };
        let old = committed("old")?;
        assert_eq!(old.len(), 3);
        let dry = broker.json("group reset new --topic t --to-group old --create --dry-run")?;
        assert_eq!(
            (
                dry["dry_run"].as_bool(),
                dry["offsets"].as_array().map(Vec::len)
            ),
            (Some(true), Some(2))
        );
        assert!(
            broker.json("group describe new").is_err(),
            "nothing was changed"
        );
        broker.ok("group reset new --topic t --to-group old --create")?;
        assert_eq!(committed("new")?, old[..2], "of that topic");
        // Its members go on from there: what the other group had not read, all of it and nothing else.
        broker.ok("group reset g --topic t --to-group old --create")?;
        let mut rest = two_members_to_the_end(&broker, "t")?;
        let between = broker.ok("sub t --group g --exit-at-end -f %v\\n")?;
        rest.extend(between.lines().map(str::to_owned));
        let is_rest = rest.len() == 30 && rest.is_disjoint(&read_by_old);
        assert!(is_rest, "{shards} shards: {rest:?}");

        // What describe prints is a file to go back to.
        let file = dir.path().join("places.json");
        std::fs::write(&file, broker.ok("group describe old -o json")?)?;
        let file = file.to_str().expect("a path");
        broker.ok("group reset old --topic t --to end")?;
        broker.ok("group reset old --topic u --to end")?;
        assert_ne!(committed("old")?, old);
        broker.ok(&format!("group reset old --from-file {file}"))?;
        assert_eq!(committed("old")?, old);
        broker.ok_with("group reset old --from-file -", b"u 0 3\nt 1 0\n")?;
        let now = committed("old")?;
        assert_eq!((&now[0], now[1].2, now[2].2), (&old[0], Some(0), Some(3)));
        let output = broker.cli_with(&["group", "reset", "old", "--from-file", "-"], b"u 0\n")?;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    Ok(())
}

/// Watching a group says again and again what it is, until it is asked to stop.
#[test]
fn a_group_is_watched() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 1")?;
    broker.ok_with("pub t", b"a\nb\n")?;
    broker.ok("sub t --group g --count 1 --from start")?;
    let words = ["group", "describe", "g", "--watch", "10ms", "-o", "json"];
    let mut watch = broker.command(&words).spawn()?;
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    let mut lag = || -> Result<Option<u64>> {
        let line = lines.next().expect("another look")?;
        Ok(serde_json::from_str::<serde_json::Value>(&line)?["lag"].as_u64())
    };
    assert_eq!(lag()?, Some(1));
    broker.ok("sub t --group g --count 1")?;
    while lag()? != Some(0) {}
    millstream_e2e::send_signal(watch.id(), libc::SIGINT);
    assert!(watch.wait()?.success());
    Ok(())
}

/// A running group is set back by force: its member prints again from there, and its commits hold. A
/// group that is deleted by force ends its member, who says so.
#[test]
fn a_running_group_is_reset_and_deleted_by_force() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 1")?;
    broker.ok_with("pub t", b"a\nb\nc\n")?;
    let mut member = broker
        .command(&["sub", "t", "--group", "g", "--client-id", "reader-1"])
        .spawn()?;
    let mut lines = BufReader::new(member.stdout.take().expect("piped")).lines();
    let mut next = |count: usize| -> Result<Vec<String>> {
        let lines = (0..count).map(|_| Ok(lines.next().expect("the member goes on")?));
        lines.collect()
    };
    assert_eq!(next(3)?, ["a", "b", "c"]);
    let committed = |offset: u64| {
        let group = broker.json("group describe g")?;
        Ok(group["offsets"][0]["committed"].as_u64() == Some(offset))
    };
    eventually("what was printed is committed", || committed(3))?;
    let group = broker.json("group describe g")?;
    assert_eq!(group["members"][0]["client"], "reader-1", "{group}");
    assert!(group["members"][0]["address"].is_string(), "{group}");
    broker.ok("group reset g --topic t --to 1 --dry-run")?;
    assert!(broker.ok("group reset g --topic t --to 1").is_err());
    broker.ok("group reset g --topic t --to 1 --force")?;
    assert_eq!(next(2)?, ["b", "c"], "again, from the reset");
    broker.ok_with("pub t", b"d\n")?;
    assert_eq!(next(1)?, ["d"]);
    eventually("and that is committed too", || committed(4))?;
    let groups = broker.list("group list")?;
    assert_eq!(groups[0]["state"], "stable", "{groups}");
    assert_eq!(
        (groups[0]["members"].as_u64(), groups[0]["lag"].as_u64()),
        (Some(1), Some(0))
    );
    assert!(broker.ok("group delete g").is_err(), "it has a member");
    broker.ok("group delete g --force")?;
    let mut told = String::new();
    member
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut told)?;
    assert_eq!(member.wait()?.code(), Some(1), "it fails: {told}");
    assert!(
        told.contains("group `g` was deleted"),
        "and is told: {told}"
    );
    assert_eq!(broker.list("group list")?, serde_json::json!([]));
    Ok(())
}
