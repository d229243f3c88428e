//! The search of one study: its task, its images and its supernet.

use std::{cell::RefCell, collections::BTreeMap, path::Path, time::Instant};

use tch::Device;
use tracing::warn;

use super::{
    error::Error,
    supernet::{Failure, Supernet},
};
use crate::{
    images::{Batches, DataSet, Images, Info, Preprocess},
    metrics::{self, Phase},
    optim::cosine,
    tasks::{
        self, Batch, Draw, Task, Variable,
        test_split::{self, Metrics, TestSplit},
    },
    torch::{Precision, Snapshot},
};

/// Costs of an architecture by name, at the size at which it is searched.
pub type Costs = BTreeMap<&'static str, f64>;

/// The cost that is measured, where it is: the latency of one image, in milliseconds.
pub(crate) const LATENCY: &str = "latency_ms";

/// Returns the costs of an architecture that are counted; none where architectures are no networks.
pub(crate) fn counted_costs(task: &dyn Task, info: &Info, values: &[i64]) -> Option<Costs> {
    let costs = task.costs(info, values)?;
    Some(Costs::from([("parameters", costs.parameters as f64), ("macs", costs.macs as f64)]))
}

/// A step of the search, in the wire's values.
#[derive(Clone, Debug)]
pub struct Step {
    /// Number of the minibatches to use, from 0: the step's own number, so that a step that is done again sees the same
    /// images and two trainers see different ones.
    pub batch: u64,
    /// Architectures for the weights.
    pub train: Vec<Vec<i64>>,
    /// Architectures to be ranked; none in the warm-up.
    pub rank: Vec<Vec<i64>>,
    /// Position in the learning-rate schedule, 0 to 1.
    pub progress: f64,
}

/// A study's supernet, and the images that make its minibatches.
pub(super) struct Search {
    task: Box<dyn Task>,
    variables: Vec<Variable>,
    data: DataSet,
    supernet: Supernet,
    train: Part,
    rank: Part,
    preprocess: Preprocess,
    device: Device,
    /// Latencies in milliseconds by architecture; none where they are not measured.
    latencies: Option<RefCell<BTreeMap<Vec<i64>, f64>>>,
}

/// The results of a step.
pub(super) struct Measured {
    pub(super) losses: Vec<f64>,
    /// Empty where architectures are no networks.
    pub(super) costs: Vec<Costs>,
    pub(super) metrics: BTreeMap<&'static str, f64>,
    pub(super) images: u64,
}

/// The half of the training images that trains the weights, or that ranks architectures, on the device.
struct Part {
    images: Images,
    /// None for a task that needs no images.
    batches: Option<Batches>,
    seed: u64,
}

impl Part {
    fn new(
        images: &Images,
        info: &Info,
        batch_size: i64,
        seed: u64,
        device: Device,
    ) -> Result<Part, Error> {
        let images = images.to_device(device);
        let count = images.len();
        let batches = match count {
            0 => None,
            _ if batch_size > count => {
                return Err(Error::OtherImages(format!(
                    "batch_size is {batch_size}, and half of the training images of data set {}, which a minibatch is taken from, are \
                     {count}: set a smaller batch_size",
                    info.name
                )));
            }
            _ => Some(Batches::new(seed, count as usize, batch_size as usize)?),
        };
        Ok(Part { images, batches, seed })
    }

    /// The minibatch `number`, counted from 0 over all epochs.
    fn batch(&mut self, task: &dyn Task, preprocess: &Preprocess, number: u64) -> Batch {
        let indices = self.batches.as_mut().map_or(&[][..], |batches| batches.get(number));
        let images = self.images.select(indices);
        task.batch(&images, preprocess, Draw::Augmented { seed: self.seed, number })
    }
}

impl Search {
    pub(super) fn new(
        task: Box<dyn Task>,
        data: DataSet,
        device: Device,
        precision: Precision,
        measure_latency: bool,
    ) -> Result<Search, Error> {
        task.accepts(&data.info).map_err(Error::OtherImages)?;
        let training = task.training();
        // Each half has an order of its own.
        let seed = training.seed.wrapping_mul(2);
        let part = |images: &Images, seed| {
            Part::new(images, &data.info, training.batch_size, seed, device)
        };
        let [train, rank] = data.search_halves();
        Ok(Search {
            variables: task.variables(),
            supernet: Supernet::new(&*task, &data.info, device, precision),
            train: part(&train, seed)?,
            rank: part(&rank, seed.wrapping_add(1))?,
            preprocess: test_split::preprocess(&*task, &data.info, device),
            latencies: measure_latency.then(RefCell::default),
            task,
            data,
            device,
        })
    }

    pub(super) fn step(&mut self, step: &Step) -> Result<Measured, Error> {
        let started = Instant::now();
        for values in step.train.iter().chain(&step.rank) {
            tasks::check(&self.variables, values)?;
        }
        let task = &*self.task;
        let train_batch = self.train.batch(task, &self.preprocess, step.batch);
        // The warm-up ranks nothing: nothing is computed on a batch to rank on, and none is loaded.
        let rank_batch =
            (!step.rank.is_empty()).then(|| self.rank.batch(task, &self.preprocess, step.batch));
        let rank_batch = rank_batch.as_ref().unwrap_or(&train_batch);
        let loading = started.elapsed();
        metrics::phase(Phase::Data, loading);
        let training = task.training();
        let learning_rate = cosine(training.learning_rate, step.progress);
        let (train, rank) = ((&train_batch, &*step.train), (rank_batch, &*step.rank));
        let outcome = self.supernet.step(task, train, rank, learning_rate)?;
        for Failure { place, reason } in &outcome.failures {
            let values = step.train.iter().chain(&step.rank).nth(*place);
            warn!(?values, reason, "architecture cannot be computed, and counts as diverged");
        }
        let mut metrics = BTreeMap::from([
            ("train_loss", outcome.train_loss),
            ("gradient_norm", outcome.gradient_norm),
            ("learning_rate", learning_rate),
            ("loading_seconds", loading.as_secs_f64()),
        ]);
        metrics.extend(task.step_metrics(&outcome.train_metrics, &outcome.rank_metrics));
        let architectures = (step.train.len() + step.rank.len()) as u64;
        let images = match self.data.train.is_empty() {
            true => 0,
            false => architectures * training.batch_size as u64,
        };
        let costs = step.rank.iter().filter_map(|values| self.costs(values, rank_batch));
        Ok(Measured { costs: costs.collect(), losses: outcome.losses, metrics, images })
    }

    /// The costs of an architecture; none where architectures are no networks.
    fn costs(&self, values: &[i64], batch: &Batch) -> Option<Costs> {
        let mut costs = counted_costs(&*self.task, &self.data.info, values)?;
        if let Some(latencies) = &self.latencies {
            let mut latencies = latencies.borrow_mut();
            let latency = latencies
                .entry(values.to_vec())
                .or_insert_with(|| self.supernet.latency(&batch.input.narrow(0, 0, 1), values));
            costs.insert(LATENCY, *latency);
        }
        Some(costs)
    }

    /// Metrics of an architecture on the first `count` test images, or all; and their number.
    pub(super) fn evaluate(
        &self,
        values: &[i64],
        count: Option<i64>,
    ) -> Result<(u64, Metrics), Error> {
        tasks::check(&self.variables, values)?;
        let test = TestSplit::new(&*self.task, &self.data, count, self.device)
            .map_err(Error::TestImages)?;
        let forward = |batch: &Batch| self.supernet.forward(&batch.input, values);
        let metrics = test.evaluate(&*self.task, forward, |_, _, _| {});
        Ok((test.count() as u64, metrics))
    }

    /// Weights and optimiser as they are now.
    pub(super) fn snapshot(&self) -> Snapshot {
        self.supernet.snapshot()
    }

    /// Reads a checkpoint; nothing changes unless all of it fits.
    pub(super) fn load(&mut self, file: &Path) -> Result<(), Error> {
        Ok(self.supernet.load(file)?)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;
    use crate::tasks::space::Space;

    /// A search of small cells on images by formula.
    fn search() -> Search {
        tch::set_num_threads(1);
        let settings = [("nodes", "2"), ("cells", "3"), ("channels", "4"), ("batch_size", "4")];
        let settings = settings.map(|(name, text)| (name.into(), text.into())).into();
        let space = Space { name: "enas-micro".into(), settings, ..Space::default() };
        let classes = (0..10).map(|class| class.to_string()).collect();
        let (mean, std) = (vec![0.5; 3], vec![0.25; 3]);
        let info = Info { shape: [3, 8, 8], classes, mean, std, ..Info::default() };
        let pixel = |i: i64| (127.0 + 100.0 * (0.3 * (i * i) as f64).sin()) as u8;
        let pixels: Vec<u8> = (0..16 * 3 * 8 * 8).map(pixel).collect();
        let pixels = Tensor::from_slice(&pixels).view([16, 3, 8, 8]);
        let labels = Tensor::arange(16, (Kind::Int64, Device::Cpu)).remainder(10);
        let data = DataSet { info, train: Images { pixels, labels }, ..DataSet::empty() };
        Search::new(space.task().unwrap(), data, Device::Cpu, Precision::F32, false).unwrap()
    }

    #[test]
    fn a_step_of_the_warm_up_trains_the_same_weights_and_tells_of_no_ranking() {
        let all = vec![vec![0, 1, 3, 0, 2, 0, 4, 1, 1, 1, 2, 2, 0, 1, 0, 3]; 2];
        let step = |batch, rank: &[Vec<i64>]| {
            let (train, rank) = (all.clone(), rank.to_vec());
            Step { batch, train, rank, progress: 0.0 }
        };
        let (mut warm, mut ranking) = (search(), search());
        let first = warm.step(&step(0, &[])).unwrap();
        assert!(first.losses.is_empty() && first.costs.is_empty());
        assert!(first.metrics.values().all(|metric| metric.is_finite()), "{:?}", first.metrics);
        assert!(!first.metrics.contains_key("rank_accuracy"));
        assert_eq!(first.images, 2 * 4);
        let ranked = ranking.step(&step(0, &all)).unwrap();
        assert_eq!(ranked.metrics["train_loss"], first.metrics["train_loss"]);
        // Neither the weights nor the images of later steps depend on what was ranked.
        let [after, expected] = [&mut warm, &mut ranking].map(|s| s.step(&step(1, &all)).unwrap());
        assert_eq!(after.losses, expected.losses);
        assert_ne!(after.losses, ranked.losses);
    }
}
