//! Finding the record that a component dies of, by halving the batch. Deliberately absent: what then
//! becomes of the record.

use millstream_batch::STRIDE;
use thiserror::Error;

use crate::error::FilterError;
use crate::filter::{Context, Filter};

/// The record at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poison {
    /// Its position in the batch.
    pub record: usize,
    /// What the component does when it gets this record alone.
    pub error: FilterError,
}

/// No single record could be blamed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NoPoison {
    /// Both halves of a batch that failed pass on their own: the fault is in the whole, or in the
    /// component's memory of earlier batches, or was a busy machine.
    #[error(
        "no single record makes the component fail: records {first} to {last} fail together but not \
         apart; suspect the component's memory or time budget, or state that it keeps"
    )]
    NotAlone {
        /// First position of the smallest part that failed.
        first: usize,
        /// Last position of it.
        last: usize,
    },
    /// A fresh instance cannot be had, so nothing can be tried.
    #[error(transparent)]
    Broken(FilterError),
}

/// After a call that [killed](FilterError::is_kill) the instance: which record does it? Takes about
/// `2 × log2(records)` calls, each up to the time budget, so prefer a worker thread.
pub fn find_poison(
    filter: &mut Filter,
    context: &Context<'_>,
    index: &[u32],
    timestamps: &[i64],
    raw: &[u8],
) -> Result<Poison, NoPoison> {
    let (mut first, mut end) = (0, timestamps.len());
    let mut error = None;
    // The records keep their offset deltas, so the base offset stays what it is.
    let mut try_part = |from: usize, to: usize| {
        let index = &index[from * STRIDE..to * STRIDE];
        match filter.call(context, index, &timestamps[from..to], raw) {
            Err(FilterError::Restart(start)) => Err(NoPoison::Broken(FilterError::Restart(start))),
            Err(error) if error.is_kill() => Ok(Some(error)),
            _ => Ok(None),
        }
    };
    while end - first > 1 {
        let middle = first + (end - first) / 2;
        if let Some(e) = try_part(first, middle)? {
            end = middle;
            error = Some(e);
        } else if let Some(e) = try_part(middle, end)? {
            first = middle;
            error = Some(e);
        } else {
            return Err(NoPoison::NotAlone {
                first,
                last: end - 1,
            });
        }
    }
    if error.is_none() && end > first {
        error = try_part(first, end)?; // a batch of one
    }
    match error {
        Some(error) => Ok(Poison {
            record: first,
            error,
        }),
        None => Err(NoPoison::NotAlone { first, last: first }),
    }
}
