//! The only source of chance: everything in a run follows from its seed.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Seeded chance.
#[derive(Clone, Debug)]
pub struct Dice(ChaCha8Rng);

impl Dice {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Other dice that follow from these: what one part of the world draws does not shift another's.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.0.next_u64())
    }

    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// At least `from`, below `to`.
    pub fn range(&mut self, from: u64, to: u64) -> u64 {
        assert!(from < to, "an empty range");
        from + self.0.next_u64() % (to - from)
    }

    /// True once in `n`; never for 0.
    pub fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.0.next_u64().is_multiple_of(n)
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() {
            None
        } else {
            from.get(self.range(0, from.len() as u64) as usize)
        }
    }

    /// Mostly small, sometimes large: between `from` and `to` by powers of two.
    pub fn skewed(&mut self, from: u64, to: u64) -> u64 {
        let span = 1 << self.range(0, u64::from((to - from).max(1).ilog2()) + 1);
        from + self.0.next_u64() % span.min(to - from).max(1)
    }
}
