//! The loop of every retraining: minibatch after minibatch, with an evaluation, a row of the log and a checkpoint
//! after each round, and further checkpoints in between.
//!
//! A GPU is waited for where its numbers are wanted: for a message, a row of the log or a checkpoint. In between, minibatches are
//! queued while it computes those before them.
//!
//! A checkpoint is one file, which holds the weights and the progress, so that whatever moment a crash
//! chooses, both belong together; rows of the log beyond it are removed. All randomness follows from the
//! number of the minibatch. So a retraining that was interrupted ends like one that was not.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use indicatif::HumanDuration;
use tch::{Device, Kind, Tensor};
use tracing::info;

use super::{
    events::Events,
    log::{Log, Named, Row},
    record::{BEST, ITERATIONS, LAST, Record},
};
use crate::{
    images::{Batches, DataSet, Images, Preprocess, generator},
    optim::{Gradients, Optimizer},
    progress,
    tasks::{
        self, Batch, Draw, Length, Task,
        network::{DropPath, Mode, Network},
        test_split::{self, Metrics, TestSplit},
    },
    torch::{self, Numbers, Precision, Snapshot},
};

/// From this time on, a training is announced with advice.
const LONG: Duration = Duration::from_secs(3600);

/// A network with the images that it learns from.
pub(super) struct Training {
    task: Box<dyn Task>,
    training: tasks::Training,
    values: Vec<i64>,
    preprocess: Preprocess,
    train: Images,
    batches: Batches,
    test: TestSplit,
    network: Network,
    optimizer: Optimizer,
    precision: Precision,
}

/// The progress of a retraining.
struct Progress {
    /// Minibatches done.
    iterations: u64,
    /// Time spent.
    seconds: f64,
    /// The best metric so far.
    best: f64,
    /// Sums of the training metrics over the minibatches of the present round, on the device: reading them waits for it.
    sums: Tensor,
}

/// The training metrics: the loss, and the task's.
const METRICS: i64 = 2;

impl Progress {
    fn numbers(&self) -> Numbers {
        let sums = read(&self.sums).into_iter().enumerate();
        let sums = sums.map(|(i, sum)| (format!("sum{i}"), sum));
        let rest =
            [(ITERATIONS, self.iterations as f64), ("seconds", self.seconds), ("best", self.best)];
        rest.map(|(name, number)| (name.to_owned(), number)).into_iter().chain(sums).collect()
    }

    fn new(device: Device) -> Progress {
        let sums = Tensor::zeros([METRICS], (Kind::Double, device));
        Progress { iterations: 0, seconds: 0.0, best: f64::NEG_INFINITY, sums }
    }

    /// Takes back what [`Progress::numbers`] made.
    fn of(numbers: &Numbers, file: &Path, device: Device) -> anyhow::Result<Progress> {
        let number = |name: &str| {
            let number = numbers.get(name).copied();
            number.with_context(|| format!("{} is no checkpoint of a retraining", file.display()))
        };
        let sum = |i| numbers.get(&format!("sum{i}")).copied().unwrap_or(0.0);
        let sums = Tensor::from_slice(&(0..METRICS).map(sum).collect::<Vec<_>>()).to_device(device);
        let (iterations, seconds) = (number(ITERATIONS)? as u64, number("seconds")?);
        Ok(Progress { iterations, seconds, best: number("best")?, sums })
    }
}

impl Training {
    /// With new weights.
    pub(super) fn new(
        record: &Record,
        data: &DataSet,
        device: Device,
        precision: Precision,
    ) -> anyhow::Result<Training> {
        let task = record.task()?;
        let training = task.training();
        let network = record.network(device)?;
        let count = Some(record.test_images);
        Ok(Training {
            preprocess: test_split::preprocess(&*task, &data.info, device),
            train: data.train.narrow(0, record.train_images).to_device(device),
            batches: Batches::new(
                training.seed,
                record.train_images as usize,
                training.batch_size as usize,
            )?,
            test: TestSplit::new(&*task, data, count, device).map_err(anyhow::Error::msg)?,
            optimizer: Optimizer::new(training.method, training.grad_clip, &network.parameters),
            values: record.values.clone(),
            training,
            network,
            precision,
            task,
        })
    }

    /// Minibatches in all.
    pub(super) fn iterations(&self) -> u64 {
        match self.training.length {
            Length::Epochs(epochs) => epochs * self.batches.per_epoch(),
            Length::Batches { total, .. } => total,
        }
    }

    /// Minibatches between two evaluations.
    fn per_round(&self) -> u64 {
        match self.training.length {
            Length::Epochs(_) => self.batches.per_epoch(),
            Length::Batches { evaluate_every, .. } => evaluate_every,
        }
    }

    fn learning_rate(&self, iteration: u64) -> f64 {
        self.training.learning_rate_at(iteration, self.batches.per_epoch())
    }

    /// Moves the weights along the gradient of a minibatch. Returns its metrics before they moved, in one dimension on the device.
    fn train(&mut self, iteration: u64) -> Tensor {
        let (learning_rate, per_epoch) = (self.learning_rate(iteration), self.batches.per_epoch());
        let tasks::Training { seed, length, drop_path, .. } = self.training;
        let images = self.train.select(self.batches.get(iteration));
        let draw = Draw::Augmented { seed, number: iteration };
        let batch = self.task.batch(&images, &self.preprocess, draw);
        let drop_path = match length {
            // It rises from 0 in a line, by the epoch.
            Length::Epochs(epochs) => {
                drop_path * (iteration / per_epoch) as f64 / epochs.max(1) as f64
            }
            Length::Batches { .. } => drop_path,
        };
        let paths = (drop_path > 0.0)
            .then(|| DropPath::new(drop_path, generator(seed, b"droppath", iteration)));
        let mode = Mode::Train { drop_path: paths.as_ref() };
        let autocast = self.precision.enter(self.network.device());
        let output = self.network.forward(&batch.input, &self.values, mode);
        let [loss, metric] = self.task.loss(&output, &batch);
        drop(autocast);
        let gradients = Gradients::of(&loss, &self.network.parameters);
        let _ = self.optimizer.step(&mut self.network.parameters, &gradients, learning_rate);
        Tensor::stack(&[loss, metric].map(|number| number.detach().to_kind(Kind::Double)), 0)
    }

    /// The means of the training metrics over `count` minibatches.
    fn means(&self, sums: &Tensor, count: u64) -> Named {
        let means: Vec<f64> = read(sums).into_iter().map(|sum| sum / count as f64).collect();
        let metric = self.task.step_metrics(&means[1..], &[]).swap_remove(0);
        vec![("train_loss".into(), means[0]), (metric.0.into(), metric.1)]
    }

    /// The metrics of the present weights on the test images. The first decides which weights are best: the higher, the better.
    fn evaluate(&self) -> Named {
        let forward =
            |batch: &Batch| self.network.forward(&batch.input, &self.values, Mode::Evaluate).main;
        let metrics: Metrics = self.test.evaluate(&*self.task, forward, |_, _, _| {});
        metrics.into_iter().map(|(name, value)| (format!("test_{name}"), value)).collect()
    }

    /// Writes all that is needed to go on.
    fn save(&self, file: &Path, progress: &Progress) -> Result<(), torch::Error> {
        let mut parts = self.optimizer.parts();
        parts.push(("weight", &self.network.parameters));
        parts.push(("statistic", &self.network.statistics));
        Snapshot::of(&parts).with(&progress.numbers()).write(file)
    }

    fn load(&mut self, file: &Path) -> anyhow::Result<Progress> {
        let mut parts = self.optimizer.parts_mut();
        parts.push(("weight", &mut self.network.parameters));
        parts.push(("statistic", &mut self.network.statistics));
        torch::load(file, &mut parts)?;
        Progress::of(&torch::numbers(file)?, file, self.network.device())
    }

    /// Trains to the end, from where an earlier run in the same directory came to. Returns the metrics of the last weights. When
    /// `stop` becomes true it writes a checkpoint and errors. `advice` is logged when it takes more than an hour.
    pub(super) fn run(
        &mut self,
        directory: &Path,
        checkpoint_every: Duration,
        advice: &str,
        stop: &AtomicBool,
    ) -> anyhow::Result<Named> {
        let last = directory.join(LAST);
        let mut progress = Progress::new(self.network.device());
        if last.exists() {
            progress = self.load(&last)?;
        }
        let mut log = Log::open(directory, progress.iterations)?;
        let mut events = Events::open(directory, progress.iterations)?;
        let (total, per_round) = (self.iterations(), self.per_round());
        let per_epoch = self.batches.per_epoch() as f64;
        if progress.iterations > 0 {
            info!("{} of {total} batches are done", progress.iterations);
        }
        let shown = progress::Progress::new(progress.iterations, total)?;

        let mut reached = Vec::new();
        let (started, before) = (Instant::now(), progress.seconds);
        let mut saved = Instant::now();
        while progress.iterations < total {
            if stop.load(Ordering::Relaxed) {
                self.save(&last, &progress)?;
                bail!(
                    "stopped after {} of {total} minibatches; the same command goes on from there",
                    progress.iterations
                );
            }
            progress.sums += self.train(progress.iterations);
            progress.iterations += 1;
            progress.seconds = before + started.elapsed().as_secs_f64();
            let place = progress.iterations % per_round;
            let count = if place == 0 { per_round } else { place };
            let epoch = progress.iterations as f64 / per_epoch;
            let message = || message(epoch, &self.means(&progress.sums, count));
            if let Some(left) = shown.advance(message) {
                let advice = if left > LONG { advice } else { "" };
                shown.print(|| info!("it takes about {}{advice}", HumanDuration(left)));
            }
            if place == 0 || progress.iterations == total {
                let mut metrics = self.means(&progress.sums, count);
                shown.show("evaluating on the test images");
                reached = self.evaluate();
                metrics.extend(reached.clone());
                progress.seconds = before + started.elapsed().as_secs_f64();
                let row = Row {
                    iteration: progress.iterations,
                    epoch,
                    learning_rate: self.learning_rate(progress.iterations - 1),
                    metrics,
                    seconds: progress.seconds,
                };
                log.write(&row)?;
                events.write(&row)?;
                ensure!(
                    reached.iter().all(|(_, metric)| !metric.is_nan()),
                    "the network has diverged before minibatch {}; start again with a smaller --learning-rate and another --out",
                    progress.iterations
                );
                let _ = progress.sums.zero_();
                if reached[0].1 > progress.best {
                    progress.best = reached[0].1;
                    self.network.snapshot().write(&directory.join(BEST))?;
                }
            } else if saved.elapsed() < checkpoint_every {
                continue;
            }
            self.save(&last, &progress)?;
            saved = Instant::now();
        }
        if reached.is_empty() {
            info!("nothing is left to train: evaluating on the test images");
            reached = self.evaluate();
        }
        shown.finish();
        Ok(reached)
    }
}

/// The numbers of a tensor of one dimension.
fn read(numbers: &Tensor) -> Vec<f64> {
    Vec::try_from(numbers).expect("one dimension of doubles is a Vec<f64>")
}

fn message(epoch: f64, metrics: &Named) -> String {
    let metrics = metrics.iter().map(|(name, metric)| format!("  {name} {metric:.4}"));
    format!("epoch {epoch:.1}{}", metrics.collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::record::tests::{data, example, given},
        *,
    };
    use crate::tasks::settings::Preset;

    const CELLS: [(&str, &str); 8] = [
        ("cells", "3"),
        ("channels", "4"),
        ("flip", "false"),
        ("cutout", "0"),
        ("drop_path", "0"),
        ("batch_size", "8"),
        ("epochs", "70"),
        ("learning_rate", "0.05"),
    ];
    const AUTOENCODER: [(&str, &str); 4] = [
        ("iterations", "120"),
        ("evaluate_every", "120"),
        ("batch_size", "8"),
        ("learning_rate", "0.01"),
    ];

    fn training(space: &str, settings: &[(&str, &str)], precision: Precision) -> Training {
        // Threads cost more than they gain on shapes this small.
        tch::set_num_threads(1);
        let record = example(space, Preset::Paper, &given(settings));
        Training::new(&record, &data(), Device::Cpu, precision).unwrap()
    }

    fn run(training: &mut Training, directory: &Path) -> anyhow::Result<Named> {
        training.run(directory, Duration::from_secs(600), "", &AtomicBool::new(false))
    }

    fn loss(metrics: &Named) -> f64 {
        metrics.iter().find(|(name, _)| name == "test_loss").unwrap().1
    }

    /// The schedules end with rates so small that the statistics catch up with the weights.
    #[test]
    fn training_lowers_the_loss_also_with_running_statistics_and_with_16_bits() {
        for (space, settings, precision) in [
            ("enas-micro", &CELLS[..], Precision::F32),
            ("inpaint-cat", &AUTOENCODER, Precision::F32),
            ("inpaint-cat", &AUTOENCODER, Precision::Bf16),
        ] {
            let mut training = training(space, settings, precision);
            let before = loss(&training.evaluate());
            (0..training.iterations()).for_each(|iteration| drop(training.train(iteration)));
            let after = loss(&training.evaluate());
            assert!(after < 0.5 * before, "{space} {precision:?}: {before} {after}");
        }
    }

    #[test]
    fn an_interrupted_training_ends_like_one_that_was_not() {
        let rounds = [("epochs", "3"), ("batch_size", "2")]; // 4 batches each
        let cells = [&CELLS[..5], &rounds].concat();
        let batches = [("iterations", "10"), ("evaluate_every", "4"), ("batch_size", "2")];
        for (space, settings) in [("enas-micro", &cells[..]), ("inpaint-cat", &batches)] {
            let training = || training(space, settings, Precision::F32);
            let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let [whole, parts] = directories.each_ref().map(tempfile::TempDir::path);
            let mut one = training();
            let metrics = run(&mut one, whole).unwrap();

            // Stopped in the middle of the first round, by hand, and at the start of the next run.
            let mut interrupted = training();
            let mut progress = Progress::new(Device::Cpu);
            for iteration in 0..3 {
                progress.sums += interrupted.train(iteration);
            }
            (progress.iterations, progress.seconds) = (3, 1.0);
            let last = parts.join(LAST);
            interrupted.save(&last, &progress).unwrap();
            let stopped = training().run(parts, Duration::ZERO, "", &AtomicBool::new(true));
            let error = stopped.unwrap_err().to_string();
            assert!(error.starts_with("stopped after 3 of "), "{error}");
            assert_eq!(torch::numbers(&last).unwrap()[ITERATIONS], 3.0);

            let mut other = training();
            assert_eq!(run(&mut other, parts).unwrap(), metrics);
            assert_eq!(other.network.parameters, one.network.parameters);
            assert_eq!(other.network.statistics, one.network.statistics);
            let rows = |directory: &Path| -> Vec<String> {
                let text = fs::read_to_string(directory.join("log.csv")).unwrap();
                // Without the seconds.
                text.lines().map(|row| row.rsplit_once(',').unwrap().0.to_owned()).collect()
            };
            assert_eq!(rows(parts), rows(whole));
            assert_eq!(rows(whole).len(), 1 + 3);
            // Of a training that is finished, the metrics are those of its weights.
            assert_eq!(run(&mut training(), parts).unwrap(), metrics);
        }
    }

    #[test]
    fn a_network_that_diverges_ends_the_training() {
        let directory = tempfile::tempdir().unwrap();
        let mut training = training("inpaint-cat", &AUTOENCODER, Precision::F32);
        tch::no_grad(|| {
            training.network.parameters.values_mut().for_each(|p| drop(p.fill_(f64::NAN)));
        });
        let error = run(&mut training, directory.path()).unwrap_err().to_string();
        assert!(error.starts_with("the network has diverged before minibatch 120;"), "{error}");
    }

    #[test]
    fn a_file_of_another_network_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let last = directory.path().join(LAST);
        let small = training("enas-micro", &CELLS, Precision::F32);
        small.network.snapshot().write(&last).unwrap();
        let error = Progress::of(&torch::numbers(&last).unwrap(), &last, Device::Cpu)
            .err()
            .unwrap()
            .to_string();
        assert!(error.ends_with("is no checkpoint of a retraining"), "{error}");
        let mut wider = training(
            "enas-micro",
            &[("cells", "3"), ("channels", "5"), ("batch_size", "8")],
            Precision::F32,
        );
        let error = run(&mut wider, directory.path()).unwrap_err().to_string();
        assert!(error.contains("is damaged, or of another network: "), "{error}");
    }
}
