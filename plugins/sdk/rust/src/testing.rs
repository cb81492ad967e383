//! Records without a broker, for tests: build a batch, run a filter over it, look at what it kept.
//!
//! ```
//! use millstream_plugin::testing::BatchBuilder;
//! use millstream_plugin::{Filter, Parameters, Record};
//!
//! struct Short;
//! impl Filter for Short {
//!     fn start(_: &Parameters) -> Result<Self, String> {
//!         Ok(Self)
//!     }
//!     fn keep(&mut self, record: &Record<'_>) -> Result<bool, String> {
//!         Ok(record.value().is_some_and(|value| value.len() < 4))
//!     }
//! }
//!
//! let batch = BatchBuilder::new().value("one").value("four").value("six");
//! assert_eq!(batch.kept_by::<Short>(&Parameters::default()), Ok(vec![0, 2]));
//! ```

use crate::context::{Context, Stage};
use crate::parameters::Parameters;
use crate::record::Batch;
use crate::{Filter, filter_batch, varint};

/// Makes the bytes that a broker would hand over.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    context: Context<'static>,
    index: Vec<u32>,
    timestamps: Vec<i64>,
    raw: Vec<u8>,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    /// An empty batch of the topic `test`, partition 0, base offset 0, time 0, for a subscription.
    #[must_use]
    pub fn new() -> Self {
        Self {
            context: Context {
                topic: "test",
                partition: 0,
                stage: Stage::Subscription,
                time: 0,
                base_offset: Some(0),
            },
            index: Vec::new(),
            timestamps: Vec::new(),
            raw: Vec::new(),
        }
    }

    /// Another place or time.
    #[must_use]
    pub fn context(mut self, context: Context<'static>) -> Self {
        self.context = context;
        self
    }

    /// Adds a record with a value alone.
    #[must_use]
    pub fn value(self, value: impl AsRef<[u8]>) -> Self {
        self.record(None, Some(value.as_ref()), &[])
    }

    /// Adds a record.
    #[must_use]
    pub fn record(
        mut self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> Self {
        let mut body = vec![0]; // attributes
        varint::write(&mut body, 0); // timestamp delta
        varint::write(&mut body, self.timestamps.len() as i64); // offset delta
        let mut spans = [0; 4];
        for (bytes, span) in [key, value].iter().zip([0, 2]) {
            varint::write(&mut body, bytes.map_or(-1, |b| b.len() as i64));
            spans[span] = body.len() as u32;
            spans[span + 1] = bytes.map_or(u32::MAX, |b| b.len() as u32);
            body.extend_from_slice(bytes.unwrap_or_default());
        }
        let headers_at = body.len() as u32;
        varint::write(&mut body, headers.len() as i64);
        for (key, value) in headers {
            varint::write(&mut body, key.len() as i64);
            body.extend_from_slice(key.as_bytes());
            varint::write(&mut body, value.map_or(-1, |b| b.len() as i64));
            body.extend_from_slice(value.unwrap_or_default());
        }
        let record_at = self.raw.len() as u32;
        varint::write(&mut self.raw, body.len() as i64);
        let body_at = self.raw.len() as u32;
        self.raw.extend_from_slice(&body);
        let [key_at, key_len, value_at, value_len] = spans;
        self.index.extend_from_slice(&[
            record_at,
            body_at + key_at,
            key_len,
            body_at + value_at,
            value_len,
            body_at + headers_at,
        ]);
        self.timestamps.push(0);
        self
    }

    /// The batch.
    #[must_use]
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(&self.context, &self.index, &self.timestamps, &self.raw)
    }

    /// Starts a filter and lets it judge: the positions of the records that it keeps.
    pub fn kept_by<F: Filter>(&self, parameters: &Parameters) -> Result<Vec<usize>, String> {
        let mut filter = F::start(parameters)?;
        let batch = self.batch();
        let mut bitmap = Vec::new();
        filter_batch(&mut filter, &batch, &mut bitmap)?;
        let kept = (0..batch.len()).filter(|i| bitmap[i / 8] >> (i % 8) & 1 == 1);
        Ok(kept.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Header;

    #[test]
    fn fields_are_found_where_they_were_put() {
        let long = vec![b'x'; 300];
        let batch = BatchBuilder::new()
            .record(Some(b"k"), None, &[])
            .record(
                None,
                Some(&long),
                &[("a", Some(b"1")), ("b", None), ("a", Some(b"2"))],
            )
            .record(Some(b""), Some(b""), &[]);
        let view = batch.batch();
        let [first, second, third] = view.records().collect::<Vec<_>>()[..] else {
            panic!("three records");
        };
        assert_eq!((first.key(), first.value()), (Some(&b"k"[..]), None));
        assert_eq!(first.headers().count(), 0);
        assert_eq!((second.key(), second.value()), (None, Some(&long[..])));
        let null = Header {
            key: b"b",
            value: None,
        };
        assert_eq!(second.headers().nth(1), Some(null));
        assert_eq!(second.header("a"), Some(&b"2"[..]));
        assert_eq!(second.header("c"), None);
        assert_eq!(
            (third.key(), third.value()),
            (Some(&b""[..]), Some(&b""[..]))
        );
        assert_eq!(third.offset(), Some(2));
        assert_eq!(third.position(), 2);
    }

    #[test]
    fn bitmaps_are_as_the_interface_says() {
        struct Third;
        impl Filter for Third {
            fn start(_: &Parameters) -> Result<Self, String> {
                Ok(Self)
            }
            fn keep(&mut self, record: &crate::Record<'_>) -> Result<bool, String> {
                Ok(record.position().is_multiple_of(3))
            }
        }
        let mut bitmap = vec![1, 2, 3];
        for (records, expected) in [
            (0, &[][..]),
            (1, &[0b1]),
            (8, &[0b0100_1001]),
            (10, &[0b0100_1001, 0b10]),
        ] {
            let batch = (0..records).fold(BatchBuilder::new(), |b, _| b.value("v"));
            filter_batch(&mut Third, &batch.batch(), &mut bitmap).unwrap();
            assert_eq!(bitmap, expected, "{records} records");
        }
    }
}
