//! HMAC-SHA-256 (RFC 2104), for the cache of compiled code. Deliberately absent: any other use.

use sha2::{Digest as _, Sha256};

/// The authentication code of `parts`, one after the other, under `key`.
pub(crate) fn hmac_sha256(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; 64];
        for (b, k) in block.iter_mut().zip(key) {
            *b ^= k;
        }
        block
    };
    let mut inner = Sha256::new_with_prefix(pad(0x36));
    for part in parts {
        inner.update(part);
    }
    Sha256::new_with_prefix(pad(0x5c))
        .chain_update(inner.finalize())
        .finalize()
        .into()
}

/// Compares without telling by its duration where the two differ.
pub(crate) fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test case 1; its key has 20 bytes, and HMAC pads keys with zeros, so ours is the same.
    #[test]
    fn rfc_4231_case_1() {
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        let expected = [
            0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53, 0x5c, 0xa8, 0xaf, 0xce, 0xaf, 0x0b,
            0xf1, 0x2b, 0x88, 0x1d, 0xc2, 0x00, 0xc9, 0x83, 0x3d, 0xa7, 0x26, 0xe9, 0x37, 0x6c,
            0x2e, 0x32, 0xcf, 0xf7,
        ];
        assert_eq!(hmac_sha256(&key, &[b"Hi ", b"There"]), expected);
        assert!(same(&expected, &hmac_sha256(&key, &[b"Hi There"])));
        assert!(!same(&expected, &hmac_sha256(&key, &[b"Hi there"])));
    }
}
