//! Offsets have no gap and no repeat, except where damage is reported.

use crate::checkers::Audit;
use crate::history::History;

pub(super) fn check(_history: &History, audit: &Audit, broken: &mut dyn FnMut(String)) {
    for (partition, found) in &audit.partitions {
        let mut next = found.start;
        let mut first = true;
        for (base, seen) in &found.batches {
            // The first batch may begin before the start: trims do not cut batches.
            let fits = *base == next || first && *base < next && seen.last >= next;
            first = false;
            let told = *base > next && found.is_damaged(next, base - 1);
            if !fits && !told {
                broken(format!(
                    "{partition}: offset {next} should follow, a batch at {base} does"
                ));
            }
            if seen.last - base + 1 != u64::from(seen.payload.kept) {
                broken(format!(
                    "{partition} offset {base}: {} records, told as up to {}",
                    seen.payload.kept, seen.last
                ));
            }
            next = seen.last + 1;
        }
        if next < found.end && !found.is_damaged(next, found.end - 1) || next > found.end {
            broken(format!(
                "{partition}: records end at {next}, the partition at {}",
                found.end
            ));
        }
    }
}
