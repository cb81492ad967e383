//! Keeps records by their key: those that begin with one of the given prefixes.
//!
//! | parameter    | meaning                                                                        |
//! |--------------|--------------------------------------------------------------------------------|
//! | `prefix`     | prefixes, separated by commas; required                                        |
//! | `on_missing` | `drop` (the default) or `keep`: what becomes of records that have no key       |
//!
//! Deliberately absent: looking at the value; that is `json-filter`.

use millstream_plugin::{Filter, Parameters, Record};

/// The filter.
#[derive(Debug)]
pub struct KeyFilter {
    prefixes: Vec<Vec<u8>>,
    keep_missing: bool,
}

impl Filter for KeyFilter {
    fn start(parameters: &Parameters) -> Result<Self, String> {
        parameters.only(&["prefix", "on_missing"])?;
        let prefixes = parameters.require("prefix")?.split(',');
        let keep_missing = match parameters.get("on_missing") {
            None | Some("drop") => false,
            Some("keep") => true,
            Some(other) => return Err(format!("`on_missing` is `drop` or `keep`, not `{other}`")),
        };
        Ok(Self {
            prefixes: prefixes.map(|prefix| prefix.trim().into()).collect(),
            keep_missing,
        })
    }

    fn keep(&mut self, record: &Record<'_>) -> Result<bool, String> {
        Ok(match record.key() {
            None => self.keep_missing,
            Some(key) => self.prefixes.iter().any(|prefix| key.starts_with(prefix)),
        })
    }
}

millstream_plugin::filter!(KeyFilter);

#[cfg(test)]
mod tests {
    use millstream_plugin::testing::BatchBuilder;

    use super::*;

    fn kept(parameters: &[(&str, &str)]) -> Result<Vec<usize>, String> {
        let keys = [Some("eu-1"), Some("us-1"), None, Some("e"), Some("asia")];
        let batch = keys.iter().fold(BatchBuilder::new(), |batch, key| {
            batch.record(key.map(str::as_bytes), Some(b"v"), &[])
        });
        batch.kept_by::<KeyFilter>(&parameters.iter().copied().collect())
    }

    #[test]
    fn keeps_by_prefix() {
        assert_eq!(kept(&[("prefix", "eu-, us-")]), Ok(vec![0, 1]));
        assert_eq!(
            kept(&[("prefix", "e"), ("on_missing", "keep")]),
            Ok(vec![0, 2, 3])
        );
    }

    #[test]
    fn refuses_parameters_it_does_not_understand() {
        assert!(kept(&[]).unwrap_err().contains("`prefix` is missing"));
        assert!(
            kept(&[("prefix", "a"), ("prefiks", "b")])
                .unwrap_err()
                .contains("prefiks")
        );
        assert!(kept(&[("prefix", "a"), ("on_missing", "maybe")]).is_err());
    }
}
