//! Offsets of groups, of several partitions at once.

mod world;

use millstream_batch::ids::{GroupEpoch, Offset};
use millstream_machine::Limits;
use millstream_machine::request::{Refusal, Reply, Request};
use world::{World, batch, partition};

const GROUP: &str = "g";

/// One unit: what cannot be done for one partition is done for none.
#[test]
fn a_reset_moves_all_of_its_partitions_or_none() {
    let limits = Limits {
        offsets: 3,
        ..Limits::default()
    };
    let mut world = World::new(0, 1, limits);
    world.create(1, "t", 4);
    for index in 0..4 {
        world
            .produce(batch(partition(1, index), 0, 0, 0, 10))
            .unwrap();
    }
    let reset = |places: &[(u32, u64)]| Request::ResetOffsets {
        group: GROUP.to_owned(),
        places: places
            .iter()
            .map(|(index, offset)| (partition(1, *index), Offset(*offset)))
            .collect(),
        force: true,
    };
    let before = world.state.clone();
    for (places, why) in [
        (&[(0, 3), (1, 11), (2, 3)][..], "past the end"),
        (&[(0, 3), (9, 0)], "no such partition"),
        (
            &[(0, 1), (1, 1), (2, 1), (3, 1)],
            "one more than there is room for",
        ),
    ] {
        assert!(world.ask(&reset(places)).is_err(), "{why}");
        assert!(world.state == before, "{why}: a part of it was done");
    }
    assert_eq!(
        world.ask(&reset(&[(0, 3), (1, 4), (0, 5)])),
        Ok(Reply::Reset {
            fences: vec![GroupEpoch(0); 3]
        })
    );
    assert_eq!(world.log.last().map(|(_, unit)| unit.len()), Some(3));
    let committed = |index: u32| world.state.committed().find(|(_, slot, _)| slot.0 == index);
    assert_eq!(committed(0).map(|(.., offset)| offset), Some(Offset(5)));
    assert_eq!(committed(1).map(|(.., offset)| offset), Some(Offset(4)));
    assert!(world.replayed() == world.state);
    let many = vec![(0, 1); millstream_machine::request::RESETS_MAX + 1];
    assert!(matches!(
        world.ask(&reset(&many)),
        Err(Refusal::StateFull(_))
    ));
}
