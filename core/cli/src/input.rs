//! Records from lines: plain, `key:value`, or JSON. Splitting is by `memchr`; nothing is copied but what
//! JSON has to unescape.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use millstream_client::{Header, Record};
use serde::Deserialize;
use serde_json::Value;

/// The lines of a block. What follows the last line end is left to the caller.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    block: &'a [u8],
    ends: memchr::Memchr<'a>,
    at: usize,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(block: &'a [u8]) -> Self {
        Self {
            block,
            ends: memchr::memchr_iter(b'\n', block),
            at: 0,
        }
    }

    /// Bytes up to and with the last line given.
    pub(crate) fn consumed(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.ends.next()?;
        let line = &self.block[self.at..end];
        self.at = end + 1;
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// Key and value of a line. Without the separator in it, a line is a value.
#[inline]
pub(crate) fn split_key<'a>(line: &'a [u8], separator: &[u8]) -> (Option<&'a [u8]>, &'a [u8]) {
    match memchr::memmem::find(line, separator) {
        Some(at) => (Some(&line[..at]), &line[at + separator.len()..]),
        None => (None, line),
    }
}

/// A record from a line of JSON, as `millstream sub -o json` writes it.
pub(crate) fn from_json(line: &[u8]) -> Result<Record, String> {
    let line: JsonLine = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let headers = match line.headers {
        None => Vec::new(),
        Some(JsonHeaders::List(headers)) => headers
            .into_iter()
            .map(|header| {
                Ok(Header {
                    name: header.name,
                    value: bytes(header.value, header.value_base64)?,
                })
            })
            .collect::<Result<_, String>>()?,
        Some(JsonHeaders::Map(headers)) => headers
            .into_iter()
            .map(|(name, value)| {
                Ok(Header {
                    name,
                    value: bytes(Some(value), None)?,
                })
            })
            .collect::<Result<_, String>>()?,
    };
    Ok(Record {
        key: bytes(line.key, line.key_base64)?,
        value: bytes(line.value, line.value_base64)?,
        headers,
        timestamp_ms: line.timestamp,
        partition: line.partition,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonLine {
    key: Option<Value>,
    key_base64: Option<String>,
    value: Option<Value>,
    value_base64: Option<String>,
    headers: Option<JsonHeaders>,
    timestamp: Option<i64>,
    partition: Option<u32>,
    /// Of where it was read: not of where it goes.
    #[serde(rename = "topic")]
    _topic: Option<String>,
    #[serde(rename = "offset")]
    _offset: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum JsonHeaders {
    List(Vec<JsonHeader>),
    Map(serde_json::Map<String, Value>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonHeader {
    #[serde(rename = "key")]
    name: String,
    value: Option<Value>,
    value_base64: Option<String>,
}

/// Text is its UTF-8; other JSON is taken as JSON text.
fn bytes(value: Option<Value>, base64: Option<String>) -> Result<Option<Bytes>, String> {
    match (value, base64) {
        (None | Some(Value::Null), None) => Ok(None),
        (None | Some(Value::Null), Some(base64)) => BASE64
            .decode(&base64)
            .map(|bytes| Some(bytes.into()))
            .map_err(|error| format!("base64: {error}")),
        (Some(_), Some(_)) => Err("both text and base64 are given: keep one".into()),
        (Some(Value::String(text)), None) => Ok(Some(text.into())),
        (Some(other), None) => Ok(Some(other.to_string().into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_block() {
        let mut lines = Lines::new(b"a\nbc\r\n\nrest");
        assert_eq!(lines.by_ref().collect::<Vec<_>>(), [&b"a"[..], b"bc", b""]);
        assert_eq!(lines.consumed(), 7);
    }

    #[test]
    fn keys() {
        assert_eq!(split_key(b"k:v:w", b":"), (Some(&b"k"[..]), &b"v:w"[..]));
        assert_eq!(split_key(b"k => v", b" => "), (Some(&b"k"[..]), &b"v"[..]));
        assert_eq!(split_key(b"no key", b":"), (None, &b"no key"[..]));
    }

    #[test]
    fn json_lines_read_what_sub_writes() {
        let line =
            br#"{"topic":"t","partition":2,"offset":41,"timestamp":1700,"key":"k","value":null,
            "value_base64":"/wA=","headers":[{"key":"a","value":"1"},{"key":"b","value":null}]}"#;
        let record = from_json(line).unwrap();
        assert_eq!(record.value.as_deref(), Some(&[0xff, 0][..]));
        assert_eq!(
            (record.partition, record.timestamp_ms),
            (Some(2), Some(1_700))
        );
        assert_eq!(
            record.headers,
            [
                Header::new("a", "1"),
                Header {
                    name: "b".into(),
                    value: None
                }
            ]
        );
        let record = from_json(br#"{"value":{"a":1},"headers":{"x":"y"}}"#).unwrap();
        assert_eq!(record.value.as_deref(), Some(&br#"{"a":1}"#[..]));
        assert_eq!(record.headers, [Header::new("x", "y")]);
        assert!(from_json(br#"{"valeu":1}"#).unwrap_err().contains("valeu"));
        assert!(from_json(br#"{"value":"a","value_base64":"AA=="}"#).is_err());
    }
}
