//! What a person does with topics by command: look at them, change their settings, give up what is in them.

use anyhow::Result;
use millstream_e2e::{Options, binary};
use serde_json::json;

#[test]
fn a_list_says_what_is_in_topics() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 2")
        .start()?;
    assert_eq!(broker.ok("topic list --names")?, "");
    broker.ok("topic create orders --partitions 3")?;
    broker.ok("topic create empty")?;
    broker.ok_with("pub orders", b"a\nb\nc\nd\n")?;
    assert_eq!(broker.ok("topic list --names")?, "empty\norders\n");
    let list = broker.list("topic list")?;
    assert_eq!(list[0]["records"], 0, "{list}");
    assert_eq!(list[1]["records"], 4, "{list}");
    assert!(list[1]["bytes"].as_u64() > Some(60), "{list}");
    assert!(list[1]["records_per_second"].as_f64() > Some(0.0), "{list}");
    let text = broker.ok("topic list")?;
    assert!(text.contains("RECORDS/S"), "{text}");
    Ok(())
}

#[test]
fn a_topics_settings_are_shown_with_their_origin() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .setting("TOPICS__RETENTION_BYTES", "4096")
        .start()?;
    broker.ok("topic create t --config retention.ms=60000")?;
    let row = |json: &serde_json::Value, name: &str| {
        let rows = json["settings"].as_array().cloned().unwrap_or_default();
        rows.into_iter().find(|row| row["setting"] == name)
    };
    let shown = broker.json("topic config t")?;
    let expected = json!({ "setting": "retention.ms", "value": "60000", "default": "604800000", "origin": "topic" });
    assert_eq!(row(&shown, "retention.ms"), Some(expected), "{shown}");
    let expected = json!({ "setting": "retention.bytes", "value": "4096", "default": "4096", "origin": "broker" });
    assert_eq!(row(&shown, "retention.bytes"), Some(expected), "{shown}");
    assert!(row(&shown, "max.message.bytes").is_some(), "{shown}");
    let text = broker.ok("topic config t --unset retention.ms")?;
    assert!(text.contains("7d") && !text.contains("topic"), "{text}");
    Ok(())
}

#[test]
fn records_are_given_up_by_offset_by_time_and_all() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 2")
        .start()?;
    broker.ok("topic create t --partitions 2")?;
    for partition in ["0", "1"] {
        broker.ok_with(&format!("pub t --partition {partition}"), b"a\nb\nc\nd\n")?;
    }
    let of_two = broker.cli(&["topic", "trim", "t", "--before", "3", "--yes"])?;
    assert_eq!(of_two.status.code(), Some(2), "{of_two:?}");
    let dry = broker.json("topic trim t --partition 0 --before 3 --dry-run")?;
    assert_eq!(
        (&dry["records"], &dry["dry_run"]),
        (&json!(3), &json!(true))
    );
    assert_eq!(broker.list("topic list")?[0]["records"], 8);
    let trimmed = broker.json("topic trim t --partition 0 --before 3 --yes")?;
    assert_eq!(trimmed["partitions"][0]["new_start_offset"], 3, "{trimmed}");
    assert_eq!(
        broker
            .ok("sub t --from start --exit-at-end -f %p/%o\\n")?
            .lines()
            .count(),
        5
    );
    // A time in the past gives up nothing, one in the future all.
    let past = broker.json("topic trim t --before -1h --yes")?;
    assert_eq!(past["records"], 0, "{past}");
    let past_the_end = broker.cli(&[
        "topic",
        "trim",
        "t",
        "--partition",
        "1",
        "--before",
        "5",
        "--yes",
    ])?;
    assert_eq!(past_the_end.status.code(), Some(1), "{past_the_end:?}");
    let purged = broker.json("topic purge t --yes")?;
    assert_eq!(purged["records"], 5, "{purged}");
    assert_eq!(broker.list("topic list")?[0]["records"], 0);
    // Offsets go on.
    broker.ok_with("pub t --partition 1", b"e\n")?;
    assert_eq!(
        broker.ok("sub t --from start --exit-at-end -f %p/%o\\n")?,
        "1/4\n"
    );
    let unknown = broker.cli(&["topic", "purge", "t", "--partition", "2", "--yes"])?;
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    Ok(())
}

/// The shell is offered the topics and groups that the broker has.
#[test]
fn completions_know_topics_and_groups() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create orders")?;
    broker.ok("topic create invoices")?;
    broker.ok_with("pub orders", b"a\n")?;
    broker.ok("sub orders --group billing --from start --count 1")?;
    let offered = |line: &[&str]| -> Result<String> {
        let mut command = broker.command(&["--", "millstream"]);
        let output = command.args(line).env("COMPLETE", "fish").output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    assert_eq!(offered(&["topic", "describe", "o"])?.trim(), "orders");
    let topics = offered(&["sub", ""])?;
    assert!(
        topics.contains("orders") && topics.contains("invoices"),
        "{topics}"
    );
    let groups = offered(&["group", "describe", ""])?;
    assert!(groups.contains("billing"), "{groups}");
    let script = std::process::Command::new(binary())
        .args(["completions", "bash"])
        .output()?;
    let script = String::from_utf8(script.stdout)?;
    assert!(
        script.contains("COMPLETE") && script.contains("millstream"),
        "{script}"
    );
    Ok(())
}
