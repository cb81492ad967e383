//! Topic settings by name: what each is called, what values it takes, and how it reads.

use millstream_batch::limits::BATCH_BYTES_MAX;
use millstream_batch::units;

use super::meta::{CheckRecords, TopicConfig};
use crate::request::Refusal;

/// The settings a topic has, in the order in which they are shown.
pub const NAMES: [&str; 4] = [
    "retention.ms",
    "retention.bytes",
    "max.message.bytes",
    "check.records",
];

/// Sets one setting from its text. `None` resets it to the broker's default. A refusal changes
/// nothing.
pub fn apply(config: &mut TopicConfig, name: &str, value: Option<&str>) -> Result<(), Refusal> {
    let mut next = config.clone();
    match name {
        "retention.ms" => next.retention_ms = value.map(|value| bound(name, value)).transpose()?,
        "retention.bytes" => {
            next.retention_bytes = value.map(|value| bound(name, value)).transpose()?;
        }
        "max.message.bytes" => {
            next.batch_bytes_max = value.map(|value| batch_bytes(name, value)).transpose()?;
        }
        "check.records" => {
            next.check_records = value.map(|value| check_records(name, value)).transpose()?;
        }
        _ => {
            let names = NAMES.join(", ");
            return Err(Refusal::BadConfig(format!(
                "there is no setting `{name}`; there are {names}"
            )));
        }
    }
    check(&next)?;
    *config = next;
    Ok(())
}

/// Every setting with its text; `None` is the default.
#[must_use]
pub fn show(config: &TopicConfig) -> [(&'static str, Option<String>); 4] {
    let [
        retention_ms,
        retention_bytes,
        batch_bytes_max,
        check_records,
    ] = NAMES;
    [
        (
            retention_ms,
            config.retention_ms.map(|value| value.to_string()),
        ),
        (
            retention_bytes,
            config.retention_bytes.map(|value| value.to_string()),
        ),
        (
            batch_bytes_max,
            config.batch_bytes_max.map(|value| value.to_string()),
        ),
        (
            check_records,
            config.check_records.map(|value| match value {
                CheckRecords::Plain => "plain".to_owned(),
                CheckRecords::All => "all".to_owned(),
            }),
        ),
    ]
}

/// Whether values that did not come as text are ones a setting may have.
pub fn check(config: &TopicConfig) -> Result<(), Refusal> {
    let [retention_ms, retention_bytes, batch_bytes_max, _] = NAMES;
    for (name, value) in [
        (retention_ms, config.retention_ms),
        (retention_bytes, config.retention_bytes),
    ] {
        if let Some(value) = value.filter(|value| *value < -1) {
            return Err(bad_bound(name, &value.to_string()));
        }
    }
    match config.batch_bytes_max {
        Some(value) if value == 0 || value as usize > BATCH_BYTES_MAX => {
            Err(bad_batch_bytes(batch_bytes_max, &value.to_string()))
        }
        _ => Ok(()),
    }
}

fn bound(name: &str, value: &str) -> Result<i64, Refusal> {
    if value == "-1" {
        return Ok(-1);
    }
    let number = if name.ends_with(".ms") {
        units::milliseconds(value)
    } else {
        units::bytes(value)
    };
    number
        .and_then(|number| i64::try_from(number).ok())
        .ok_or_else(|| bad_bound(name, value))
}

fn batch_bytes(name: &str, value: &str) -> Result<u32, Refusal> {
    units::bytes(value)
        .and_then(|number| u32::try_from(number).ok())
        .ok_or_else(|| bad_batch_bytes(name, value))
}

fn check_records(name: &str, value: &str) -> Result<CheckRecords, Refusal> {
    match value {
        "plain" => Ok(CheckRecords::Plain),
        "all" | "true" => Ok(CheckRecords::All),
        _ => Err(Refusal::BadConfig(format!(
            "`{name}` takes `plain` (walk records that are not compressed) or `all` (compressed ones too); `{value}` is neither"
        ))),
    }
}

fn bad_bound(name: &str, value: &str) -> Refusal {
    let what = if name.ends_with(".ms") {
        "a time (milliseconds, or 90s, 12h, 5d)"
    } else {
        "a size (bytes, or 64m, 10GiB)"
    };
    Refusal::BadConfig(format!(
        "`{name}` takes {what}, or -1 for no bound; `{value}` is not"
    ))
}

fn bad_batch_bytes(name: &str, value: &str) -> Refusal {
    Refusal::BadConfig(format!(
        "`{name}` takes a size (bytes, or 256k, 1MiB) from 1 to {BATCH_BYTES_MAX}; `{value}` is not"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_parsed_or_refused_with_their_name() {
        let mut config = TopicConfig::default();
        apply(&mut config, "retention.ms", Some("-1")).unwrap();
        apply(&mut config, "retention.bytes", Some("1073741824")).unwrap();
        apply(&mut config, "max.message.bytes", Some("1048588")).unwrap();
        let expected = TopicConfig {
            retention_ms: Some(-1),
            retention_bytes: Some(1 << 30),
            batch_bytes_max: Some(1_048_588),
            check_records: None,
        };
        assert_eq!(config, expected);
        assert_eq!(show(&config)[0], ("retention.ms", Some("-1".to_owned())));
        apply(&mut config, "retention.ms", Some("5d")).unwrap();
        apply(&mut config, "retention.bytes", Some("2GiB")).unwrap();
        apply(&mut config, "max.message.bytes", Some("256k")).unwrap();
        apply(&mut config, "check.records", Some("true")).unwrap();
        let with_units = TopicConfig {
            retention_ms: Some(432_000_000),
            retention_bytes: Some(2 << 30),
            batch_bytes_max: Some(256 << 10),
            check_records: Some(CheckRecords::All),
        };
        assert_eq!(config, with_units);
        assert_eq!(show(&config)[3], ("check.records", Some("all".to_owned())));
        for name in NAMES {
            apply(&mut config, name, None).unwrap();
        }
        assert_eq!(config, TopicConfig::default());
        for (name, value) in [
            ("retention.ms", "-2"),
            ("retention.ms", "7 dogs"),
            ("retention.bytes", ""),
            ("retention.bytes", "9223372036854775808"),
            ("max.message.bytes", "0"),
            ("max.message.bytes", "8388609"),
            ("max.message.bytes", "-1"),
            ("check.records", "some"),
            ("cleanup.policy", "compact"),
        ] {
            let refusal = apply(&mut config, name, Some(value)).unwrap_err();
            assert!(
                refusal.to_string().contains(&format!("`{name}`")),
                "{refusal}"
            );
        }
        let wrong = TopicConfig {
            batch_bytes_max: Some(0),
            ..TopicConfig::default()
        };
        assert!(check(&wrong).is_err());
    }
}
