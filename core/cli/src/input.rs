//! Records from input: cut at a delimiter, as `key:value`, or as JSON. Splitting is by `memchr`; nothing is
//! copied but what JSON has to unescape, and no byte is changed.

mod json;

pub(crate) use json::from_json;

use crate::values::Delimiter;

/// Where one record ends and the next begins.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    /// Never empty.
    delimiter: Vec<u8>,
    /// A carriage return before the delimiter belongs to it.
    crlf: bool,
}

impl Cut {
    /// At this delimiter.
    pub(crate) fn at(delimiter: &Delimiter) -> Result<Self, String> {
        match delimiter.bytes() {
            [] => {
                Err("an empty delimiter ends no record: use --whole for input that is one".into())
            }
            bytes => Ok(Self {
                delimiter: bytes.to_vec(),
                crlf: false,
            }),
        }
    }

    /// At line feeds; with `crlf`, a carriage return before one belongs to it.
    pub(crate) fn lines(crlf: bool) -> Self {
        Self {
            delimiter: b"\n".to_vec(),
            crlf,
        }
    }

    /// Whether records are lines.
    pub(crate) fn is_lines(&self) -> bool {
        self.delimiter == b"\n"
    }

    /// The records of a block that end in it. What follows the last delimiter is left to the caller; no
    /// delimiter ends before `searched`.
    pub(crate) fn pieces<'a>(&'a self, block: &'a [u8], searched: usize) -> Pieces<'a> {
        let last = self.delimiter.last().copied().unwrap_or(b'\n');
        Pieces {
            cut: self,
            block,
            ends: memchr::memchr_iter(last, &block[searched..]),
            searched,
            at: 0,
        }
    }
}

/// See [`Cut::pieces`].
#[derive(Debug)]
pub(crate) struct Pieces<'a> {
    cut: &'a Cut,
    block: &'a [u8],
    /// Of the delimiter's last byte, behind `searched`.
    ends: memchr::Memchr<'a>,
    searched: usize,
    at: usize,
}

impl Pieces<'_> {
    /// Bytes up to and with the last delimiter given.
    pub(crate) fn consumed(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let end = self.searched + self.ends.next()? + 1;
            let Some(piece) = self.block[self.at..end].strip_suffix(&self.cut.delimiter[..]) else {
                continue; // the last byte of a delimiter, without the rest of it
            };
            self.at = end;
            return Some(if self.cut.crlf {
                piece.strip_suffix(b"\r").unwrap_or(piece)
            } else {
                piece
            });
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::delimiter;

    fn cut<'a>(cut: &'a Cut, block: &'a [u8]) -> (Vec<&'a [u8]>, usize) {
        let mut pieces = cut.pieces(block, 0);
        (pieces.by_ref().collect(), pieces.consumed())
    }

    #[test]
    fn lines_keep_every_byte_but_their_end() {
        let block = b"a\nbc\r\n\n\r\nrest\r";
        assert_eq!(
            cut(&Cut::lines(false), block),
            (vec![&b"a"[..], b"bc\r", b"", b"\r"], 9)
        );
        assert_eq!(
            cut(&Cut::lines(true), block),
            (vec![&b"a"[..], b"bc", b"", b""], 9)
        );
    }

    #[test]
    fn a_delimiter_may_be_any_bytes() {
        let at = |text| Cut::at(&delimiter(text).unwrap()).unwrap();
        assert_eq!(cut(&at("\\0"), b"a\n\0b\0c"), (vec![&b"a\n"[..], b"b"], 5));
        assert_eq!(
            cut(&at("\\r\\n"), b"a\nb\r\n\r\r\nc"),
            (vec![&b"a\nb"[..], b"\r"], 8)
        );
        // Found from the left, without overlap.
        assert_eq!(cut(&at("aa"), b"aaaxaa"), (vec![&b""[..], b"ax"], 6));
        assert!(Cut::at(&delimiter("").unwrap()).is_err());
    }

    /// A block that grows is searched once, also where a delimiter came in two parts.
    #[test]
    fn what_was_searched_is_not_searched_again() {
        let crlf = Cut::at(&delimiter("\\r\\n").unwrap()).unwrap();
        let block = b"long\nline\r\nrest";
        for searched in 0..=10 {
            let mut pieces = crlf.pieces(block, searched);
            assert_eq!(pieces.next(), Some(&b"long\nline"[..]), "{searched}");
            assert_eq!((pieces.next(), pieces.consumed()), (None, 11));
        }
    }

    #[test]
    fn keys() {
        assert_eq!(split_key(b"k:v:w", b":"), (Some(&b"k"[..]), &b"v:w"[..]));
        assert_eq!(split_key(b"k => v", b" => "), (Some(&b"k"[..]), &b"v"[..]));
        assert_eq!(split_key(b"no key", b":"), (None, &b"no key"[..]));
    }
}
