//! Facts and snapshots of every version that was ever released still open.
//!
//! `GOLDEN_WRITE=1 cargo test -p millstream-machine --test golden` adds the files of new kinds; a file
//! that is there is never written again.

use std::fs;
use std::path::PathBuf;

use millstream_batch::ids::{
    Lsn, Offset, PartitionSlot, ProducerEpoch, ProducerId, Sequence, ShardId, Term, TimestampMs,
    TopicId,
};
use millstream_machine::fact::archive::{
    BatchAppended, CatalogueKnown, ClockAccepted, ClockAdvanced, CourierApplied, CourierQueued,
    CourierTrimmed, FilterRecord, ForgetGroupMessage, GroupChanged, GroupDeleted,
    GroupOffsetsForgotten, HoldRecord, MemberRecord, OffsetCommitted, OffsetReset, ParameterRecord,
    PartitionClaimed, PartitionRecord, PartitionTrimmed, ProducerAdvanced, ProducerGiven,
    ProducersExpired, SlotRecord, TopicApplied, TopicDeleted, TopicRecord,
};
use millstream_machine::{Fact, FactError, Limits, State, batch_meta, install};

fn row(key: &str, value: &str) -> ParameterRecord {
    ParameterRecord {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

fn samples() -> Vec<(&'static str, Fact)> {
    let filter = FilterRecord {
        name: "only-errors".to_owned(),
        digest: [0xd1; 32],
        stage: 1,
        on_error: 2,
        batch_ms_max: 250,
        memory_bytes_max: 16 << 20,
        parameters: vec![row("level", "error and above")],
    };
    let topic = TopicRecord {
        id: [0x10; 16],
        name: "orders.v1".to_owned(),
        partitions: 3,
        revision: 7,
        settings: vec![
            row("retention.ms", "-1"),
            row("max.message.bytes", "1048588"),
        ],
        filters: vec![filter],
    };
    vec![
        ("001-batch-appended", Fact::BatchAppended(appended())),
        (
            "002-producer-advanced",
            Fact::ProducerAdvanced(ProducerAdvanced {
                slot: 0,
                epoch: 6,
                pid: 0x0102_0304_0506_0708,
                sequence: 1_004,
                append_time_ms: 1_700_000_000_124,
                sent: 2,
            }),
        ),
        (
            "003-partition-trimmed",
            Fact::PartitionTrimmed(PartitionTrimmed { slot: 0, start: 2 }),
        ),
        (
            "018-topic-applied",
            Fact::TopicApplied(Box::new(TopicApplied {
                topic,
                added: vec![
                    SlotRecord { index: 0, slot: 0 },
                    SlotRecord { index: 2, slot: 1 },
                ],
                time_ms: 1_700_000_000_000,
            })),
        ),
        (
            "019-topic-deleted",
            Fact::TopicDeleted(Box::new(TopicDeleted {
                id: [0x11; 16],
                slots: vec![8, 9],
                time_ms: 1_700_000_000_001,
                revision: 8,
            })),
        ),
        (
            "020-catalogue-known",
            Fact::CatalogueKnown(CatalogueKnown {
                shard: 2,
                revision: 7,
            }),
        ),
        (
            "032-producer-given",
            Fact::ProducerGiven(ProducerGiven {
                pid: 77,
                epoch: 2,
                time_ms: 1_700_000_000_002,
            }),
        ),
        (
            "033-producers-expired",
            Fact::ProducersExpired(Box::new(ProducersExpired {
                floor: 70,
                survivors: vec![3, 55],
                unused_before_ms: 1_600_000_000_000,
            })),
        ),
        (
            "034-clock-advanced",
            Fact::ClockAdvanced(ClockAdvanced {
                time_ms: 1_700_000_100_000,
            }),
        ),
        (
            "035-clock-accepted",
            Fact::ClockAccepted(ClockAccepted {
                time_ms: 1_690_000_000_000,
            }),
        ),
        (
            "048-partition-claimed",
            Fact::PartitionClaimed(Box::new(PartitionClaimed {
                group: "billing".to_owned(),
                slot: 0,
                member: 4,
                epoch: 9,
            })),
        ),
        (
            "049-offset-committed",
            Fact::OffsetCommitted(Box::new(OffsetCommitted {
                group: "billing".to_owned(),
                slot: 0,
                offset: 3,
                metadata: "up to invoice 17".to_owned(),
                time_ms: 1_700_000_000_003,
            })),
        ),
        (
            "050-offset-reset",
            Fact::OffsetReset(Box::new(OffsetReset {
                group: "audit".to_owned(),
                slot: 1,
                offset: 0,
                time_ms: 1_700_000_000_004,
            })),
        ),
        (
            "052-group-offsets-forgotten",
            Fact::GroupOffsetsForgotten(Box::new(GroupOffsetsForgotten {
                group: "reports".to_owned(),
                epoch: 11,
            })),
        ),
        (
            "064-group-changed",
            Fact::GroupChanged(Box::new(GroupChanged {
                group: "billing".to_owned(),
                epoch: 9,
                time_ms: 1_700_000_000_005,
                left: vec![1, 2],
                joined: vec![MemberRecord {
                    member: 9,
                    client: "worker-9.example".to_owned(),
                    topics: vec![[0x10; 16], [0x12; 16]],
                    session_timeout_ms: 30_000,
                }],
                gone: vec![PartitionRecord {
                    topic: [0x11; 16],
                    index: 4,
                }],
                holds: vec![
                    HoldRecord {
                        topic: [0x10; 16],
                        index: 0,
                        member: 9,
                        epoch: 9,
                        revoking: false,
                    },
                    HoldRecord {
                        topic: [0x10; 16],
                        index: 1,
                        member: 4,
                        epoch: 5,
                        revoking: true,
                    },
                ],
            })),
        ),
        (
            "065-group-deleted",
            Fact::GroupDeleted(Box::new(GroupDeleted {
                group: "old".to_owned(),
                epoch: 41,
            })),
        ),
        (
            "080-courier-queued",
            Fact::CourierQueued(Box::new(CourierQueued {
                to: 2,
                row: 0,
                k: 1,
                kind: 1,
                body: message(),
            })),
        ),
        (
            "081-courier-applied",
            Fact::CourierApplied(CourierApplied {
                from: 3,
                row: 0,
                k: 1,
            }),
        ),
        (
            "082-courier-trimmed",
            Fact::CourierTrimmed(CourierTrimmed {
                to: 2,
                row: 0,
                last: 1,
            }),
        ),
    ]
}

fn message() -> Vec<u8> {
    let message = ForgetGroupMessage {
        group: "reports".to_owned(),
        epoch: 11,
    };
    rkyv::to_bytes::<rkyv::rancor::Error>(&message)
        .expect("archived")
        .into_vec()
}

fn appended() -> BatchAppended {
    BatchAppended {
        slot: 0,
        term: 4,
        base_offset: 0,
        append_time_ms: 1_700_000_000_123,
        timestamp_ms_max: -1,
        pid: 0x0102_0304_0506_0708,
        sequence: 0,
        epoch: 6,
        sent: 1_004,
        kept: 1_000,
        bytes: 65_536,
    }
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this"))
        .join("tests/golden")
        .join(format!("{name}.bin"))
}

/// The stored bytes; with `GOLDEN_WRITE` they are stored first if there are none.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = file(name);
    if !path.exists() && std::env::var_os("GOLDEN_WRITE").is_some() {
        fs::write(&path, bytes).unwrap();
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn old_facts_decode() {
    for (name, fact) in samples() {
        let bytes = golden(name, &fact.encode());
        assert_eq!(
            Fact::decode(fact.kind(), &bytes),
            Ok(fact.clone()),
            "{name}"
        );
        assert_eq!(
            fact.encode(),
            bytes,
            "{name}: the same fact gives the same bytes"
        );
        assert_eq!(name.split('-').next().unwrap().parse(), Ok(fact.kind()));
    }
    let files = fs::read_dir(file("x").parent().unwrap()).unwrap().count();
    assert_eq!(
        files,
        samples().len() + 4,
        "every file is of a kind tested here, one of before, or a snapshot"
    );
}

/// Kind 16 had a field for each setting.
#[test]
fn old_topics_decode() {
    let bytes = golden("016-topic-applied", &[]);
    let read = Fact::decode(16, &bytes).unwrap();
    let mut samples = samples().into_iter();
    let (_, now) = samples
        .find(|(name, _)| *name == "018-topic-applied")
        .expect("a sample");
    assert_eq!(read, now);
}

/// Kind 17 had no revision, kind 51 no epoch.
#[test]
fn old_deletions_decode() {
    let bytes = golden("017-topic-forgotten", &[]);
    let fact = TopicDeleted {
        id: [0x11; 16],
        slots: vec![8, 9],
        time_ms: 1_700_000_000_001,
        revision: 0,
    };
    let fact = Fact::TopicDeleted(Box::new(fact));
    assert_eq!(Fact::decode(17, &bytes), Ok(fact));

    let bytes = golden("051-group-forgotten", &[]);
    let fact = GroupOffsetsForgotten {
        group: "old".to_owned(),
        epoch: u64::MAX,
    };
    let fact = Fact::GroupOffsetsForgotten(Box::new(fact));
    assert_eq!(Fact::decode(51, &bytes), Ok(fact));
}

/// The state that the samples make.
fn sample_state() -> State {
    let mut state = State::new(ShardId(0), 3, Limits::default());
    let order = ["018", "001", "002", "003", "032", "048", "049", "064"];
    let mut samples = samples();
    samples.sort_by_key(|(name, _)| {
        order
            .iter()
            .position(|kind| name.starts_with(kind))
            .unwrap_or(order.len())
    });
    for (lsn, (_, fact)) in (1..).zip(&samples) {
        install(&mut state, Lsn(lsn), std::slice::from_ref(fact));
    }
    // One message that is not acknowledged.
    let queued = Fact::CourierQueued(Box::new(CourierQueued {
        to: 1,
        row: 0,
        k: 1,
        kind: 1,
        body: message(),
    }));
    let lsn = state.installed().next();
    install(&mut state, lsn, &[queued]);
    state
}

fn restored(state: &State, bytes: &[u8]) -> State {
    let begin = state.installed();
    State::restore(ShardId(0), 3, Limits::default(), begin, [bytes]).unwrap()
}

#[test]
fn old_snapshots_open() {
    let state = sample_state();
    let bytes = golden("snapshot-4", &state.snapshot(None, usize::MAX).bytes);
    let restored = restored(&state, &bytes);
    assert!(restored == state);
    assert_eq!(restored.digest(), state.digest());
    assert_eq!(state.snapshot(None, usize::MAX).bytes, bytes);
    assert_eq!(restored.installed(), state.installed());
}

/// The pinned features of rkyv, as bytes: little-endian, aligned, 32-bit relative pointers.
#[test]
fn the_archive_layout_is_pinned() {
    let bytes = Fact::BatchAppended(appended()).encode();
    let mut expected = Vec::new();
    expected.extend_from_slice(&0_u32.to_le_bytes());
    expected.extend_from_slice(&4_u32.to_le_bytes());
    expected.extend_from_slice(&0_u64.to_le_bytes());
    expected.extend_from_slice(&1_700_000_000_123_i64.to_le_bytes());
    expected.extend_from_slice(&(-1_i64).to_le_bytes());
    expected.extend_from_slice(&0x0102_0304_0506_0708_u64.to_le_bytes());
    expected.extend_from_slice(&0_u64.to_le_bytes());
    for number in [6_u32, 1_004, 1_000, 65_536] {
        expected.extend_from_slice(&number.to_le_bytes());
    }
    assert_eq!(bytes, expected);
    assert_eq!(align_of::<rkyv::Archived<u64>>(), 8);
    assert_eq!(
        size_of::<rkyv::Archived<Vec<u64>>>(),
        8,
        "a relative pointer and a length of 32 bits each"
    );
    assert_eq!(size_of::<rkyv::string::ArchivedString>(), 8);
}

#[test]
fn a_batch_is_read_in_place_at_any_alignment() {
    let fact = Fact::BatchAppended(appended());
    let place = fact.index_key().unwrap();
    for shift in 0..16 {
        let mut bytes = vec![0xff; shift];
        fact.encode_into(&mut bytes);
        let meta = batch_meta(&bytes[shift..]).unwrap();
        assert_eq!(
            (meta.slot, meta.base_offset, meta.last_offset),
            (PartitionSlot(0), Offset(0), Offset(999))
        );
        assert_eq!(
            (meta.append_time, meta.max_timestamp),
            (place.append_time, place.max_timestamp)
        );
        assert_eq!(
            (meta.records, meta.sent, meta.bytes),
            (1_000, 1_004, 65_536)
        );
        assert_eq!((meta.term, meta.epoch), (Term(4), ProducerEpoch(6)));
        assert_eq!(
            (meta.pid, meta.sequence),
            (ProducerId(0x0102_0304_0506_0708), Sequence(0))
        );
        assert_eq!(meta.append_time, TimestampMs(1_700_000_000_123));
        assert_eq!(Fact::decode(fact.kind(), &bytes[shift..]), Ok(fact.clone()));
    }
    let empty = Fact::BatchAppended(BatchAppended {
        kept: 0,
        ..appended()
    });
    assert!(
        batch_meta(&empty.encode()).is_err(),
        "a stored batch holds a record"
    );
    let beyond = Fact::BatchAppended(BatchAppended {
        base_offset: i64::MAX as u64,
        ..appended()
    });
    assert!(
        batch_meta(&beyond.encode()).is_err(),
        "offsets end at i64::MAX"
    );
    assert!(Fact::decode(1, &beyond.encode()).is_err());
}

#[test]
fn broken_bytes_are_errors() {
    assert_eq!(
        Fact::decode(9_999, &[]),
        Err(FactError::UnknownKind { kind: 9_999 })
    );
    for (name, fact) in samples() {
        let bytes = fact.encode().to_vec();
        for length in 0..bytes.len() {
            let _ = Fact::decode(fact.kind(), &bytes[..length]); // an answer, not a panic
            let _ = batch_meta(&bytes[..length]);
        }
        assert!(Fact::decode(fact.kind(), &[]).is_err(), "{name}");
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let _ = Fact::decode(fact.kind(), &flipped);
                let _ = batch_meta(&flipped);
            }
        }
    }
    let snapshot = State::new(ShardId(0), 1, Limits::default())
        .snapshot(None, 1 << 20)
        .bytes
        .to_vec();
    for at in 0..snapshot.len() {
        let mut flipped = snapshot.clone();
        flipped[at] ^= 0x40;
        let _ = State::restore(ShardId(0), 1, Limits::default(), Lsn(0), [&flipped]);
        let _ = State::restore(ShardId(0), 1, Limits::default(), Lsn(0), [&snapshot[..at]]);
    }
    let other = State::restore(ShardId(0), 2, Limits::default(), Lsn(0), [&snapshot]);
    assert!(other.unwrap_err().to_string().contains("shard 0 of 1"));
    assert!(
        State::restore(
            ShardId(0),
            1,
            Limits::default(),
            Lsn(0),
            [&snapshot, &snapshot]
        )
        .is_err()
    );
    assert!(State::restore::<&[u8]>(ShardId(0), 1, Limits::default(), Lsn(0), []).is_err());
    assert_eq!(TopicId([0; 16]), TopicId::default());
}
