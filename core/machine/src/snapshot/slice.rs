//! One slice: its head, and the archive that its sections are put in.

#![allow(
    missing_debug_implementations,
    reason = "rkyv's resolvers, which no code here names"
)]

use bytes::Bytes;
use millstream_batch::ids::{Lsn, ShardId};

use super::key::{self, Key};
use super::{Cursor, Cut, HEAD_BYTES, MAGIC, SnapshotError, table};
use crate::fact::archive::archived;
use crate::fact::{decode, encode};
use crate::state::State;

archived! {
    /// Version 4.
    pub struct Slice {
        pub as_of: u64,
        /// The slice covers the keys after `from`, up to and with `to`.
        pub from: Vec<u8>,
        pub to: Vec<u8>,
        /// Those that have cells in it, by number.
        pub sections: Vec<SectionRecord>,
    }

    pub struct SectionRecord {
        pub number: u8,
        pub version: u8,
        /// An archived vector of the section's records.
        pub records: Vec<u8>,
    }
}

fn gather(state: &State, after: Option<&Key>, bytes_target: usize) -> Slice {
    let (gathered, to) = table::gather(state, after, bytes_target);
    let sections = gathered.into_iter().map(|section| SectionRecord {
        number: section.number,
        version: section.version,
        records: section.records,
    });
    Slice {
        as_of: state.installed.0,
        from: after.cloned().unwrap_or_default(),
        to,
        sections: sections.collect(),
    }
}

pub(super) fn cut(state: &State, after: Option<&Key>, bytes_target: usize) -> Cut {
    let slice = gather(state, after, bytes_target);
    let next = (slice.to != key::end()).then(|| Cursor(slice.to.clone()));
    let archive = encode(&slice);
    let mut bytes = Vec::with_capacity(HEAD_BYTES + archive.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&state.id.0.to_le_bytes());
    bytes.extend_from_slice(&state.shards.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    assert_eq!(bytes.len(), HEAD_BYTES);
    bytes.extend_from_slice(&archive);
    Cut {
        bytes: Bytes::from(bytes),
        as_of: state.installed,
        next,
    }
}

pub(super) fn digest(state: &State) -> u64 {
    let mut slice = gather(state, None, usize::MAX);
    slice.as_of = 0;
    encode(&slice)
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

/// The shard that a part says it is of, and of how many.
pub(super) fn shard_of(bytes: &[u8]) -> Result<(ShardId, u16), SnapshotError> {
    let malformed = SnapshotError::Malformed {
        bytes: bytes.len(),
        what: "no head of a shard",
    };
    let head = bytes.get(..HEAD_BYTES).ok_or_else(|| malformed.clone())?;
    let shard = u16::from_le_bytes([head[8], head[9]]);
    let shards = u16::from_le_bytes([head[10], head[11]]);
    if shard >= shards {
        return Err(malformed);
    }
    Ok((ShardId(shard), shards))
}

/// Puts the cells of a part into a state that is being restored.
pub(super) fn restore(state: &mut State, bytes: &[u8]) -> Result<(), SnapshotError> {
    let malformed = |what| SnapshotError::Malformed {
        bytes: bytes.len(),
        what,
    };
    let Some((head, archive)) = bytes.split_at_checked(HEAD_BYTES) else {
        return Err(malformed("too short"));
    };
    if head[..8] != MAGIC || head[12..] != [0; 4] {
        return Err(SnapshotError::UnknownVersion);
    }
    let shard = ShardId(u16::from_le_bytes([head[8], head[9]]));
    let shards = u16::from_le_bytes([head[10], head[11]]);
    if (shard, shards) != (state.id, state.shards) {
        return Err(SnapshotError::OtherShard { shard, shards });
    }
    let slice: Slice = decode(archive).ok_or_else(|| malformed("not an archive"))?;
    if state.guard.covered_to().map_or(&[][..], |to| to.as_slice()) != slice.from
        || slice.to <= slice.from
    {
        return Err(SnapshotError::Incomplete);
    }
    for section in &slice.sections {
        table::restore(state, section.number, section.version, &section.records)
            .ok_or(SnapshotError::UnknownVersion)?
            .map_err(malformed)?;
    }
    state.guard.cover(slice.to, Lsn(slice.as_of));
    Ok(())
}
