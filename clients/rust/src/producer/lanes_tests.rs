//! The lanes against a model of the broker's promise: `last + 1` appends, at or below is a duplicate,
//! anything else is a gap; what is refused is not stored.

use super::*;

const LATER: Verdict = Verdict::Later { after: None };

fn at(origin: Instant, ms: u64) -> Instant {
    origin + Duration::from_millis(ms)
}

fn parcel(item: u32, records: u32, deadline: Instant) -> Parcel<u32> {
    Parcel {
        item,
        records,
        deadline,
    }
}

fn send(lanes: &mut Lanes<u32>, now: Instant) -> Option<(u64, u64, u32)> {
    lanes
        .next(now)
        .map(|(sending, parcel)| (sending.tag, sending.sequence, parcel.item))
}

fn filled(origin: Instant, items: &[(usize, u32)]) -> Lanes<u32> {
    let mut lanes = Lanes::new(true);
    for &(lane, item) in items {
        lanes.push(lane, parcel(item, 10, at(origin, 1_000_000)));
    }
    lanes
}

#[test]
fn batches_are_numbered_by_records_in_each_lane() {
    let t = Instant::now();
    let mut lanes = filled(t, &[(0, 1), (0, 2), (1, 3)]);
    assert_eq!(send(&mut lanes, t), Some((1, 0, 1)));
    assert_eq!(send(&mut lanes, t), Some((2, 0, 3)));
    assert_eq!(send(&mut lanes, t), Some((3, 10, 2)));
    assert_eq!(send(&mut lanes, t), None);
    assert_eq!(lanes.acked(1, t).unwrap().item, 1);
    assert_eq!(
        lanes.acked(3, t).unwrap_err(),
        OutOfOrder {
            answered: 3,
            expected: Some(2)
        }
    );
}

#[test]
fn a_lost_connection_repeats_in_order_with_the_same_sequences() {
    let t = Instant::now();
    let mut lanes = filled(t, &[(0, 1), (0, 2), (0, 3)]);
    assert_eq!(send(&mut lanes, t), Some((1, 0, 1)));
    assert_eq!(send(&mut lanes, t), Some((2, 10, 2)));
    lanes.disconnected(t);
    assert_eq!(
        send(&mut lanes, t),
        Some((1, 0, 1)),
        "tags count anew on every stream"
    );
    assert_eq!(send(&mut lanes, t), Some((2, 10, 2)));
    assert_eq!(send(&mut lanes, t), Some((3, 20, 3)));
}

#[test]
fn later_holds_the_lane_and_those_behind_follow_in_order() {
    let t = Instant::now();
    let mut lanes = filled(t, &[(0, 1), (0, 2), (0, 3), (1, 9)]);
    let tags: Vec<_> = std::iter::from_fn(|| send(&mut lanes, t)).collect();
    assert_eq!(tags, [(1, 0, 1), (2, 0, 9), (3, 10, 2), (4, 20, 3)]);
    assert!(matches!(lanes.refused(1, LATER, t), Ok(Refused::Kept)));
    lanes.acked(2, t).unwrap();
    assert!(matches!(
        lanes.refused(3, Verdict::Gap, t),
        Ok(Refused::Kept)
    ));
    assert_eq!(
        send(&mut lanes, at(t, 1)),
        None,
        "one of the lane is still in flight"
    );
    assert!(matches!(
        lanes.refused(4, Verdict::Gap, t),
        Ok(Refused::Kept)
    ));
    assert_eq!(send(&mut lanes, t), None, "the lane waits");
    let wake = lanes.next_wake().unwrap();
    assert_eq!(send(&mut lanes, wake), Some((5, 0, 1)));
    assert_eq!(send(&mut lanes, wake), Some((6, 10, 2)));
    assert_eq!(send(&mut lanes, wake), Some((7, 20, 3)));
}

#[test]
fn a_batch_refused_for_good_gives_its_sequence_to_the_next() {
    let t = Instant::now();
    let mut lanes = filled(t, &[(0, 1), (0, 2), (0, 3)]);
    assert_eq!(send(&mut lanes, t), Some((1, 0, 1)));
    assert_eq!(send(&mut lanes, t), Some((2, 10, 2)));
    match lanes.refused(1, Verdict::Never, t).unwrap() {
        Refused::Failed { parcel, unknown } => assert_eq!((parcel.item, unknown), (1, false)),
        Refused::Kept => panic!("it is refused for good"),
    }
    assert!(matches!(
        lanes.refused(2, Verdict::Gap, t),
        Ok(Refused::Kept)
    ));
    assert_eq!(send(&mut lanes, t), Some((3, 0, 2)));
    assert_eq!(send(&mut lanes, t), Some((4, 10, 3)));
    assert!(!lanes.renewal_due());
}

#[test]
fn a_repeated_batch_refused_for_good_has_an_unknown_outcome_and_renews_the_identity() {
    let t = Instant::now();
    let mut lanes = filled(t, &[(0, 1), (0, 2)]);
    send(&mut lanes, t);
    lanes.disconnected(t);
    assert_eq!(send(&mut lanes, t), Some((1, 0, 1)));
    assert!(matches!(
        lanes.refused(1, Verdict::Never, t),
        Ok(Refused::Failed { unknown: true, .. })
    ));
    assert_eq!(
        send(&mut lanes, t),
        None,
        "its number may be taken, so nothing follows under this identity"
    );
    assert!(lanes.renewal_due());
    lanes.renewed(t);
    assert_eq!(send(&mut lanes, t), Some((2, 0, 2)));
}

#[test]
fn renewal_waits_for_what_is_uncertain_in_other_lanes() {
    let t = Instant::now();
    let mut lanes = filled(t, &[(0, 1), (1, 2), (1, 3)]);
    while send(&mut lanes, t).is_some() {}
    lanes.disconnected(t);
    lanes.push(0, parcel(4, 10, at(t, 1_000_000)));
    // Lane 0 gives up on its batch.
    lanes.lanes[0].again[0].parcel.deadline = t;
    let expired = lanes.expire(t);
    assert_eq!(
        expired
            .iter()
            .map(|(p, unknown)| (p.item, *unknown))
            .collect::<Vec<_>>(),
        [(1, true)]
    );
    assert!(
        !lanes.renewal_due(),
        "lane 1 may have been stored under the old identity"
    );
    assert_eq!(send(&mut lanes, t), Some((1, 0, 2)));
    assert_eq!(send(&mut lanes, t), Some((2, 10, 3)));
    assert_eq!(send(&mut lanes, t), None);
    lanes.acked(1, t).unwrap();
    lanes.acked(2, t).unwrap();
    assert!(lanes.renewal_due());
    lanes.renewed(t);
    assert_eq!(send(&mut lanes, t), Some((3, 0, 4)));
}

#[test]
fn an_expired_producer_starts_over_with_what_was_not_stored() {
    let t = Instant::now();
    let mut lanes = filled(t, &[(0, 1), (0, 2)]);
    while send(&mut lanes, t).is_some() {}
    assert!(matches!(
        lanes.refused(1, Verdict::Expired, t),
        Ok(Refused::Kept)
    ));
    assert!(matches!(
        lanes.refused(2, Verdict::Expired, t),
        Ok(Refused::Kept)
    ));
    assert!(lanes.renewal_due());
    lanes.renewed(t);
    assert_eq!(send(&mut lanes, t), Some((3, 0, 1)));
    assert_eq!(send(&mut lanes, t), Some((4, 10, 2)));
}

#[test]
fn what_was_never_sent_expires_without_doubt() {
    let t = Instant::now();
    let mut lanes = Lanes::new(true);
    lanes.push(0, parcel(1, 1, at(t, 5)));
    lanes.push(0, parcel(2, 1, at(t, 50)));
    assert!(lanes.expire(at(t, 4)).is_empty());
    let expired = lanes.expire(at(t, 5));
    assert_eq!(
        expired
            .iter()
            .map(|(p, unknown)| (p.item, *unknown))
            .collect::<Vec<_>>(),
        [(1, false)]
    );
    assert_eq!(send(&mut lanes, at(t, 5)), Some((1, 0, 2)));
    assert_eq!(lanes.waiting(), 0);
}

/// The broker's side of one lane, as the guarantees state it.
#[derive(Default)]
struct Model {
    stored: Vec<u32>,
    last: std::collections::HashMap<u64, u64>,
}

impl Model {
    fn produce(&mut self, pid: u64, sequence: u64, parcel: (u32, u32)) -> Result<(), Verdict> {
        let expected = self.last.get(&pid).copied().unwrap_or(0);
        let (item, records) = parcel;
        if sequence == expected {
            self.last.insert(pid, expected + u64::from(records));
            self.stored.push(item);
            Ok(())
        } else if sequence < expected {
            assert!(
                sequence + u64::from(records) <= expected,
                "a repetition must not be longer than what it repeats"
            );
            Ok(())
        } else {
            Err(Verdict::Gap)
        }
    }
}

/// Random refusals, answers lost with the connection and deadlines: whatever was acknowledged is
/// stored once and in order, whatever failed for certain is not stored.
#[test]
fn whatever_happens_what_is_acknowledged_is_stored_once_and_in_order() {
    for seed in 1..2_000u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let t = Instant::now();
        let mut now = t;
        let mut lanes = Lanes::new(true);
        let mut brokers = [Model::default(), Model::default()];
        let (mut pid, mut next_item) = (1, 0);
        let (mut acked, mut failed): (Vec<(usize, u32)>, Vec<u32>) = (Vec::new(), Vec::new());
        let mut wire: VecDeque<(u64, usize, u64, (u32, u32))> = VecDeque::new();
        let mut where_is = std::collections::HashMap::new();
        for step in 0..400 {
            let quiet = step > 300;
            now += Duration::from_millis(random(40));
            match random(if quiet { 6 } else { 10 }) {
                6..=7 => {
                    let (lane, records) = (random(2) as usize, 1 + random(5) as u32);
                    let life = if random(8) == 0 { 30 } else { 1_000_000 };
                    lanes.push(
                        lane,
                        parcel(next_item, records, now + Duration::from_millis(life)),
                    );
                    where_is.insert(next_item, lane);
                    next_item += 1;
                }
                8 => {
                    // Some of what is under way still arrives.
                    let arrive = random(wire.len() as u64 + 1) as usize;
                    for (_, lane, sequence, parcel) in wire.drain(..).take(arrive) {
                        if brokers[lane].produce(pid, sequence, parcel).is_err() || random(6) == 0 {
                            break;
                        }
                    }
                    wire.clear();
                    lanes.disconnected(now);
                }
                0..=2 => {
                    if let Some((sending, parcel)) = lanes.next(now) {
                        wire.push_back((
                            sending.tag,
                            sending.lane,
                            sending.sequence,
                            (parcel.item, parcel.records),
                        ));
                    }
                }
                _ => {
                    if let Some((tag, lane, sequence, parcel)) = wire.pop_front() {
                        let whim = if quiet { 9 } else { random(10) };
                        let verdict = match whim {
                            0 => Some(LATER),
                            1 => Some(Verdict::Never),
                            2 => {
                                let _ = brokers[lane].produce(pid, sequence, parcel);
                                Some(Verdict::Unknown)
                            }
                            _ => brokers[lane].produce(pid, sequence, parcel).err(),
                        };
                        match verdict {
                            None => acked.push((lane, lanes.acked(tag, now).unwrap().item)),
                            Some(verdict) => match lanes.refused(tag, verdict, now).unwrap() {
                                Refused::Failed {
                                    parcel,
                                    unknown: false,
                                } => failed.push(parcel.item),
                                Refused::Failed { .. } | Refused::Kept => {}
                            },
                        }
                    }
                }
            }
            failed.extend(
                lanes
                    .expire(now)
                    .iter()
                    .filter(|(_, unknown)| !unknown)
                    .map(|(p, _)| p.item),
            );
            if lanes.renewal_due() {
                wire.clear();
                pid += 1;
                lanes.renewed(now);
            }
        }
        for (lane, broker) in brokers.iter().enumerate() {
            let stored = &broker.stored;
            let mine: Vec<u32> = acked
                .iter()
                .filter(|(l, _)| *l == lane)
                .map(|(_, item)| *item)
                .collect();
            for item in &mine {
                let times = stored.iter().filter(|other| *other == item).count();
                assert_eq!(
                    times, 1,
                    "seed {seed}: {item} is acknowledged and stored {times} times"
                );
            }
            let order: Vec<_> = stored
                .iter()
                .filter(|item| mine.contains(item))
                .copied()
                .collect();
            assert!(order.is_sorted(), "seed {seed}: {order:?}");
            for item in &failed {
                assert!(
                    where_is[item] != lane || !stored.contains(item),
                    "seed {seed}: {item} failed and is stored"
                );
            }
        }
    }
}
