//! What is sent, and how: the same numbers for a ceiling program and for the product.

use clap::Args;
use serde::Serialize;

/// Records in batches. Also the arguments of the ceiling's processes.
#[derive(Clone, Copy, Debug, Args, Serialize)]
pub(crate) struct Load {
    /// Records in all.
    #[arg(long, default_value_t = 2_000_000)]
    pub(crate) records: u64,
    /// Bytes of one record's value.
    #[arg(long, default_value_t = 1024)]
    pub(crate) size: usize,
    /// Records in a batch.
    #[arg(long, default_value_t = 64)]
    pub(crate) batch: u64,
    /// Batches sent and not yet acknowledged.
    #[arg(long, default_value_t = 16)]
    pub(crate) in_flight: usize,
    /// Largest UDP payload, bytes: 1452 is an Ethernet path, 6500 a path with jumbo frames.
    #[arg(long, default_value_t = 1452, value_parser = clap::value_parser!(u16).range(1200..=6500))]
    pub(crate) mtu: u16,
}

impl Load {
    /// Batches in all; the last one is as large as the others.
    pub(crate) fn batches(&self) -> u64 {
        self.records.div_ceil(self.batch.max(1)).max(1)
    }

    /// Bytes of values in one batch.
    pub(crate) fn batch_bytes(&self) -> usize {
        self.size * usize::try_from(self.batch).unwrap_or(usize::MAX)
    }

    /// Bytes of values in all batches.
    pub(crate) fn bytes(&self) -> u64 {
        self.batches() * self.batch_bytes() as u64
    }

    /// The same with so many records, in whole batches.
    pub(crate) fn with_records(self, records: u64) -> Self {
        let load = Self { records, ..self };
        Self {
            records: load.batches() * load.batch,
            ..load
        }
    }

    /// As arguments that parse to the same.
    pub(crate) fn arguments(&self) -> Vec<String> {
        [
            ("--records", self.records.to_string()),
            ("--size", self.size.to_string()),
            ("--batch", self.batch.to_string()),
            ("--in-flight", self.in_flight.to_string()),
            ("--mtu", self.mtu.to_string()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        load: Load,
    }

    #[test]
    fn arguments_parse_to_the_same() {
        let load = Only::parse_from(["x", "--records", "100", "--batch", "30"]).load;
        let mut again = vec!["x".to_owned()];
        again.extend(load.arguments());
        let again = Only::parse_from(again).load;
        assert_eq!(format!("{load:?}"), format!("{again:?}"));
        assert_eq!(load.batches(), 4);
        assert_eq!(load.with_records(100).records, 120, "whole batches");
        assert_eq!(load.bytes(), 120 << 10);
    }
}
