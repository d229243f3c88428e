//! The weights that all architectures of a study share, and one step of their search.

use std::{path::Path, time::Instant};

use tch::{Device, Kind, Tensor};

use crate::{
    images::Info,
    metrics::{self, Phase},
    optim::{Gradients, Optimizer},
    tasks::{
        Batch, Task,
        network::{Mode, Network},
    },
    torch::{Error, Precision, Snapshot, attempt, load, read},
};

/// In the search all statistics are the batch's, and nothing is dropped.
const MODE: Mode = Mode::Train { drop_path: 0.0 };

/// Shared weights with their optimiser.
pub struct Supernet {
    network: Network,
    optimizer: Optimizer,
    precision: Precision,
}

/// The result of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// The loss of each rank architecture, in order, after the weights moved; not finite where it diverged.
    pub losses: Vec<f64>,
    /// The task's metric of each rank architecture.
    pub rank_metrics: Vec<f64>,
    /// Mean loss of the train architectures, before the weights moved.
    pub train_loss: f64,
    /// The task's metric of each train architecture.
    pub train_metrics: Vec<f64>,
    /// Norm of the mean gradient before it was clipped. If it is not finite, the weights moved by their momentum alone.
    pub gradient_norm: f64,
    /// What could not be computed; it counts as diverged.
    pub failures: Vec<Failure>,
}

/// An architecture that libtorch could not compute, such as one for which memory ran out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its place among the step's train architectures and then its rank architectures.
    pub place: usize,
    /// The message of libtorch.
    pub reason: String,
}

impl Supernet {
    /// New weights, decided by the seed of the task's settings.
    pub fn new(task: &dyn Task, info: &Info, device: Device, precision: Precision) -> Supernet {
        let network = task.network(info, None, device, Kind::Float);
        let training = task.training();
        let optimizer = Optimizer::new(training.method, training.grad_clip, &network.parameters);
        Supernet { network, optimizer, precision }
    }

    /// One step of the search (authors' `architecture_search` and `arch_search_valid`): moves the weights along the mean gradient
    /// of the train architectures on one batch, then measures the rank architectures on another with the moved weights. Without
    /// train architectures the weights stay, and the metrics of training are NaN. An architecture that libtorch cannot compute,
    /// or for which there is not enough memory, counts as diverged; errors if all of them fail.
    pub fn step(
        &mut self,
        task: &dyn Task,
        (train_batch, train): (&Batch, &[Vec<i64>]),
        (rank_batch, rank): (&Batch, &[Vec<i64>]),
        learning_rate: f64,
    ) -> Result<StepOutcome, Error> {
        let started = Instant::now();
        let Supernet { network, optimizer, precision } = self;
        let device = network.device();
        let (mut failures, mut numbers, mut gradients) =
            (Vec::new(), Vec::new(), Gradients::default());
        for (place, values) in train.iter().enumerate() {
            // Backward at once, not of the sum of the losses: only one graph is alive at a time.
            let compute = || {
                let [loss, metric] = measure(task, network, *precision, train_batch, values);
                let part = Gradients::of(&(&loss / train.len() as f64), &network.parameters);
                ([loss.detach(), metric.detach()], part)
            };
            match contain(device, compute, place, &mut failures)? {
                Some((measured, part)) => {
                    gradients = gradients.plus(part);
                    numbers.extend(measured);
                }
                None => numbers.extend(diverged(device)),
            }
        }
        if !train.is_empty() {
            numbers.push(optimizer.step(&mut network.parameters, &gradients, learning_rate));
        }
        drop(gradients);
        let of_training = numbers.len();
        let trained = Instant::now();
        metrics::phase(Phase::Train, trained - started);

        let _guard = tch::no_grad_guard();
        for (place, values) in rank.iter().enumerate() {
            let compute = || measure(task, network, *precision, rank_batch, values);
            let measured = contain(device, compute, train.len() + place, &mut failures)?;
            numbers.extend(measured.unwrap_or_else(|| diverged(device)));
        }
        if !failures.is_empty() && failures.len() == train.len() + rank.len() {
            let reason = failures.swap_remove(0).reason;
            return Err(Error::Torch(format!(
                "no architecture of the step can be computed: {reason}"
            )));
        }
        // Only here is a GPU waited for: what it still had to do of the training counts as ranking.
        let numbers = read(&numbers);
        metrics::phase(Phase::Rank, trained.elapsed());
        let (trained, ranked) = numbers.split_at(of_training);
        let gradient_norm = trained.last().copied().unwrap_or(f64::NAN);
        let trained = &trained[..2 * train.len()];
        let every_other =
            |from: &[f64], first| from.iter().skip(first).step_by(2).copied().collect();
        let losses: Vec<f64> = every_other(trained, 0);
        Ok(StepOutcome {
            losses: every_other(ranked, 0),
            rank_metrics: every_other(ranked, 1),
            train_loss: losses.iter().sum::<f64>() / losses.len() as f64,
            train_metrics: every_other(trained, 1),
            gradient_norm,
            failures,
        })
    }

    /// The output of an architecture with the present weights. Like the ranking in a step it normalises with the statistics of
    /// the batch, which should therefore be a large one.
    pub fn forward(&self, input: &Tensor, values: &[i64]) -> Tensor {
        self.network.forward(input, values, Mode::Evaluate).main
    }

    /// Weights and optimiser as they are now.
    pub fn snapshot(&self) -> Snapshot {
        let mut parts = self.optimizer.parts();
        parts.push(("weight", &self.network.parameters));
        Snapshot::of(&parts)
    }

    /// Reads a [`Snapshot`] that was written; nothing changes unless all of it fits.
    pub fn load(&mut self, path: &Path) -> Result<(), Error> {
        let mut parts = self.optimizer.parts_mut();
        parts.push(("weight", &mut self.network.parameters));
        load(path, &mut parts)
    }
}

/// Loss and metric of an architecture.
fn measure(
    task: &dyn Task,
    network: &Network,
    precision: Precision,
    batch: &Batch,
    values: &[i64],
) -> [Tensor; 2] {
    let _autocast = precision.enter(network.device());
    task.loss(&network.forward(&batch.input, values, MODE), batch)
}

/// Computes one architecture. Returns none, and adds the failure, if the fault is the architecture's: libtorch cannot compute it, or
/// memory does not suffice even after all that is unused has been freed. Any other error concerns more than this architecture.
fn contain<T>(
    device: Device,
    compute: impl Fn() -> T,
    place: usize,
    failures: &mut Vec<Failure>,
) -> Result<Option<T>, Error> {
    let mut result = attempt(&compute);
    if let Err(Error::OutOfMemory(_)) = result {
        asng_native::empty_cache(device);
        result = attempt(&compute);
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

/// Loss and metric of an architecture that could not be computed.
fn diverged(device: Device) -> [Tensor; 2] {
    [(); 2].map(|()| Tensor::full([0_i64; 0], f64::NAN, (Kind::Float, device)))
}
