//! Gathering, call by call.

use bytes::Bytes;

use super::*;

fn shape() -> Shape {
    Shape {
        encoding: Encoding::None,
        batch_bytes: 1_000,
        batch_bytes_max: 5_000,
        batch_records: u32::MAX,
        buffer_bytes: 10_000,
        linger: Duration::from_millis(5),
        delivery_timeout: Duration::from_secs(60),
        first_partition: 0,
    }
}

fn known(id: u8, partitions: u32) -> Known {
    Known {
        id: Bytes::copy_from_slice(&[id; 16]),
        partitions,
        filtered: false,
        batch_bytes_max: None,
    }
}

fn gathering(shape: Shape) -> (Gathering, TopicIndex) {
    let mut gathering = Gathering::new(shape);
    let topic = gathering.learn("t", &known(0, 3));
    (gathering, topic)
}

fn sealed(gathering: &mut Gathering) -> Vec<(LaneId, u32)> {
    let mut out = Vec::new();
    gathering.take_sealed(&mut out);
    out.iter()
        .map(|gathered| (gathered.lane, gathered.ticket.records))
        .collect()
}

#[test]
fn batches_fill_by_bytes_and_keyless_records_move_on_with_each() {
    let (mut gathering, topic) = gathering(shape());
    let t = Instant::now();
    for _ in 0..25 {
        let record = RecordRef::new(&[7; 100]);
        assert!(matches!(
            gathering.append(topic, &record, 0, t),
            Ok(Taken::At { .. })
        ));
    }
    // 61 bytes of header and 108 a record: 8 in 1,000 bytes.
    assert_eq!(sealed(&mut gathering), [(0, 8), (1, 8), (2, 8)]);
    assert!(gathering.next_due().is_some());
}

#[test]
fn a_batch_closes_at_its_number_of_records() {
    let (mut gathering, topic) = gathering(Shape {
        batch_records: 2,
        ..shape()
    });
    let record = RecordRef {
        partition: Some(1),
        ..RecordRef::new(b"x")
    };
    let t = Instant::now();
    let at = |index| Taken::At { lane: 1, index };
    assert_eq!(gathering.append(topic, &record, 0, t).unwrap(), at(0));
    assert_eq!(gathering.append(topic, &record, 0, t).unwrap(), at(1));
    assert!(
        gathering.newest(1).is_some(),
        "the second record's batch is sealed already"
    );
    assert_eq!(gathering.append(topic, &record, 0, t).unwrap(), at(0));
    assert_eq!(sealed(&mut gathering), [(1, 2)]);
}

#[test]
fn lingering_batches_go_oldest_first() {
    let (mut gathering, topic) = gathering(shape());
    let t = Instant::now();
    let ms = Duration::from_millis;
    for (partition, after) in [(2, 0), (0, 3)] {
        let record = RecordRef {
            partition: Some(partition),
            ..RecordRef::new(b"x")
        };
        gathering.append(topic, &record, 0, t + ms(after)).unwrap();
    }
    assert_eq!(gathering.next_due(), Some(t + ms(5)));
    gathering.seal_due(t + ms(4), false);
    assert_eq!(sealed(&mut gathering), []);
    gathering.seal_due(t + ms(5), false);
    assert_eq!(sealed(&mut gathering), [(2, 1)]);
    gathering.seal_due(t + ms(5), true);
    assert_eq!(sealed(&mut gathering), [(0, 1)]);
    assert_eq!(gathering.next_due(), None);
}

#[test]
fn memory_is_bounded_and_comes_back() {
    let (mut gathering, topic) = gathering(Shape {
        buffer_bytes: 300,
        ..shape()
    });
    let record = RecordRef::new(&[0; 100]);
    let t = Instant::now();
    assert!(matches!(
        gathering.append(topic, &record, 0, t),
        Ok(Taken::At { .. })
    ));
    assert!(matches!(
        gathering.append(topic, &record, 0, t),
        Ok(Taken::At { .. })
    ));
    assert_eq!(gathering.append(topic, &record, 0, t).unwrap(), Taken::Full);
    assert!(
        !gathering.has_ample_room(1),
        "whoever is told of room must find it"
    );
    gathering.seal_due(t, true);
    let mut out = Vec::new();
    gathering.take_sealed(&mut out);
    assert!(!gathering.is_settled(gathering.newest_id()));
    for gathered in &out {
        gathering.settled(&gathered.ticket);
    }
    assert_eq!(gathering.used(), 0);
    assert!(gathering.is_settled(gathering.newest_id()));
}

#[test]
fn a_record_over_the_batch_size_makes_a_batch_of_its_own() {
    let (mut gathering, topic) = gathering(shape());
    let t = Instant::now();
    let alone = |shape: Shape| super::super::alone::Alone {
        encoding: shape.encoding,
        batch_bytes_max: shape.batch_bytes_max,
    };
    let keyed = |value| RecordRef {
        partition: Some(1),
        ..RecordRef::new(value)
    };
    let large = keyed(&[0; 2_000]);
    assert!(matches!(
        gathering.append(topic, &keyed(b"before"), 0, t),
        Ok(Taken::At { lane: 1, index: 0 })
    ));
    assert_eq!(gathering.append(topic, &large, 0, t).unwrap(), Taken::Alone);
    let batch = alone(shape()).build(&large, 7).unwrap();
    let completion = gathering.append_alone(topic, &large, &batch, t).unwrap();
    assert!(completion.is_some());
    assert!(matches!(
        gathering.append(topic, &keyed(b"behind"), 0, t),
        Ok(Taken::At { lane: 1, index: 0 })
    ));
    gathering.seal_due(t, true);
    assert_eq!(sealed(&mut gathering), [(1, 1), (1, 1), (1, 1)]);

    // Over what the broker takes: both sizes, before it is built and after compression.
    let mut noise = 1_u64;
    let huge: Vec<u8> = std::iter::repeat_with(|| {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise as u8
    })
    .take(6_000)
    .collect();
    let huge = keyed(&huge);
    let error = alone(shape()).build(&huge, 0).unwrap_err();
    assert!(
        error.message().contains("over the 5000") && error.message().contains("6070 bytes"),
        "{error}"
    );
    let packed = Shape {
        encoding: Encoding::Lz4,
        ..shape()
    };
    let batch = alone(packed).build(&huge, 0).unwrap();
    let error = gathering.append_alone(topic, &huge, &batch, t).unwrap_err();
    assert!(error.message().contains("over the 5000"), "{error}");
    // What compresses is judged by what is stored.
    let zeros = keyed(&[0; 20_000]);
    let batch = alone(packed).build(&zeros, 0).unwrap();
    assert!(batch.bytes().len() < 1_000);
    assert!(gathering.append_alone(topic, &zeros, &batch, t).is_ok());

    let bad = RecordRef {
        partition: Some(3),
        ..RecordRef::new(b"x")
    };
    assert!(
        gathering
            .append(topic, &bad, 0, t)
            .unwrap_err()
            .message()
            .contains("no partition 3 (partitions: 3)")
    );
}

#[test]
fn batches_are_as_large_as_the_topic_takes() {
    let (mut gathering, topic) = gathering(shape());
    let record = RecordRef {
        partition: Some(0),
        ..RecordRef::new(&[7; 100])
    };
    let t = Instant::now();
    let fill = |gathering: &mut Gathering| {
        for _ in 0..8 {
            gathering.append(topic, &record, 0, t).unwrap();
        }
        gathering.seal_due(t, true);
        sealed(gathering)
    };
    assert_eq!(fill(&mut gathering), [(0, 8)]);
    for (bound, batches) in [(Some(600), vec![(0, 4), (0, 4)]), (None, vec![(0, 8)])] {
        let known = Known {
            batch_bytes_max: bound,
            ..known(0, 3)
        };
        assert_eq!(gathering.learn("t", &known), topic);
        assert_eq!(gathering.batch_bytes(topic), bound.unwrap_or(1_000));
        // The first builder is used again with the other bound.
        assert_eq!(fill(&mut gathering), batches);
    }
}

#[test]
fn a_topic_created_anew_has_its_own_lanes() {
    let (mut gathering, topic) = gathering(shape());
    assert_eq!(gathering.learn("t", &known(0, 5)), topic);
    assert_eq!(gathering.partitions(topic), 5);
    let again = gathering.learn("t", &known(1, 2));
    assert_ne!(again, topic);
    assert_eq!(
        (gathering.topic("t"), gathering.partitions(again)),
        (Some(again), 2)
    );
}

fn taken(gathering: &mut Gathering) -> Vec<Gathered> {
    let mut out = Vec::new();
    gathering.take_sealed(&mut out);
    out
}

/// Records of a key move to another partition when there are more: those from before are settled first.
#[test]
fn what_is_taken_after_a_topic_grew_waits_for_what_was_taken_before() {
    let (mut gathering, topic) = gathering(shape());
    let t = Instant::now();
    let record = RecordRef {
        key: Some(b"abc"), // 479,470,107: 0 of 3, 2 of 5, 3 of 8
        ..RecordRef::new(b"x")
    };
    let lane = |gathering: &mut Gathering| match gathering.append(topic, &record, 0, t) {
        Ok(Taken::At { lane, .. }) => lane,
        other => panic!("there is room: {other:?}"),
    };
    assert_eq!(lane(&mut gathering), 0);
    gathering.grow(topic, 5);
    assert_eq!(gathering.partitions(topic), 5);
    assert_eq!(lane(&mut gathering), 2);
    gathering.grow(topic, 4); // an answer that was overtaken
    gathering.grow(topic, 8); // for later
    assert_eq!(gathering.partitions(topic), 5);
    gathering.seal_due(t, true);

    let first = taken(&mut gathering);
    assert_eq!(first.iter().map(|g| g.lane).collect::<Vec<_>>(), [0]);
    assert!(taken(&mut gathering).is_empty(), "the first is not settled");
    assert_eq!(lane(&mut gathering), 2);
    gathering.settled(&first[0].ticket);
    assert_eq!(gathering.partitions(topic), 8, "the second growth begins");
    assert_eq!(lane(&mut gathering), 3);
    gathering.seal_due(t, true);

    let second = taken(&mut gathering);
    assert_eq!(second.iter().map(|g| g.lane).collect::<Vec<_>>(), [2, 2]);
    gathering.settled(&second[0].ticket);
    assert!(taken(&mut gathering).is_empty(), "one of two is settled");
    gathering.settled(&second[1].ticket);
    let third = taken(&mut gathering);
    assert_eq!(third.iter().map(|g| g.lane).collect::<Vec<_>>(), [3]);
    gathering.settled(&third[0].ticket);
    assert!(gathering.is_idle());
}

#[test]
fn other_topics_do_not_wait_for_one_that_grows_and_a_failure_lets_all_go() {
    let (mut gathering, topic) = gathering(shape());
    let other = gathering.learn("u", &known(1, 1));
    let t = Instant::now();
    let record = RecordRef::new(b"x");
    gathering.append(topic, &record, 0, t).unwrap();
    gathering.grow(topic, 4);
    gathering.append(topic, &record, 0, t).unwrap();
    gathering.append(other, &record, 0, t).unwrap();
    gathering.seal_due(t, true);
    assert_eq!(taken(&mut gathering).len(), 2);
    gathering.failed = Some(Error::closed("producer"));
    assert_eq!(taken(&mut gathering).len(), 1);
}
