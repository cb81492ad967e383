//! Consumer groups through the real binary: sharing, resuming, moving, describing, resetting.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};

use anyhow::Result;
use millstream_e2e::{Options, eventually, json_lines};

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
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 1")?;
    broker.ok_with("pub t", b"a\nb\nc\n")?;
    broker.ok("sub t --group g --from start --count 3")?;
    broker.ok("group reset g --topic t --to start")?;
    let again = broker.ok("sub t --group g --from end --count 3 -f %v\\n")?;
    assert_eq!(again, "a\nb\nc\n");
    let groups = broker.json("group list")?;
    assert!(groups.to_string().contains("\"g\""), "{groups}");
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
    let groups = broker.json("group list")?;
    assert_eq!(groups[0]["state"], "stable", "{groups}");
    assert_eq!(
        (groups[0]["members"].as_u64(), groups[0]["lag"].as_u64()),
        (Some(1), Some(0))
    );
    assert!(broker.ok("group delete g").is_err(), "it has a member");
    broker.ok("group delete g --force")?;
    assert_eq!(member.wait()?.code(), Some(1), "it is told, and fails");
    assert_eq!(broker.json("group list")?, serde_json::json!([]));
    Ok(())
}
