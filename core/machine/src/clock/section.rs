//! The clock in a snapshot.

#![allow(
    missing_debug_implementations,
    reason = "rkyv's resolvers, which no code here names"
)]

use millstream_batch::ids::{Lsn, TimestampMs};

use super::{Accepted, Clock};
use crate::fact::archive::archived;
use crate::snapshot::key::{self, Key};
use crate::snapshot::table::Section;
use crate::state::State;

archived! {
    pub struct ClockRecord {
        pub logged_ms: i64,
        /// The clock accepted last: when, and with which fact.
        pub accepted: Option<AcceptedRecord>,
    }

    pub struct AcceptedRecord {
        pub lsn: u64,
        pub time_ms: i64,
    }
}

/// One cell.
pub(crate) struct ClockSection;

impl Section for ClockSection {
    type Cell<'a> = &'a Clock;
    type Record = ClockRecord;

    fn after<'a>(state: &'a State, last: Option<&[u8]>) -> impl Iterator<Item = &'a Clock> + 'a {
        last.is_none().then_some(&state.clock).into_iter()
    }

    fn key(_: &Clock) -> Key {
        key::of::<Self>(&[])
    }

    fn record(clock: &Clock) -> ClockRecord {
        ClockRecord {
            logged_ms: clock.logged.0,
            accepted: clock.accepted.map(|accepted| AcceptedRecord {
                lsn: accepted.lsn.0,
                time_ms: accepted.time.0,
            }),
        }
    }

    fn bytes(_: &Clock) -> usize {
        32
    }

    fn restore(state: &mut State, record: ClockRecord) -> Result<(), &'static str> {
        state.clock = Clock {
            logged: TimestampMs(record.logged_ms),
            accepted: record.accepted.map(|accepted| Accepted {
                lsn: Lsn(accepted.lsn),
                time: TimestampMs(accepted.time_ms),
            }),
        };
        Ok(())
    }
}
