//! The loop of every retraining: minibatch after minibatch, with an evaluation, a row of the log and a checkpoint
//! after each round, and further checkpoints in between.
//!
//! A checkpoint is one file, which holds the weights and how far they have come, so that whatever moment a crash
//! chooses, both belong together; what the log has beyond it is taken back. All randomness follows from the
//! number of the minibatch. So a retraining that was interrupted ends like one that was not.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use indicatif::HumanDuration;
use tracing::info;

use super::{
    events::Events,
    log::{Log, Row},
    recipe::{BEST, LAST},
};
use crate::{
    progress,
    supernet::{self, Numbers},
};

/// From this time on, a training is announced with what takes less.
const LONG: Duration = Duration::from_secs(3600);

/// A number with its name.
pub(super) type Figure = (&'static str, f64);

/// What is retrained: network, data and schedule.
pub(super) trait Training {
    /// Minibatches in all.
    fn iterations(&self) -> u64;

    /// Minibatches of a pass over the training images.
    fn per_epoch(&self) -> u64;

    /// Minibatches between two evaluations.
    fn per_round(&self) -> u64;

    /// The learning rate of a minibatch, counted from 0.
    fn learning_rate(&self, iteration: u64) -> f64;

    /// Moves the weights along the gradient of a minibatch; what it says, before they moved.
    fn train(&mut self, iteration: u64) -> anyhow::Result<Vec<Figure>>;

    /// What the present weights reach on the test images. The first figure says which weights are best: the
    /// higher, the better.
    fn evaluate(&self) -> anyhow::Result<Vec<Figure>>;

    /// Writes all that is needed to go on.
    fn save(&self, file: &Path, progress: &Numbers) -> Result<(), supernet::Error>;

    /// Reads what [`Training::save`] wrote, with progress of the same names.
    fn load(&mut self, file: &Path, progress: &mut Numbers) -> Result<(), supernet::Error>;

    /// Writes what is needed to use the network.
    fn save_weights(&self, file: &Path) -> Result<(), supernet::Error>;
}

/// How far a retraining has come.
struct Progress {
    /// Minibatches done.
    iterations: u64,
    /// Time spent.
    seconds: f64,
    /// The best figure so far.
    best: f64,
    /// Sums over the minibatches of the present round, of what [`Training::train`] says.
    sums: [f64; 2],
}

impl Progress {
    const NAMES: [&str; 5] = ["iterations", "seconds", "best", "sum0", "sum1"];

    fn numbers(&self) -> Numbers {
        let [sum0, sum1] = self.sums;
        let numbers = [self.iterations as f64, self.seconds, self.best, sum0, sum1];
        Progress::NAMES.map(str::to_owned).into_iter().zip(numbers).collect()
    }

    fn of(numbers: &Numbers) -> Progress {
        let [iterations, seconds, best, sum0, sum1] = Progress::NAMES.map(|name| numbers[name]);
        Progress { iterations: iterations as u64, seconds, best, sums: [sum0, sum1] }
    }
}

/// Returns the number of minibatches that are in a checkpoint.
pub(super) fn iterations(file: &Path) -> anyhow::Result<u64> {
    let numbers = supernet::numbers(file)?;
    let iterations = numbers.get(Progress::NAMES[0]);
    let iterations = iterations
        .with_context(|| format!("{} is no checkpoint of a retraining", file.display()))?;
    Ok(*iterations as u64)
}

/// Trains to the end, from where an earlier run in the same directory came to; what the last weights reach. When `stop`
/// becomes true it writes a checkpoint and fails. `advice` is logged when it takes more than an hour.
pub(super) fn run(
    training: &mut dyn Training,
    directory: &Path,
    checkpoint_every: Duration,
    advice: &str,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<Figure>> {
    let last = directory.join(LAST);
    let mut progress =
        Progress { iterations: 0, seconds: 0.0, best: f64::NEG_INFINITY, sums: [0.0; 2] };
    if last.exists() {
        let mut numbers = progress.numbers();
        training.load(&last, &mut numbers)?;
        progress = Progress::of(&numbers);
    }
    let mut log = Log::open(directory, progress.iterations)?;
    let mut events = Events::open(directory, progress.iterations)?;
    let total = training.iterations();
    if progress.iterations > 0 {
        info!("{} of {total} batches are done", progress.iterations);
    }
    let shown = progress::Progress::new(progress.iterations, total)?;

    let mut reached = Vec::new();
    let (started, before) = (Instant::now(), progress.seconds);
    let mut saved = Instant::now();
    while progress.iterations < total {
        if stop.load(Ordering::Relaxed) {
            training.save(&last, &progress.numbers())?;
            bail!(
                "stopped after {} of {total} minibatches; the same command goes on from there",
                progress.iterations
            );
        }
        let said = training.train(progress.iterations)?;
        for (sum, (_, figure)) in progress.sums.iter_mut().zip(&said) {
            *sum += figure;
        }
        progress.iterations += 1;
        progress.seconds = before + started.elapsed().as_secs_f64();
        let place = progress.iterations % training.per_round();
        let message = || {
            let epoch = progress.iterations as f64 / training.per_epoch() as f64;
            let batches = if place == 0 { training.per_round() } else { place };
            message(epoch, &means(&said, progress.sums, batches))
        };
        if let Some(left) = shown.advance(message) {
            let advice = if left > LONG { advice } else { "" };
            shown.print(|| info!("it takes about {}{advice}", HumanDuration(left)));
        }
        if place == 0 || progress.iterations == total {
            let count = if place == 0 { training.per_round() } else { place };
            let mut figures = means(&said, progress.sums, count);
            shown.show("evaluating on the test images");
            reached = training.evaluate()?;
            figures.extend(&reached);
            let epoch = progress.iterations as f64 / training.per_epoch() as f64;
            progress.seconds = before + started.elapsed().as_secs_f64();
            let row = Row {
                iteration: progress.iterations,
                epoch,
                learning_rate: training.learning_rate(progress.iterations - 1),
                figures,
                seconds: progress.seconds,
            };
            log.write(&row)?;
            events.write(&row)?;
            ensure!(
                reached.iter().all(|(_, figure)| !figure.is_nan()),
                "the network has diverged before minibatch {}; start again with a smaller --learning-rate and another --out",
                progress.iterations
            );
            progress.sums = [0.0; 2];
            if reached[0].1 > progress.best {
                progress.best = reached[0].1;
                training.save_weights(&directory.join(BEST))?;
            }
        } else if saved.elapsed() < checkpoint_every {
            continue;
        }
        training.save(&last, &progress.numbers())?;
        saved = Instant::now();
    }
    if reached.is_empty() {
        info!("nothing is left to train: evaluating on the test images");
        reached = training.evaluate()?;
    }
    shown.finish();
    Ok(reached)
}

/// Means over the minibatches of the present round.
fn means(figures: &[Figure], sums: [f64; 2], count: u64) -> Vec<Figure> {
    figures.iter().zip(sums).map(|((name, _), sum)| (*name, sum / count as f64)).collect()
}

fn message(epoch: f64, figures: &[Figure]) -> String {
    let figures = figures.iter().map(|(name, figure)| format!("  {name} {figure:.4}"));
    format!("epoch {epoch:.1}{}", figures.collect::<String>())
}
