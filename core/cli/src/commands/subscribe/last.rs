//! The newest records of all partitions together, held until each is read to where it ended.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use millstream_client::ConsumedRecord;

use super::ends::Ends;

/// What orders records of several partitions: by when they were appended, in a partition by offset.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    append_time_ms: i64,
    topic: String,
    partition: u32,
    offset: u64,
}

/// See the module's header.
#[derive(Debug)]
pub(super) struct Last {
    pub(super) ends: Ends,
    count: usize,
    /// The oldest is on top. Records are kept as they are printed.
    kept: BinaryHeap<Reverse<(Place, Vec<u8>)>>,
}

impl Last {
    pub(super) fn new(count: usize, ends: Ends) -> Self {
        Self {
            ends,
            count,
            kept: BinaryHeap::new(),
        }
    }

    pub(super) fn push(&mut self, record: &ConsumedRecord, printed: Vec<u8>) {
        let place = Place {
            append_time_ms: record.append_time_ms,
            topic: record.topic.to_string(),
            partition: record.partition,
            offset: record.offset,
        };
        self.kept.push(Reverse((place, printed)));
        if self.kept.len() > self.count {
            self.kept.pop();
        }
    }

    /// Oldest first.
    pub(super) fn into_printed(self) -> impl Iterator<Item = Vec<u8>> {
        self.kept
            .into_sorted_vec()
            .into_iter()
            .rev()
            .map(|Reverse((_, printed))| printed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_all_partitions_in_order() {
        let mut last = Last::new(3, Ends::default());
        for (partition, offset, append_time_ms) in
            [(1, 0, 10), (1, 1, 10), (1, 2, 30), (0, 7, 5), (0, 8, 20)]
        {
            let record = ConsumedRecord {
                topic: "t".into(),
                partition,
                offset,
                timestamp_ms: 0,
                append_time_ms,
                key: None,
                value: None,
                headers: Vec::new(),
            };
            last.push(&record, format!("{partition}/{offset}").into_bytes());
        }
        let printed: Vec<_> = last.into_printed().collect();
        assert_eq!(printed, [&b"1/1"[..], b"0/8", b"1/2"]);
    }
}
