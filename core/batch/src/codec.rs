//! The compressions of the records section, with the contexts and buffers that are worth keeping.
//!
//! Inflating never trusts a claimed size: output is bounded by [`BATCH_INFLATED_BYTES_MAX`] and
//! memory is taken as output appears, or by what the input could hold. Keep one [`Codec`] a thread.

use std::fmt;
use std::io::Read;

use lz4_flex::block::CompressTable;
use zstd::bulk::Compressor;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe;

use crate::limits::BATCH_INFLATED_BYTES_MAX;
use crate::lz4::{self, Lz4Error};
use crate::snappy::{self, SnappyError};
use crate::{BatchError, Compression};

/// What we write: a subset of what we read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encoding {
    #[default]
    None,
    Lz4,
    Zstd,
}

/// zstd's own default, and Kafka's.
const ZSTD_LEVEL: i32 = 3;
/// Largest window a zstd frame may ask us to keep: log2 of [`BATCH_INFLATED_BYTES_MAX`].
const ZSTD_WINDOW_LOG_MAX: u32 = BATCH_INFLATED_BYTES_MAX.ilog2();
/// Least room given to zstd's output at a time.
const ZSTD_ROOM: usize = 64 << 10;

/// Compression contexts, made when first used.
#[derive(Default)]
pub struct Codec {
    lz4_table: Option<CompressTable>,
    zstd_in: Option<Decoder<'static>>,
    zstd_out: Option<Compressor<'static>>,
    /// Memory for a batch in the making.
    pub(crate) scratch: Vec<u8>,
}

impl Codec {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Append the inflated `section` to `raw`. On an error `raw` may hold a part of it.
    ///
    /// # Errors
    /// [`BatchError::Inflate`] when the bytes are not what they should be (bytes behind the
    /// compressed data included), [`BatchError::InflatedTooLarge`] past
    /// [`BATCH_INFLATED_BYTES_MAX`].
    pub fn inflate(
        &mut self,
        compression: Compression,
        section: &[u8],
        raw: &mut Vec<u8>,
    ) -> Result<(), BatchError> {
        let result = match compression {
            Compression::None => {
                raw.extend_from_slice(section); // bounded by the batch that it is a part of
                Ok(())
            }
            Compression::Gzip => inflate_gzip(section, raw),
            Compression::Snappy => {
                snappy::inflate(section, raw, BATCH_INFLATED_BYTES_MAX).map_err(Failure::from)
            }
            Compression::Lz4 => {
                lz4::inflate(section, raw, BATCH_INFLATED_BYTES_MAX).map_err(Failure::from)
            }
            Compression::Zstd => self.inflate_zstd(section, raw),
        };
        result.map_err(|failure| match failure {
            Failure::Malformed(what) => BatchError::Inflate { compression, what },
            Failure::TooLarge => BatchError::InflatedTooLarge { compression },
        })
    }

    /// Append `raw`, compressed, to `out`. Returns `false`, with `out` as it was, when compression
    /// fails to make it smaller: it is then better stored plain.
    pub(crate) fn deflate(&mut self, encoding: Encoding, raw: &[u8], out: &mut Vec<u8>) -> bool {
        let at = out.len();
        match encoding {
            Encoding::None => return false,
            Encoding::Lz4 => {
                lz4::deflate(
                    raw,
                    out,
                    self.lz4_table.get_or_insert_with(CompressTable::default),
                );
            }
            Encoding::Zstd => {
                if self.zstd_out.is_none() {
                    self.zstd_out = Compressor::new(ZSTD_LEVEL).ok();
                }
                let Some(compressor) = &mut self.zstd_out else {
                    return false;
                };
                out.resize(at + zstd_safe::compress_bound(raw.len()), 0);
                let written = compressor
                    .compress_to_buffer(raw, &mut out[at..])
                    .unwrap_or(raw.len());
                out.truncate(at + written);
            }
        }
        if out.len() - at < raw.len() {
            return true;
        }
        out.truncate(at);
        false
    }

    fn inflate_zstd(&mut self, section: &[u8], raw: &mut Vec<u8>) -> Result<(), Failure> {
        if self.zstd_in.is_none() {
            let mut decoder = Decoder::new()?;
            decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
            self.zstd_in = Some(decoder);
        }
        let Some(decoder) = &mut self.zstd_in else {
            return Ok(());
        };
        decoder.reinit()?;
        let start = raw.len();
        let mut input = InBuffer::around(section);
        // With the claimed size as room the frame is decoded in one pass, without a window. The
        // claim is believed only as far as ordinary compression goes.
        let claimed = match zstd_safe::get_frame_content_size(section) {
            Ok(Some(size)) => usize::try_from(size)
                .unwrap_or(usize::MAX)
                .saturating_add(1),
            _ => ZSTD_ROOM,
        };
        let mut room = claimed.min(section.len().saturating_mul(16)).max(ZSTD_ROOM);
        loop {
            raw.reserve(room.min(BATCH_INFLATED_BYTES_MAX + 1));
            let (read_before, at) = (input.pos(), raw.len());
            let hint = decoder.run(&mut input, &mut OutBuffer::around_pos(raw, at))?;
            let full = raw.len() == raw.capacity();
            if raw.len() - start > BATCH_INFLATED_BYTES_MAX {
                return Err(Failure::TooLarge);
            }
            let all_read = input.pos() == section.len();
            if hint == 0 && all_read {
                return Ok(());
            }
            if all_read && !full {
                return Err(Failure::Malformed("the frame is cut off".into()));
            }
            if input.pos() == read_before && raw.len() == at && !full {
                return Err(Failure::Malformed("the frame does not go on".into()));
            }
            room = (raw.len() - start).max(ZSTD_ROOM);
        }
    }
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codec")
            .field("lz4", &self.lz4_table.is_some())
            .field("zstd_in", &self.zstd_in.is_some())
            .field("zstd_out", &self.zstd_out.is_some())
            .finish_non_exhaustive()
    }
}

impl Encoding {
    /// What a batch is written with after its records were changed: as it came, except that what
    /// we only read becomes lz4.
    #[must_use]
    pub fn after(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None,
            Compression::Zstd => Self::Zstd,
            Compression::Lz4 | Compression::Gzip | Compression::Snappy => Self::Lz4,
        }
    }
}

impl From<Encoding> for Compression {
    fn from(encoding: Encoding) -> Self {
        match encoding {
            Encoding::None => Self::None,
            Encoding::Lz4 => Self::Lz4,
            Encoding::Zstd => Self::Zstd,
        }
    }
}

enum Failure {
    Malformed(String),
    TooLarge,
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<Lz4Error> for Failure {
    fn from(error: Lz4Error) -> Self {
        match error {
            Lz4Error::Malformed(what) => Self::Malformed(what.into()),
            Lz4Error::TooLarge => Self::TooLarge,
        }
    }
}

impl From<SnappyError> for Failure {
    fn from(error: SnappyError) -> Self {
        match error {
            SnappyError::Malformed(what) => Self::Malformed(what),
            SnappyError::TooLarge => Self::TooLarge,
        }
    }
}

fn inflate_gzip(section: &[u8], raw: &mut Vec<u8>) -> Result<(), Failure> {
    let start = raw.len();
    let mut reader =
        flate2::bufread::MultiGzDecoder::new(section).take(BATCH_INFLATED_BYTES_MAX as u64 + 1);
    reader.read_to_end(raw)?;
    if raw.len() - start > BATCH_INFLATED_BYTES_MAX {
        return Err(Failure::TooLarge);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(plain).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    }

    /// zstd as a stream, which does not know its content size beforehand.
    fn zstd_stream(plain: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("a level");
        encoder.write_all(plain).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    }

    fn packed(plain: &[u8]) -> Vec<(Compression, Vec<u8>)> {
        let mut codec = Codec::new();
        let mut all = vec![
            (Compression::Gzip, gzip(plain)),
            (
                Compression::Snappy,
                snap::raw::Encoder::new()
                    .compress_vec(plain)
                    .expect("small"),
            ),
            (Compression::Zstd, zstd_stream(plain)),
        ];
        for encoding in [Encoding::Lz4, Encoding::Zstd] {
            let mut out = Vec::new();
            assert!(codec.deflate(encoding, plain, &mut out));
            all.push((encoding.into(), out));
        }
        all
    }

    #[test]
    fn all_are_read_and_a_codec_is_used_again_after_errors() {
        let plain: Vec<u8> = (0..300_000_u32)
            .flat_map(|i| (i / 9).to_le_bytes())
            .collect();
        let mut codec = Codec::new();
        for (compression, section) in packed(&plain) {
            for cut in [0, 1, 10, section.len() / 2, section.len() - 1] {
                let result = codec.inflate(compression, &section[..cut], &mut Vec::new());
                assert!(
                    matches!(result, Err(BatchError::Inflate { .. })),
                    "{compression} cut at {cut}: {result:?}"
                );
            }
            let mut longer = section.clone();
            longer.extend_from_slice(b"more");
            assert!(
                codec
                    .inflate(compression, &longer, &mut Vec::new())
                    .is_err(),
                "{compression} with bytes behind"
            );
            let mut raw = b"kept".to_vec();
            codec
                .inflate(compression, &section, &mut raw)
                .expect("well-formed");
            assert!(&raw[..4] == b"kept" && raw[4..] == plain, "{compression}");
        }
    }

    #[test]
    fn bombs_end_at_the_bound() {
        let plain = vec![0; BATCH_INFLATED_BYTES_MAX + 1];
        let mut codec = Codec::new();
        for (compression, section) in packed(&plain) {
            let mut raw = Vec::new();
            assert_eq!(
                codec.inflate(compression, &section, &mut raw),
                Err(BatchError::InflatedTooLarge { compression }),
            );
            assert!(
                raw.capacity() <= 3 * BATCH_INFLATED_BYTES_MAX,
                "{compression} took {}",
                raw.capacity()
            );
        }
        for (compression, section) in packed(&plain[1..]) {
            let mut raw = Vec::new();
            codec
                .inflate(compression, &section, &mut raw)
                .expect("exactly the bound");
            assert_eq!(raw.len(), BATCH_INFLATED_BYTES_MAX);
        }
    }

    #[test]
    fn what_does_not_shrink_is_left_plain() {
        let mut out = b"head".to_vec();
        for encoding in [Encoding::None, Encoding::Lz4, Encoding::Zstd] {
            assert!(!Codec::new().deflate(encoding, b"abcdefg", &mut out));
            assert_eq!(out, b"head");
        }
    }
}
