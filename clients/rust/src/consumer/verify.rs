//! Checks that nothing is missing: offsets without holes, and sequences without holes per producer and
//! partition. Pure.
//!
//! What is deliberately not checked: the records' content (the checksum covers it), and anything before
//! the first batch seen. On topics with filters at produce, records that were dropped leave holes in the
//! sequences that look like loss: do not verify those.

use std::collections::HashMap;

/// What else a hole in the sequences may be.
const FILTERS: &str =
    " (no loss where a filter at produce drops records: such a topic is not to be verified)";

/// Where a batch stands, by the numbers that came beside it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) first_offset: u64,
    pub(super) last_offset: u64,
    pub(super) pid: u64,
    pub(super) epoch: u32,
    pub(super) sequence: u64,
}

/// What is known of one partition.
#[derive(Debug, Default)]
pub(super) struct Continuity {
    next_offset: Option<u64>,
    producers: HashMap<u64, (u32, u64)>,
}

impl Continuity {
    /// The position changes by seek: the next batch may stand anywhere.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Take note of the next batch. Gives what is wrong with it, if something is.
    pub(super) fn check(&mut self, batch: Place) -> Result<(), String> {
        let Place {
            first_offset,
            last_offset,
            pid,
            epoch,
            sequence,
        } = batch;
        let expected = self.next_offset.replace(last_offset + 1);
        // Numbered by slot: a batch that a subscription's filter thinned out keeps its span.
        let next_sequence = sequence + (last_offset - first_offset) + 1;
        let before = if pid == 0 {
            None
        } else {
            self.producers.insert(pid, (epoch, next_sequence))
        };
        if let Some(expected) = expected.filter(|&expected| expected != first_offset) {
            let (what, from, to) = if expected < first_offset {
                ("are missing", expected, first_offset - 1)
            } else {
                ("came twice", first_offset, expected - 1)
            };
            return Err(format!("offsets {from} to {to} {what}"));
        }
        match before {
            Some((old, _)) if epoch < old => Err(format!(
                "offset {first_offset}: producer {pid} wrote with epoch {epoch} after epoch {old}"
            )),
            Some((old, _)) if epoch > old && sequence != 0 => Err(format!(
                "offset {first_offset}: producer {pid} began epoch {epoch} with sequence {sequence}, not 0{FILTERS}"
            )),
            Some((old, next)) if epoch == old && sequence != next => Err(format!(
                "offset {first_offset}: producer {pid} went on with sequence {sequence} where {next} comes next{}",
                if sequence > next { FILTERS } else { "" }
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(first_offset: u64, records: u64, pid: u64, sequence: u64) -> Place {
        Place {
            first_offset,
            last_offset: first_offset + records - 1,
            pid,
            epoch: 0,
            sequence,
        }
    }

    #[test]
    fn what_follows_is_accepted_and_producers_are_apart() {
        let mut partition = Continuity::default();
        partition.check(place(100, 10, 7, 40)).unwrap();
        partition.check(place(110, 5, 8, 0)).unwrap();
        partition.check(place(115, 5, 0, 0)).unwrap();
        partition.check(place(120, 1, 7, 50)).unwrap();
        partition
            .check(Place {
                epoch: 1,
                ..place(121, 1, 7, 0)
            })
            .unwrap();
    }

    #[test]
    fn holes_and_repetitions_are_told() {
        let mut partition = Continuity::default();
        partition.check(place(0, 10, 7, 0)).unwrap();
        assert_eq!(
            partition.check(place(12, 1, 0, 0)).unwrap_err(),
            "offsets 10 to 11 are missing"
        );
        assert_eq!(
            partition.check(place(12, 1, 0, 0)).unwrap_err(),
            "offsets 12 to 12 came twice"
        );
        let hole = partition.check(place(13, 1, 7, 11)).unwrap_err();
        assert!(hole.contains("sequence 11 where 10 comes next"), "{hole}");
        assert!(hole.contains("filter at produce"), "{hole}");
        assert!(
            partition
                .check(Place {
                    epoch: 2,
                    ..place(14, 1, 7, 3)
                })
                .unwrap_err()
                .contains("not 0")
        );
        assert!(
            partition
                .check(place(15, 1, 7, 12))
                .unwrap_err()
                .contains("after epoch 2")
        );
        partition.forget();
        partition.check(place(3, 1, 7, 5)).unwrap();
    }
}
