//! Zigzag variable-length integers, as in Protocol Buffers and Kafka's records: seven bits a byte,
//! the lowest first, the high bit says that more follow.
//!
//! Reading accepts padded forms (`80 00` for 0) as Kafka does, up to five bytes for 32 bits and ten
//! for 64, and refuses bits past the type.

/// Most bytes of a 64-bit number.
pub(crate) const VARLONG_BYTES_MAX: usize = 10;

/// Read a 32-bit number at `*at` and advance; `None` when it is cut off or too long.
#[inline]
pub(crate) fn read_i32(bytes: &[u8], at: &mut usize) -> Option<i32> {
    let first = *bytes.get(*at)?;
    if first < 0x80 {
        *at += 1;
        return Some(unzigzag32(u32::from(first)));
    }
    let mut pos = *at;
    let value = u32::try_from(read_u64(bytes, &mut pos, 5)?).ok()?;
    *at = pos;
    Some(unzigzag32(value))
}

/// Read a 64-bit number at `*at` and advance; `None` when it is cut off or too long.
#[inline]
pub(crate) fn read_i64(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let value = read_u64(bytes, at, VARLONG_BYTES_MAX)?;
    Some((value >> 1) as i64 ^ -((value & 1) as i64))
}

/// Append a 32-bit number.
#[inline]
pub(crate) fn write_i32(out: &mut Vec<u8>, value: i32) {
    write_u64(out, u64::from(zigzag32(value)));
}

/// Append a 64-bit number.
#[inline]
pub(crate) fn write_i64(out: &mut Vec<u8>, value: i64) {
    write_u64(out, zigzag64(value));
}

/// Bytes that [`write_i32`] appends.
#[inline]
pub(crate) fn len_i32(value: i32) -> usize {
    len_u64(u64::from(zigzag32(value)))
}

/// Bytes that [`write_i64`] appends.
#[inline]
pub(crate) fn len_i64(value: i64) -> usize {
    len_u64(zigzag64(value))
}

#[inline(always)]
fn read_u64(bytes: &[u8], at: &mut usize, bytes_max: usize) -> Option<u64> {
    let mut value = 0_u64;
    for i in 0..bytes_max {
        let byte = *bytes.get(*at + i)?;
        let bits = u64::from(byte & 0x7f);
        let shifted = bits << (7 * i);
        if shifted >> (7 * i) != bits {
            return None;
        }
        value |= shifted;
        if byte < 0x80 {
            *at += i + 1;
            return Some(value);
        }
    }
    None
}

#[inline]
fn write_u64(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[inline]
fn len_u64(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

#[inline]
fn zigzag32(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)) as u32
}

#[inline]
fn unzigzag32(value: u32) -> i32 {
    (value >> 1) as i32 ^ -((value & 1) as i32)
}

#[inline]
fn zigzag64(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the Protocol Buffers encoding guide, and the ends of the ranges.
    #[test]
    fn numbers_have_the_documented_bytes() {
        let cases: [(i64, &[u8]); 8] = [
            (0, &[0x00]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (-2, &[0x03]),
            (75, &[0x96, 0x01]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i64::from(i32::MIN), &[0xff, 0xff, 0xff, 0xff, 0x0f]),
            (
                i64::MIN,
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            ),
        ];
        for (value, bytes) in cases {
            let mut out = Vec::new();
            write_i64(&mut out, value);
            assert_eq!(out, bytes, "{value}");
            assert_eq!(len_i64(value), bytes.len());
            let mut at = 0;
            assert_eq!(read_i64(bytes, &mut at), Some(value));
            assert_eq!(at, bytes.len());
            if let Ok(value) = i32::try_from(value) {
                let mut out = Vec::new();
                write_i32(&mut out, value);
                assert_eq!(out, bytes);
                assert_eq!(len_i32(value), bytes.len());
                assert_eq!(read_i32(bytes, &mut 0), Some(value));
            }
        }
    }

    #[test]
    fn cut_off_and_overlong_numbers_are_refused_and_do_not_advance() {
        let bad32: [&[u8]; 5] = [
            &[],
            &[0x80],
            &[0xff, 0xff, 0xff, 0xff],
            &[0xff, 0xff, 0xff, 0xff, 0x1f],
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x00],
        ];
        for bytes in bad32 {
            let mut at = 0;
            assert_eq!(read_i32(bytes, &mut at), None, "{bytes:02x?}");
            assert_eq!(at, 0);
        }
        let mut at = 0;
        assert_eq!(
            read_i64(
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
                &mut at
            ),
            None
        );
        assert_eq!(read_i64(&[0x80; 11], &mut at), None);
        assert_eq!(read_i32(&[0x80, 0x00], &mut at), Some(0));
        assert_eq!(at, 2);
    }
}
