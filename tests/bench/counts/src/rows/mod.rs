//! The table of rows. Absent: what a row does; that is in the file of its crate.

mod batch;
#[cfg(feature = "component")]
mod component;
mod log;
mod machine;
mod protocol;

/// One hot path.
pub(crate) struct Row {
    /// As in `recorded.json` and on the command line.
    pub(crate) name: &'static str,
    /// What the instructions are counted for, with its size.
    pub(crate) operation: &'static str,
    /// Operations in one call of the work.
    pub(crate) operations: u32,
    /// Calls before counting begins: pools are filled, features detected, vectors grown.
    pub(crate) warm_up: u32,
    /// Calls that are counted: enough that what happens now and then has its share.
    pub(crate) calls: u32,
    pub(crate) setup: fn() -> Work,
}

/// The path itself, ready to be called again and again. It asserts what it cheaply can.
pub(crate) type Work = Box<dyn FnMut()>;

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "batch-check",
        operation: "batch of 64 KiB in chunks of 1,400 B: header, limits, CRC-32C",
        operations: 1,
        warm_up: 2,
        calls: 100,
        setup: batch::check,
    },
    Row {
        name: "batch-check-small",
        operation: "batch of one 100 B record in one piece: header, limits, CRC-32C",
        operations: 1,
        warm_up: 2,
        calls: 2_000,
        setup: batch::check_small,
    },
    Row {
        name: "records-walk",
        operation: "record of 100 B in a batch of 100, as a consumer reads it",
        operations: 100,
        warm_up: 2,
        calls: 100,
        setup: batch::walk,
    },
    Row {
        name: "batch-build",
        operation: "record of 100 B in a batch of 100, as a producer writes it",
        operations: 100,
        warm_up: 2,
        calls: 100,
        setup: batch::build,
    },
    Row {
        name: "produce-decide-install",
        operation: "batch: decide, encode the fact, install; 16 producers on 64 partitions",
        operations: 1,
        warm_up: 2_048,
        calls: 2_048,
        setup: machine::produce,
    },
    Row {
        name: "wal-append",
        operation: "batch of 64 KiB in chunks of 1,400 B, in groups of 16: append to durable",
        operations: 16,
        warm_up: 100,
        calls: 32,
        setup: log::append,
    },
    Row {
        name: "wal-append-small",
        operation: "batch of one 100 B record, in groups of 64 over 64 partitions: append to durable",
        operations: 64,
        warm_up: 200,
        calls: 64,
        setup: log::append_small,
    },
    Row {
        name: "index-look-up",
        operation: "fetch of one small batch from the hot tail, by offset, among 32,768",
        operations: 1,
        warm_up: 16,
        calls: 1_000,
        setup: log::look_up,
    },
    Row {
        name: "index-look-up-by-time",
        operation: "search of one small batch in the hot tail, by timestamp, among 32,768",
        operations: 1,
        warm_up: 16,
        calls: 1_000,
        setup: log::look_up_by_time,
    },
    Row {
        name: "frame-decode",
        operation: "PRODUCE frame of 64 KiB in chunks of 1,400 B",
        operations: 1,
        warm_up: 2,
        calls: 200,
        setup: protocol::decode,
    },
    Row {
        name: "frame-decode-small",
        operation: "PRODUCE frame of one 100 B record, many in a chunk of 1,400 B",
        operations: 64,
        warm_up: 2,
        calls: 50,
        setup: protocol::decode_small,
    },
    Row {
        name: "frame-encode-ack",
        operation: "PRODUCED frame, 64 in one write",
        operations: 64,
        warm_up: 2,
        calls: 50,
        setup: protocol::encode_acks,
    },
    Row {
        name: "frame-encode-batch",
        operation: "BATCH frame's head for a stored batch of 64 KiB, fresh batch head included",
        operations: 1,
        warm_up: 2,
        calls: 2_000,
        setup: protocol::encode_batch,
    },
    Row {
        name: "filter-open",
        operation: "record of 100 B in a batch of 100: the view that a component gets",
        operations: 100,
        warm_up: 2,
        calls: 100,
        setup: batch::open,
    },
    Row {
        name: "filter-retain",
        operation: "record of 100 B in a batch of 100, of which a third is kept",
        operations: 100,
        warm_up: 2,
        calls: 100,
        setup: batch::retain,
    },
    #[cfg(feature = "component")]
    Row {
        name: "filter-call",
        operation: "record of 100 B in a batch of 100: copies in, key-filter, bitmap out",
        operations: 100,
        warm_up: 16,
        calls: 200,
        setup: component::call,
    },
    #[cfg(feature = "component")]
    Row {
        name: "filter-call-small",
        operation: "batch of one 100 B record: copies in, key-filter, bitmap out",
        operations: 1,
        warm_up: 16,
        calls: 500,
        setup: component::call_small,
    },
];
