//! The memory of the step alone: the network, its optimiser and one batch of images, in a process of their own.

use std::fs;

use anyhow::Context;
use asng_trainer::{
    engine::supernet::Supernet,
    tasks::{Batch, draw, network::channels_last},
    torch::Precision,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::Device;

use super::{LAMBDA, SEED, THREADS, batch, cifar10, task};

const STEPS: usize = 4;

/// Returns the peak of a process that does nothing but steps, in megabytes.
pub(crate) fn of_steps() -> anyhow::Result<f64> {
    tch::set_num_threads(THREADS.into());
    let (task, info) = (task("enas-micro"), cifar10());
    let (variables, learning_rate) = (task.variables(), task.training().learning_rate);
    let mut supernet = Supernet::new(&*task, &info, Device::Cpu, Precision::F32);
    let batch = batch(&*task, &info);
    let batch = Batch { input: channels_last(&batch.input), ..batch };
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    for _ in 0..STEPS {
        let [train, rank] =
            [(); 2].map(|()| Vec::from_iter((0..LAMBDA).map(|_| draw(&variables, &mut random))));
        supernet.step(&*task, (&batch, &train), (&batch, &rank), learning_rate)?;
    }
    peak_rss_mb()
}

/// Returns the most memory that this process has had resident at any time, in megabytes.
pub(crate) fn peak_rss_mb() -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let kilobytes: f64 = kilobytes.context("the peak of resident memory")?.parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}
