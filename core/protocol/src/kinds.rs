//! The table of frame kinds: number, name, and the place a frame has in a stream.
//!
//! Numbers are never reused. Each kind has a section in `core/docs/protocol.md` and a vector in
//! `clients/vectors/frames`; `cargo xtask tidy` checks both.

/// Where a frame of some kind may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens and is the whole of a request stream; answered by one frame of the same kind, or ERROR.
    Request,
    /// Opens a stream that both sides go on writing to.
    Opens,
    /// From the client on a stream that is open.
    FromClient,
    /// From the broker on a stream that is open.
    FromBroker,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $role:ident;)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $variant = $number,)* }

        impl Kind {
            /// Every kind, in order of number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The kind with this number, if this build knows it.
            #[must_use]
            pub fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// The name that documents and logs use.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Where frames of this kind may stand.
            #[must_use]
            pub fn role(self) -> Role {
                match self { $(Self::$variant => Role::$role,)* }
            }
        }
    };
}

kinds! {
    /// A refusal, in place of an answer.
    Error = 1, "ERROR", FromBroker;
    /// First request of every connection: version and authentication.
    Hello = 2, "HELLO", Request;
    Ping = 3, "PING", Request;
    Status = 4, "STATUS", Request;
    AcceptClock = 5, "ACCEPT_CLOCK", Request;

    CreateTopic = 16, "CREATE_TOPIC", Request;
    DeleteTopic = 17, "DELETE_TOPIC", Request;
    ConfigureTopic = 18, "CONFIGURE_TOPIC", Request;
    AddPartitions = 19, "ADD_PARTITIONS", Request;
    ListTopics = 20, "LIST_TOPICS", Request;
    DescribeTopic = 21, "DESCRIBE_TOPIC", Request;
    OffsetAt = 22, "OFFSET_AT", Request;
    TrimPartition = 23, "TRIM_PARTITION", Request;

    InitProducer = 32, "INIT_PRODUCER", Request;
    ProducerOpen = 33, "PRODUCER_OPEN", Opens;
    ProducerOpened = 34, "PRODUCER_OPENED", FromBroker;
    Produce = 35, "PRODUCE", FromClient;
    Produced = 36, "PRODUCED", FromBroker;

    Subscribe = 48, "SUBSCRIBE", Opens;
    Subscribed = 49, "SUBSCRIBED", FromBroker;
    Assigned = 50, "ASSIGNED", FromBroker;
    Revoke = 51, "REVOKE", FromBroker;
    Released = 52, "RELEASED", FromClient;
    Batch = 53, "BATCH", FromBroker;
    CaughtUp = 54, "CAUGHT_UP", FromBroker;
    PartitionError = 55, "PARTITION_ERROR", FromBroker;
    Credit = 56, "CREDIT", FromClient;
    Commit = 57, "COMMIT", FromClient;
    Committed = 58, "COMMITTED", FromBroker;
    Seek = 59, "SEEK", FromClient;
    Sought = 60, "SOUGHT", FromBroker;
    Pause = 61, "PAUSE", FromClient;
    Passed = 62, "PASSED", FromBroker;
    RecordsLost = 63, "RECORDS_LOST", FromBroker;

    ListGroups = 64, "LIST_GROUPS", Request;
    DescribeGroup = 65, "DESCRIBE_GROUP", Request;
    ResetGroup = 66, "RESET_GROUP", Request;
    DeleteGroup = 67, "DELETE_GROUP", Request;

    DeployFilter = 80, "DEPLOY_FILTER", Request;
    ListFilters = 81, "LIST_FILTERS", Request;
    RemoveFilter = 82, "REMOVE_FILTER", Request;
}

impl Kind {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u16 {
        self as u16
    }

    /// Whether the payload is always raw bytes (a batch), never a long message. The component of a
    /// DEPLOY_FILTER has a header before it; the answer, and a request without component, may be long.
    #[must_use]
    pub fn has_raw_payload(self) -> bool {
        matches!(self, Self::Produce | Self::Batch)
    }
}

/// A kind's name for logs and messages, also when this build does not know the number.
#[must_use]
pub fn name_of(number: u16) -> String {
    Kind::from_number(number)
        .map_or_else(|| format!("kind {number}"), |kind| kind.name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_and_lead_back() {
        assert!(Kind::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind.number()), Some(*kind));
        }
        assert_eq!(Kind::from_number(0), None);
        assert_eq!(Kind::from_number(u16::MAX), None);
    }

    #[test]
    fn every_kind_has_its_section_in_the_protocol_document() {
        let document = include_str!("../../docs/protocol.md");
        for kind in Kind::ALL {
            let heading = format!("`{}` ({})", kind.name(), kind.number());
            assert!(
                document.contains(&heading),
                "protocol.md has no `{heading}`"
            );
        }
    }
}
