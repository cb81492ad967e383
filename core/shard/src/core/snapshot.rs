//! Snapshots, a slice at a time, and the orderly end of a shard.
//!
//! ```text
//!  begin at B ──▶ slice (as of b₁ ≥ B) ──▶ slice (as of b₂ ≥ b₁) ─ … ─▶ wait until synced ≥ bₙ ──▶ publish
//!                 the shard's other work goes on in between
//! ```
//! A slice shows its cells as they are when it is cut, so the snapshot is fuzzy; replay from B passes
//! over what a cell holds already. It is published only when nothing in it can be cut away any more.
//! Absent on purpose: files (the log's), the encoding (the machine's).

use millstream_batch::ids::Lsn;
use millstream_machine::Cursor;

use super::{Effect, Now, Phase, ShardCore, Writes};
use crate::call::{Answer, Error};

/// How long after a snapshot for which there was no room the next one is tried.
const RETRY_MS: u64 = 10_000;

/// Slices that may wait for the disk: more would be memory for nothing.
const WAITING_MAX: usize = 2;
/// A snapshot of so many bytes is worth writing again after this many times as much log.
const GROWN_TIMES: u64 = 4;

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    /// Slices are being cut, the next one from here.
    Cutting(Option<Cursor>),
    /// All slices are cut: the log is to be durable up to here.
    Cut(Lsn),
    Publishing,
}

#[derive(Debug, Default)]
pub(super) struct Snapshot {
    stage: Stage,
    wanted: bool,
    /// Bytes appended since the last snapshot was begun.
    grown_bytes: u64,
    /// Of the slices cut, and of the whole snapshot before.
    cut_bytes: u64,
    last_bytes: u64,
    /// Not before this moment, after one that was abandoned.
    not_before_us: u64,
}

impl Snapshot {
    /// The log grew.
    pub(super) fn grown(&mut self, bytes: usize) {
        self.grown_bytes += bytes as u64;
    }

    pub(super) fn wanted(&mut self) {
        self.wanted |= self.grown_bytes > 0;
    }

    /// When the next step is due, with so many slices not written yet.
    pub(super) fn next(&self, now: Now, waiting: usize) -> Option<u64> {
        match self.stage {
            Stage::Cutting(_) => (waiting <= WAITING_MAX).then_some(now.mono_us),
            Stage::Idle if self.wanted => Some(self.not_before_us.max(now.mono_us)),
            Stage::Idle | Stage::Cut(_) | Stage::Publishing => None,
        }
    }

    fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle) && !self.wanted
    }
}

impl ShardCore {
    /// One step: at most one slice.
    pub(super) fn snapshot_step(&mut self) {
        if !matches!(self.writes, Writes::Open | Writes::Full(_)) {
            self.snapshot = Snapshot::default();
            return;
        }
        match &self.snapshot.stage {
            Stage::Idle => {
                let enough = GROWN_TIMES * self.snapshot.last_bytes;
                if self.snapshot.grown_bytes >= self.config.snapshot_after_bytes.max(enough) {
                    self.snapshot.wanted = true;
                }
                if self.snapshot.wanted && self.snapshot.not_before_us <= self.now.mono_us {
                    self.log.begin_snapshot();
                    self.snapshot = Snapshot {
                        stage: Stage::Cutting(None),
                        last_bytes: self.snapshot.last_bytes,
                        ..Snapshot::default()
                    };
                }
            }
            Stage::Cutting(_) if self.log.snapshot_waiting() > WAITING_MAX => {}
            Stage::Cutting(cursor) => {
                let cut = self
                    .state
                    .snapshot(cursor.as_ref(), self.config.snapshot_slice_bytes);
                self.snapshot.cut_bytes += cut.bytes.len() as u64;
                self.log.snapshot_part(cut.bytes);
                self.snapshot.stage = match cut.next {
                    Some(next) => Stage::Cutting(Some(next)),
                    None => {
                        self.sync_due |= !self.config.log.sync_each_group;
                        Stage::Cut(cut.as_of)
                    }
                };
                self.snapshot_publish();
            }
            Stage::Cut(_) => self.snapshot_publish(),
            Stage::Publishing => {}
        }
    }

    /// Publish when all that the slices show is durable.
    pub(super) fn snapshot_publish(&mut self) {
        if let Stage::Cut(as_of) = self.snapshot.stage
            && as_of <= self.settled()
        {
            self.snapshot.stage = Stage::Publishing;
            self.log.publish_snapshot();
        }
    }

    pub(super) fn snapshot_published(&mut self, begin: Lsn) {
        self.snapshot.stage = Stage::Idle;
        self.snapshot.last_bytes = self.snapshot.cut_bytes;
        self.effects.push_back(Effect::SnapshotPublished(begin));
    }

    /// There was no room for it: the one before still holds.
    pub(super) fn snapshot_abandoned(&mut self) {
        self.snapshot.stage = Stage::Idle;
        self.snapshot.wanted = self.phase == Phase::Serving; // a stop does not wait for space
        self.snapshot.not_before_us = self.now.after_ms(RETRY_MS);
    }

    /// `Call::Stop`: no more calls; what was accepted becomes durable, then a snapshot and a seal.
    pub(super) fn stop(&mut self, token: u64) {
        self.phase = Phase::Stopping(token);
        for waiting in self.waiting.tokens() {
            self.waiting.remove(waiting);
            self.fail(waiting, Error::Stopping);
        }
        self.snapshot.wanted();
        self.log.flush();
    }

    /// Ends a stop when everything is on disk that can be. Whether it did something.
    pub(super) fn stop_step(&mut self) -> bool {
        let Phase::Stopping(token) = self.phase else {
            return false;
        };
        if self.writes == Writes::Open
            && !(self.gate.durable() == self.installed && self.snapshot.is_idle())
        {
            return false;
        }
        if !self.sealed {
            self.sealed = true;
            self.log.seal();
            return true;
        }
        if !self.log.is_quiet() || !self.reading.is_empty() || !self.searching.is_empty() {
            return false;
        }
        self.phase = Phase::Stopped;
        self.answer(token, Answer::Stopped);
        self.effects.push_back(Effect::Stopped);
        true
    }
}
