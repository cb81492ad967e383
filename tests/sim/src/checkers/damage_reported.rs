//! Damage is reported where it is and nowhere else; wrong bytes are never served (that is checked at
//! each answer).

use crate::checkers::Audit;
use crate::history::History;

pub(super) fn check(history: &History, audit: &Audit, broken: &mut dyn FnMut(String)) {
    if history.flips > 0 {
        return;
    }
    if audit.read_only {
        broken("the shard is read-only, and no bit was flipped".to_owned());
    }
    for (partition, found) in &audit.partitions {
        if !found.damaged.is_empty() {
            broken(format!(
                "{partition}: {:?} are reported as damaged, and no bit was flipped",
                found.damaged
            ));
        }
    }
}
