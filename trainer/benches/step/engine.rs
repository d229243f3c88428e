//! The step as a search has it: through the engine, on images of CIFAR-10. In a process of its own, whose memory is then
//! that of a trainer.

use std::{hint::black_box, path::PathBuf, sync::Arc, time::Instant};

use asng_trainer::{
    engine::{Config, Engine, Step},
    images::Catalogue,
    tasks::draw,
    torch::Precision,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::Device;

use super::{LAMBDA, SEED, THREADS, cifar10, median, memory::peak_rss_mb, task};

const STEPS: u64 = 7;

/// The output of the process.
#[derive(Deserialize, Serialize)]
pub(crate) struct Figures {
    /// The part of a step's time, as its caller sees it, that is not forward, backward or optimiser.
    pub(crate) loader_share: f64,
    /// The most memory that was resident at any time, the images of CIFAR-10 included.
    pub(crate) peak_rss_mb: f64,
}

pub(crate) fn measure(data: PathBuf) -> anyhow::Result<Figures> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let loader_share = runtime.block_on(loader_share(data))?;
    Ok(Figures { loader_share, peak_rss_mb: peak_rss_mb()? })
}

async fn loader_share(data: PathBuf) -> anyhow::Result<f64> {
    let directory = tempfile::tempdir()?;
    let catalogue = Catalogue::new(&[("cifar10".into(), data)], &directory.path().join("images"))?;
    let engine = Engine::start(Config {
        catalogue: Arc::new(catalogue),
        device: Device::Cpu,
        threads: Some(THREADS),
        precision: Precision::F32,
        measure_latency: false,
    })?;
    let (task, info) = (task("enas-micro"), cifar10());
    let variables = task.variables();
    engine.open(super::task("enas-micro"), directory.path().join("study")).await?;
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut shares = Vec::new();
    for batch in 0..=STEPS {
        let [train, rank] =
            [(); 2].map(|()| Vec::from_iter((0..LAMBDA).map(|_| draw(&variables, &mut random))));
        let start = Instant::now();
        for values in &rank {
            black_box(task.costs(&info, values));
        }
        // The engine counts them in its step.
        let counting = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let outcome = engine.step(Step { batch, train, rank, progress: 0.0 }).await?;
        let whole = start.elapsed().as_secs_f64();
        let loading = outcome.metrics["loading_seconds"];
        let network = outcome.computing.as_secs_f64() - loading - counting;
        shares.push(1.0 - network / whole);
    }
    // The first step comes with an epoch's permutation and cold caches.
    Ok(median(shares.split_off(1)))
}
