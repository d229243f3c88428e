//! The supernet of a study: the weights that all of its architectures share, and one step of the
//! search, the same for every network.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::gradients::Gradients;
use super::sgd::{Rates, Sgd};
use super::{Error, Precision, Snapshot, checkpoint, loss};
use crate::metrics::{self, Phase};

/// A network whose weights are shared by all architectures of its space.
pub trait Shared {
    /// What it is trained and measured on.
    type Batch;
    /// What is chosen of it.
    type Architecture;

    /// The loss of an architecture on a batch, and its quality, a figure for people; both without
    /// dimensions and on the device.
    fn measure(
        &self,
        batch: &Self::Batch,
        architecture: &Self::Architecture,
    ) -> Result<[Tensor; 2], Error>;

    /// The weights, by name.
    fn shared(&self) -> &BTreeMap<String, Tensor>;

    /// The weights, to move.
    fn shared_mut(&mut self) -> &mut BTreeMap<String, Tensor>;
}

/// What a step reports.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// The loss of each rank architecture, in order, after the weights moved; not finite where it
    /// diverged.
    pub losses: Vec<f64>,
    /// Mean quality of the rank architectures.
    pub rank_quality: f64,
    /// Mean loss of the train architectures, before the weights moved.
    pub train_loss: f64,
    /// Mean quality of the train architectures.
    pub train_quality: f64,
    /// Norm of the mean gradient before it was clipped. Not finite: the step moved nothing but by
    /// its momentum.
    pub gradient_norm: f64,
    /// What could not be computed; it counts as diverged.
    pub failures: Vec<Failure>,
}

/// An architecture that libtorch could not compute, such as one for which memory ran out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its place among the step's train architectures and then its rank architectures.
    pub place: usize,
    /// What libtorch said.
    pub reason: String,
}

/// Shared weights with their optimiser.
#[derive(Debug)]
pub struct Supernet<N> {
    pub(super) network: N,
    pub(super) sgd: Sgd,
    precision: Precision,
}

impl<N: Shared> Supernet<N> {
    /// Of a network whose weights have not been trained.
    pub(super) fn untrained(network: N, rates: Rates) -> Result<Supernet<N>, Error> {
        let sgd = Sgd::new(network.shared(), rates)?;
        Ok(Supernet { network, sgd, precision: Precision::F32 })
    }

    /// Computes the steps from now on with this precision, which is [`Precision::F32`] at first.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// One step of the search (authors' `architecture_search` and `arch_search_valid`): moves the
    /// weights along the mean gradient of the train architectures on one batch, then measures the
    /// rank architectures on another with the moved weights. Without train architectures the weights
    /// stay, and what is said of training is NaN. An architecture that libtorch cannot compute, or for which
    /// there is not enough memory, counts as diverged, unless that is all of them.
    pub fn search_step(
        &mut self,
        train_batch: &N::Batch,
        train: &[N::Architecture],
        rank_batch: &N::Batch,
        rank: &[N::Architecture],
        learning_rate: f64,
    ) -> Result<StepOutcome, Error> {
        if rank.is_empty() {
            return Err(Error::NoArchitectures);
        }
        let started = Instant::now();
        let mut failures = Vec::new();
        let mut numbers = Vec::new();
        let mut gradients = Gradients::default();
        for (place, architecture) in train.iter().enumerate() {
            let compute =
                || gradient(&self.network, train_batch, architecture, train.len(), self.precision);
            match contain(&self.network, compute, place, &mut failures)? {
                Some((measured, part)) => {
                    gradients = gradients.plus(part)?;
                    numbers.extend(measured);
                }
                None => numbers.extend(diverged(&self.network)?),
            }
        }
        if !train.is_empty() {
            numbers.push(self.sgd.step(self.network.shared_mut(), &gradients, learning_rate)?);
        }
        drop(gradients);
        let of_training = numbers.len();
        let trained = Instant::now();
        metrics::phase(Phase::Train, trained - started);

        let _guard = tch::no_grad_guard();
        let autocast = self.precision.enter(device(&self.network));
        for (place, architecture) in rank.iter().enumerate() {
            let compute = || self.network.measure(rank_batch, architecture);
            let measured = contain(&self.network, compute, train.len() + place, &mut failures)?;
            numbers.extend(measured.map_or_else(|| diverged(&self.network), Ok)?);
        }
        drop(autocast);
        if failures.len() == train.len() + rank.len() {
            return Err(Error::NothingComputed(failures.swap_remove(0).reason));
        }
        // Only here is a GPU waited for: what it still had to do of the training counts as ranking.
        let numbers = loss::read(&numbers)?;
        metrics::phase(Phase::Rank, trained.elapsed());
        let (trained, ranked) = numbers.split_at(of_training);
        let gradient_norm = trained.last().copied().unwrap_or(f64::NAN);
        let trained = &trained[..2 * train.len()];
        Ok(StepOutcome {
            losses: ranked.iter().step_by(2).copied().collect(),
            rank_quality: mean(ranked.iter().skip(1).step_by(2)),
            train_loss: mean(trained.iter().step_by(2)),
            train_quality: mean(trained.iter().skip(1).step_by(2)),
            gradient_norm,
            failures,
        })
    }

    /// Weights and momentum as they are now.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let parts = [("weight", self.network.shared()), ("momentum", self.sgd.momentum())];
        Snapshot::of(&parts)
    }

    /// Reads a [`Snapshot`] that was written; nothing changes unless all of it fits.
    pub fn load(&mut self, path: &Path) -> Result<(), Error> {
        let mut parts =
            [("weight", self.network.shared_mut()), ("momentum", self.sgd.momentum_mut())];
        checkpoint::load(path, &mut parts)
    }
}

/// Loss, quality and gradient of one of `count` train architectures. Backward at once, not of the sum
/// of the losses: only one graph is alive at a time.
fn gradient<N: Shared>(
    network: &N,
    batch: &N::Batch,
    architecture: &N::Architecture,
    count: usize,
    precision: Precision,
) -> Result<([Tensor; 2], Gradients), Error> {
    let autocast = precision.enter(device(network));
    let [loss, quality] = network.measure(batch, architecture)?;
    drop(autocast);
    let gradients = Gradients::of(&loss.f_div_scalar(count as f64)?, network.shared())?;
    Ok(([loss.f_detach()?, quality], gradients))
}

/// Computes one architecture. Returns none, and notes the failure, if the fault is the architecture's: libtorch cannot compute it,
/// or memory does not suffice also after all that is unused has been freed. Any other error concerns more than this architecture.
fn contain<T>(
    network: &impl Shared,
    compute: impl Fn() -> Result<T, Error>,
    place: usize,
    failures: &mut Vec<Failure>,
) -> Result<Option<T>, Error> {
    let mut result = compute();
    if let Err(Error::OutOfMemory(_)) = result {
        asng_native::empty_cache(device(network));
        result = compute();
    }
    match result {
        Ok(computed) => Ok(Some(computed)),
        Err(error @ (Error::Torch(_) | Error::OutOfMemory(_))) => {
            failures.push(Failure { place, reason: error.to_string() });
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Loss and quality of what could not be computed.
fn diverged(network: &impl Shared) -> Result<[Tensor; 2], Error> {
    let nan = || Tensor::f_full([0; 0], f64::NAN, (Kind::Float, device(network)));
    Ok([nan()?, nan()?])
}

fn device(network: &impl Shared) -> Device {
    network.shared().values().next().map_or(Device::Cpu, Tensor::device)
}

fn mean<'a>(values: impl ExactSizeIterator<Item = &'a f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tch::TchError;

    use super::*;

    /// A single weight, whose square is the loss, and the errors of the calls to come.
    struct Scripted {
        weights: BTreeMap<String, Tensor>,
        script: RefCell<Vec<Option<&'static str>>>,
    }

    impl Shared for Scripted {
        type Batch = ();
        type Architecture = ();

        fn measure(&self, (): &(), (): &()) -> Result<[Tensor; 2], Error> {
            if let Some(Some(text)) = self.script.borrow_mut().pop() {
                return Err(TchError::Torch(text.into()).into());
            }
            let loss = self.weights["w"].f_square()?;
            Ok([loss.f_sum(None)?, Tensor::from(0.0)])
        }

        fn shared(&self) -> &BTreeMap<String, Tensor> {
            &self.weights
        }

        fn shared_mut(&mut self) -> &mut BTreeMap<String, Tensor> {
            &mut self.weights
        }
    }

    /// A step of one train architecture and then two rank architectures, with the errors of its calls in order.
    fn step(script: &[Option<&'static str>]) -> Result<StepOutcome, Error> {
        let weight = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let script = script.iter().rev().copied().collect();
        let network =
            Scripted { weights: [("w".into(), weight)].into(), script: RefCell::new(script) };
        let rates = Rates { momentum: 0.0, weight_decay: 0.0, grad_clip: 5.0 };
        let mut supernet = Supernet::untrained(network, rates)?;
        supernet.search_step(&(), &[()], &(), &[(), ()], 0.1)
    }

    const MEMORY: Option<&str> = Some("CUDA out of memory. Tried to allocate 2.00 GiB.\nbacktrace");
    const SHAPE: Option<&str> = Some("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)");

    #[test]
    fn an_architecture_that_runs_out_of_memory_is_computed_once_more() {
        let undisturbed = step(&[]).unwrap();
        assert_eq!(step(&[MEMORY]).unwrap(), undisturbed);
        assert_eq!(step(&[None, None, MEMORY]).unwrap(), undisturbed);
        let diverged = step(&[None, MEMORY, MEMORY]).unwrap();
        assert!(diverged.losses[0].is_nan() && diverged.losses[1] == undisturbed.losses[1]);
        assert_eq!(diverged.failures[0].place, 1);
        assert!(diverged.failures[0].reason.starts_with("out of memory: "), "{diverged:?}");
    }

    #[test]
    fn an_architecture_that_cannot_be_computed_diverges_at_once() {
        let diverged = step(&[None, SHAPE]).unwrap();
        assert!(diverged.losses[0].is_nan() && diverged.losses[1].is_finite());
        assert!(diverged.failures[0].reason.starts_with("libtorch: "), "{diverged:?}");
    }

    #[test]
    fn a_device_that_has_failed_is_no_fault_of_an_architecture() {
        for text in [
            "CUDA error: an illegal memory access was encountered",
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        ] {
            for script in [&[Some(text)][..], &[None, Some(text)], &[None, MEMORY, Some(text)]] {
                let error = step(script).unwrap_err();
                assert!(matches!(error, Error::Device(_)), "{error}");
                assert!(error.to_string().starts_with("the device has failed: "), "{error}");
            }
        }
    }
}
