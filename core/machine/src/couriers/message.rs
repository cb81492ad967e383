//! What a message can say, and the row it travels in.

use millstream_batch::ids::GroupEpoch;

use crate::fact::archive::ForgetGroupMessage;
use crate::fact::{decode, encode};

/// Messages of one row are applied in their order; rows do not wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// Small, and never stuck behind a full disk.
    Control,
}

impl Row {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Control];

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Control => 0,
        }
    }

    /// The row of this number, as facts have it.
    #[must_use]
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|row| row.number() == number)
    }
}

/// What another shard is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The group was deleted at its home at this epoch: what it has here under no higher one is gone. A
    /// namesake that was made since stands above it.
    ForgetGroup { group: String, epoch: GroupEpoch },
}

/// Kind numbers of messages, as facts hold them. Never reused.
const FORGET_GROUP: u16 = 1;

impl Message {
    pub(crate) fn row(&self) -> Row {
        match self {
            Self::ForgetGroup { .. } => Row::Control,
        }
    }

    pub(super) fn archived(&self) -> (u16, Vec<u8>) {
        match self {
            Self::ForgetGroup { group, epoch } => {
                let message = ForgetGroupMessage {
                    group: group.clone(),
                    epoch: epoch.0,
                };
                (FORGET_GROUP, encode(&message).into_vec())
            }
        }
    }

    /// `None`: of no kind that is known here, or not an archive of it.
    pub(super) fn read(kind: u16, body: &[u8]) -> Option<Self> {
        match kind {
            FORGET_GROUP => decode::<ForgetGroupMessage>(body).map(|message| Self::ForgetGroup {
                group: message.group,
                epoch: GroupEpoch(message.epoch),
            }),
            _ => None,
        }
    }
}
