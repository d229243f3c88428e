//! Steps of the spaces whose networks see images: what does not depend on the network.

use std::{collections::BTreeMap, path::Path, rc::Rc, time::Instant};

use super::{Costs, Error, Measured, Step, Study, cosine, warn_of};
use crate::{
    data::{self, Batches, Images, Preprocess},
    metrics::{self, Phase},
    supernet::{Precision, Shared, Snapshot, search::Supernet},
};

/// The training images on the device, in the halves for the weights and for the ranking.
pub(super) struct Halves {
    pub(super) train: Images,
    pub(super) rank: Images,
    /// Those of the test set, on the CPU.
    pub(super) test: Images,
    pub(super) preprocess: Preprocess,
}

impl Halves {
    /// Height and width of the images.
    pub(super) fn side(&self) -> i64 {
        self.train.pixels.size()[2]
    }
}

/// What a study's settings say of every step.
pub(super) struct Pace {
    pub(super) batch_size: i64,
    /// At the start of the schedule.
    pub(super) learning_rate: f64,
    pub(super) seed: i64,
}

/// What a network is for.
pub(super) trait Task {
    type Network: Shared;

    /// Names of the network's quality in training and in ranking.
    const QUALITIES: [&'static str; 2];

    fn pace(&self) -> Pace;

    fn decode(&self, values: &[i64]) -> Result<Architecture<Self>, Error>;

    /// The minibatch of that number, of images that were selected for it.
    fn batch(
        &self,
        preprocess: &Preprocess,
        images: Images,
        seed: u64,
        number: u64,
    ) -> Result<Batch<Self>, data::Error>;

    /// What an architecture costs at the search's size: [`Costs`].
    fn costs(&self, architecture: &Architecture<Self>) -> Costs;

    /// Figures of an architecture on the first `count` test images, or all; and how many these are.
    fn evaluate(
        &self,
        supernet: &Supernet<Self::Network>,
        architecture: &Architecture<Self>,
        test: &Images,
        count: Option<i64>,
    ) -> Result<(u64, BTreeMap<&'static str, f64>), Error>;
}

type Architecture<T> = <<T as Task>::Network as Shared>::Architecture;
type Batch<T> = <<T as Task>::Network as Shared>::Batch;

/// A study's supernet, and which images make its minibatches.
pub(super) struct Search<T: Task> {
    task: T,
    halves: Rc<Halves>,
    supernet: Supernet<T::Network>,
    train: Batches,
    rank: Batches,
}

impl<T: Task> Search<T> {
    pub(super) fn new(
        task: T,
        halves: Rc<Halves>,
        mut supernet: Supernet<T::Network>,
        precision: Precision,
    ) -> Result<Search<T>, Error> {
        supernet.set_precision(precision);
        let Pace { batch_size, seed, .. } = task.pace();
        // Each half has an order of its own.
        let (train, rank) = seeds(seed);
        let batches =
            |half: &Images, seed| Batches::new(seed, half.len() as usize, batch_size as usize);
        let (train, rank) = (batches(&halves.train, train)?, batches(&halves.rank, rank)?);
        Ok(Search { task, halves, supernet, train, rank })
    }
}

impl<T: Task> Study for Search<T> {
    fn step(&mut self, step: &Step) -> Result<Measured, Error> {
        let started = Instant::now();
        let Pace { batch_size, learning_rate, seed } = self.task.pace();
        let decode = |values: &Vec<i64>| self.task.decode(values);
        let train: Vec<_> = step.train.iter().map(decode).collect::<Result<_, _>>()?;
        let rank: Vec<_> = step.rank.iter().map(decode).collect::<Result<_, _>>()?;
        let batch = |images: &Images, batches: &mut Batches, seed: u64| {
            let images = images.select(batches.get(step.batch))?;
            self.task.batch(&self.halves.preprocess, images, seed, step.batch)
        };
        let seeds = seeds(seed);
        let train_batch = batch(&self.halves.train, &mut self.train, seeds.0)?;
        let rank_batch = batch(&self.halves.rank, &mut self.rank, seeds.1)?;
        let loading = started.elapsed();
        metrics::phase(Phase::Data, loading);
        let learning_rate = cosine(learning_rate, step.progress);
        let outcome =
            self.supernet.search_step(&train_batch, &train, &rank_batch, &rank, learning_rate)?;
        warn_of(&outcome.failures, step);
        let [train_quality, rank_quality] = T::QUALITIES;
        let metrics = [
            ("train_loss", outcome.train_loss),
            (train_quality, outcome.train_quality),
            (rank_quality, outcome.rank_quality),
            ("gradient_norm", outcome.gradient_norm),
            ("learning_rate", learning_rate),
            ("loading_seconds", loading.as_secs_f64()),
        ];
        let images = (step.train.len() + step.rank.len()) as u64 * batch_size as u64;
        let costs = rank.iter().map(|architecture| self.task.costs(architecture)).collect();
        Ok(Measured { losses: outcome.losses, costs, metrics: metrics.into(), images })
    }

    fn evaluate(
        &self,
        values: &[i64],
        images: Option<i64>,
    ) -> Result<(u64, BTreeMap<&'static str, f64>), Error> {
        let architecture = self.task.decode(values)?;
        self.task.evaluate(&self.supernet, &architecture, &self.halves.test, images)
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        Ok(self.supernet.snapshot()?)
    }

    fn load(&mut self, file: &Path) -> Result<(), Error> {
        Ok(self.supernet.load(file)?)
    }
}

/// Seeds of the data that trains the weights and of the data that ranks, from a study's own.
fn seeds(seed: i64) -> (u64, u64) {
    let seed = seed.cast_unsigned().wrapping_mul(2);
    (seed, seed.wrapping_add(1))
}
