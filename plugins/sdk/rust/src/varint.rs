//! Zigzag varints, as in a Kafka record. Deliberately absent: writing them outside tests.

/// Reads one at the start of `bytes`: its value and its length. None if it does not end, or is longer
/// than 64 bits can be.
#[inline]
pub(crate) fn read(bytes: &[u8]) -> Option<(i64, usize)> {
    let mut raw = 0_u64;
    for (i, byte) in bytes.iter().take(10).enumerate() {
        raw |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some(((raw >> 1) as i64 ^ -((raw & 1) as i64), i + 1));
        }
    }
    None
}

/// Appends one.
pub(crate) fn write(out: &mut Vec<u8>, value: i64) {
    let mut raw = ((value << 1) ^ (value >> 63)) as u64;
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values and bytes from the Protocol Buffers encoding guide, `sint32`.
    #[test]
    fn zigzag_of_the_protobuf_guide() {
        for (value, bytes) in [(0, &[0][..]), (-1, &[1]), (1, &[2]), (-2, &[3])] {
            let mut out = Vec::new();
            write(&mut out, value);
            assert_eq!(out, bytes);
            assert_eq!(read(bytes), Some((value, bytes.len())));
        }
        let mut out = Vec::new();
        write(&mut out, 0x7fff_ffff);
        assert_eq!(out, [0xfe, 0xff, 0xff, 0xff, 0x0f]);
        assert_eq!(read(&out), Some((0x7fff_ffff, 5)));
    }

    #[test]
    fn the_ends_of_the_range_and_beyond() {
        for value in [i64::MIN, i64::MAX, i64::MIN + 1, 300, -300] {
            let mut out = Vec::new();
            write(&mut out, value);
            assert_eq!(read(&out), Some((value, out.len())));
        }
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[0x80]), None);
        assert_eq!(read(&[0xff; 11]), None);
    }
}
