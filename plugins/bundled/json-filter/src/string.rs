//! JSON strings, as they stand between their quotes. They have been checked: escapes are complete, and
//! the rest is UTF-8. Deliberately absent: the quotes.

use std::borrow::Cow;

/// Bytes at the start of `text` that need no look of their own (no quote, backslash or control
/// character), and whether all of them are ASCII.
#[inline]
pub(crate) fn plain(text: &[u8]) -> (usize, bool) {
    let (chunks, rest) = text.as_chunks::<CHUNK>();
    let mut other = 0;
    for (i, chunk) in chunks.iter().enumerate() {
        let (special, high) = look(chunk);
        if special != 0 {
            let before = (special & special.wrapping_neg()) - 1;
            let plain = i * CHUNK + (special.trailing_zeros() / BITS) as usize;
            return (plain, other | (high & before) == 0);
        }
        other |= high;
    }
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..=0x1f);
    let len = rest.iter().position(special).unwrap_or(rest.len());
    let plain = chunks.len() * CHUNK + len;
    (plain, other == 0 && rest[..len].is_ascii())
}

/// Bytes that are looked at together.
const CHUNK: usize = if cfg!(target_feature = "simd128") {
    16
} else {
    8
};
/// Bits of a mask for each byte.
const BITS: u32 = if cfg!(target_feature = "simd128") {
    1
} else {
    8
};

/// A mask of the special bytes, of which the lowest is right, and a mask of those that are not ASCII.
#[cfg(target_feature = "simd128")]
#[inline]
fn look(chunk: &[u8; 16]) -> (u32, u32) {
    use std::arch::wasm32::{u8x16_bitmask, u8x16_eq, u8x16_lt, u8x16_splat, u64x2, v128_or};
    let (halves, _) = chunk.as_chunks::<8>();
    let chunk = u64x2(u64::from_le_bytes(halves[0]), u64::from_le_bytes(halves[1]));
    let quote = u8x16_eq(chunk, u8x16_splat(b'"'));
    let backslash = u8x16_eq(chunk, u8x16_splat(b'\\'));
    let control = u8x16_lt(chunk, u8x16_splat(0x20));
    let special = v128_or(v128_or(quote, backslash), control);
    (
        u32::from(u8x16_bitmask(special)),
        u32::from(u8x16_bitmask(chunk)),
    )
}

#[cfg(not(target_feature = "simd128"))]
#[inline]
fn look(chunk: &[u8; 8]) -> (u64, u64) {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    // A byte's high bit is set if it is special, and by a borrow perhaps for bytes after that one.
    let word = u64::from_le_bytes(*chunk);
    let zero_if = |byte: u8| word ^ (ONES * u64::from(byte));
    let is_zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let special = (is_zero(zero_if(b'"')) | is_zero(zero_if(b'\\')) | control) & HIGH;
    (special, word & HIGH)
}

/// Whether a JSON string is this text.
#[inline]
pub(crate) fn equals(json: &[u8], text: &[u8]) -> bool {
    // An escape never makes a string longer than its source.
    json == text || (json.len() > text.len() && *unescaped(json) == *text)
}

/// The text that a JSON string stands for. Half of a surrogate pair stands for U+FFFD.
pub(crate) fn unescaped(json: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = json.iter().position(|byte| *byte == b'\\') else {
        return Cow::Borrowed(json);
    };
    let mut text = json[..first].to_vec();
    let mut rest = &json[first..];
    loop {
        let (c, used) = match rest {
            [] => return Cow::Owned(text),
            [b'\\', b'u', ..] => code_point(rest),
            [b'\\', c, ..] => (simple(*c), 2),
            [byte, ..] => {
                text.push(*byte);
                rest = &rest[1..];
                continue;
            }
        };
        text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        rest = &rest[used..];
    }
}

fn simple(c: u8) -> char {
    match c {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        other => char::from(other),
    }
}

/// The character of one `\uXXXX`, or of two that make a pair, and how many bytes that is.
fn code_point(rest: &[u8]) -> (char, usize) {
    let unit = |at: usize| {
        let digits = rest.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
    };
    let high = unit(0).unwrap_or(0xfffd);
    if let (0xd800..0xdc00, Some(low @ 0xdc00..0xe000)) = (high, unit(6)) {
        let c = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
        return (char::from_u32(c).unwrap_or(char::REPLACEMENT_CHARACTER), 12);
    }
    (
        char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER),
        6,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_stops_at_every_special_byte_in_every_place() {
        for len in 0..40 {
            let mut text = vec![b'x'; len];
            assert_eq!(plain(&text), (len, true));
            for at in 0..len {
                for special in [b'"', b'\\', 0, 0x1f, b'\n'] {
                    text[at] = special;
                    assert_eq!(plain(&text), (at, true), "{special} at {at} of {len}");
                }
                for usual in [0x20, 0x21, 0x23, 0x5b, 0x5d, 0x7f, 0x80, 0xff, 0xa2, 0xdc] {
                    text[at] = usual;
                    let ascii = usual < 0x80;
                    assert_eq!(plain(&text), (len, ascii), "{usual} at {at} of {len}");
                }
                text[at] = b'x';
            }
        }
    }

    /// Expected values from RFC 8259, section 7.
    #[test]
    fn escapes() {
        for (json, text) in [
            (r"a\u005Cb", r"a\b"),
            (r"\uD834\uDD1E", "\u{1D11E}"),
            (r#"\"\\\/\b\f\n\r\t"#, "\"\\/\u{8}\u{c}\n\r\t"),
            (r"\uD834", "\u{fffd}"),
            (r"\uDD1E\uD834x", "\u{fffd}\u{fffd}x"),
        ] {
            assert_eq!(*unescaped(json.as_bytes()), *text.as_bytes(), "{json}");
            assert!(equals(json.as_bytes(), text.as_bytes()));
        }
        assert!(!equals(b"a", b"ab") && !equals(b"ab", b"a") && equals(b"", b""));
    }
}
