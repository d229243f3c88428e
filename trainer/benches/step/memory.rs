//! What the step alone holds in memory: the network, its optimiser and one batch of images, in a process of their own.

use std::fs;

use anyhow::Context;
use asng_trainer::{data::cifar10::CLASSES, supernet::Supernet};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::Device;

use super::{SEED, THREADS, architectures, batch, channels_last, settings};

const STEPS: usize = 4;

/// Peak of a process that does nothing but steps.
pub(crate) fn of_steps() -> anyhow::Result<f64> {
    tch::set_num_threads(THREADS.into());
    let settings = settings();
    let mut supernet = Supernet::new(&settings, 3, CLASSES, Device::Cpu)?;
    let batch = channels_last(&batch(settings.batch_size));
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    for _ in 0..STEPS {
        let (train, rank) = (architectures(&mut random)?, architectures(&mut random)?);
        supernet.search_step(&batch, &train, &batch, &rank, settings.learning_rate)?;
    }
    peak_rss_mb()
}

/// The most memory that this process has had resident at any time.
pub(crate) fn peak_rss_mb() -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let kilobytes: f64 = kilobytes.context("the peak of resident memory")?.parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}
