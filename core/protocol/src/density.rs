//! How much a message may grow when it is decoded, told from its bytes before that is done.
//!
//! A repeated field costs two bytes on the wire and up to [`ELEMENT_BYTES_MAX`] in memory, so a request could
//! take much more than was counted for it. What a client of ours or of others writes has more than
//! [`BYTES_AN_ELEMENT`] bytes for each string, byte string or message in it; a message that has fewer
//! is not taken. So no message takes more than [`GROWTH_MAX`] times its own size.
//!
//! Absent: which fields a message has. A string that could be read as a message counts as one.

use prost::encoding::{WireType, decode_key, decode_varint};

use crate::messages;

/// Bytes that a message has, on average, for each string or message in it.
pub const BYTES_AN_ELEMENT: usize = 3;
/// So many elements are free.
const ELEMENTS_FREE: usize = 1_024;
/// The largest element of a list that a client sends, in memory.
const ELEMENT_BYTES_MAX: usize = 72;
/// What a decoded message takes, at most, in multiples of its own size: a list that grows has twice the room
/// that it needs.
pub const GROWTH_MAX: usize = 2 * ELEMENT_BYTES_MAX / BYTES_AN_ELEMENT;
/// Messages in messages, deeper than ours go.
const DEPTH_MAX: usize = 4;

const _: () = assert!(size_of::<messages::FixedPartition>() <= ELEMENT_BYTES_MAX);
const _: () = assert!(size_of::<messages::CommitOffset>() <= ELEMENT_BYTES_MAX);
const _: () = assert!(size_of::<messages::SubscriptionFilter>() <= ELEMENT_BYTES_MAX);
const _: () = assert!(size_of::<messages::Setting>() <= ELEMENT_BYTES_MAX);

/// How many strings and messages are in these bytes, if that is more than they may hold.
pub(crate) fn excess(message: &[u8]) -> Option<usize> {
    let most = message.len() / BYTES_AN_ELEMENT + ELEMENTS_FREE;
    if message.len() / 2 <= most {
        return None; // none is shorter than two bytes
    }
    let elements = elements(message, DEPTH_MAX)?;
    (elements > most).then_some(elements)
}

/// `None` when the bytes are no message.
fn elements(mut message: &[u8], depth: usize) -> Option<usize> {
    let mut count = 0;
    while !message.is_empty() {
        let (_, wire_type) = decode_key(&mut message).ok()?;
        let skip = match wire_type {
            WireType::Varint => {
                decode_varint(&mut message).ok()?;
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
                let inner = message.get(..length)?;
                count += 1;
                if depth > 0 {
                    count += elements(inner, depth - 1).unwrap_or(0);
                }
                length
            }
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        message = message.get(skip..)?;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::messages::{
        Commit, CommitOffset, FixedPartition, ResetGroupRequest, StartAt, Subscribe,
        SubscriptionFilter, start_at,
    };

    #[test]
    fn what_clients_write_is_taken_however_short_its_names_are() {
        let fixed = |partition| FixedPartition {
            topic: "t".to_owned(),
            partition,
            from: Some(StartAt {
                at: Some(start_at::At::Start(true)),
                leader_epoch: None,
            }),
        };
        let subscribe = Subscribe {
            partitions: (0..20_000).map(fixed).collect(),
            topics: (0..5_000).map(|i| format!("{:02x}", i % 256)).collect(),
            ..Subscribe::default()
        };
        assert_eq!(excess(&subscribe.encode_to_vec()), None);
        let commit = Commit {
            tag: 1,
            offsets: (1..10_000)
                .map(|handle| CommitOffset {
                    handle,
                    ..CommitOffset::default()
                })
                .collect(),
        };
        assert_eq!(excess(&commit.encode_to_vec()), None);
        let reset = ResetGroupRequest {
            partitions: (0..100_000).map(|i| i % 100).collect(),
            ..ResetGroupRequest::default()
        };
        assert_eq!(excess(&reset.encode_to_vec()), None, "numbers stay numbers");
    }

    #[test]
    fn lists_of_nothing_are_not() {
        let nothing = Subscribe {
            partitions: vec![FixedPartition::default(); 100_000],
            ..Subscribe::default()
        };
        assert_eq!(excess(&nothing.encode_to_vec()), Some(100_000));
        let inner = Subscribe {
            filters: vec![SubscriptionFilter {
                parameters: vec![crate::messages::Setting::default(); 100_000],
                ..SubscriptionFilter::default()
            }],
            ..Subscribe::default()
        };
        assert_eq!(excess(&inner.encode_to_vec()), Some(100_001));
    }
}
