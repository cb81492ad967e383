//! What goes in through `pub` comes out of `sub`, byte for byte, and what does not go in is named.

use anyhow::Result;
use millstream_e2e::{Broker, Options, json_lines};

fn started(dir: &tempfile::TempDir) -> Result<Broker> {
    Options::on(dir.path().join("data")).start()
}

/// Values of a topic of one partition, as they are.
fn values(broker: &Broker, topic: &str) -> Result<Vec<Vec<u8>>> {
    let arguments = ["sub", topic, "--from", "start", "-e", "-o", "hex"];
    let output = broker.cli(&arguments)?;
    let hex = String::from_utf8(output.stdout)?;
    hex.lines()
        .map(|line| {
            (0..line.len() / 2)
                .map(|at| Ok(u8::from_str_radix(&line[2 * at..2 * at + 2], 16)?))
                .collect()
        })
        .collect()
}

#[test]
fn what_goes_in_comes_out_byte_for_byte() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = started(&dir)?;
    let odd = b"a\r\nb\n\n\xff\0x\rlast\r";
    let pieces = |pieces: &[&[u8]]| {
        pieces
            .iter()
            .map(|piece| piece.to_vec())
            .collect::<Vec<_>>()
    };
    for (number, (arguments, expected)) in [
        ("", pieces(&[b"a\r", b"b", b"", b"\xff\0x\rlast\r"])),
        ("--crlf", pieces(&[b"a", b"b", b"", b"\xff\0x\rlast\r"])),
        (
            "--delimiter \\0",
            pieces(&[b"a\r\nb\n\n\xff", b"x\rlast\r"]),
        ),
        ("-d \\r\\n", pieces(&[b"a", b"b\n\n\xff\0x\rlast\r"])),
        ("--skip-empty", pieces(&[b"a\r", b"b", b"\xff\0x\rlast\r"])),
        ("--whole", pieces(&[odd])),
    ]
    .into_iter()
    .enumerate()
    {
        let topic = format!("t{number}");
        broker.ok(&format!("topic create {topic}"))?;
        broker.ok_with(&format!("pub {topic} {arguments}"), odd)?;
        assert_eq!(values(&broker, &topic)?, expected, "{arguments}");
    }

    // The other way: values and a delimiter of one's own, into another topic.
    broker.ok("topic create back")?;
    let raw = broker.cli(&[
        "sub", "t0", "--from", "start", "-e", "-o", "raw", "-d", "\\0\\0",
    ])?;
    let sent = broker.cli_with(&["pub", "back", "-d", "\\0\\0"], &raw.stdout)?;
    assert!(sent.status.success());
    assert_eq!(values(&broker, "back")?, values(&broker, "t0")?);
    let base64 = broker.ok("sub t0 --from 3 -n 1 -o base64")?;
    assert_eq!(base64, "/wB4DWxhc3QN\n");

    // Messages and files instead of standard input, which is left alone.
    broker.ok("topic create given")?;
    let (a, b) = (dir.path().join("a.bin"), dir.path().join("b.bin"));
    std::fs::write(&a, odd)?;
    std::fs::write(&b, b"")?;
    let (a, b) = (a.display().to_string(), b.display().to_string());
    for arguments in [
        &["pub", "given", "one", "two\nlines"][..],
        &["pub", "given", "--file", &a, &b],
    ] {
        let output = broker.cli_with(arguments, b"not this")?;
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(
        values(&broker, "given")?,
        pieces(&[b"one", b"two\nlines", odd, b""])
    );
    for wrong in [
        &["pub", "given", "message", "--whole"][..],
        &["pub", "given", "message", "--file", &a],
        &["pub", "given", "--whole", "--delimiter", ";"],
        &["pub", "given", "--delimiter", ""],
        &["topic", "list", "-o", "raw"],
        &["sub", "given", "-o", "hex", "-f", "%v"],
    ] {
        assert_eq!(broker.cli(wrong)?.status.code(), Some(2), "{wrong:?}");
    }
    Ok(())
}

/// `sub -o json | pub --json`: every record, whatever the partitions, and no byte of a number.
#[test]
fn json_keeps_text_and_a_copy_keeps_records() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = started(&dir)?;
    broker.ok("topic create orders --partitions 4")?;
    broker.ok("topic create copy --partitions 2")?;
    let texts = [
        "12345678901234567891",
        "12345678901234567892",
        "0.10",
        r#"{"z":1.0,"a":12345678901234567890123,"z":2}"#,
    ];
    let lines: String = (0..40)
        .map(|n| {
            format!(
                r#"{{"key":{},"value":{}}}{}"#,
                texts[n % 2],
                texts[n % 4],
                "\n"
            )
        })
        .collect();
    broker.ok_with("pub orders --json", lines.as_bytes())?;
    let read = json_lines(&broker.ok("sub orders --from start -e -o json")?)?;
    let keys: std::collections::BTreeSet<_> = read.iter().map(|r| r["key"].to_string()).collect();
    assert_eq!(keys.len(), 2, "two ids stay two: {keys:?}");
    let exported = broker.ok("sub orders --from start -e -o json")?;
    broker.ok_with("pub copy --json", exported.as_bytes())?;
    let copied = json_lines(&broker.ok("sub copy --from start -e -o json")?)?;
    let values = |records: &[serde_json::Value]| {
        let mut values: Vec<_> = records.iter().map(|r| r["value"].to_string()).collect();
        values.sort();
        values
    };
    assert_eq!(values(&copied), values(&read));
    assert_eq!(copied.len(), 40);
    assert!(
        copied
            .iter()
            .all(|r| texts.contains(&r["value"].as_str().unwrap_or("?")))
    );

    // Whoever wants the partitions gets them, or is told which lines have none.
    broker.ok("topic create same --partitions 4")?;
    broker.ok_with("pub same --json --keep-partitions", exported.as_bytes())?;
    let same = json_lines(&broker.ok("sub same --from start -e -o json")?)?;
    let places = |records: &[serde_json::Value]| {
        let mut places: Vec<_> = records
            .iter()
            .map(|r| {
                (
                    r["partition"].to_string(),
                    r["offset"].to_string(),
                    r["value"].to_string(),
                )
            })
            .collect();
        places.sort();
        places
    };
    assert_eq!(places(&same), places(&read));
    let line = br#"{"value":"fine"}
{"value":"nowhere","partition":7}
not json
"#;
    let output = broker.cli_with(&["pub", "same", "--json", "-o", "json"], line)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr.contains("line 2: ") && stderr.contains("line 3: "),
        "{stderr}"
    );
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(
        (&summary["acknowledged"], &summary["failed"]),
        (&1.into(), &2.into())
    );
    assert_eq!(summary["failures"][1]["line"], 3, "{summary}");
    Ok(())
}

/// A record over the size of batches makes one of its own, up to what the topic takes, as it is stored.
#[test]
fn large_records_are_stored_up_to_the_topics_bound() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = started(&dir)?;
    broker.ok("topic create large")?;
    broker.ok("topic create small --config max.message.bytes=65536")?;
    let mut noise = 1_u64;
    let mut random = |bytes: usize| -> Vec<u8> {
        std::iter::repeat_with(|| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            noise as u8
        })
        .take(bytes)
        .collect()
    };
    let file = |name: &str, bytes: &[u8]| -> Result<String> {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes)?;
        Ok(path.display().to_string())
    };
    let (big, even) = (random(4 << 20), vec![b'e'; 12 << 20]);
    let big_path = file("big", &big)?;
    let even_path = file("even", &even)?;
    let huge_path = file("huge", &random((8 << 20) + 1))?;

    let output = broker.cli(&["pub", "large", "--offsets", "--file", &big_path])?;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("{big_path}: partition 0 offset 0\n")
    );
    let output = broker.cli(&[
        "sub", "large", "--from", "0", "-n", "1", "-o", "raw", "-d", "",
    ])?;
    assert!(output.stdout == big, "4 MiB come out as they went in");

    // What is judged is what is stored.
    let zstd = ["--compression", "zstd"];
    let output = broker.cli(&[&["pub", "small", "--file", &even_path], &zstd[..]].concat())?;
    assert!(output.status.success(), "{output:?}");
    for (topic, path, says) in [
        (
            "small",
            &big_path,
            [
                "4194",
                "65536",
                "max.message.bytes",
                "--set max.message.bytes=N",
            ],
        ),
        (
            "large",
            &huge_path,
            ["8388", "8388608", "--compression zstd", "max.message.bytes"],
        ),
    ] {
        let output = broker.cli(&["pub", topic, "--file", path])?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        for word in says.iter().chain([&path.as_str()]) {
            assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
        }
    }
    // Records that are small fill no batch that the topic refuses, and nothing is clamped without a word.
    let lines: String = (0..20_000).map(|n| format!("{n}\n")).collect();
    broker.ok_with("pub small", lines.as_bytes())?;
    let output = broker.cli_with(&["pub", "small", "--batch-bytes", "1m"], lines.as_bytes())?;
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("65536"));
    let output = broker.cli(&["pub", "small", "x", "--batch-bytes", "16m"])?;
    assert_eq!(output.status.code(), Some(2));
    Ok(())
}
