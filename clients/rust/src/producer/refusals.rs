//! Which records of a stored batch a filter of the topic refused, and why: each is an error to its sender.
//!
//! Deliberately absent: what filters dropped (`delivery`), which is nobody's fault.

use std::ops::Range;

use bytes::Bytes;
use millstream_protocol::Code;
use millstream_protocol::messages::{self, Produced};

use crate::error::Error;

/// See the module's header.
#[derive(Clone, Debug)]
pub(crate) enum Refusals {
    None,
    Some(Box<Records>),
    /// An earlier try stored the batch, and nobody knows its answer any more.
    Unknown,
}

#[derive(Clone, Debug)]
pub(crate) struct Records {
    /// Records of the batch.
    sent: u32,
    refused: u32,
    /// Bit `i % 8` of byte `i / 8` is set when record `i` is refused; empty for a very long batch.
    map: Bytes,
    /// Why, for the first of them, by their place.
    reasons: Vec<(u32, Error)>,
}

impl Refusals {
    /// As the broker tells it of a batch of `sent` records.
    pub(crate) fn told(answer: &Produced, sent: u32) -> Self {
        if answer.refused_unknown {
            return Self::Unknown;
        }
        if answer.refused == 0 {
            return Self::None;
        }
        let reason = |r: &messages::RefusedRecord| (r.record, refused(&r.filter, &r.message));
        Self::Some(Box::new(Records {
            sent,
            refused: answer.refused.min(sent),
            map: answer.refused_map.clone(),
            reasons: answer.refusals.iter().map(reason).collect(),
        }))
    }

    /// Of a batch of `sent` records: how many fail, and of how many of these that is not sure.
    pub(crate) fn counts(&self, sent: u32) -> (u32, u32) {
        match self {
            Self::None => (0, 0),
            Self::Some(records) if records.are_known() => (records.refused, 0),
            Self::Some(_) | Self::Unknown => (sent, sent),
        }
    }

    /// Why record `index` fails, if it does.
    pub(crate) fn of(&self, index: u32) -> Option<Error> {
        match self {
            Self::None => None,
            Self::Some(records) => records.of(index),
            Self::Unknown => Some(not_sure(
                "an earlier try stored the batch, and which of its records were refused is not known any more",
            )),
        }
    }

    /// Of the `len` records from `first` on: those that fail, by their place among these. Neighbours that share
    /// a reason are told together.
    pub(crate) fn stretches(&self, first: u32, len: u32) -> Vec<(Range<u32>, Error)> {
        let mut stretches: Vec<(Range<u32>, Error)> = Vec::new();
        if matches!(self, Self::None) {
            return stretches;
        }
        for index in 0..len {
            let Some(error) = self.of(first + index) else {
                continue;
            };
            match stretches.last_mut() {
                Some((range, known))
                    if range.end == index && known.to_string() == error.to_string() =>
                {
                    range.end += 1;
                }
                _ => stretches.push((index..index + 1, error)),
            }
        }
        stretches
    }

    /// Why the first one fails, if one does.
    pub(crate) fn first(&self, sent: u32) -> Option<Error> {
        match self {
            Self::None => None,
            _ => (0..sent).find_map(|index| self.of(index)),
        }
    }
}

impl Records {
    /// Whether it is known which they are.
    fn are_known(&self) -> bool {
        self.refused == self.sent || self.map.len() == (self.sent as usize).div_ceil(8)
    }

    fn of(&self, index: u32) -> Option<Error> {
        let byte = self.map.get(index as usize / 8);
        let is_set = byte.map(|byte| byte >> (index % 8) & 1 == 1);
        if is_set == Some(false) {
            return None;
        }
        let reason = self.reasons.iter().find(|(record, _)| *record == index);
        if let Some((_, error)) = reason {
            return Some(error.clone());
        }
        if !self.are_known() {
            let which = format!(
                "it refuses {} records of a batch too long to be told which",
                self.refused
            );
            return Some(not_sure(&which));
        }
        let others = format!("it refuses {} of the batch", self.refused);
        Some(match self.reasons.first() {
            Some((_, first)) => first.context(&format!("{others}, the first because")),
            None => refused("", &others),
        })
    }
}

fn refused(filter: &str, why: &str) -> Error {
    let by = match filter {
        "" => "a filter of the topic".to_owned(),
        name => format!("filter `{name}`"),
    };
    Error::refused(Code::FilterFailed.error(format!("{by} refuses the record: {why}")))
}

fn not_sure(why: &str) -> Error {
    let message = format!("a filter of the topic may have refused the record: {why}");
    let mut error = Code::FilterFailed.error(message);
    error.unknown_outcome = true;
    Error::refused(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_fail_are_told_by_their_place_among_ours() {
        // Records 1, 2 and 9 of ten; ours are the last eight of them.
        let refusals = Refusals::told(&answer(3, &[0b110, 0b10], &[1, 2, 9]), 10);
        let told = refusals.stretches(2, 8);
        let places: Vec<_> = told.iter().map(|(range, _)| range.clone()).collect();
        assert_eq!(places, [0..1, 7..8]);
        assert!(told[1].1.to_string().contains("no JSON at 9"));
        let unknown = Refusals::Unknown.stretches(2, 8);
        assert_eq!((unknown.len(), unknown[0].0.clone()), (1, 0..8));
        assert!(Refusals::None.stretches(0, 8).is_empty());
    }

    fn answer(refused: u32, map: &'static [u8], reasons: &[u32]) -> Produced {
        Produced {
            refused,
            refused_map: Bytes::from_static(map),
            refusals: reasons
                .iter()
                .map(|record| messages::RefusedRecord {
                    record: *record,
                    filter: "json".to_owned(),
                    message: format!("no JSON at {record}"),
                })
                .collect(),
            ..Produced::default()
        }
    }

    fn text(refused: &Refusals, index: u32) -> Option<String> {
        refused.of(index).map(|error| error.message().to_owned())
    }

    #[test]
    fn each_record_at_fault_has_its_own_words() {
        let refused = Refusals::told(&answer(2, &[0b1000, 0b10], &[3, 9]), 10);
        assert_eq!(refused.counts(10), (2, 0));
        let failed: Vec<u32> = (0..10).filter(|i| refused.of(*i).is_some()).collect();
        assert_eq!(failed, [3, 9]);
        let nine = refused.of(9).expect("refused");
        assert_eq!(
            nine.message(),
            "filter `json` refuses the record: no JSON at 9"
        );
        assert_eq!(nine.code(), Some(Code::FilterFailed));
        assert!(!nine.unknown_outcome() && !nine.retriable());
        assert_eq!(
            refused.first(10).map(|error| error.message().to_owned()),
            text(&refused, 3)
        );
    }

    #[test]
    fn a_record_whose_reason_is_not_told_is_refused_all_the_same() {
        let refused = Refusals::told(&answer(3, &[0b0001_1100], &[2]), 8);
        let failed: Vec<u32> = (0..8).filter(|i| refused.of(*i).is_some()).collect();
        assert_eq!(failed, [2, 3, 4]);
        let text = text(&refused, 4).expect("refused");
        assert!(
            text.contains("3 of the batch") && text.contains("no JSON at 2"),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_known_is_no_success() {
        let unknown = Produced {
            refused_unknown: true,
            duplicate: true,
            ..Produced::default()
        };
        for refused in [
            Refusals::told(&unknown, 4),
            Refusals::told(&answer(2, &[], &[]), 4),
            Refusals::told(&answer(2, &[1], &[]), 40),
        ] {
            let sent = if refused.counts(40) == (40, 40) {
                40
            } else {
                4
            };
            assert_eq!(refused.counts(sent), (sent, sent));
            assert!(refused.of(39).is_some_and(|error| error.unknown_outcome()));
        }
        let all = Refusals::told(&answer(4, &[], &[0]), 4);
        assert_eq!(all.counts(4), (4, 0));
        assert!((0..4).all(|i| all.of(i).is_some_and(|error| !error.unknown_outcome())));
    }

    #[test]
    fn nothing_is_refused_of_most_batches() {
        let refused = Refusals::told(&Produced::default(), 4);
        assert_eq!(
            (refused.counts(4), refused.first(4).is_none()),
            ((0, 0), true)
        );
    }
}
