//! Times and sizes as people write them: `5d`, `500ms`, `64MiB`. A bare number is milliseconds or
//! bytes. Whole numbers only: what is decided by them must not hang on rounding.

/// Milliseconds: a number with `ms`, `s`, `m`, `h`, `d` or `w`, or bare. `None`: it is none, or too large.
#[must_use]
pub fn milliseconds(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let ms = match unit.as_str() {
        "" | "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 7 * 86_400_000,
        _ => return None,
    };
    number.checked_mul(ms)
}

/// Bytes: a number with `k`, `m`, `g` or `t` (powers of 1024; also `kb`, `KiB`), or bare. `None`: it
/// is none, or too large.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// The number and the unit behind it, in small letters. `64_000` and `5 d` are numbers, too.
fn split(text: &str) -> Option<(u64, String)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '_')
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number = digits.replace('_', "").parse().ok()?;
    Some((number, unit.trim().to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_with_units() {
        assert_eq!(milliseconds("5d"), Some(432_000_000));
        assert_eq!(milliseconds("90 s"), Some(90_000));
        assert_eq!(milliseconds("250"), Some(250));
        assert_eq!(milliseconds("1_000ms"), Some(1_000));
        assert_eq!(bytes("64MiB"), Some(64 << 20));
        assert_eq!(bytes("2g"), Some(2 << 30));
        assert_eq!(bytes("4096"), Some(4_096));
        for wrong in [
            "",
            "d",
            "-1",
            "1.5h",
            "5 dogs",
            "99999999999999999999",
            "9999999999999d",
        ] {
            assert_eq!(milliseconds(wrong), None, "{wrong}");
        }
        for wrong in ["", "k", "-1", "1.5g", "5 dogs", "99999999999t"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
