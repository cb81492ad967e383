//! A record from a line of JSON.
//!
//! A JSON string is its text; everything else keeps the text it has in the line, byte for byte: numbers of any
//! length, the order of members, members that come twice.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use millstream_client::{Header, Record};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A record from a line of JSON, as `millstream sub -o json` writes it. A line with an offset was read somewhere:
/// its partition says where, and not where it goes, unless `keep_partition`.
pub(crate) fn from_json(line: &[u8], keep_partition: bool) -> Result<Record, String> {
    // A list in the order of the fields would be taken for a record.
    if !is_object(line) {
        return Err(no_record(line));
    }
    let line: JsonLine<'_> = serde_json::from_slice(line).map_err(|error| wrong(line, &error))?;
    let headers = match line.headers {
        None => Vec::new(),
        Some(headers) => headers_of(headers)?,
    };
    Ok(Record {
        key: bytes(line.key, line.key_base64)?,
        value: bytes(line.value, line.value_base64)?,
        headers,
        timestamp_ms: line.timestamp,
        partition: line
            .partition
            .filter(|_| keep_partition || line.offset.is_none()),
    })
}

fn is_object(text: &[u8]) -> bool {
    text.trim_ascii_start().starts_with(b"{")
}

/// What is said of a line that is no object.
fn no_record(line: &[u8]) -> String {
    const EXPECTED: &str =
        r#"a record is a JSON object in one line, for example {"key":"k","value":"v"}"#;
    match serde_json::from_slice::<&RawValue>(line) {
        Ok(other) => format!("expected an object, found {}: {EXPECTED}", kind(other)),
        Err(_) if line.trim_ascii().is_empty() => format!("the line is empty: {EXPECTED}"),
        Err(error) => format!("not JSON: {}: {EXPECTED}", at_column(&error)),
    }
}

/// What is said of an object that is no record.
fn wrong(line: &[u8], error: &serde_json::Error) -> String {
    if !error.is_data() {
        return format!("not JSON: {}", at_column(error));
    }
    let Ok(Members(members)) = serde_json::from_slice(line) else {
        return at_column(error);
    };
    let found = members
        .iter()
        .find_map(|(name, value)| Some((name, value, expected(name, value)?)));
    match found {
        Some((name, value, what)) => format!("{name}: expected {what}, found {}", kind(value)),
        // A name that is none, or comes twice.
        None => at_column(error),
    }
}

/// What a member of a record should be, if it is something else.
fn expected(name: &str, value: &RawValue) -> Option<&'static str> {
    fn is<'a, T: Deserialize<'a>>(value: &'a RawValue) -> bool {
        serde_json::from_str::<Option<T>>(value.get()).is_ok()
    }
    let (is_good, what) = match name {
        "timestamp" => (is::<i64>(value), "a time in whole milliseconds since 1970"),
        "partition" => (is::<u32>(value), "the number of a partition"),
        "offset" => (is::<u64>(value), "an offset"),
        "topic" | "key_base64" | "value_base64" => (is::<String>(value), "a text"),
        _ => return None,
    };
    (!is_good).then_some(what)
}

/// What a JSON value is, in words; a number is itself.
fn kind(value: &RawValue) -> String {
    match value.get().as_bytes().first() {
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "a list".to_owned(),
        Some(b'"') => "a text".to_owned(),
        _ => value.get().to_owned(),
    }
}

/// The parser's words, without the number of a line: the piece of input is known by its own.
fn at_column(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((what, _)) if error.line() <= 1 => format!("{what} at column {}", error.column()),
        _ => text,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonLine<'a> {
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    key_base64: Option<String>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    value_base64: Option<String>,
    #[serde(borrow)]
    headers: Option<&'a RawValue>,
    timestamp: Option<i64>,
    partition: Option<u32>,
    offset: Option<u64>,
    /// Of where it was read: not of where it goes.
    #[serde(rename = "topic")]
    _topic: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonHeader<'a> {
    #[serde(rename = "key")]
    name: String,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    value_base64: Option<String>,
}

/// A list of key and value, or an object: the members of it in their order, also when a name comes twice.
fn headers_of(headers: &RawValue) -> Result<Vec<Header>, String> {
    let wrong = |error: serde_json::Error| format!("headers: {}", at_column(&error));
    let header = |header: &RawValue| -> Result<Header, String> {
        if !is_object(header.get().as_bytes()) {
            return Err(format!(
                r#"headers: expected objects like {{"key":"k","value":"v"}}, found {}"#,
                kind(header)
            ));
        }
        let header: JsonHeader<'_> = serde_json::from_str(header.get()).map_err(wrong)?;
        Ok(Header {
            name: header.name,
            value: bytes(header.value, header.value_base64)?,
        })
    };
    match headers.get().as_bytes().first() {
        Some(b'{') => {
            let Members(members) = serde_json::from_str(headers.get()).map_err(wrong)?;
            members
                .into_iter()
                .map(|(name, value)| {
                    Ok(Header {
                        name,
                        value: bytes((value.get() != "null").then_some(value), None)?,
                    })
                })
                .collect()
        }
        Some(b'[') => {
            let list: Vec<&RawValue> = serde_json::from_str(headers.get()).map_err(wrong)?;
            list.into_iter().map(header).collect()
        }
        _ => Err(format!(
            "headers: expected an object or a list, found {}",
            kind(headers)
        )),
    }
}

/// Every member of an object, as written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;

        impl<'de> Visitor<'de> for All {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(All)
    }
}

/// Text is its UTF-8; other JSON is its own text.
fn bytes(value: Option<&RawValue>, base64: Option<String>) -> Result<Option<Bytes>, String> {
    match (value.map(RawValue::get), base64) {
        (None, None) => Ok(None),
        (None, Some(base64)) => BASE64
            .decode(&base64)
            .map(|bytes| Some(bytes.into()))
            .map_err(|error| format!("base64: {error}")),
        (Some(_), Some(_)) => Err("both text and base64 are given: keep one".into()),
        (Some(text), None) if text.starts_with('"') => serde_json::from_str::<String>(text)
            .map(|text| Some(text.into()))
            .map_err(|error| error.to_string()),
        (Some(text), None) => Ok(Some(Bytes::copy_from_slice(text.as_bytes()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_read_what_sub_writes() {
        let line =
            br#"{"topic":"t","partition":2,"offset":41,"timestamp":1700,"key":"k","value":null,
            "value_base64":"/wA=","headers":[{"key":"a","value":"1"},{"key":"b","value":null}]}"#;
        let record = from_json(line, true).unwrap();
        assert_eq!(record.value.as_deref(), Some(&[0xff, 0][..]));
        assert_eq!(
            (record.partition, record.timestamp_ms),
            (Some(2), Some(1_700))
        );
        let null = Header {
            name: "b".into(),
            value: None,
        };
        assert_eq!(record.headers, [Header::new("a", "1"), null.clone()]);
        let record = from_json(
            br#"{"value":{"a":1},"headers":{"x":"y","b":null,"x":2e1}}"#,
            false,
        )
        .unwrap();
        assert_eq!(record.value.as_deref(), Some(&br#"{"a":1}"#[..]));
        assert_eq!(
            record.headers,
            [Header::new("x", "y"), null, Header::new("x", "2e1")]
        );
        for (line, says) in [
            (&br#"{"valeu":1}"#[..], "valeu"),
            (br#"{"value":"a","value_base64":"AA=="}"#, "keep one"),
            (br#"{"key":"a","key":"b"}"#, "duplicate"),
            (
                br#"{"headers":7}"#,
                "headers: expected an object or a list, found 7",
            ),
            (
                br#"{"headers":[["a","1",null]]}"#,
                "headers: expected objects",
            ),
            (
                br#"{"headers":[{"value":"1"}]}"#,
                "headers: missing field `key`",
            ),
            (br#"{"headers":[{"key":7}]}"#, "headers: "),
            (b"not json", "not JSON: "),
            (br#"{"value":"a""#, "at column 12"),
            (b"  ", "the line is empty"),
            (br#"["k",null,"v"]"#, "expected an object, found a list"),
            (br#""v""#, "expected an object, found a text"),
            (b"17", "expected an object, found 17"),
            (
                br#"{"timestamp":"now"}"#,
                "timestamp: expected a time in whole milliseconds since 1970, found a text",
            ),
            (
                br#"{"partition":-1}"#,
                "partition: expected the number of a partition, found -1",
            ),
            (
                br#"{"value_base64":[1]}"#,
                "value_base64: expected a text, found a list",
            ),
        ] {
            let error = from_json(line, false).unwrap_err();
            assert!(error.contains(says), "{error}");
            assert!(
                !error.contains("struct") && !error.contains("line 1"),
                "{error}"
            );
        }
    }

    /// What is not a string keeps its text: two ids that differ stay two.
    #[test]
    fn what_is_not_a_string_is_not_read_as_a_number_or_a_map() {
        for text in [
            "12345678901234567890123",
            "12345678901234567891",
            "0.1000",
            "1.7976931348623157e309",
            "-0",
            r#"{"z":1,"a":{"y":2 , "b":3},"z":[1.0,  1e2]}"#,
            "true",
        ] {
            let line = format!(r#"{{"key":{text},"value":{text},"headers":{{"h":{text}}}}}"#);
            let record = from_json(line.as_bytes(), false).unwrap();
            assert_eq!(record.key.as_deref(), Some(text.as_bytes()));
            assert_eq!(record.value.as_deref(), Some(text.as_bytes()));
            assert_eq!(record.headers, [Header::new("h", text.to_owned())]);
        }
        let record = from_json(br#"{"key":null,"value":"\u00e9\n\"x"}"#, false).unwrap();
        assert_eq!(record.key, None);
        assert_eq!(record.value.as_deref(), Some("\u{e9}\n\"x".as_bytes()));
    }

    /// A copy goes where its key says; a wish for a partition is one.
    #[test]
    fn the_partition_of_where_it_was_read_is_not_where_it_goes() {
        let partition = |line: &str, keep| from_json(line.as_bytes(), keep).unwrap().partition;
        let read = r#"{"partition":2,"offset":41,"value":"v"}"#;
        assert_eq!(
            (partition(read, false), partition(read, true)),
            (None, Some(2))
        );
        let wished = r#"{"partition":2,"value":"v"}"#;
        assert_eq!(partition(wished, false), Some(2));
    }
}
