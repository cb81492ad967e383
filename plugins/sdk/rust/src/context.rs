//! What a component may know about the batch in its hands. Deliberately absent: anything that differs
//! between two runs over the same log.

/// Where in a record's life a component runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the batch is written. What is dropped here never existed.
    Produce,
    /// On the way to one subscription. The log is not touched.
    Subscription,
}

/// The batch's place and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context<'a> {
    /// Name of the topic.
    pub topic: &'a str,
    /// Partition of the topic, from 0.
    pub partition: u32,
    /// Where this call happens.
    pub stage: Stage,
    /// The broker's time for this batch, in milliseconds since the Unix epoch.
    pub time: i64,
    /// Offset of the batch's first record, once it has one.
    pub base_offset: Option<u64>,
}
