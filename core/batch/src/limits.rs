//! Every limit, with its unit and its reason. Relations between limits are checked at compile time.

/// Largest record batch, as it stands on the wire and on disk. Kafka's default is 1 MiB; a group
/// buffer must hold at least one.
pub const BATCH_BYTES_MAX: usize = 8 << 20;
/// Largest batch after decompression: bounds what a small compressed batch can make us allocate.
pub const BATCH_INFLATED_BYTES_MAX: usize = 32 << 20;
/// Records in one batch. The layout would allow `i32::MAX`.
pub const BATCH_RECORDS_MAX: usize = 1 << 20;
/// Records in a batch of which a filter's choice is told record by record: 8 KiB of bits.
pub const KEPT_MAP_RECORDS_MAX: usize = 1 << 16;
/// Protobuf header of one frame.
pub const FRAME_HEADER_BYTES_MAX: usize = 60 << 10;
/// Payload of one frame: a batch or a component.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// A component as uploaded.
pub const COMPONENT_BYTES_MAX: usize = 16 << 20;
/// Topic, group and deployment names: `[A-Za-z0-9._-]`, as Kafka's, so that they fit in file names
/// and labels.
pub const NAME_BYTES_MAX: usize = 249;
/// Partitions of one topic.
pub const TOPIC_PARTITIONS_MAX: u32 = 10_000;
/// Partitions of one shard: bounds the index and the snapshot.
pub const SHARD_PARTITIONS_MAX: usize = 1 << 18;
/// Batches a partition remembers of each producer, to answer duplicates with their offset (Kafka: 5).
pub const PRODUCER_BATCHES_REMEMBERED: usize = 5;
/// Metadata string of a committed offset.
pub const COMMIT_METADATA_BYTES_MAX: usize = 4 << 10;
/// Write block: alignment of `O_DIRECT` writes and start of every group in a WAL file.
pub const BLOCK_BYTES: usize = 4 << 10;

const _: () = assert!(BATCH_BYTES_MAX <= FRAME_PAYLOAD_BYTES_MAX);
const _: () = assert!(COMPONENT_BYTES_MAX <= FRAME_PAYLOAD_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX <= BATCH_INFLATED_BYTES_MAX);
const _: () = assert!(FRAME_HEADER_BYTES_MAX <= u16::MAX as usize);

/// Whether a name is one a topic, group or deployment may have.
#[must_use]
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
