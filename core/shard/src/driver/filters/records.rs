//! The walk over the records of a compressed batch, for workers: what it takes is given back with the next
//! batch's.

use millstream_batch::{Batch, BatchError, OpenBatch};

use super::FilterHost;

impl FilterHost {
    /// Inflate the batch's records and walk them to their end.
    ///
    /// # Errors
    /// Faults of the records section in [`BatchError`].
    pub fn check_records(&mut self, batch: Batch) -> Result<(), BatchError> {
        let index = self.index.take().unwrap_or_default();
        let open = OpenBatch::open(batch, &mut self.codec, index)?;
        self.index = Some(open.into_index());
        Ok(())
    }
}
