//! An idempotent producer's records appear once, in its order, however often it sent them.

use std::collections::BTreeMap;

use crate::checkers::Audit;
use crate::history::History;

pub(super) fn check(_history: &History, audit: &Audit, broken: &mut dyn FnMut(String)) {
    for (partition, found) in &audit.partitions {
        // Next (epoch, sequence) that may come, by producer id.
        let mut next: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
        for (base, seen) in &found.batches {
            let sent = seen.payload;
            if sent.pid == 0 {
                continue;
            }
            let here = (sent.epoch, sent.sequence);
            let expected = next.entry(sent.pid).or_insert((0, 0));
            if here < *expected {
                broken(format!(
                    "{partition} offset {base}: producer {} epoch {} sequence {} stands after epoch {} sequence {}",
                    sent.pid, here.0, here.1, expected.0, expected.1
                ));
            }
            *expected = (sent.epoch, sent.sequence + u64::from(sent.sent));
        }
    }
}
