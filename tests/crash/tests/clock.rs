//! A start whose wall clock is far from what was logged: it serves, says so everywhere, deletes nothing, and
//! takes the clock when it is told to.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use millstream_crash::past::{self, Topic};
use millstream_e2e::{Broker, Options, binary, eventually};

const DAY_MS: i64 = 24 * 3_600_000;
/// What retention takes at once, once it may.
const GOES: Topic = Topic {
    name: "goes",
    retention_ms: 1_000,
    records: 20,
};
const STAYS: Topic = Topic {
    name: "stays",
    retention_ms: -1,
    records: 3,
};

fn wall_ms() -> Result<i64> {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(i64::try_from(passed.as_millis())?)
}

/// A broker whose log was written under a wall clock that was `ahead_ms` ahead of ours.
fn start_after(dir: &tempfile::TempDir, ahead_ms: i64) -> Result<Broker> {
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 1")
        .start()?;
    let data = broker.stop()?;
    past::write(&data, wall_ms()? + ahead_ms, &[GOES, STAYS])?;
    Options::on(data)
        .setting("LOG__RETENTION_CHECK_MS", "10")
        .start()
}

fn start_offset(broker: &Broker, topic: &str) -> Result<u64> {
    let topic = broker.json(&format!("topic describe {topic}"))?;
    let start = topic["partitions"][0]["start_offset"].as_u64();
    start.context("a start offset")
}

fn doubted(broker: &Broker) -> Result<bool> {
    let (_, metrics) = broker.http("/metrics")?;
    let mut samples = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("millstream_clock_doubted{shard=\"0\"} "));
    Ok(samples.next().context("the metric is there")? == "1")
}

fn values(broker: &Broker, topic: &str) -> Result<Vec<String>> {
    let read = broker.ok(&format!("sub {topic} --from start --exit-at-end -f %v\\n"))?;
    Ok(read.lines().map(str::to_owned).collect())
}

/// It serves, everything that tells says `words`, and what retention would take is there still after many
/// of its rounds.
fn rests(broker: &Broker, words: &str) -> Result<()> {
    assert!(broker.log().contains(words), "{words}: {}", broker.log());
    assert!(broker.log().contains("millstream clock accept"));
    let (status, body) = broker.http("/readyz")?;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains(words), "{body}");
    assert!(doubted(broker)?);
    let doctor = broker.cli(&["doctor"])?;
    let said = String::from_utf8_lossy(&doctor.stdout);
    assert!(said.contains(words), "{said}");
    for number in 0..20 {
        broker.ok_with("pub stays", format!("new-{number}\n").as_bytes())?;
        broker.ok_with("pub goes", b"new\n")?;
    }
    assert_eq!(start_offset(broker, "goes")?, 0);
    assert_eq!(values(broker, "goes")?.len() as u64, GOES.records + 20);
    Ok(())
}

/// The clock is accepted: nothing says anything else, retention goes on, and what is to stay stays.
fn goes_on(broker: &Broker) -> Result<()> {
    let before = wall_ms()?;
    let accepted = broker.json("clock accept")?;
    let accepted = accepted["time_ms"].as_i64().context("the time")?;
    assert!((before..=wall_ms()?).contains(&accepted), "{accepted}");
    assert!(!doubted(broker)?);
    assert_eq!(broker.http("/readyz")?, (200, "ready\n".to_owned()));
    let was = GOES.records + 20;
    eventually("retention takes what is old by the accepted clock", || {
        Ok(start_offset(broker, "goes")? == was)
    })?;
    broker.ok_with("pub stays", b"last\n")?;
    let stays = values(broker, "stays")?;
    assert_eq!(stays.len() as u64, STAYS.records + 21, "{stays:?}");
    assert_eq!(stays[0], "stays-0");
    Ok(())
}

/// What a start after that says, and when the shard's log was told to take the clock.
fn stays_accepted(broker: Broker) -> Result<()> {
    let data = broker.stop()?;
    let inspected = Command::new(binary())
        .args(["log", "inspect"])
        .arg(&data)
        .output()?;
    let words = String::from_utf8(inspected.stdout)?;
    assert_eq!(words.matches("clock-accepted").count(), 1, "{words}");
    let broker = Options::on(data).start()?;
    assert!(!doubted(&broker)?, "{}", broker.log());
    assert_eq!(values(&broker, "stays")?.len() as u64, STAYS.records + 21);
    Ok(())
}

/// The broker was stopped for a month, or its clock is a month ahead: nobody can know which.
#[test]
fn a_clock_far_ahead_deletes_nothing_until_it_is_accepted() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = start_after(&dir, -30 * DAY_MS)?;
    rests(
        &broker,
        "the wall clock is 30 days ahead of the newest logged time",
    )?;
    goes_on(&broker)?;
    stays_accepted(broker)
}

/// Records of tomorrow: the clock was wrong then, or is wrong now.
#[test]
fn a_clock_behind_deletes_nothing_and_records_of_the_future_go_as_of_the_accepted_one() -> Result<()>
{
    let dir = tempfile::tempdir()?;
    let broker = start_after(&dir, DAY_MS)?;
    rests(&broker, "h behind the newest logged time")?;
    goes_on(&broker)?;
    stays_accepted(broker)
}

/// What is far, and what is not, is a setting.
#[test]
fn how_far_ahead_is_believed_is_a_setting() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = start_after(&dir, -30 * DAY_MS)?;
    assert!(doubted(&broker)?);
    let broker = Options::on(broker.stop()?)
        .setting("LOG__CLOCK_AHEAD_MAX_MS", "31d")
        .start()?;
    assert!(!doubted(&broker)?, "{}", broker.log());
    assert_eq!(broker.http("/readyz")?.1, "ready\n");
    Ok(())
}
