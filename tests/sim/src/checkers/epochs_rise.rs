//! Leader epochs do not fall as offsets rise, and what was lost is followed by a higher one.
//!
//! The second is also checked at each answer.

use crate::checkers::Audit;
use crate::history::History;

pub(super) fn check(history: &History, audit: &Audit, broken: &mut dyn FnMut(String)) {
    for (partition, found) in &audit.partitions {
        let mut epoch = None;
        for (base, seen) in &found.batches {
            if Some(seen.epoch) < epoch {
                broken(format!(
                    "{partition} offset {base}: epoch {} follows {epoch:?}",
                    seen.epoch
                ));
            }
            epoch = Some(seen.epoch);
            let known = history.partitions.get(partition);
            if let Some(lost) = known.and_then(|known| known.lost_over(*base, *seen)) {
                broken(format!(
                    "{partition} offset {base}: served under epoch {}, though {lost:?} was told",
                    seen.epoch
                ));
            }
        }
    }
}
