//! Calls that read records: only what is released is shown.

use millstream_batch::ids::{Offset, Partition, PartitionSlot};
use millstream_log::{Entry, FetchError, IndexKey, TimeQuery};
use millstream_machine::fact::batch_meta;
use millstream_machine::request::Refusal;

use super::waiting::Wait;
use super::{Effect, ShardCore, Shown, Writes};
use crate::call::{Answer, Error, Fetch, Fetched, PartitionStatus, Position, Served};

/// A fetch that the log is reading.
#[derive(Debug)]
pub(super) struct Reading {
    slot: PartitionSlot,
    fetch: Fetch,
    started_us: u64,
}

impl ShardCore {
    pub(super) fn fetch(&mut self, token: u64, fetch: Fetch) {
        self.fetch_again(token, fetch, self.now.mono_us);
    }

    /// Also the way of those who waited: `started_us` is when the call came.
    pub(super) fn fetch_again(&mut self, token: u64, fetch: Fetch, started_us: u64) {
        let Some((slot, shown, end)) = self.readable(fetch.partition) else {
            return self.unknown_partition(token, fetch.partition);
        };
        // What a read-only shard could not replay is damaged, not cut away.
        if let Some(leader_epoch) = fetch.leader_epoch
            && !matches!(self.writes, Writes::ReadOnly(_))
            && let Some(safe) = self
                .state
                .truncated(fetch.partition, fetch.offset, leader_epoch)
        {
            let refusal = Refusal::OffsetTruncated {
                offset: fetch.offset,
                leader_epoch,
                safe,
            };
            return self.fail(token, Error::Refused(refusal));
        }
        if fetch.offset >= shown.end
            && let Some(error) = self.cut_short()
        {
            return self.fail(token, error);
        }
        if fetch.offset < shown.start || fetch.offset > end {
            let error = Error::OffsetOutOfRange {
                offset: fetch.offset,
                start: shown.start,
                end: shown.end,
            };
            return self.fail(token, error);
        }
        if fetch.offset < shown.end {
            self.reading.insert(
                token,
                Reading {
                    slot,
                    fetch,
                    started_us,
                },
            );
            self.log.fetch(millstream_log::Fetch {
                token,
                slot,
                offset: fetch.offset,
                end: shown.end,
                bytes_max: fetch.bytes_max,
            });
        } else if fetch.wait_ms == 0 {
            self.nothing_to_read(token, fetch);
        } else {
            self.wait(
                token,
                fetch.wait_ms,
                Wait::Records {
                    slot,
                    fetch,
                    started_us,
                },
            );
        }
    }

    /// The log's answer to a fetch.
    pub(super) fn fetched(&mut self, token: u64, result: Result<Vec<Entry>, FetchError>) {
        let Some(Reading {
            slot,
            fetch,
            started_us,
        }) = self.reading.remove(&token)
        else {
            unreachable!("the log answered a fetch that was not asked for: {token}");
        };
        let entries = match result {
            Ok(entries) => entries,
            Err(FetchError::Damaged { from, to }) => {
                let words = format!(
                    "{} offsets {from} to {to} are damaged on disk",
                    fetch.partition
                );
                self.effects.push_back(Effect::Damaged(words));
                self.counters.damage_met(slot, from);
                return self.fail(token, Error::Damaged { from, to });
            }
            Err(FetchError::Io(error)) => return self.fail(token, Error::Read(error.to_string())),
        };
        let Some(&shown) = self.shown.get(&slot) else {
            return self.unknown_partition(token, fetch.partition);
        };
        let mut batches = Vec::with_capacity(entries.len());
        for entry in entries {
            match served(entry) {
                Ok(batch) => {
                    assert!(
                        batch.last_offset < shown.end,
                        "a batch beyond the released end was read"
                    );
                    self.counters.bytes_out += batch.batch.len() as u64;
                    batches.push(batch);
                }
                Err(why) => return self.fail(token, Error::Read(why)),
            }
        }
        if batches.is_empty() && fetch.offset < shown.start {
            // Trimmed while it was read.
            let error = Error::OffsetOutOfRange {
                offset: fetch.offset,
                start: shown.start,
                end: shown.end,
            };
            return self.fail(token, error);
        }
        self.counters
            .fetch_us
            .record(self.now.mono_us.saturating_sub(started_us));
        self.answer(
            token,
            Answer::Fetched(Fetched {
                batches,
                start: shown.start,
                end: shown.end,
                end_known: self.cut_short().is_none(),
            }),
        );
    }

    pub(super) fn nothing_to_read(&mut self, token: u64, fetch: Fetch) {
        match self.readable(fetch.partition) {
            Some((_, shown, _)) => {
                let fetched = Fetched {
                    batches: Vec::new(),
                    start: shown.start,
                    end: shown.end,
                    end_known: self.cut_short().is_none(),
                };
                self.answer(token, Answer::Fetched(fetched));
            }
            None => self.unknown_partition(token, fetch.partition),
        }
    }

    pub(super) fn offset_at(&mut self, token: u64, partition: Partition, at: Position) {
        let Some((slot, shown, _)) = self.readable(partition) else {
            return self.unknown_partition(token, partition);
        };
        let offset = match at {
            Position::Start => shown.start,
            Position::End => match self.cut_short() {
                Some(error) => return self.fail(token, error),
                None => shown.end,
            },
            Position::Timestamp(timestamp) => {
                self.searching.insert(token, partition);
                return self.log.offset_for_timestamp(TimeQuery {
                    token,
                    slot,
                    timestamp,
                    end: shown.end,
                });
            }
        };
        self.answer(
            token,
            Answer::Offset {
                offset,
                found: true,
            },
        );
    }

    pub(super) fn describe_partition(&mut self, token: u64, partition: Partition) {
        let Some((slot, shown, _)) = self.readable(partition) else {
            return self.unknown_partition(token, partition);
        };
        let bytes = self.state.partition_of(slot).map_or(0, |view| view.bytes);
        let status = PartitionStatus {
            start: shown.start,
            end: shown.end,
            cut_short: self.cut_short(),
            leader_epoch: self.term,
            bytes,
            records_per_second: shown.rate.per_second(self.now.mono_us, shown.end),
        };
        self.answer(token, Answer::Partition(status));
    }

    /// The log's answer to a search by time.
    pub(super) fn offset_found(
        &mut self,
        token: u64,
        result: Result<Option<IndexKey>, FetchError>,
    ) {
        let Some(partition) = self.searching.remove(&token) else {
            unreachable!("the log answered a search that was not asked for: {token}");
        };
        let Some((_, shown, _)) = self.readable(partition) else {
            return self.unknown_partition(token, partition);
        };
        match result {
            Ok(Some(key)) => self.answer(
                token,
                Answer::Offset {
                    offset: key.base_offset.max(shown.start),
                    found: true,
                },
            ),
            Ok(None) => match self.cut_short() {
                Some(error) => self.fail(token, error),
                None => self.answer(
                    token,
                    Answer::Offset {
                        offset: shown.end,
                        found: false,
                    },
                ),
            },
            Err(FetchError::Damaged { from, to }) => self.fail(token, Error::Damaged { from, to }),
            Err(FetchError::Io(error)) => self.fail(token, Error::Read(error.to_string())),
        }
    }

    /// A partition's slot, what is released of it, and its installed end.
    fn readable(&self, partition: Partition) -> Option<(PartitionSlot, Shown, Offset)> {
        let info = self.state.partition(partition)?;
        // Created, but not yet durably: nothing to see, and worth waiting for.
        let shown = self.shown.get(&info.slot).copied().unwrap_or(Shown {
            partition,
            ..Shown::default()
        });
        Some((info.slot, shown, info.end))
    }

    /// On a read-only shard: what could not be replayed may hold more, so that no end is known.
    pub(super) fn cut_short(&self) -> Option<Error> {
        match &self.writes {
            Writes::ReadOnly(why) => Some(Error::ReadOnly(why.clone())),
            _ => None,
        }
    }

    fn unknown_partition(&mut self, token: u64, partition: Partition) {
        match &self.writes {
            Writes::Stopped(why) if self.installed_state > self.settled() => {
                self.fail(token, Error::Stopped(why.clone()));
            }
            _ => self.refuse(token, Refusal::UnknownPartition(partition)),
        }
    }
}

/// A stored entry as consumers get it.
fn served(entry: Entry) -> Result<Served, String> {
    let meta = batch_meta(&entry.fact).map_err(|error| format!("entry {}: {error}", entry.lsn))?;
    Ok(Served {
        base_offset: meta.base_offset,
        last_offset: meta.last_offset,
        records: meta.records,
        append_time: meta.append_time,
        leader_epoch: entry.term.0,
        pid: meta.pid.0,
        epoch: meta.epoch.0,
        sequence: meta.sequence.0,
        batch: entry.raw,
    })
}
