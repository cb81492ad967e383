//! Error codes: number, name, whether to retry, and what to do.
//!
//! A number is never reused, and a code never changes its meaning. Each has a section in
//! `core/docs/protocol.md`. The same numbers close connections (QUIC application error codes); 0 is a
//! plain goodbye.

use crate::messages;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $retriable:literal, $hint:literal;)*) => {
        /// Why something was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Code { $($(#[$doc])* $variant = $number,)* }

        impl Code {
            /// Every code, in order of number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code with this number, if this build knows it.
            #[must_use]
            pub fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// The name that documents and logs use.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whether the same request may succeed later without anyone changing it.
            #[must_use]
            pub fn retriable(self) -> bool {
                match self { $(Self::$variant => $retriable,)* }
            }

            /// What to do about it, when the place that failed knows nothing better.
            #[must_use]
            pub fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint,)* }
            }
        }
    };
}

codes! {
    /// A fault of the broker's own.
    Internal = 1, "INTERNAL", false, "This is a fault of the broker: report it with the broker's log.";
    /// The frame or message cannot be read, or does not belong here.
    BadRequest = 2, "BAD_REQUEST", false, "The client sent something the protocol does not allow: check its version.";
    /// An unknown kind, version or option.
    Unsupported = 3, "UNSUPPORTED", false, "The broker does not speak this: use a client of the broker's version or upgrade the broker.";
    /// No principal could be made out.
    Unauthenticated = 4, "UNAUTHENTICATED", false, "Give a token or a client certificate that the broker's configuration names.";
    /// The principal lacks the right.
    Forbidden = 5, "FORBIDDEN", false, "Ask the operator to grant this right under [[principals]] in the broker's configuration.";
    /// A frame is over a limit.
    TooLarge = 6, "TOO_LARGE", false, "Send smaller frames: the limits are in the answer to HELLO.";
    /// A queue is full.
    Busy = 7, "BUSY", true, "Wait for retry_after_ms and try again; send with less in flight.";
    /// The broker or shard is stopping.
    Stopping = 8, "STOPPING", true, "Reconnect when the broker is back.";
    /// A name is not one.
    BadName = 9, "BAD_NAME", false, "Names have 1 to 249 of A-Z a-z 0-9 . _ -";
    /// A setting is unknown or its value cannot be.
    BadConfig = 10, "BAD_CONFIG", false, "Correct it: `millstream topic config --help` tells a topic's settings, `millstream plugin deploy --help` a bundled component's parameters.";

    UnknownTopic = 20, "UNKNOWN_TOPIC", false, "Create it with `millstream topic create`, or check the name with `millstream topic list`.";
    TopicExists = 21, "TOPIC_EXISTS", false, "Choose another name, or create it only where it is not there yet (`topic create --if-not-exists`).";
    UnknownPartition = 22, "UNKNOWN_PARTITION", false, "See the topic's partitions with `millstream topic describe`.";
    BadPartitionCount = 23, "BAD_PARTITION_COUNT", false, "Partitions can only be added, up to 10,000 a topic.";

    BatchTooLarge = 40, "BATCH_TOO_LARGE", false, "Send smaller batches (`pub --batch-bytes`, `--compression`), or raise the topic's max.message.bytes (`millstream topic config TOPIC --set max.message.bytes=N`).";
    /// The batch's header, checksum or records do not hold together.
    BadBatch = 41, "BAD_BATCH", false, "The batch was damaged on its way or built wrongly: it must be a Kafka v2 record batch with a correct CRC-32C.";
    ProducerFenced = 42, "PRODUCER_FENCED", false, "Another incarnation of this producer took over: stop this one, or ask for a new epoch.";
    SequenceGap = 43, "SEQUENCE_GAP", false, "An earlier batch is missing: send it first, or start over with a new epoch.";
    SequenceOverlap = 44, "SEQUENCE_OVERLAP", false, "A repeated batch must be the same as it was sent first.";
    ProducerExpired = 45, "PRODUCER_EXPIRED", false, "The broker forgot this producer after long silence: ask for a new id.";
    UnknownProducer = 46, "UNKNOWN_PRODUCER", false, "Ask for an id with INIT_PRODUCER.";

    OffsetOutOfRange = 60, "OFFSET_OUT_OF_RANGE", false, "Seek to start, end or an offset between them.";
    /// Stored bytes do not match their checksum.
    DataDamaged = 61, "DATA_DAMAGED", false, "See `millstream log verify`; to go on, seek past the damaged offsets.";
    UnknownGroup = 62, "UNKNOWN_GROUP", false, "See the groups with `millstream group list`.";
    UnknownMember = 63, "UNKNOWN_MEMBER", true, "Join the group again as a new member.";
    MemberFenced = 64, "MEMBER_FENCED", false, "The group gave the partition to another member, or an operator set it elsewhere: drop what was not committed.";
    GroupBusy = 65, "GROUP_BUSY", false, "Stop the group's members first, or force it (`--force`).";

    /// What was read was cut away by an unclean stop under `flush = interval`.
    OffsetTruncated = 66, "OFFSET_TRUNCATED", false, "Records that were read are lost: go on from safe_offset, and undo or repeat what hangs on those past it.";

    /// Retention or a trim went past the reader.
    RecordsLost = 67, "RECORDS_LOST", false, "Go on from the oldest record that is kept with a seek or a reset of the group (`group reset`), or ask to go on at the oldest or the newest by itself (`sub --on-lost`); keep records for longer, or read sooner.";

    UnknownFilter = 80, "UNKNOWN_FILTER", false, "See what is deployed with `millstream plugin list`.";
    /// A filter trapped, ran out of budget or is lost.
    FilterFailed = 81, "FILTER_FAILED", false, "See the filter's last error with `millstream plugin list`; deploy one that works, or let records that it cannot judge pass or be dropped (`plugin deploy --on-error`).";
    /// What was uploaded is not a component that can be used here.
    BadComponent = 82, "BAD_COMPONENT", false, "Build the component against the broker's version of wit/.";

    DiskFull = 100, "DISK_FULL", true, "Free space or lower retention; the broker resumes by itself.";
    /// A write or sync failed.
    ShardStopped = 101, "SHARD_STOPPED", false, "A disk failed: see the broker's log, repair the disk and restart the broker.";
    UnknownOutcome = 102, "UNKNOWN_OUTCOME", true, "It may or may not have been applied: an idempotent producer may repeat it safely.";
    ReadOnly = 103, "READ_ONLY", false, "Part of the log is damaged: see `millstream log verify`.";
    ReadFailed = 104, "READ_FAILED", true, "The disk failed to read: see the broker's log.";
    StateFull = 105, "STATE_FULL", false, "Delete what is not needed, or raise the broker's memory bound.";
    /// The broker that was asked does not own this.
    NotHome = 106, "NOT_HOME", true, "Ask the broker that owns it: refresh and try again.";
}

impl Code {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        self as u32
    }

    /// An ERROR message with this code's hint.
    #[must_use]
    pub fn error(self, message: impl Into<String>) -> messages::Error {
        messages::Error {
            code: self.number(),
            message: message.into(),
            hint: self.hint().to_owned(),
            retriable: self.retriable(),
            unknown_outcome: self == Self::UnknownOutcome,
            retry_after_ms: 0,
            tag: 0,
            safe_offset: None,
            next_offset: None,
        }
    }
}

/// A code's name for logs and messages, also when this build does not know the number.
#[must_use]
pub fn name_of(number: u32) -> String {
    Code::from_number(number)
        .map_or_else(|| format!("code {number}"), |code| code.name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_and_lead_back() {
        assert!(Code::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        for code in Code::ALL {
            assert_eq!(Code::from_number(code.number()), Some(*code));
            assert!(!code.hint().is_empty());
        }
    }

    #[test]
    fn every_code_has_its_section_in_the_protocol_document() {
        let document = include_str!("../../docs/protocol.md");
        for code in Code::ALL {
            let heading = format!("`{}` ({})", code.name(), code.number());
            let section = document
                .split("### ")
                .find(|section| section.starts_with(&heading));
            let section = section.unwrap_or_else(|| panic!("protocol.md has no `{heading}`"));
            assert!(
                section.contains(&format!("What to do: {}", code.hint())),
                "protocol.md says something else to do for `{heading}`"
            );
        }
    }

    /// Whoever reads a hint has a command line or a library, and neither has the wire's fields.
    #[test]
    fn hints_name_no_field_of_a_message() {
        let fields = [
            "if_not_exists",
            "next_offset",
            "on_lost",
            "on_error",
            "use force",
        ];
        for code in Code::ALL {
            let named = fields.iter().find(|field| code.hint().contains(**field));
            assert_eq!(named, None, "{}: {}", code.name(), code.hint());
        }
    }
}
