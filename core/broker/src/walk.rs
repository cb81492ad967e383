//! The walk over compressed records at produce, where the topic or the configuration asks for it: on a worker thread, since a
//! small batch can inflate to much. Absent: plain records, which are walked with their checksum, and the order
//! of a stream's batches, which its reader keeps by waiting here.

use millstream_batch::ids::TopicId;
use millstream_batch::{Batch, BatchHeader, Compression, Parts};
use millstream_machine::topics::CheckRecords;
use millstream_protocol::{Code, messages};
use millstream_shard::driver::Turn;
use tokio::sync::oneshot;

use crate::thread::Thread;

/// The batch as it is to be stored, its records walked if they have to be.
pub(crate) async fn compressed(
    thread: &Thread,
    topic: TopicId,
    header: &BatchHeader,
    raw: Parts,
) -> Result<Parts, messages::Error> {
    if header.attributes.compression == Compression::None {
        return Ok(raw);
    }
    let asked = thread
        .catalog
        .topic_by_id(topic)
        .await?
        .config
        .check_records;
    if asked.unwrap_or(thread.shared.config.topics.check_records.into()) == CheckRecords::Plain {
        return Ok(raw);
    }
    let bad = |error: millstream_batch::BatchError| Code::BadBatch.error(error.to_string());
    let batch = Batch::parse(raw.into_contiguous()).map_err(bad)?;
    let bytes = batch.bytes().clone();
    let (to, walked) = oneshot::channel();
    let job = Box::new(move |host: &mut millstream_shard::driver::FilterHost| {
        drop(to.send(host.check_records(batch))); // a stream that is gone wants to know nothing
    });
    thread
        .shared
        .plugins
        .workers
        .submit(Turn::Topic(topic), job);
    match walked.await {
        Ok(walked) => walked.map(|()| bytes.into()).map_err(bad),
        Err(_) => Err(Code::Busy.error("the worker that walked the records ended: try again")),
    }
}
