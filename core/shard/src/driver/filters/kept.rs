//! Which records of a batch its filters kept, and which they refused, all of them together.
//!
//! Absent on purpose: the records themselves (the batch crate's `retain`), and the policies (`policy`).

use bytes::Bytes;
use millstream_batch::limits::KEPT_MAP_RECORDS_MAX;
use millstream_sandbox::{Bitmap, FilterError};

use crate::call::{Kept, Refused, RefusedRecord};

/// Records of one batch of which it is told why they are refused.
const REASONS_MAX: usize = 16;
/// Bytes of one such reason.
const REASON_BYTES_MAX: usize = 512;

/// See the module's header. Costs nothing until something is dropped.
#[derive(Debug)]
pub(super) struct KeptRecords {
    sent: u32,
    kept: u32,
    /// Of the records as they were sent, once something was dropped.
    map: Option<Bitmap>,
    refused: Option<RefusedSoFar>,
}

#[derive(Debug)]
struct RefusedSoFar {
    map: Bitmap,
    reasons: Vec<RefusedRecord>,
}

impl KeptRecords {
    pub(super) fn all_of(sent: u32) -> Self {
        Self {
            sent,
            kept: sent,
            map: None,
            refused: None,
        }
    }

    /// A filter's answer about the records that were left to it.
    pub(super) fn narrow(&mut self, answer: &Bitmap) {
        let kept = answer.kept() as u32;
        if kept == self.kept {
            return;
        }
        self.kept = kept;
        let sent = self.sent as usize;
        let map = self.map.get_or_insert_with(|| Bitmap::all(sent));
        let mut left = 0;
        for record in 0..sent {
            if map.keeps(record) {
                map.set(record, answer.keeps(left));
                left += 1;
            }
        }
    }

    /// Of the records that were left to a filter, those that it could not judge, and why for the first of
    /// them. Before what it says of the others.
    pub(super) fn refuse(&mut self, filter: &str, records: &[u32], reasons: &[FilterError]) {
        if records.is_empty() {
            return;
        }
        let sent = self.sent as usize;
        let all = Bitmap::all(sent);
        let left = self.map.as_ref().unwrap_or(&all);
        let refused = self.refused.get_or_insert_with(|| RefusedSoFar {
            map: Bitmap::none(sent),
            reasons: Vec::new(),
        });
        let mut records = records
            .iter()
            .zip(reasons.iter().map(Some).chain(std::iter::repeat(None)));
        let mut next = records.next();
        for (place, record) in left.iter_kept().enumerate() {
            let Some((wanted, why)) = next else {
                break;
            };
            if place as u32 != *wanted {
                continue;
            }
            refused.map.set(record, true);
            if let Some(why) = why.filter(|_| refused.reasons.len() < REASONS_MAX) {
                let mut message = why.of_record();
                message.truncate(message.floor_char_boundary(REASON_BYTES_MAX));
                refused.reasons.push(RefusedRecord {
                    record: record as u32,
                    filter: filter.to_owned(),
                    message,
                });
            }
            next = records.next();
        }
    }

    pub(super) fn drop_all(&mut self) {
        self.kept = 0;
        self.map = Some(Bitmap::none(self.sent as usize));
    }

    /// `None`: everything was kept.
    pub(super) fn told(self) -> Option<Kept> {
        let short = self.sent as usize <= KEPT_MAP_RECORDS_MAX;
        let bytes = |map: &Bitmap| Bytes::copy_from_slice(map.as_bytes());
        (self.kept < self.sent).then(|| Kept {
            records: self.kept,
            map: self.map.as_ref().filter(|_| short).map(bytes),
            refused: self.refused.map(|refused| Refused {
                records: refused.map.kept() as u32,
                map: short.then(|| bytes(&refused.map)),
                reasons: refused.reasons,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(kept: &[bool]) -> Bitmap {
        let mut bits = Bitmap::none(kept.len());
        for (record, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
            bits.set(record, true);
        }
        bits
    }

    fn why(text: &str) -> FilterError {
        FilterError::Refused(text.to_owned())
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
        assert_eq!(told.refused, None);
    }

    #[test]
    fn who_refuses_names_a_record_by_its_place_in_what_was_sent() {
        let mut kept = KeptRecords::all_of(10);
        let odd: Vec<bool> = (0..10).map(|record| record % 2 == 1).collect();
        kept.narrow(&bits(&odd));
        // Of 1, 3, 5, 7, 9 the second and the last; then of 1, 5, 7 the last.
        kept.refuse("a", &[1, 4], &[why("three"), why("nine")]);
        kept.narrow(&bits(&[true, false, true, true, false]));
        kept.refuse("b", &[2], &[why("seven")]);
        kept.narrow(&bits(&[true, true, false]));
        let told = kept.told().expect("some are not kept");
        assert_eq!(
            (told.records, told.map.as_deref()),
            (2, Some(&[0b10_0010, 0][..]))
        );
        let refused = told.refused.expect("three");
        assert_eq!(
            (refused.records, refused.map.as_deref()),
            (3, Some(&[0b1000_1000, 0b10][..]))
        );
        let named: Vec<_> = refused
            .reasons
            .iter()
            .map(|r| (r.record, &*r.filter, &*r.message))
            .collect();
        assert_eq!(
            named,
            [(3, "a", "three"), (9, "a", "nine"), (7, "b", "seven")]
        );
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
        long.refuse("f", &[(many - 1) as u32], &[why("last")]);
        let mut answer = Bitmap::all(many);
        answer.set(many - 1, false);
        long.narrow(&answer);
        let told = long.told().expect("one is refused");
        assert_eq!((told.records as usize, told.map), (many - 1, None));
        let refused = told.refused.expect("one");
        assert_eq!(
            (refused.map, refused.reasons[0].record as usize),
            (None, many - 1)
        );
    }

    #[test]
    fn reasons_are_few_and_short() {
        let mut kept = KeptRecords::all_of(100);
        let records: Vec<u32> = (0..100).collect();
        kept.refuse("f", &records, &vec![why(&"é".repeat(10_000)); 20]);
        kept.narrow(&Bitmap::none(100));
        let refused = kept.told().and_then(|told| told.refused).expect("all");
        assert_eq!((refused.records, refused.reasons.len()), (100, REASONS_MAX));
        assert!(
            refused
                .reasons
                .iter()
                .all(|r| r.message.len() <= REASON_BYTES_MAX)
        );
    }
}
