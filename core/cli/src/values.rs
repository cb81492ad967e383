//! Values on the command line: durations, sizes, positions, settings.

use std::time::Duration;

use millstream_client::StartAt;

/// `500ms`, `10s`, `2m`, `1h`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..digits]
        .parse()
        .map_err(|_| format!("`{text}` is not a time: write 500ms, 10s or 2m"))?;
    let seconds = match &text[digits..] {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3_600.0,
        "d" => number * 86_400.0,
        "w" => number * 7.0 * 86_400.0,
        unit => {
            return Err(format!(
                "`{unit}` is not a unit of time: use us, ms, s, m, h, d or w"
            ));
        }
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("`{text}` is too long a time"))
}

/// How long something may take: a duration, and not nothing.
pub(crate) fn limit(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!(
            "`{text}` leaves no time at all: write 500ms, 10s or 2m"
        )),
        time => Ok(time),
    }
}

/// Milliseconds where the name says so: `250`, `2s`.
pub(crate) fn milliseconds(text: &str) -> Result<u32, String> {
    millstream_batch::units::milliseconds(text)
        .and_then(|ms| u32::try_from(ms).ok())
        .ok_or_else(|| format!("`{text}` is not a time: write 250 (milliseconds), 500ms or 2s"))
}

/// `4096`, `64k`, `64KiB`, `1m`, `2g`: powers of 1024.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: usize = text[..digits]
        .parse()
        .map_err(|_| format!("`{text}` is not a size: write 4096, 64k or 1m"))?;
    let shift = match text[digits..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        unit => {
            return Err(format!("`{unit}` is not a unit of size: use k, m, g or t"));
        }
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("`{text}` is too large"))
}

/// `key=value`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not of the form key=value")),
    }
}

/// `start`, `end`, an offset, or a time: RFC 3339, `@milliseconds`, or `-10m` for ten minutes ago.
pub(crate) fn start_at(text: &str) -> Result<StartAt, String> {
    match text {
        "start" | "beginning" | "earliest" => return Ok(StartAt::Start),
        "end" | "latest" => return Ok(StartAt::End),
        _ => {}
    }
    for (word, mark) in [("offset", ""), ("timestamp", "@")] {
        // Also `offset=41`, `timestamp:2026-01-31T12:00:00Z`.
        if let Some(rest) = text.strip_prefix(word)
            && let Some(rest) = rest.strip_prefix(['=', ':', ' '])
        {
            let number = rest.bytes().all(|byte| byte.is_ascii_digit());
            return start_at(&if number {
                format!("{mark}{rest}")
            } else {
                rest.to_owned()
            });
        }
    }
    if let Ok(offset) = text.parse() {
        return Ok(StartAt::Offset(offset));
    }
    if let Some(ms) = text.strip_prefix('@').and_then(|ms| ms.parse().ok()) {
        return Ok(StartAt::Timestamp(ms));
    }
    if let Some(ago) = text.strip_prefix('-') {
        let ago = duration(ago)?;
        let now = jiff::Timestamp::now().as_millisecond();
        return Ok(StartAt::Timestamp(
            now - i64::try_from(ago.as_millis()).unwrap_or(i64::MAX),
        ));
    }
    // A day begins at midnight UTC.
    let day = |date: jiff::civil::Date| date.to_zoned(jiff::tz::TimeZone::UTC).ok();
    let midnight = || {
        // No part of a time without its zone.
        let date = (!text.contains(['T', 't', ' '])).then(|| text.parse().ok());
        day(date.flatten()?).map(|day| day.timestamp())
    };
    match text.parse::<jiff::Timestamp>().ok().or_else(midnight) {
        Some(time) => Ok(StartAt::Timestamp(time.as_millisecond())),
        None => Err(format!(
            "`{text}` is no position: use start, end, an offset, @milliseconds, -10m, a day like 2026-01-31, or a time like 2026-01-31T12:00:00Z"
        )),
    }
}

/// The byte that an escape means, of which the backslash was read: `\n \t \r \0 \\ \xHH`.
pub(crate) fn escaped(chars: &mut impl Iterator<Item = char>) -> Result<u8, String> {
    match chars.next() {
        Some('n') => Ok(b'\n'),
        Some('t') => Ok(b'\t'),
        Some('r') => Ok(b'\r'),
        Some('0') => Ok(0),
        Some('\\') => Ok(b'\\'),
        Some('x') => {
            let digits: String = chars.by_ref().take(2).collect();
            match u8::from_str_radix(&digits, 16) {
                Ok(byte) if digits.len() == 2 => Ok(byte),
                _ => Err(format!("`\\x{digits}` is not a byte")),
            }
        }
        Some(other) => Err(format!("`\\{other}` is not known")),
        None => Err("nothing follows the last backslash".into()),
    }
}

/// What stands between two records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delimiter(Vec<u8>);

impl Delimiter {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Text with escapes.
pub(crate) fn delimiter(text: &str) -> Result<Delimiter, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => bytes.push(escaped(&mut chars)?),
            other => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Ok(Delimiter(bytes))
}

/// Milliseconds since the Unix epoch, as RFC 3339 in UTC.
pub(crate) fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| ms.to_string(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert_eq!(duration("2w"), Ok(Duration::from_secs(14 * 86_400)));
        assert!(duration("7 fortnights").is_err() && duration("").is_err());
        assert_eq!(size("64k"), Ok(65_536));
        assert_eq!(size("1MiB"), Ok(1 << 20));
        assert!(size("-1").is_err() && size("9999999999999g").is_err());
        assert_eq!(milliseconds("2s"), Ok(2_000));
        assert!(milliseconds("2 dogs").is_err());
        assert_eq!(limit("1ms"), Ok(Duration::from_millis(1)));
        assert!(limit("0").is_err() && limit("0ms").is_err());
    }

    #[test]
    fn positions() {
        assert_eq!(start_at("start"), Ok(StartAt::Start));
        assert_eq!(start_at("17"), Ok(StartAt::Offset(17)));
        assert_eq!(start_at("offset=17"), Ok(StartAt::Offset(17)));
        assert_eq!(
            start_at("timestamp=1700000000000"),
            Ok(StartAt::Timestamp(1_700_000_000_000))
        );
        assert_eq!(
            start_at("@1700000000000"),
            Ok(StartAt::Timestamp(1_700_000_000_000))
        );
        assert_eq!(
            start_at("2023-11-14T22:13:20Z"),
            Ok(StartAt::Timestamp(1_700_000_000_000))
        );
        assert_eq!(
            start_at("2023-11-14"),
            Ok(StartAt::Timestamp(1_699_920_000_000))
        );
        assert!(start_at("2023-11-14T22:13").is_err(), "of which zone?");
        assert!(matches!(start_at("-10m"), Ok(StartAt::Timestamp(_))));
        assert!(start_at("soon").is_err());
        assert_eq!(time(1_700_000_000_000), "2023-11-14T22:13:20.000Z");
    }

    #[test]
    fn delimiters() {
        let bytes = |text| delimiter(text).map(|delimiter| delimiter.bytes().to_vec());
        assert_eq!(
            bytes("\\r\\n--\\0\\xff\\\\"),
            Ok(b"\r\n--\0\xff\\".to_vec())
        );
        assert_eq!(bytes("é"), Ok("é".as_bytes().to_vec()));
        for wrong in ["\\q", "\\x1", "\\xzz", "\\"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pairs() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(pair("=b").is_err() && pair("a").is_err());
    }
}
