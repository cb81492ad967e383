//! A log and a disk that does everything at once, so that what is counted is the log alone.
//!
//! Absent: bytes. What is written is forgotten; rows that read stay in the hot tail.

use bytes::Bytes;
use millstream_batch::Parts;
use millstream_batch::ids::Lsn;
use millstream_log::io::{IoDone, IoOp, IoOutput};
use millstream_log::{Append, Config, Event, Log};

const MIB: usize = 1 << 20;

/// A log that is open.
pub(crate) struct Shard {
    pub(crate) log: Log,
    pub(crate) durable: Lsn,
}

impl Shard {
    /// A new log with the product's settings, but for the hot tail's bound.
    pub(crate) fn open(hot_tail_bytes_max: usize) -> Self {
        let mut shard = Self {
            log: Log::open(Config {
                segment_bytes: 64 * MIB as u64,
                first_segment_bytes: 64 * MIB as u64,
                group_bytes_max: 4 * MIB,
                hot_tail_bytes_max,
                read_bytes_max: 36 << 20,
                spares_ready: 1,
                recycle_max: 1,
                sync_each_group: true,
                incarnation: 0x5eed,
            }),
            durable: Lsn(0),
        };
        let mut recovered = false;
        shard.carry(|event| recovered |= matches!(event, Event::Recovered(_)));
        assert!(recovered, "an empty directory opens");
        shard
    }

    pub(crate) fn append(&mut self, append: Append) -> Lsn {
        self.log.append(append).expect("there is space")
    }

    /// Have what was appended written, and hear that it is durable.
    pub(crate) fn flush(&mut self) {
        self.log.flush();
        self.carry(|_| ());
    }

    /// Carry requests to the disk and answers back until there are no more; `hear` the other events.
    pub(crate) fn carry(&mut self, mut hear: impl FnMut(Event)) {
        while let Some(event) = self.log.poll() {
            match event {
                Event::Io(io) => {
                    let output = match io.op {
                        IoOp::List => IoOutput::Listed(Vec::new()),
                        IoOp::Read { .. } => unreachable!("rows read what is hot"),
                        _ => IoOutput::Done,
                    };
                    self.log.io_done(IoDone {
                        id: io.id,
                        result: Ok(output),
                    });
                }
                Event::Durable(lsn) => self.durable = lsn,
                Event::Failed(error) => unreachable!("this disk does not fail: {error}"),
                other => hear(other),
            }
        }
    }
}

/// An entry whose raw bytes are `raw`; the log does not look into `fact`.
pub(crate) fn entry(fact: Bytes, raw: Parts, index: millstream_log::IndexKey) -> Append {
    Append {
        kind: 1,
        fact,
        raw,
        index: Some(index),
    }
}
