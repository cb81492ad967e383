//! Only what is released is shown: what any reader ever saw stays, at the same offset.
//!
//! That nothing was readable before it was durable is checked at each answer, against the disk.

use crate::checkers::Audit;
use crate::history::History;

pub(super) fn check(history: &History, audit: &Audit, broken: &mut dyn FnMut(String)) {
    if audit.read_only {
        return;
    }
    for (partition, known) in &history.partitions {
        let Some(found) = audit.partitions.get(partition).filter(|found| found.exists) else {
            continue;
        };
        for (base, seen) in &known.seen {
            if seen.last < found.start || found.is_damaged(*base, seen.last) {
                continue;
            }
            let now = found.batches.get(base);
            if now != Some(seen) {
                broken(format!(
                    "{partition} offset {base}: a reader saw {seen:?}, now it is {now:?}"
                ));
            }
        }
        if found.start < known.start_told {
            broken(format!(
                "{partition} starts at {} again, after {} was told",
                found.start, known.start_told
            ));
        }
    }
}
