//! Snappy as Kafka's producers write it: one raw block, or many in the framing of xerial's
//! `snappy-java`. Read only.
//!
//! ```text
//!  82 'S' 'N' 'A' 'P' 'P' 'Y' 00 | version i32 be | compatible version i32 be
//!  then blocks: length i32 be | raw snappy block
//! ```

const XERIAL: &[u8; 8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_BYTES: usize = 16;
/// No block inflates further: the densest element is 3 bytes for 64.
const RATIO_MAX: usize = 22;

/// Why the bytes cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SnappyError {
    Malformed(String),
    /// More than the bytes allowed.
    TooLarge,
}

/// Append what `packed` holds to `out`, at most `bytes_max`.
pub(crate) fn inflate(
    packed: &[u8],
    out: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<(), SnappyError> {
    if !packed.starts_with(XERIAL) {
        return inflate_block(packed, out, bytes_max);
    }
    let mut rest = packed
        .get(XERIAL_HEADER_BYTES..)
        .ok_or_else(|| SnappyError::Malformed("the xerial header is cut off".into()))?;
    let start = out.len();
    while !rest.is_empty() {
        let block = rest.split_first_chunk::<4>().and_then(|(length, tail)| {
            let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
            tail.split_at_checked(length)
        });
        let Some((block, tail)) = block else {
            return Err(SnappyError::Malformed("a xerial block is cut off".into()));
        };
        rest = tail;
        let room = bytes_max - (out.len() - start);
        inflate_block(block, out, room)?;
    }
    Ok(())
}

fn inflate_block(block: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), SnappyError> {
    let malformed = |error: snap::Error| SnappyError::Malformed(error.to_string());
    if block.is_empty() {
        return Err(SnappyError::Malformed("a block is empty".into()));
    }
    let size = snap::raw::decompress_len(block).map_err(malformed)?;
    if size > bytes_max {
        return Err(SnappyError::TooLarge);
    }
    if size / RATIO_MAX > block.len() {
        return Err(SnappyError::Malformed(format!(
            "{} bytes cannot hold the {size} they claim",
            block.len()
        )));
    }
    let at = out.len();
    out.resize(at + size, 0);
    let written = snap::raw::Decoder::new()
        .decompress(block, &mut out[at..])
        .map_err(malformed)?;
    out.truncate(at + written);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(plain: &[u8]) -> Vec<u8> {
        snap::raw::Encoder::new()
            .compress_vec(plain)
            .expect("small enough")
    }

    #[test]
    fn raw_and_xerial_framing_are_read() {
        let plain = vec![42; 10_000];
        let mut out = Vec::new();
        inflate(&raw(&plain), &mut out, plain.len()).expect("raw");
        assert_eq!(out, plain);

        let mut framed = XERIAL.to_vec();
        framed.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1]);
        for part in plain.chunks(3_000) {
            let block = raw(part);
            framed.extend_from_slice(&(block.len() as u32).to_be_bytes());
            framed.extend_from_slice(&block);
        }
        out.clear();
        inflate(&framed, &mut out, plain.len()).expect("xerial");
        assert_eq!(out, plain);
        assert_eq!(
            inflate(&framed, &mut Vec::new(), plain.len() - 1),
            Err(SnappyError::TooLarge)
        );
        for cut in [9, 15, 18, 30, framed.len() - 1] {
            assert!(
                matches!(
                    inflate(&framed[..cut], &mut Vec::new(), 1 << 20),
                    Err(SnappyError::Malformed(_))
                ),
                "{cut}"
            );
        }
    }

    #[test]
    fn a_size_that_the_bytes_cannot_hold_takes_no_memory() {
        let claims_16_mib = [0x80, 0x80, 0x80, 0x08, 0x00];
        let mut out = Vec::new();
        assert!(matches!(
            inflate(&claims_16_mib, &mut out, 32 << 20),
            Err(SnappyError::Malformed(_))
        ));
        assert_eq!(out.capacity(), 0);
    }
}
