//! Which batch goes next, under which sequence, and what an answer means for those behind it. Pure.
//!
//! A *lane* is one partition's queue. Batches of a lane are numbered when they are first sent, and
//! stay in order whatever happens:
//!
//! ```text
//!   fresh ──numbered──▶ flying ──acked──▶ done
//!                         │ ├──"later", or behind one that was──▶ again ──▶ flying
//!                         │ └──refused for good──▶ failed; those behind it are renumbered
//!                         └──connection lost──▶ again, perhaps stored already
//! ```
//!
//! What is refused was not stored, so its sequence is free. What was cut off may have been stored,
//! so its number is kept until the broker says: a repetition of what is stored succeeds as a
//! duplicate, and a sequence gap proves that it was not. Where a number can neither be kept nor
//! given on (the batch was given up while its outcome is unknown), the producer takes a new identity
//! once everything uncertain is settled under the old one.
//!
//! Deliberately absent: clocks (`now` is an argument), bytes, and the stream itself.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A lane's number, given by the caller from 0 without holes.
pub(crate) type LaneId = usize;

/// A batch in the queue. `T` is what the caller wants back with the outcome.
#[derive(Debug)]
pub(crate) struct Parcel<T> {
    pub(crate) item: T,
    pub(crate) records: u32,
    pub(crate) deadline: Instant,
}

/// A parcel that goes out now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sending {
    pub(crate) tag: u64,
    pub(crate) lane: LaneId,
    pub(crate) sequence: u64,
}

/// What the broker's refusal of a batch means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not stored now; the same batch may be taken later.
    Later { after: Option<Duration> },
    /// Perhaps stored; repeat it.
    Unknown,
    /// Its sequence does not follow: not stored.
    Gap,
    /// The broker no longer knows this producer.
    Expired,
    /// Not stored, and never will be.
    Never,
}

/// What becomes of a refused parcel.
#[derive(Debug)]
pub(crate) enum Refused<T> {
    /// It will be sent again.
    Kept,
    /// It failed. `unknown`: an earlier try may have been stored.
    Failed { parcel: Parcel<T>, unknown: bool },
}

/// The answer does not belong to the oldest batch in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the broker answered batch {answered}, but {expected:?} is the next to be answered")]
pub(crate) struct OutOfOrder {
    pub(crate) answered: u64,
    pub(crate) expected: Option<u64>,
}

#[derive(Debug)]
struct Numbered<T> {
    parcel: Parcel<T>,
    sequence: u64,
    /// An earlier try under this number may have been stored.
    uncertain: bool,
}

#[derive(Debug)]
struct Flight<T> {
    tag: u64,
    lane: LaneId,
    numbered: Numbered<T>,
}

#[derive(Debug)]
struct Lane<T> {
    fresh: VecDeque<Parcel<T>>,
    again: VecDeque<Numbered<T>>,
    flying: usize,
    next_sequence: u64,
    /// Nothing goes out before all in flight is answered: something was refused.
    draining: bool,
    /// Sequence from which those in `again` are numbered anew once the lane has drained.
    renumber_from: Option<u64>,
    /// Not before this.
    held_until: Option<Instant>,
    wait: Duration,
    /// In the ready queue.
    queued: bool,
}

/// All lanes of one producer.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    lanes: Vec<Lane<T>>,
    ready: VecDeque<LaneId>,
    held: Vec<LaneId>,
    flying: VecDeque<Flight<T>>,
    next_tag: u64,
    /// The producer needs a new identity: only what is uncertain still goes out under the old one.
    renewing: bool,
    /// Sequences mean something.
    idempotent: bool,
    waiting: usize,
}

const WAIT_FIRST: Duration = Duration::from_millis(10);
const WAIT_LONGEST: Duration = Duration::from_secs(1);

impl<T> Lanes<T> {
    pub(crate) fn new(idempotent: bool) -> Self {
        Self {
            lanes: Vec::new(),
            ready: VecDeque::new(),
            held: Vec::new(),
            flying: VecDeque::new(),
            next_tag: 1,
            renewing: false,
            idempotent,
            waiting: 0,
        }
    }

    /// Queue a parcel. Lanes come into being when they are named.
    pub(crate) fn push(&mut self, lane: LaneId, parcel: Parcel<T>) {
        while self.lanes.len() <= lane {
            self.lanes.push(Lane::new());
        }
        self.lanes[lane].fresh.push_back(parcel);
        self.waiting += 1;
        self.offer(lane);
    }

    /// The next parcel to send, if one may go now; lanes take turns.
    pub(crate) fn next(&mut self, now: Instant) -> Option<(Sending, &mut Parcel<T>)> {
        self.wake(now);
        while let Some(id) = self.ready.pop_front() {
            let renewing = self.renewing;
            let lane = &mut self.lanes[id];
            lane.queued = false;
            if lane.draining || lane.held_until.is_some() {
                continue;
            }
            let numbered = if renewing {
                // What is certain waits for the new identity.
                match lane.again.iter().position(|numbered| numbered.uncertain) {
                    Some(at) => lane.again.remove(at),
                    None => None,
                }
            } else {
                lane.again.pop_front().or_else(|| {
                    lane.fresh.pop_front().map(|parcel| {
                        let sequence = lane.next_sequence;
                        lane.next_sequence += u64::from(parcel.records);
                        Numbered {
                            parcel,
                            sequence,
                            uncertain: false,
                        }
                    })
                })
            };
            let Some(numbered) = numbered else { continue };
            lane.flying += 1;
            self.waiting -= 1;
            let tag = self.next_tag;
            self.next_tag += 1;
            let sequence = numbered.sequence;
            self.flying.push_back(Flight {
                tag,
                lane: id,
                numbered,
            });
            self.offer(id);
            let flight = self.flying.back_mut()?;
            return Some((
                Sending {
                    tag,
                    lane: id,
                    sequence,
                },
                &mut flight.numbered.parcel,
            ));
        }
        None
    }

    /// The broker stored the batch (now or earlier).
    pub(crate) fn acked(&mut self, tag: u64, now: Instant) -> Result<Parcel<T>, OutOfOrder> {
        let flight = self.land(tag)?;
        self.lanes[flight.lane].wait = WAIT_FIRST;
        self.settle(flight.lane, now);
        Ok(flight.numbered.parcel)
    }

    /// The broker did not take the batch.
    pub(crate) fn refused(
        &mut self,
        tag: u64,
        verdict: Verdict,
        now: Instant,
    ) -> Result<Refused<T>, OutOfOrder> {
        let Flight {
            lane: id,
            mut numbered,
            ..
        } = self.land(tag)?;
        let idempotent = self.idempotent;
        let lane = &mut self.lanes[id];
        let mut renew = false;
        let outcome = match verdict {
            Verdict::Later { after } => {
                lane.hold(now, after);
                None
            }
            Verdict::Unknown => {
                numbered.uncertain = true;
                lane.hold(now, None);
                None
            }
            Verdict::Gap if idempotent && (lane.draining || self.renewing) => {
                // The consequence of an earlier refusal, and proof that it is not stored.
                numbered.uncertain = false;
                None
            }
            Verdict::Expired if idempotent && !numbered.uncertain => {
                renew = true;
                None
            }
            Verdict::Gap | Verdict::Expired | Verdict::Never => {
                let unknown = numbered.uncertain && verdict != Verdict::Gap;
                if idempotent {
                    if unknown || verdict != Verdict::Never {
                        renew = true;
                    } else if !self.renewing {
                        lane.renumber_from.get_or_insert(numbered.sequence);
                    }
                }
                Some(unknown)
            }
        };
        if outcome.is_none() || renew || lane.renumber_from.is_some() {
            lane.draining = true;
        }
        self.renewing |= renew;
        let refused = match outcome {
            Some(unknown) => Refused::Failed {
                parcel: numbered.parcel,
                unknown,
            },
            None => {
                // Answers come in the order of sending, so this keeps the order, but for those that
                // were left behind while renewing.
                let at = lane
                    .again
                    .partition_point(|other| other.sequence < numbered.sequence);
                lane.again.insert(at, numbered);
                self.waiting += 1;
                Refused::Kept
            }
        };
        self.settle(id, now);
        Ok(refused)
    }

    /// The stream is gone: what was in flight may or may not be stored.
    pub(crate) fn disconnected(&mut self, now: Instant) {
        self.next_tag = 1;
        while let Some(mut flight) = self.flying.pop_back() {
            let lane = &mut self.lanes[flight.lane];
            lane.flying -= 1;
            // Behind one that was refused, nothing was stored.
            flight.numbered.uncertain |= lane
                .renumber_from
                .is_none_or(|from| flight.numbered.sequence < from);
            let at = lane
                .again
                .partition_point(|other| other.sequence < flight.numbered.sequence);
            lane.again.insert(at, flight.numbered);
            self.waiting += 1;
        }
        for id in 0..self.lanes.len() {
            self.settle(id, now);
        }
    }

    /// Take out what is past its deadline, with whether it may have been stored. What is in flight
    /// stays there: its answer, or the loss of the connection, comes.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(Parcel<T>, bool)> {
        let mut expired = Vec::new();
        let idempotent = self.idempotent;
        for lane in &mut self.lanes {
            while lane
                .fresh
                .front()
                .is_some_and(|parcel| parcel.deadline <= now)
            {
                expired.extend(lane.fresh.pop_front().map(|parcel| (parcel, false)));
            }
            // While a lane drains, numbers behind a refusal are in motion.
            while lane.flying == 0
                && let Some(at) = lane
                    .again
                    .iter()
                    .position(|numbered| numbered.parcel.deadline <= now)
                && let Some(gone) = lane.again.remove(at)
            {
                if idempotent && gone.uncertain {
                    self.renewing = true;
                } else if idempotent && !self.renewing {
                    lane.renumber(gone.sequence);
                }
                expired.push((gone.parcel, gone.uncertain));
            }
        }
        self.waiting -= expired.len();
        expired
    }

    /// Whether a new identity is needed and everything uncertain is settled under the old one.
    pub(crate) fn renewal_due(&self) -> bool {
        self.renewing
            && self.flying.is_empty()
            && self
                .lanes
                .iter()
                .all(|lane| lane.again.iter().all(|numbered| !numbered.uncertain))
    }

    /// There is a new identity: every lane counts from 0.
    pub(crate) fn renewed(&mut self, now: Instant) {
        assert!(
            self.flying.is_empty(),
            "an identity is renewed between streams"
        );
        self.renewing = false;
        for id in 0..self.lanes.len() {
            let lane = &mut self.lanes[id];
            lane.renumber(0);
            lane.renumber_from = None;
            self.settle(id, now);
        }
    }

    /// Give up everything, with whether each may have been stored.
    pub(crate) fn clear(&mut self) -> Vec<(Parcel<T>, bool)> {
        let mut all: Vec<_> = self
            .flying
            .drain(..)
            .map(|flight| (flight.numbered.parcel, true))
            .collect();
        for lane in &mut self.lanes {
            lane.flying = 0;
            all.extend(
                lane.again
                    .drain(..)
                    .map(|numbered| (numbered.parcel, numbered.uncertain)),
            );
            all.extend(lane.fresh.drain(..).map(|parcel| (parcel, false)));
        }
        self.waiting = 0;
        all
    }

    /// Batches sent and not answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// Batches that wait to be sent, for the first time or again.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Deadline of the batch that is answered next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.flying
            .front()
            .map(|flight| flight.numbered.parcel.deadline)
    }

    /// When a held lane may go on.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.held
            .iter()
            .filter_map(|&id| self.lanes[id].held_until)
            .min()
    }

    fn land(&mut self, tag: u64) -> Result<Flight<T>, OutOfOrder> {
        let expected = self.flying.front().map(|flight| flight.tag);
        if expected != Some(tag) {
            return Err(OutOfOrder {
                answered: tag,
                expected,
            });
        }
        let flight = self
            .flying
            .pop_front()
            .expect("the front was just looked at");
        self.lanes[flight.lane].flying -= 1;
        Ok(flight)
    }

    /// A lane whose last flight may have landed goes on.
    fn settle(&mut self, id: LaneId, now: Instant) {
        let renewing = self.renewing;
        let lane = &mut self.lanes[id];
        if lane.flying == 0 {
            lane.draining = false;
            if !renewing && let Some(from) = lane.renumber_from.take() {
                lane.renumber(from);
            }
        }
        if lane.held_until.is_some_and(|until| until > now) {
            if !self.held.contains(&id) {
                self.held.push(id);
            }
        } else {
            lane.held_until = None;
        }
        self.offer(id);
    }

    fn wake(&mut self, now: Instant) {
        if self.held.is_empty() {
            return;
        }
        let held = std::mem::take(&mut self.held);
        for id in held {
            self.settle(id, now);
        }
    }

    fn offer(&mut self, id: LaneId) {
        let lane = &mut self.lanes[id];
        let some = !lane.again.is_empty() || !lane.fresh.is_empty();
        if some && !lane.queued && !lane.draining && lane.held_until.is_none() {
            lane.queued = true;
            self.ready.push_back(id);
        }
    }
}

impl<T> Lane<T> {
    fn new() -> Self {
        Self {
            fresh: VecDeque::new(),
            again: VecDeque::new(),
            flying: 0,
            next_sequence: 0,
            draining: false,
            renumber_from: None,
            held_until: None,
            wait: WAIT_FIRST,
            queued: false,
        }
    }

    fn hold(&mut self, now: Instant, after: Option<Duration>) {
        self.held_until = Some(now + self.wait.max(after.unwrap_or_default()));
        self.wait = (self.wait * 2).min(WAIT_LONGEST);
    }

    /// Number those in `again` that stand at or behind `from` without holes from there.
    fn renumber(&mut self, from: u64) {
        let mut next = from;
        for numbered in self
            .again
            .iter_mut()
            .filter(|numbered| numbered.sequence >= from)
        {
            numbered.sequence = next;
            numbered.uncertain = false;
            next += u64::from(numbered.parcel.records);
        }
        self.next_sequence = next;
    }
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
