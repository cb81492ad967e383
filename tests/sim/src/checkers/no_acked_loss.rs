//! Nothing acknowledged is lost: each acknowledged batch is where its answer said, bit for bit,
//! unless somebody trimmed or deleted it, or it is reported as damaged.

use crate::checkers::Audit;
use crate::history::History;

pub(super) fn check(history: &History, audit: &Audit, broken: &mut dyn FnMut(String)) {
    if audit.read_only {
        return; // records after the damaged fact are not shown; the shard said so
    }
    for (partition, known) in &history.partitions {
        if history.may_be_gone(*partition) {
            continue;
        }
        let Some(found) = audit.partitions.get(partition).filter(|found| found.exists) else {
            broken(format!("{partition} is gone, and nobody deleted it"));
            continue;
        };
        let expires = history
            .topics
            .get(&partition.topic)
            .is_some_and(|topic| topic.expires);
        if found.start > known.start_asked && !expires {
            let asked = known.start_asked;
            broken(format!(
                "{partition} starts at {}, though nobody asked for more than {asked}",
                found.start
            ));
        }
        for acked in &known.acked {
            let Some(base) = acked.base else { continue };
            let last = base + u64::from(acked.payload.kept) - 1;
            if last < found.start || found.is_damaged(base, last) {
                continue;
            }
            match found.batches.get(&base) {
                Some(seen) if seen.payload == acked.payload => {}
                other => broken(format!(
                    "{partition} offset {base}: acknowledged {:?}, found {other:?}",
                    acked.payload
                )),
            }
        }
    }
}
