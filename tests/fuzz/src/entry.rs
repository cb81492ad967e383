//! The log's files. The first byte says what the rest is done to:
//!
//! - even: bits of a genuine log are damaged, as a disk would. Whatever is replayed or fetched from
//!   it was written, and what is appended afterwards is there the next time.
//! - odd: fields of a genuine log are changed and the checksums made to fit, as no disk would but a
//!   hand may. No panic, no endless walk.
//!
//! The program behind it is made of eight-byte steps, see [`damage`]. Absent: crashes between
//! writes, which are the simulator's.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use bytes::Bytes;
use millstream_batch::ids::{Lsn, Offset, PartitionSlot, TimestampMs};
use millstream_log::format::checksum;
use millstream_log::inspect::verify;
use millstream_log::io::FileId;
use millstream_log::scan::{Scanner, Step};
use millstream_log::{Append, Damage, Fetch, FetchError, IndexKey};

use crate::disk::{Files, Life, SEGMENT_BYTES};

const SLOTS: u32 = 3;
/// Records of every batch.
const RECORDS: u64 = 10;

/// A genuine log, and what was put into it.
struct Genuine {
    files: Files,
    written: BTreeMap<Lsn, Append>,
    /// Where headers are, to be changed and mended.
    structures: Vec<Structure>,
}

#[derive(Clone, Copy)]
enum Structure {
    Group { file: FileId, at: usize },
    Entry { file: FileId, at: usize, seed: u64 },
    Trailer { file: FileId },
    Manifest { file: FileId },
}

thread_local! {
    static GENUINE: OnceCell<Vec<Genuine>> = const { OnceCell::new() };
}

/// Groups, entries, footers, manifests: a whole log directory.
pub fn entry(data: &[u8]) {
    let Some((&[door, which], program)) = data.split_first_chunk::<2>() else {
        return;
    };
    GENUINE.with(|all| {
        let all = all.get_or_init(genuine);
        let genuine = &all[usize::from(which) % all.len()];
        let mut files = genuine.files.clone();
        damage(&mut files, genuine, program);
        if door & 1 == 0 {
            let told = check(&files);
            let found = outlive(files, &genuine.written);
            assert!(found.is_empty() || told, "verify is silent about {found:?}");
        } else {
            mend(&mut files, &genuine.structures);
            check(&files);
            scan(&files);
            let mut life = Life::open(files, 9);
            life.carry();
            life.fetch_all(SLOTS);
        }
    });
}

/// Each step: file or structure, operation, position (u32), value (u16), little-endian.
fn damage(files: &mut Files, genuine: &Genuine, program: &[u8]) {
    for step in program.chunks_exact(8) {
        let (which, operation) = (usize::from(step[0]), step[1]);
        let position = u32::from_le_bytes([step[2], step[3], step[4], step[5]]) as usize;
        let value = [step[6], step[7]];
        let Some(id) = files.keys().nth(which % files.len().max(1)).copied() else {
            return;
        };
        let len = files[&id].len();
        if operation % 8 == 7 {
            // A field of a header: what random positions seldom hit.
            let structure = &genuine.structures[which % genuine.structures.len()];
            let Some((bytes, header_len)) = structure.bytes(files) else {
                continue;
            };
            let at = position % header_len / 4 * 4;
            let value = i32::from(i16::from_le_bytes(value)) as u32;
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            continue;
        }
        if len == 0 {
            continue;
        }
        let file = files.get_mut(&id).expect("it was listed");
        let at = position % len;
        match operation % 8 {
            0 | 1 => file[at] ^= value[0] | 1,
            2 => file.truncate(at),
            3 => drop(files.remove(&id)),
            4 => file[at..]
                .iter_mut()
                .take(usize::from(value[0]) * 64)
                .for_each(|b| *b = value[1]),
            5 => {
                // A block of another place, as a misdirected write leaves it.
                let from = usize::from(u16::from_le_bytes(value)) * 4096 % len / 4096 * 4096;
                let to = at / 4096 * 4096;
                let end = len.min(from.max(to) + 4096) - from.max(to);
                file.copy_within(from..from + end, to);
            }
            _ => {
                let bytes = files.remove(&id).expect("it was listed");
                let other = match id {
                    FileId::Wal(n) => FileId::Wal(n ^ u64::from(value[0] % 4)),
                    FileId::Spare(n) => FileId::Wal(n ^ u64::from(value[0] % 4)),
                    other => other,
                };
                files.insert(other, bytes);
            }
        }
    }
}

/// Make the checksums of all headers fit what they now say.
fn mend(files: &mut Files, structures: &[Structure]) {
    for structure in structures {
        let Some((bytes, header_len)) = structure.bytes(files) else {
            continue;
        };
        let seed = match structure {
            Structure::Entry { seed, .. } => *seed,
            _ => u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes")),
        };
        let sum_at = header_len - 8;
        let sum = checksum(seed, &bytes[..sum_at]);
        bytes[sum_at..header_len].copy_from_slice(&sum.to_le_bytes());
    }
}

impl Structure {
    /// Its bytes with the checksum in the last eight, and their number.
    fn bytes<'f>(&self, files: &'f mut Files) -> Option<(&'f mut [u8], usize)> {
        let (file, at, len) = match *self {
            Self::Group { file, at } | Self::Entry { file, at, .. } => (file, at, 96),
            Self::Trailer { file } => (file, SEGMENT_BYTES as usize - 4096, 104),
            Self::Manifest { file } => (file, 0, files.get(&file)?.len()),
        };
        let bytes = files.get_mut(&file)?.get_mut(at..at + len)?;
        (len >= 24).then_some((bytes, len))
    }
}

/// Walk every file as `millstream log inspect` does, over breaks to the end.
fn scan(files: &Files) -> Vec<Structure> {
    let mut found = Vec::new();
    for (id, bytes) in files {
        let FileId::Wal(number) = *id else { continue };
        let mut scanner = Scanner::new(number, bytes.len() as u64, None, 0);
        for _ in 0..10_000 {
            match scanner.step() {
                Step::Read { at, len } => {
                    let start = (at as usize).min(bytes.len());
                    let end = (start + len).min(bytes.len());
                    scanner.feed(at, Bytes::copy_from_slice(&bytes[start..end]));
                }
                Step::Group(group) => {
                    let seed = group.header.incarnation;
                    found.push(Structure::Group {
                        file: *id,
                        at: group.at as usize,
                    });
                    found.extend(group.entries.iter().map(|entry| Structure::Entry {
                        file: *id,
                        at: entry.at as usize,
                        seed,
                    }));
                    let _ = (group.is_whole(), group.last_lsn());
                }
                Step::Break { .. } => scanner.search(),
                Step::End => break,
            }
        }
        assert!(
            scanner.at() + 96 > bytes.len() as u64,
            "the walk came to the end"
        );
    }
    found
}

/// Whether `millstream log verify` has anything to say of the files.
fn check(files: &Files) -> bool {
    let list: Vec<_> = files.iter().map(|(id, b)| (*id, b.len() as u64)).collect();
    let verified = verify(&list, &mut |file, at, len| {
        let bytes = &files[&file];
        let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(len).min(bytes.len());
        Ok(Bytes::copy_from_slice(&bytes[start..end]))
    })
    .expect("every file can be read");
    !verified.damage.is_empty() || !verified.torn.is_empty()
}

/// Open what is left, hold it to what was written, write more, and open it again. Gives the damage
/// that the first start found.
fn outlive(files: Files, written: &BTreeMap<Lsn, Append>) -> Vec<Damage> {
    let mut life = Life::open(files, 2);
    life.carry();
    held_to(&mut life, written);
    let recovery = life.recovery.as_ref().expect("an opening ends");
    let found = recovery.damage.clone();
    let mut written = written.clone();
    if !life.may_write() {
        return found;
    }
    // What the first life lost is written over: only the rest is still promised.
    written.retain(|lsn, _| *lsn <= life.log.last());
    for i in 0..3 {
        let entry = record(1_000_000 + i * RECORDS, SLOTS, 50 + i as usize * 900);
        let Ok(lsn) = life.log.append(entry.clone()) else {
            return found;
        };
        life.log.flush();
        life.carry();
        assert!(life.durable >= lsn || !life.may_write());
        written.insert(lsn, entry);
    }
    let durable = life.durable;
    if !life.may_write() {
        return found;
    }
    let mut life = Life::open(life.files, 3);
    life.carry();
    assert!(life.recovery.is_some(), "a log that was mended opens");
    assert!(
        life.log.last() >= durable || !life.may_write(),
        "what was durable stays"
    );
    held_to(&mut life, &written);
    found
}

/// Nothing is replayed or fetched that was not written so.
fn held_to(life: &mut Life, written: &BTreeMap<Lsn, Append>) {
    assert!(life.recovery.is_some(), "an opening ends");
    for (lsn, kind, fact) in &life.replayed {
        if let Some(entry) = written.get(lsn) {
            assert!(
                *kind == entry.kind && *fact == entry.fact,
                "{lsn} was replayed as another"
            );
        } else {
            panic!("{lsn} was replayed and never written");
        }
    }
    for result in life.fetch_all(SLOTS + 1) {
        match result {
            Ok(entries) => {
                for found in entries {
                    let entry = &written[&found.lsn];
                    assert!(found.fact == entry.fact && found.raw == entry.raw.concat());
                }
            }
            Err(FetchError::Damaged { from, to }) => assert!(from <= to),
            Err(FetchError::Io(_)) => {}
        }
    }
}

/// The logs that are damaged: a young one, one with sealed files and a snapshot, a closed one.
fn genuine() -> Vec<Genuine> {
    [(6, false, false), (60, true, false), (25, true, true)]
        .into_iter()
        .map(|(entries, snapshot, sealed)| {
            let mut life = Life::open(Files::new(), 1);
            life.carry();
            let mut written = BTreeMap::new();
            for i in 0..entries {
                let slot = i as u32 % SLOTS;
                let entry = record(i * RECORDS, slot, (i as usize * 997) % 7_000);
                let lsn = life.log.append(entry.clone()).expect("a healthy log");
                written.insert(lsn, entry);
                if i % 3 != 1 {
                    life.log.flush();
                    life.carry();
                }
                if snapshot && i == entries / 2 {
                    life.log.begin_snapshot();
                    life.log.snapshot_part(Bytes::from(vec![7; 5_000]));
                    life.log.snapshot_part(Bytes::from_static(b"the rest"));
                    life.log.publish_snapshot();
                    life.carry();
                }
            }
            if sealed {
                life.log.seal();
            } else {
                life.log.idle();
            }
            life.carry();
            let files = life.files;
            let mut structures = scan(&files);
            structures.extend(files.keys().filter_map(|&file| match file {
                FileId::Manifest { .. } => Some(Structure::Manifest { file }),
                FileId::Wal(_) => Some(Structure::Trailer { file }),
                _ => None,
            }));
            // A file that is still written has no trailer, and one must not be made of nothing.
            structures.retain(|structure| match structure {
                Structure::Trailer { file } => {
                    files[file][SEGMENT_BYTES as usize - 4096..].starts_with(b"MSft")
                }
                _ => true,
            });
            Genuine {
                files,
                written,
                structures,
            }
        })
        .collect()
}

/// An entry that can be told from every other.
fn record(offset: u64, slot: u32, raw_bytes: usize) -> Append {
    let batch = Bytes::from(vec![offset as u8; raw_bytes + 1]);
    Append {
        kind: 40 + slot as u16,
        fact: Bytes::copy_from_slice(&[&offset.to_le_bytes()[..], b" and more"].concat()),
        raw: vec![batch.slice(..raw_bytes / 2), batch.slice(raw_bytes / 2..)].into(),
        index: Some(IndexKey {
            slot: PartitionSlot(slot),
            base_offset: Offset(offset),
            last_offset: Offset(offset + RECORDS - 1),
            append_time: TimestampMs(1_000 + offset as i64),
            max_timestamp: TimestampMs(offset as i64),
        }),
    }
}

/// A fetch of everything from `offset` on.
pub(crate) fn fetch_from(slot: u32, offset: Offset) -> Fetch {
    Fetch {
        token: u64::from(slot),
        slot: PartitionSlot(slot),
        offset,
        end: Offset(u64::MAX),
        bytes_max: 1 << 14,
    }
}

/// The offset behind the batch with this fact.
pub(crate) fn offset_after(fact: &[u8]) -> Option<Offset> {
    let base = u64::from_le_bytes(*fact.first_chunk()?);
    base.checked_add(RECORDS).map(Offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else the target would praise an empty log.
    #[test]
    fn the_genuine_logs_hold_what_was_written() {
        for genuine in genuine() {
            let groups = |s: &&Structure| matches!(s, Structure::Group { .. });
            assert!(genuine.structures.iter().filter(groups).count() >= 3);
            let mut life = Life::open(genuine.files, 2);
            life.carry();
            assert!(life.may_write());
            assert!(!life.replayed.is_empty());
            assert_eq!(
                life.log.last(),
                *genuine.written.last_key_value().expect("entries").0
            );
            let answers = life.fetch_all(SLOTS);
            let fetched: usize = answers.iter().flatten().map(Vec::len).sum();
            assert_eq!(fetched, genuine.written.len());
        }
    }
}
