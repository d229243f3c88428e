//! The examples of each batch: a new permutation of all examples in each epoch, cut in batches.
//! Pure; knows no tensors.
//!
//! A batch is addressed by one number, counted from 0 over all epochs, so that number is the whole
//! position of a run. The examples left over at the end of an epoch are dropped: 25,000 in batches
//! of 64 make 390 batches, and each epoch leaves out another 40. (The authors keep the short batch
//! and count 391.) All batches so have the same shape, and batch statistics the same footing.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::error::Error;

/// The endless sequence of batches over a set of examples, decided by a seed.
#[derive(Clone, Debug)]
pub struct Batches {
    seed: u64,
    examples: usize,
    batch_size: usize,
    /// The epoch that `order` belongs to; none before the first batch.
    epoch: Option<u64>,
    order: Vec<i64>,
}

impl Batches {
    /// Batches of `batch_size` of `examples` examples. `batch_size` must be in `1..=examples`.
    pub fn new(seed: u64, examples: usize, batch_size: usize) -> Result<Self, Error> {
        if batch_size == 0 || batch_size > examples {
            return Err(Error::BatchSize { batch_size, examples });
        }
        Ok(Self { seed, examples, batch_size, epoch: None, order: Vec::new() })
    }

    /// Returns the number of whole batches in an epoch.
    pub fn per_epoch(&self) -> u64 {
        (self.examples / self.batch_size) as u64
    }

    /// The examples of batch `number`, in the order they were shuffled to.
    pub fn get(&mut self, number: u64) -> &[i64] {
        let (epoch, place) = (number / self.per_epoch(), number % self.per_epoch());
        if self.epoch != Some(epoch) {
            self.order = (0..self.examples as i64).collect();
            self.order.shuffle(&mut generator(self.seed, b"shuffle\0", epoch));
            self.epoch = Some(epoch);
        }
        &self.order[place as usize * self.batch_size..][..self.batch_size]
    }
}

/// Starts the generator for number `index` of one purpose. The ChaCha key is the seed, the name of the purpose and the index side
/// by side, so no two generators share a stream.
pub(crate) fn generator(seed: u64, purpose: &[u8; 8], index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(purpose);
    key[16..24].copy_from_slice(&index.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(batches: &mut Batches, numbers: std::ops::Range<u64>) -> Vec<i64> {
        numbers.flat_map(|number| batches.get(number).to_vec()).collect()
    }

    #[test]
    fn an_epoch_visits_each_example_at_most_once_and_drops_the_rest() {
        let mut batches = Batches::new(1, 103, 10).unwrap();
        assert_eq!(batches.per_epoch(), 10);
        let mut dropped = Vec::new();
        for epoch in 0..3 {
            let mut seen = examples(&mut batches, 10 * epoch..10 * epoch + 10);
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 100);
            dropped.push((0..103).filter(|i| !seen.contains(i)).collect::<Vec<_>>());
        }
        assert_ne!(dropped[0], dropped[1]);
    }

    #[test]
    fn an_epoch_that_divides_evenly_covers_every_example() {
        let mut seen = examples(&mut Batches::new(7, 96, 8).unwrap(), 0..12);
        seen.sort_unstable();
        assert_eq!(seen, (0..96).collect::<Vec<_>>());
    }

    #[test]
    fn epochs_and_seeds_differ_but_a_seed_repeats() {
        let epoch = |seed, number| Batches::new(seed, 50, 50).unwrap().get(number).to_vec();
        assert_eq!(epoch(3, 0), epoch(3, 0));
        assert_ne!(epoch(3, 0), epoch(4, 0));
        assert_ne!(epoch(3, 0), epoch(3, 1));
    }

    #[test]
    fn any_batch_can_be_computed_in_any_order() {
        let mut batches = Batches::new(5, 40, 7).unwrap();
        let in_order: Vec<Vec<i64>> = (0..20).map(|number| batches.get(number).to_vec()).collect();
        for number in [19, 0, 7, 6, 12] {
            assert_eq!(batches.get(number), in_order[number as usize]);
        }
    }

    /// A run must be repeatable after an upgrade of rand, which only promises this for ChaCha8.
    #[test]
    fn the_order_of_seed_42_is_pinned() {
        let mut batches = Batches::new(42, 25_000, 8).unwrap();
        assert_eq!(batches.get(3), [23309, 697, 6423, 21435, 6851, 23578, 18264, 14773]);
    }

    #[test]
    fn a_batch_that_cannot_be_filled_is_refused() {
        for batch_size in [0, 11] {
            let error = Batches::new(0, 10, batch_size).unwrap_err();
            assert!(error.to_string().contains("must be between 1 and 10,"), "{error}");
        }
    }
}
