//! A filter's answer: one bit a record. Deliberately absent: how records are then copied.

/// Which records of a batch to keep. Record `i` is bit `i % 8`, lowest first, of byte `i / 8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    bytes: Vec<u8>,
    records: usize,
}

impl Bitmap {
    /// Takes a component's bytes for a batch of `records`. The error says what is wrong with them.
    pub(crate) fn parse(bytes: Vec<u8>, records: usize) -> Result<Self, String> {
        let expected = records.div_ceil(8);
        if bytes.len() != expected {
            return Err(format!(
                "the bitmap has {} bytes, but {records} records need exactly {expected}",
                bytes.len()
            ));
        }
        let past_the_end = match (bytes.last(), records % 8) {
            (Some(last), used @ 1..) => last >> used,
            _ => 0,
        };
        if past_the_end != 0 {
            return Err(format!(
                "the bitmap has bits set past the last of {records} records"
            ));
        }
        Ok(Self { bytes, records })
    }

    /// None of `records` is kept.
    #[must_use]
    pub fn none(records: usize) -> Self {
        Self {
            bytes: vec![0; records.div_ceil(8)],
            records,
        }
    }

    /// All of `records` are kept.
    #[must_use]
    pub fn all(records: usize) -> Self {
        let mut bytes = vec![0xff; records.div_ceil(8)];
        if let (Some(last), used @ 1..) = (bytes.last_mut(), records % 8) {
            *last = (1 << used) - 1;
        }
        Self { bytes, records }
    }

    /// Says whether record `record` is kept. Panics past the last record.
    pub fn set(&mut self, record: usize, kept: bool) {
        assert!(record < self.records, "record {record} of {}", self.records);
        let bit = 1 << (record % 8);
        if kept {
            self.bytes[record / 8] |= bit;
        } else {
            self.bytes[record / 8] &= !bit;
        }
    }

    /// What is kept of a part that begins at record `at`. Panics past the last record.
    pub(crate) fn put(&mut self, at: usize, part: &Self) {
        for record in 0..part.records {
            self.set(at + record, part.keeps(record));
        }
    }

    /// Whether record `record` is kept. Panics past the last record.
    #[must_use]
    pub fn keeps(&self, record: usize) -> bool {
        assert!(record < self.records, "record {record} of {}", self.records);
        self.bytes[record / 8] >> (record % 8) & 1 == 1
    }

    /// The bits as the batch crate's `retain` takes them: ⌈records / 8⌉ bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Records that this answers for, kept or not.
    #[must_use]
    pub fn records(&self) -> usize {
        self.records
    }

    /// Records kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.bytes.iter().map(|b| b.count_ones() as usize).sum()
    }

    /// Whether the batch passes as it is.
    #[must_use]
    pub fn keeps_all(&self) -> bool {
        self.kept() == self.records
    }

    /// Whether nothing of the batch is left.
    #[must_use]
    pub fn keeps_none(&self) -> bool {
        self.bytes.iter().all(|b| *b == 0)
    }

    /// Positions of the kept records, ascending.
    pub fn iter_kept(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.records).filter(|record| self.keeps(*record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_counted_from_the_lowest() {
        let bitmap = Bitmap::parse(vec![0b0000_0101, 0b1], 9).unwrap();
        assert_eq!(bitmap.iter_kept().collect::<Vec<_>>(), [0, 2, 8]);
        assert_eq!(bitmap.kept(), 3);
        assert!(!bitmap.keeps_all() && !bitmap.keeps_none());
    }

    #[test]
    fn bits_are_set_one_by_one_and_by_parts() {
        let mut bitmap = Bitmap::none(20);
        bitmap.put(7, &Bitmap::all(9));
        bitmap.set(8, false);
        bitmap.set(19, true);
        assert_eq!(
            bitmap.iter_kept().collect::<Vec<_>>(),
            [7, 9, 10, 11, 12, 13, 14, 15, 19]
        );
        for records in [0, 1, 8, 9] {
            assert!(Bitmap::all(records).keeps_all() && Bitmap::none(records).keeps_none());
            assert_eq!(
                Bitmap::parse(Bitmap::all(records).bytes, records).unwrap(),
                Bitmap::all(records)
            );
        }
    }

    #[test]
    fn answers_of_another_length_are_refused() {
        for (bytes, records) in [(0, 1), (2, 8), (1, 9), (1, 0)] {
            assert!(Bitmap::parse(vec![0; bytes], records).is_err());
        }
        assert!(Bitmap::parse(vec![], 0).unwrap().keeps_all());
        assert!(Bitmap::parse(vec![255], 8).unwrap().keeps_all());
    }

    #[test]
    fn bits_for_records_that_are_not_there_are_refused() {
        assert!(Bitmap::parse(vec![0b0000_1000], 3).is_err());
        assert!(Bitmap::parse(vec![0b0000_0111], 3).unwrap().keeps_all());
    }
}
