//! Latency histograms with the fixed bounds that `/metrics` shows.

use crate::call::LATENCY_BOUNDS_US;

/// Counts by bucket. Fixed size: recording allocates nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latency {
    /// Not cumulative; the last bucket is open.
    counts: [u64; LATENCY_BOUNDS_US.len() + 1],
}

impl Latency {
    pub(crate) fn record(&mut self, us: u64) {
        let bucket = LATENCY_BOUNDS_US.partition_point(|&bound| bound < us);
        self.counts[bucket] += 1;
    }

    /// Cumulative counts, one a bound and the total last.
    pub(crate) fn cumulative(&self) -> Vec<u64> {
        let mut sum = 0;
        self.counts
            .iter()
            .map(|count| {
                sum += count;
                sum
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_counts_below_it() {
        let mut latency = Latency::default();
        latency.record(50);
        latency.record(51);
        latency.record(u64::MAX);
        let seen = latency.cumulative();
        assert_eq!((seen[0], seen[1], seen[13], seen[14]), (1, 2, 2, 3));
    }
}
