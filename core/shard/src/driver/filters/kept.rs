//! Which records of a batch its filters kept, all of them together.
//!
//! Absent on purpose: the records themselves (the batch crate's `retain`).

use bytes::Bytes;
use millstream_batch::limits::KEPT_MAP_RECORDS_MAX;

use crate::call::Kept;

/// See the module's header. Costs nothing until something is dropped.
#[derive(Debug)]
pub(super) struct KeptRecords {
    sent: u32,
    kept: u32,
    /// Of the records as they were sent, once something was dropped of a batch that is not too long.
    map: Option<Vec<u8>>,
}

impl KeptRecords {
    pub(super) fn all_of(sent: u32) -> Self {
        Self {
            sent,
            kept: sent,
            map: None,
        }
    }

    /// A filter's answer about the records that were left to it, a bit for each.
    pub(super) fn narrow(&mut self, answer: &[u8]) {
        let kept = answer.iter().map(|byte| byte.count_ones()).sum();
        if kept == self.kept {
            return;
        }
        self.kept = kept;
        let sent = self.sent as usize;
        if sent > KEPT_MAP_RECORDS_MAX {
            return;
        }
        let map = self.map.get_or_insert_with(|| all(sent));
        let mut left = 0;
        for record in 0..sent {
            if is_set(map, record) {
                if !is_set(answer, left) {
                    map[record / 8] &= !(1 << (record % 8));
                }
                left += 1;
            }
        }
    }

    pub(super) fn drop_all(&mut self) {
        self.kept = 0;
        let sent = self.sent as usize;
        self.map = (sent <= KEPT_MAP_RECORDS_MAX).then(|| vec![0; sent.div_ceil(8)]);
    }

    /// `None`: everything was kept.
    pub(super) fn told(self) -> Option<Kept> {
        (self.kept < self.sent).then(|| Kept {
            records: self.kept,
            map: self.map.map(Bytes::from),
        })
    }
}

fn is_set(map: &[u8], record: usize) -> bool {
    map.get(record / 8)
        .is_some_and(|byte| byte >> (record % 8) & 1 == 1)
}

/// A bit for each of `records`.
fn all(records: usize) -> Vec<u8> {
    let mut map = vec![0xff; records.div_ceil(8)];
    if let Some(last) = map.last_mut()
        && !records.is_multiple_of(8)
    {
        *last = (1 << (records % 8)) - 1;
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(kept: &[bool]) -> Vec<u8> {
        let mut bytes = vec![0; kept.len().div_ceil(8)];
        for (record, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
            bytes[record / 8] |= 1 << (record % 8);
        }
        bytes
    }

    #[test]
    fn a_filter_answers_about_what_the_one_before_it_left() {
        let mut kept = KeptRecords::all_of(10);
        kept.narrow(&bits(&[true; 10]));
        // Every second is left: 1, 3, 5, 7, 9; then the first and the last of these.
        let odd: Vec<bool> = (0..10).map(|record| record % 2 == 1).collect();
        kept.narrow(&bits(&odd));
        kept.narrow(&bits(&[true, false, false, false, true]));
        let told = kept.told().expect("some were dropped");
        assert_eq!(told.records, 2);
        assert_eq!(told.map.as_deref(), Some(&[0b10, 0b10][..]));
    }

    #[test]
    fn all_none_and_too_many() {
        assert_eq!(KeptRecords::all_of(3).told(), None);
        let mut none = KeptRecords::all_of(9);
        none.drop_all();
        let told = none.told().expect("dropped");
        assert_eq!((told.records, told.map.as_deref()), (0, Some(&[0, 0][..])));
        let many = KEPT_MAP_RECORDS_MAX + 1;
        let mut long = KeptRecords::all_of(many as u32);
        let mut answer = vec![true; many];
        answer[0] = false;
        long.narrow(&bits(&answer));
        let told = long.told().expect("one was dropped");
        assert_eq!((told.records as usize, told.map), (many - 1, None));
    }
}
