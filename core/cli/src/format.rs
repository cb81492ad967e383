//! Records as text (`-f`) and as JSON lines.
//!
//! JSON: topic, partition, offset, timestamp, key, value, headers (a list of key and value, because a
//! key may come twice). Bytes that are not UTF-8 are `null`
//! with a `…_base64` beside them. `millstream pub --json` reads the same.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use millstream_client::ConsumedRecord;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::output::{Output, hex};
use crate::values::{Delimiter, escaped};

/// How a record is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rendering {
    Format(Format),
    Json,
    /// The value, and what stands behind each.
    Value(Bytes, Vec<u8>),
}

/// How the bytes of a value are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    Raw,
    Hex,
    Base64,
}

impl Rendering {
    /// From the command line: `-o`, `-f` and `--delimiter`.
    pub(crate) fn of(
        output: Output,
        format: Option<Format>,
        delimiter: Option<&Delimiter>,
    ) -> Result<Self, String> {
        let bytes = match output {
            Output::Text | Output::Raw => Bytes::Raw,
            Output::Hex => Bytes::Hex,
            Output::Base64 => Bytes::Base64,
            Output::Json => {
                return match (format, delimiter) {
                    (None, None) => Ok(Self::Json),
                    _ => Err("-f and --delimiter do not go with -o json".into()),
                };
            }
        };
        match format {
            Some(_) if output != Output::Text => Err("-f goes with -o text alone".into()),
            Some(_) if delimiter.is_some() => {
                Err("--delimiter does not go with -f: put it into the format".into())
            }
            Some(format) => Ok(Self::Format(format)),
            None => Ok(Self::Value(
                bytes,
                delimiter.map_or_else(|| b"\n".to_vec(), |delimiter| delimiter.bytes().to_vec()),
            )),
        }
    }

    pub(crate) fn write(&self, record: &ConsumedRecord, out: &mut Vec<u8>) {
        match self {
            Self::Format(format) => format.write(record, out),
            Self::Json => write_json(record, out),
            Self::Value(bytes, delimiter) => {
                let value = record.value.as_deref().unwrap_or_default();
                match bytes {
                    Bytes::Raw => out.extend_from_slice(value),
                    Bytes::Hex => out.extend_from_slice(hex(value).as_bytes()),
                    Bytes::Base64 => out.extend_from_slice(BASE64.encode(value).as_bytes()),
                }
                out.extend_from_slice(delimiter);
            }
        }
    }
}

/// What `-f` understands, for `--help`.
pub(crate) const FORMAT_HELP: &str = "\
Format of a record:
  %t topic   %p partition   %o offset   %T timestamp (ms)   %A append time (ms)
  %k key     %v value       %h headers  %K key length       %V value length (-1: null)   %% a percent sign
  \\n \\t \\r \\0 \\\\ \\xHH as usual";

/// A parsed `-f` string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Timestamp,
    AppendTime,
    Key,
    Value,
    KeyLength,
    ValueLength,
    Headers,
}

impl Format {
    /// Parse a format string.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let part = match c {
                '%' => match chars.next() {
                    Some('%') => {
                        literal.push(b'%');
                        continue;
                    }
                    Some('t') => Part::Topic,
                    Some('p') => Part::Partition,
                    Some('o') => Part::Offset,
                    Some('T') => Part::Timestamp,
                    Some('A') => Part::AppendTime,
                    Some('k') => Part::Key,
                    Some('v' | 's') => Part::Value,
                    Some('K') => Part::KeyLength,
                    Some('V' | 'S') => Part::ValueLength,
                    Some('h') => Part::Headers,
                    other => {
                        return Err(format!(
                            "`%{}` is not known in a format",
                            other.unwrap_or(' ')
                        ));
                    }
                },
                '\\' => {
                    literal
                        .push(escaped(&mut chars).map_err(|error| format!("{error} in a format"))?);
                    continue;
                }
                other => {
                    literal.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
            };
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(part);
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { parts })
    }

    pub(crate) fn write(&self, record: &ConsumedRecord, out: &mut Vec<u8>) {
        let number =
            |out: &mut Vec<u8>, number: i64| out.extend_from_slice(number.to_string().as_bytes());
        for part in &self.parts {
            match part {
                Part::Literal(bytes) => out.extend_from_slice(bytes),
                Part::Topic => out.extend_from_slice(record.topic.as_bytes()),
                Part::Partition => number(out, record.partition.into()),
                Part::Offset => number(out, record.offset as i64),
                Part::Timestamp => number(out, record.timestamp_ms),
                Part::AppendTime => number(out, record.append_time_ms),
                Part::Key => out.extend_from_slice(record.key.as_deref().unwrap_or_default()),
                Part::Value => out.extend_from_slice(record.value.as_deref().unwrap_or_default()),
                Part::KeyLength => {
                    number(out, record.key.as_ref().map_or(-1, |key| key.len() as i64));
                }
                Part::ValueLength => number(
                    out,
                    record.value.as_ref().map_or(-1, |value| value.len() as i64),
                ),
                Part::Headers => {
                    for (at, header) in record.headers.iter().enumerate() {
                        if at > 0 {
                            out.push(b',');
                        }
                        out.extend_from_slice(header.name.as_bytes());
                        if let Some(value) = &header.value {
                            out.push(b'=');
                            out.extend_from_slice(value);
                        }
                    }
                }
            }
        }
    }
}

/// A record as one line of JSON.
pub(crate) fn write_json(record: &ConsumedRecord, out: &mut Vec<u8>) {
    // Writing JSON into memory does not fail.
    let _ = serde_json::to_writer(&mut *out, &Line(record));
    out.push(b'\n');
}

struct Line<'a>(&'a ConsumedRecord);

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("topic", &*record.topic)?;
        map.serialize_entry("partition", &record.partition)?;
        map.serialize_entry("offset", &record.offset)?;
        map.serialize_entry("timestamp", &record.timestamp_ms)?;
        bytes_entry(&mut map, "key", "key_base64", record.key.as_deref())?;
        bytes_entry(&mut map, "value", "value_base64", record.value.as_deref())?;
        map.serialize_entry(
            "headers",
            &record.headers.iter().map(HeaderLine).collect::<Vec<_>>(),
        )?;
        map.end()
    }
}

struct HeaderLine<'a>(&'a millstream_client::Header);

impl Serialize for HeaderLine<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("key", &self.0.name)?;
        bytes_entry(&mut map, "value", "value_base64", self.0.value.as_deref())?;
        map.end()
    }
}

fn bytes_entry<M: SerializeMap>(
    map: &mut M,
    name: &'static str,
    name_base64: &'static str,
    bytes: Option<&[u8]>,
) -> Result<(), M::Error> {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => map.serialize_entry(name, &None::<&str>),
        Some((Ok(text), _)) => map.serialize_entry(name, text),
        Some((Err(_), bytes)) => {
            map.serialize_entry(name, &None::<&str>)?;
            map.serialize_entry(name_base64, &BASE64.encode(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_client::Header;

    fn record() -> ConsumedRecord {
        ConsumedRecord {
            topic: "t".into(),
            partition: 2,
            offset: 41,
            timestamp_ms: 1_700,
            append_time_ms: 1_701,
            key: Some("k".into()),
            value: Some("v\u{e9}".into()),
            headers: vec![
                Header::new("a", "1"),
                Header {
                    name: "b".into(),
                    value: None,
                },
            ],
        }
    }

    fn formatted(format: &str, record: &ConsumedRecord) -> String {
        let mut out = Vec::new();
        Format::parse(format).unwrap().write(record, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn formats() {
        assert_eq!(
            formatted("%t/%p@%o %T %A %k=%v [%h]\\n", &record()),
            "t/2@41 1700 1701 k=v\u{e9} [a=1,b]\n"
        );
        assert_eq!(formatted("%%\\t\\x41%K%V\\\\", &record()), "%\tA13\\");
        let null = ConsumedRecord {
            key: None,
            value: None,
            ..record()
        };
        assert_eq!(formatted("(%k)(%v)%K%V", &null), "()()-1-1");
        assert!(
            Format::parse("%z").is_err()
                && Format::parse("\\q").is_err()
                && Format::parse("%").is_err()
        );
    }

    #[test]
    fn values_alone_are_written_byte_for_byte() {
        let odd = ConsumedRecord {
            value: Some(vec![0xff, 0x00, b'\r', b'\n'].into()),
            ..record()
        };
        let written = |output, delimiter: Option<&str>| {
            let delimiter = delimiter.map(|text| crate::values::delimiter(text).unwrap());
            let mut out = Vec::new();
            Rendering::of(output, None, delimiter.as_ref())
                .unwrap()
                .write(&odd, &mut out);
            out
        };
        assert_eq!(written(Output::Raw, None), b"\xff\0\r\n\n");
        assert_eq!(written(Output::Text, None), b"\xff\0\r\n\n");
        assert_eq!(written(Output::Raw, Some("")), b"\xff\0\r\n");
        assert_eq!(written(Output::Hex, Some("\\0")), b"ff000d0a\0");
        assert_eq!(written(Output::Base64, None), b"/wANCg==\n");
        let format = || Some(Format::parse("%v").unwrap());
        let delimiter = crate::values::delimiter(";").unwrap();
        for (output, format, delimiter) in [
            (Output::Json, format(), None),
            (Output::Raw, format(), None),
            (Output::Text, format(), Some(&delimiter)),
            (Output::Json, None, Some(&delimiter)),
        ] {
            assert!(Rendering::of(output, format, delimiter).is_err());
        }
    }

    #[test]
    fn json_keeps_what_is_not_text_as_base64_and_null_as_null() {
        let mut out = Vec::new();
        write_json(&record(), &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "{\"topic\":\"t\",\"partition\":2,\"offset\":41,\"timestamp\":1700,\"key\":\"k\",\"value\":\"v\u{e9}\",\
             \"headers\":[{\"key\":\"a\",\"value\":\"1\"},{\"key\":\"b\",\"value\":null}]}\n"
        );
        let mut out = Vec::new();
        let odd = ConsumedRecord {
            key: None,
            value: Some(vec![0xff, 0x00].into()),
            headers: vec![],
            ..record()
        };
        write_json(&odd, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("\"key\":null,\"value\":null,\"value_base64\":\"/wA=\",\"headers\":[]"),
            "{text}"
        );
    }
}
