//! Names of cells as byte strings that sort as the snapshot lists them.
//!
//! ```text
//!   section's number u8 │ topic id, slot, pid: big-endian │ group names end with a zero, which none holds
//! ```

use super::table::Numbered;

pub(crate) type Key = Vec<u8>;

/// Past every key.
const END: u8 = u8::MAX;

/// The key of a cell, from what names it within its section.
pub(crate) fn of<S: Numbered>(rest: &[u8]) -> Key {
    let mut key = Key::with_capacity(1 + rest.len());
    key.push(S::NUMBER);
    key.extend_from_slice(rest);
    key
}

/// A part of a cursor's key, which was made here.
pub(crate) fn fixed<const N: usize>(key: &[u8]) -> [u8; N] {
    key.try_into().expect("a cursor's key was made here")
}

/// As [`fixed`], of a name.
pub(crate) fn text(key: &[u8]) -> &str {
    std::str::from_utf8(key).expect("a cursor's key was made from a name")
}

pub(super) fn end() -> Key {
    vec![END]
}
