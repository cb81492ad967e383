//! A record over the size of batches: a batch of its own, built by its caller outside the lock.
//!
//! What bounds it is what may be sent, after compression, and not the size at which batches are full. Whether
//! the topic takes it (`max.message.bytes`) is for the broker to say, which knows the setting of now.

use millstream_batch::limits::BATCH_INFLATED_BYTES_MAX;
use millstream_batch::{AppendError, Batch, BatchBuilder, Compression, Encoding};

use crate::error::{Error, Result};
use crate::record::RecordRef;

/// How such batches are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alone {
    pub(super) encoding: Encoding,
    /// The largest batch that the broker takes.
    pub(super) batch_bytes_max: usize,
}

impl Alone {
    /// The batch of this record.
    pub(super) fn build(&self, record: &RecordRef<'_>, now_ms: i64) -> Result<Batch> {
        let mut builder = BatchBuilder::new(self.encoding, self.batch_bytes_max);
        if self.encoding != Encoding::None {
            builder.set_bytes_max(BATCH_INFLATED_BYTES_MAX);
        }
        let headers = record
            .headers
            .iter()
            .map(|header| (header.name.as_str(), header.value.as_deref()));
        let timestamp = record.timestamp_ms.unwrap_or(now_ms);
        match builder.append(record.key, record.value, headers, timestamp) {
            Ok(_) => {}
            Err(AppendError::RecordTooLarge { bytes, max }) if self.encoding != Encoding::None => {
                return Err(Error::batch_hint(
                    format!(
                        "a batch with this record alone has {bytes} bytes, over the {max} allowed before \
                         compression"
                    ),
                    "Split the record.",
                ));
            }
            Err(AppendError::RecordTooLarge { bytes, max }) => {
                return Err(over(bytes, max, ""));
            }
            Err(error) => return Err(Error::batch(error.to_string())),
        }
        builder
            .build()
            .ok_or_else(|| Error::batch("a record made no batch"))
    }
}

/// Why a batch that is built is not sent.
pub(super) fn too_large(batch: &Batch, max: usize) -> Error {
    let compressed = batch.header().attributes.compression != Compression::None;
    let after = if compressed { " after compression" } else { "" };
    over(batch.bytes().len(), max, after)
}

fn over(bytes: usize, max: usize, after: &str) -> Error {
    Error::batch_hint(
        format!("a batch of {bytes} bytes{after} is over the {max} that the broker takes"),
        "Compress the record (`millstream pub --compression zstd`, `ProducerBuilder::compression`) or split it. \
         No setting allows more; a topic's max.message.bytes may allow less.",
    )
}
