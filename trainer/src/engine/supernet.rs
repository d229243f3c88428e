//! The weights that all architectures of a study share, and one step of their search.

use std::{path::Path, time::Instant};

use tch::{Device, Kind, Tensor};

use crate::{
    images::Info,
    latency,
    metrics::{self, Phase},
    optim::{Gradients, Optimizer},
    tasks::{
        Batch, Task,
        network::{Mode, Network},
    },
    torch::{Error, Precision, Snapshot, attempt, load, read},
};

/// In the search all statistics are the batch's, and nothing is dropped.
const MODE: Mode = Mode::Train { drop_path: None };

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
    /// Architectures that could not be computed; they count as diverged.
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

    /// The latency in milliseconds of an image `[1, channels, height, width]` through an architecture; infinite if it cannot be
    /// computed, so that a limit on it is exceeded.
    pub fn latency(&self, image: &Tensor, values: &[i64]) -> f64 {
        let forward = || attempt(|| self.forward(image, values)).map(drop);
        latency::measure(forward, self.network.device()).unwrap_or(f64::INFINITY)
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
pub(crate) fn contain<T>(
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

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::VecDeque};

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use tch::TchError;

    use super::*;
    use crate::{
        optim::Method,
        tasks::{draw, network::Output, space::Space},
        torch::Tensors,
    };

    /// The bound on the operations of a step. On a GPU most are a kernel, and a small one takes less time than asking for it.
    const MOST_CALLS: u64 = 4000;

    fn task(name: &str, settings: &[(&str, &str)]) -> Box<dyn Task> {
        let settings = settings.iter().map(|(name, text)| (name.to_string(), text.to_string()));
        let settings = settings.collect();
        Space { name: name.into(), settings, ..Space::default() }.task().unwrap()
    }

    /// A step of one train architecture and then two rank architectures, of a network with a single weight, whose square is the
    /// loss; `script` has the errors of its forward passes, in order.
    fn scripted(script: &[Option<&'static str>]) -> Result<StepOutcome, Error> {
        let weight = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let parameters: Tensors = [("w".to_owned(), weight.shallow_clone())].into();
        let refuse = |text: &str| -> Result<(), TchError> { Err(TchError::Torch(text.into())) };
        let script = RefCell::new(VecDeque::from(script.to_vec()));
        let forward = move |_: &Tensor, _: &[i64], _: Mode| {
            if let Some(Some(text)) = script.borrow_mut().pop_front() {
                refuse(text).unwrap();
            }
            Output { main: weight.square().sum(None), auxiliary: Some(Tensor::from(0.0)) }
        };
        let method = Method::Sgd { momentum: 0.0, weight_decay: 0.0 };
        let mut supernet = Supernet {
            optimizer: Optimizer::new(method, 5.0, &parameters),
            network: Network::of(parameters, Box::new(forward)),
            precision: Precision::F32,
        };
        let batch = Batch { input: Tensor::new(), target: Tensor::new() };
        let [one, two] = [vec![vec![]], vec![vec![]; 2]];
        supernet.step(&*task("toy", &[]), (&batch, &one), (&batch, &two), 0.1)
    }

    const MEMORY: Option<&str> = Some("CUDA out of memory. Tried to allocate 2.00 GiB.\nbacktrace");
    const SHAPE: Option<&str> = Some("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)");

    #[test]
    fn an_architecture_that_runs_out_of_memory_is_computed_once_more() {
        let undisturbed = scripted(&[]).unwrap();
        assert_eq!((undisturbed.train_loss, undisturbed.gradient_norm), (1.0, 2.0));
        assert_eq!(undisturbed.losses, [0.8_f32 * 0.8; 2].map(f64::from));
        assert_eq!(scripted(&[MEMORY]).unwrap(), undisturbed);
        assert_eq!(scripted(&[None, None, MEMORY]).unwrap(), undisturbed);
        let diverged = scripted(&[None, MEMORY, MEMORY]).unwrap();
        assert!(diverged.losses[0].is_nan() && diverged.losses[1] == undisturbed.losses[1]);
        assert_eq!(diverged.failures[0].place, 1);
        assert!(diverged.failures[0].reason.starts_with("out of memory: "), "{diverged:?}");
    }

    #[test]
    fn an_architecture_that_cannot_be_computed_diverges_at_once() {
        let diverged = scripted(&[None, SHAPE]).unwrap();
        assert!(diverged.losses[0].is_nan() && diverged.losses[1].is_finite());
        assert!(diverged.failures[0].reason.starts_with("libtorch: "), "{diverged:?}");
        let error = scripted(&[SHAPE; 3]).unwrap_err().to_string();
        assert!(error.contains("no architecture of the step can be computed: "), "{error}");
    }

    #[test]
    fn a_device_that_has_failed_is_no_fault_of_an_architecture() {
        for text in [
            "CUDA error: an illegal memory access was encountered",
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        ] {
            for script in [&[Some(text)][..], &[None, Some(text)], &[None, MEMORY, Some(text)]] {
                let error = scripted(script).unwrap_err();
                assert!(matches!(error, Error::Device(_)), "{error}");
                assert!(error.to_string().starts_with("the device has failed: "), "{error}");
            }
        }
    }

    /// Small cells with their supernet.
    struct Cells {
        task: Box<dyn Task>,
        supernet: Supernet,
    }

    impl Cells {
        fn new(seed: &str, cells: &str, precision: Precision) -> Cells {
            // Threads cost more than they gain on shapes this small.
            tch::set_num_threads(1);
            let sizes = [("nodes", "2"), ("cells", cells), ("channels", "4"), ("seed", seed)];
            let task = task("enas-micro", &sizes);
            let classes = (0..10).map(|class| class.to_string()).collect();
            let info = Info { shape: [3, 8, 8], classes, ..Info::default() };
            Cells { supernet: Supernet::new(&*task, &info, Device::Cpu, precision), task }
        }

        fn step_with(
            &mut self,
            train: (&Batch, &[Vec<i64>]),
            rank: (&Batch, &[Vec<i64>]),
        ) -> StepOutcome {
            self.supernet.step(&*self.task, train, rank, 0.05).unwrap()
        }

        fn step(&mut self) -> StepOutcome {
            let all = architectures();
            self.step_with((&batch(0.0), &all), (&batch(1.0), &all))
        }

        /// Loss and accuracy of an architecture with the present weights.
        fn measure(&self, batch: &Batch, values: &[i64]) -> Vec<f64> {
            read(&measure(&*self.task, &self.supernet.network, Precision::F32, batch, values))
        }

        fn weights(&self, of: fn(&str) -> bool) -> Vec<Vec<f32>> {
            let parameters = self.supernet.network.parameters.iter();
            let values = |tensor: &Tensor| Vec::try_from(tensor.detach().flatten(0, -1)).unwrap();
            parameters.filter(|(name, _)| of(name)).map(|(_, tensor)| values(tensor)).collect()
        }
    }

    fn cells(seed: &str) -> Cells {
        Cells::new(seed, "3", Precision::F32)
    }

    /// Images that differ from class to class, by formula.
    fn batch(phase: f64) -> Batch {
        let image = |i: i64| (0.3 * (i * i) as f64 + phase).sin() as f32;
        let images: Vec<f32> = (0..8 * 3 * 8 * 8).map(image).collect();
        let input = Tensor::from_slice(&images).view([8, 3, 8, 8]);
        Batch { input, target: Tensor::arange(8, (Kind::Int64, Device::Cpu)) }
    }

    /// One of separable convolutions, and one of poolings.
    fn architectures() -> [Vec<i64>; 2] {
        [
            vec![0, 1, 3, 0, 2, 0, 4, 1, 1, 1, 2, 2, 0, 1, 0, 3],
            vec![0, 1, 1, 0, 0, 1, 2, 1, 1, 0, 0, 2, 0, 2, 0, 1],
        ]
    }

    #[test]
    fn the_rank_losses_are_those_of_the_moved_weights() {
        let mut cells = cells("0");
        let before = cells.measure(&batch(1.0), &architectures()[0]);
        let outcome = cells.step();
        let after = architectures().map(|values| cells.measure(&batch(1.0), &values));
        assert_eq!(outcome.losses, [after[0][0], after[1][0]]);
        assert_eq!(outcome.rank_metrics, [after[0][1], after[1][1]]);
        assert_ne!(before[0], after[0][0]);
        assert!(outcome.gradient_norm > 0.0);
    }

    #[test]
    fn steps_lower_the_loss_of_a_fixed_batch() {
        let mut cells = cells("0");
        let losses: Vec<f64> = (0..30).map(|_| cells.step().train_loss).collect();
        assert!(losses[29] < 0.5 * losses[0], "{losses:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_weights_and_the_same_steps() {
        let all: fn(&str) -> bool = |_| true;
        let (mut one, mut same, other) = (cells("7"), cells("7"), cells("8"));
        assert_eq!(one.weights(all), same.weights(all));
        assert_ne!(one.weights(all), other.weights(all));
        for _ in 0..2 {
            assert_eq!(one.step(), same.step());
        }
        assert_eq!(one.weights(all), same.weights(all));
    }

    #[test]
    fn with_16_bits_the_losses_are_near_and_the_weights_keep_32() {
        let mut short = Cells::new("0", "3", Precision::Bf16);
        let (exact, outcome) = (cells("0").step(), short.step());
        assert_ne!(exact.losses, outcome.losses, "it has no effect");
        // A number of 16 bits is right to 1 part in 256.
        for (loss, exact) in outcome.losses.iter().zip(&exact.losses) {
            assert!((loss - exact).abs() < 0.03 * exact, "{loss}, not {exact}");
            // Of 32 bits.
            assert_ne!(Tensor::from(*loss).to_kind(Kind::BFloat16).double_value(&[]), *loss);
        }
        let norms = (outcome.gradient_norm, exact.gradient_norm);
        assert!((norms.0 - norms.1).abs() < 0.1 * norms.1, "{norms:?}");
        let mut all = short.supernet.optimizer.parts();
        all.push(("weight", &short.supernet.network.parameters));
        let float = |tensors: &Tensors| tensors.values().all(|t| t.kind() == Kind::Float);
        assert!(all.iter().all(|(_, tensors)| float(tensors)));
    }

    #[test]
    fn a_saved_supernet_continues_exactly() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weights.safetensors");
        let (mut saved, mut loaded) = (cells("0"), cells("1"));
        saved.step();
        saved.supernet.snapshot().write(&file).unwrap();
        loaded.supernet.load(&file).unwrap();
        assert_eq!(saved.step(), loaded.step());
        saved.supernet.snapshot().write(&file).unwrap(); // over the first one
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_does_not_fit_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weights.safetensors");
        Cells::new("1", "4", Precision::F32).supernet.snapshot().write(&file).unwrap();
        let Cells { mut supernet, task } = cells("0");
        assert!(matches!(supernet.load(&file), Err(Error::OtherNetwork { .. })));
        std::fs::write(&file, b"not tensors").unwrap();
        assert!(matches!(supernet.load(&file), Err(Error::OtherNetwork { .. })));
        let missing = directory.path().join("missing");
        assert!(matches!(supernet.load(&missing), Err(Error::File(_))));
        assert_eq!(Cells { supernet, task }.weights(|_| true), cells("0").weights(|_| true));
    }

    #[test]
    fn parameters_that_a_step_does_not_touch_stay() {
        let mut cells = cells("0");
        let untouched = |name: &str| name.contains("sep_conv");
        let before = cells.weights(untouched);
        assert!(before.len() > 10);
        let pooling = &architectures()[1..];
        cells.step_with((&batch(0.0), pooling), (&batch(1.0), pooling));
        assert_eq!(before, cells.weights(untouched));
    }

    #[test]
    fn a_part_of_a_step_that_diverges_is_a_value_and_leaves_finite_weights() {
        let mut cells = cells("0");
        cells.step();
        let infinite = Batch { input: batch(0.0).input * f64::INFINITY, ..batch(0.0) };
        let all = architectures();
        let outcome = cells.step_with((&infinite, &all), (&batch(1.0), &all));
        assert!(!outcome.train_loss.is_finite() && !outcome.gradient_norm.is_finite());
        assert!(outcome.losses.iter().all(|loss| loss.is_finite()), "{outcome:?}");
        let outcome = cells.step_with((&batch(1.0), &all), (&infinite, &all));
        assert!(outcome.losses.iter().all(|loss| !loss.is_finite()));
        assert!(outcome.train_loss.is_finite());
    }

    #[test]
    fn a_step_may_only_rank_or_only_train() {
        let mut cells = cells("0");
        let all = architectures();
        let before = cells.measure(&batch(1.0), &all[0]);
        let outcome = cells.step_with((&batch(0.0), &[]), (&batch(1.0), &all));
        assert_eq!(outcome.losses[0], before[0]);
        assert!(outcome.train_loss.is_nan() && outcome.gradient_norm.is_nan());
        let outcome = cells.step_with((&batch(0.0), &all), (&batch(1.0), &[]));
        assert!(outcome.losses.is_empty() && outcome.train_loss.is_finite());
        assert_ne!(cells.measure(&batch(1.0), &all[0]), before);
    }

    #[test]
    fn what_libtorch_refuses_is_a_failure_of_one_line() {
        let mut cells = cells("0");
        let all = architectures();
        let grey = Batch { input: batch(0.0).input.narrow(1, 0, 1), ..batch(0.0) };
        let outcome = cells.step_with((&grey, &all), (&batch(0.0), &all));
        assert!(outcome.train_loss.is_nan() && outcome.losses.iter().all(|loss| loss.is_finite()));
        let places: Vec<_> = outcome.failures.iter().map(|failure| failure.place).collect();
        assert_eq!(places, [0, 1]);
        assert_eq!(outcome.failures[0].reason.lines().count(), 1, "{outcome:?}");
        let outcome = cells.step_with((&batch(0.0), &all), (&grey, &all));
        assert!(outcome.losses.iter().all(|loss| loss.is_nan()) && outcome.train_loss.is_finite());
        let refused = cells.supernet.step(&*cells.task, (&grey, &all), (&grey, &all), 0.05);
        let error = refused.unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains("no architecture of the step can be computed"), "{error}");
    }

    /// A step of the paper's size; the size of the images makes no difference.
    #[test]
    fn a_step_asks_libtorch_for_few_operations() {
        tch::set_num_threads(1);
        let task = task("enas-micro", &[]);
        let info = Info { shape: [3, 8, 8], classes: vec![String::new(); 10], ..Info::default() };
        let mut supernet = Supernet::new(&*task, &info, Device::Cpu, Precision::F32);
        let (variables, mut random) = (task.variables(), ChaCha8Rng::seed_from_u64(0));
        for _ in 0..3 {
            let [train, rank] = [(); 2].map(|()| [(); 2].map(|()| draw(&variables, &mut random)));
            let (train_batch, rank_batch) = (batch(0.0), batch(1.0));
            let mut step = |train: &[Vec<i64>], rank: &[Vec<i64>]| {
                supernet.step(&*task, (&train_batch, train), (&rank_batch, rank), 0.05).unwrap();
            };
            let [training, ranking] = [(&train[..], &[][..]), (&[][..], &rank[..])]
                .map(|(train, rank)| asng_native::count_calls(|| step(train, rank)));
            let calls = training.values().chain(ranking.values()).sum::<u64>();
            assert!(calls <= MOST_CALLS, "{calls} calls: {training:?} {ranking:?}");
        }
    }
}
