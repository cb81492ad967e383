//! Which sectors of unsynced writes survive a power cut: torn, reordered, all or none.

use std::sync::Arc;

use millstream_log::buffer::AlignedBuf;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// What a disk writes or loses as a whole, bytes.
pub const SECTOR_BYTES: usize = 512;

/// A write since the last good sync.
#[derive(Debug)]
pub(super) struct Unsynced {
    pub(super) at: u64,
    pub(super) buf: Arc<AlignedBuf>,
    pub(super) len: usize,
}

impl Unsynced {
    pub(super) fn apply(&self, bytes: &mut Vec<u8>) {
        let at = self.at as usize;
        grow(bytes, at + self.len);
        bytes[at..at + self.len].copy_from_slice(&self.buf[..self.len]);
    }
}

/// What a power cut keeps of the unsynced sectors. Drawn once a crash and file, so that the plain cases
/// (nothing, everything, a clean cut) come up as often as the wild ones.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kept {
    Nothing,
    Everything,
    /// In the order written, up to some sector.
    Prefix,
    /// All but a few.
    Most,
    /// Each by the toss of a coin.
    Any,
}

impl Kept {
    pub(super) fn draw(dice: &mut ChaCha8Rng) -> Self {
        match dice.next_u32() % 5 {
            0 => Self::Nothing,
            1 => Self::Everything,
            2 => Self::Prefix,
            3 => Self::Most,
            _ => Self::Any,
        }
    }
}

/// Put those sectors of `unsynced` that survive into `durable`.
pub(super) fn keep_some(
    dice: &mut ChaCha8Rng,
    kept: Kept,
    durable: &mut Vec<u8>,
    unsynced: &[Unsynced],
) {
    let sectors: usize = unsynced.iter().map(|write| write.len / SECTOR_BYTES).sum();
    if sectors == 0 {
        return;
    }
    let cut = (dice.next_u64() % (sectors as u64 + 1)) as usize;
    let mut number = 0;
    for write in unsynced {
        for (nth, sector) in write.buf[..write.len].chunks(SECTOR_BYTES).enumerate() {
            let keep = match kept {
                Kept::Nothing => false,
                Kept::Everything => true,
                Kept::Prefix => number < cut,
                Kept::Most => number != cut && !dice.next_u32().is_multiple_of(16),
                Kept::Any => dice.next_u32().is_multiple_of(2),
            };
            number += 1;
            if keep {
                let at = write.at as usize + nth * SECTOR_BYTES;
                grow(durable, at + sector.len());
                durable[at..at + sector.len()].copy_from_slice(sector);
            }
        }
    }
}

fn grow(bytes: &mut Vec<u8>, len: usize) {
    if bytes.len() < len {
        bytes.resize(len, 0);
    }
}
