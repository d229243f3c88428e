//! The step as a search has it: through the engine, on images of CIFAR-10. In a process of its own, whose memory is then
//! that of a trainer.

use std::{path::PathBuf, time::Instant};

use asng_trainer::{
    engine::{Config, Engine, Step},
    space::Space,
    supernet::Precision,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::Device;

use super::{LAMBDA, SEED, THREADS, draw, median, memory::peak_rss_mb, settings};

const STEPS: u64 = 7;

/// What the process prints.
#[derive(Deserialize, Serialize)]
pub(crate) struct Figures {
    /// Part of a step's time, as who asks for it sees it, that is not forward, backward or optimiser.
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
    let photos = data.join("none");
    let config = Config {
        data,
        photos,
        device: Device::Cpu,
        threads: Some(THREADS),
        precision: Precision::F32,
    };
    let engine = Engine::start(config).await?;
    let directory = tempfile::tempdir()?;
    engine.open(Space::EnasMicro(settings()), directory.path().join("study")).await?;
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut shares = Vec::new();
    for batch in 0..=STEPS {
        let [train, rank] = [(); 2].map(|()| (0..LAMBDA).map(|_| draw(&mut random)).collect());
        let start = Instant::now();
        let outcome = engine.step(Step { batch, train, rank, progress: 0.0 }).await?;
        let whole = start.elapsed().as_secs_f64();
        let network = outcome.computing.as_secs_f64() - outcome.metrics["loading_seconds"];
        shares.push(1.0 - network / whole);
    }
    // The first step comes with an epoch's permutation and cold caches.
    Ok(median(shares.split_off(1)))
}
