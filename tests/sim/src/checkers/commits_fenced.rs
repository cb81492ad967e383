//! A committed offset is the one acknowledged last, and none of a member that was fenced.
//!
//! That no commit was accepted after a newer owner's claim is checked when it is answered.

use crate::checkers::Audit;
use crate::history::History;

pub(super) fn check(history: &History, audit: &Audit, broken: &mut dyn FnMut(String)) {
    if audit.read_only {
        return;
    }
    for ((group, partition), known) in &history.commits {
        if history.may_be_gone(*partition) {
            continue;
        }
        let found = audit
            .committed
            .get(&(group.clone(), *partition))
            .copied()
            .flatten();
        let fits = found == known.acked
            || found.is_some_and(|offset| known.maybe.contains(&offset))
            || found.is_none() && history.is_deleted(group, known.epoch);
        if !fits {
            broken(format!(
                "group {group} on {partition}: {:?} was acknowledged (or perhaps {:?}), {found:?} holds",
                known.acked, known.maybe
            ));
        }
    }
}
