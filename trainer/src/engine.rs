//! The one thread that owns tensors, and its handle.
//!
//! libtorch's objects may not be shared between threads, and its gradient mode belongs to a thread; so data, weights
//! and optimiser live on a thread of their own, and only plain values cross the channel to it. Steps are computed one
//! after the other. The handle may be dropped at any time; the thread then ends after the step it is in.

use std::{
    collections::BTreeMap,
    f64::consts::PI,
    fs, io,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use tch::{Device, Kind};
use tokio::sync::{mpsc, oneshot};
use tracing::{Span, info};

use crate::{
    data::{self, Augment, Batches, Cifar10, Images, Preprocess, cifar10},
    space::enas_micro::{Architecture, DecodeError, Settings},
    supernet::{self, Batch, Supernet},
};

/// Name of the file with a study's weights and momentum, in the study's directory.
pub const WEIGHTS_FILE: &str = "weights.safetensors";

/// Why the engine cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data cannot be read or prepared.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// The network cannot be computed, saved or loaded.
    #[error(transparent)]
    Supernet(#[from] supernet::Error),
    /// An architecture is not of the study's space.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The study's directory cannot be made.
    #[error("{}: {source}", .directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The operating system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A step came before its study was opened.
    #[error("no study is open")]
    NotOpen,
    /// The thread has ended, by a fault of this program.
    #[error("the engine's thread has died; its last message is on standard error")]
    Died,
}

/// Where the images are and what computes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of CIFAR-10's binary files.
    pub data: PathBuf,
    /// What computes.
    pub device: Device,
    /// Threads of one operation on a CPU; libtorch's own choice when absent.
    pub threads: Option<u16>,
}

/// A step of the search, in the wire's values.
#[derive(Clone, Debug)]
pub struct Step {
    /// Number of the minibatches to use, from 0: the step's own number, so that a step that is done again sees the same
    /// images and two trainers see different ones.
    pub batch: u64,
    /// Architectures for the weights.
    pub train: Vec<Vec<i64>>,
    /// Architectures to be ranked.
    pub rank: Vec<Vec<i64>>,
    /// Position in the learning-rate schedule, 0 to 1.
    pub progress: f64,
}

/// What a step gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Losses of the `rank` architectures, in order.
    pub losses: Vec<f64>,
    /// Figures for people.
    pub metrics: BTreeMap<String, f64>,
    /// Time that the engine was busy with it.
    pub computing: Duration,
}

/// The handle of the thread.
#[derive(Clone)]
pub struct Engine {
    jobs: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce(&mut Workshop) + Send>;

impl Engine {
    /// Starts the thread and waits until the images are on the device.
    pub async fn start(config: Config) -> Result<Engine, Error> {
        let (jobs, mut queue) = mpsc::channel::<Job>(1);
        let (ready, started) = oneshot::channel();
        let run = move || {
            let mut workshop = match Workshop::new(&config) {
                Ok(workshop) => workshop,
                // If nobody waits for the answer any more, nobody is left to work for either.
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            while let Some(job) = queue.blocking_recv() {
                job(&mut workshop);
            }
        };
        thread::Builder::new().name("engine".into()).spawn(run).map_err(Error::Thread)?;
        started.await.map_err(|_| Error::Died)??;
        Ok(Engine { jobs })
    }

    /// Prepares for the study whose files are in `directory`, which is made if it is not there. Weights that lie there are
    /// loaded; returns whether there were any.
    pub async fn open(&self, settings: Settings, directory: PathBuf) -> Result<bool, Error> {
        self.run(move |workshop| workshop.open(settings, directory)).await
    }

    /// Computes a step of the open study.
    pub async fn step(&self, step: Step) -> Result<Outcome, Error> {
        self.run(move |workshop| workshop.step(&step)).await
    }

    /// Saves weights and momentum of the open study; without one, does nothing.
    pub async fn save(&self) -> Result<(), Error> {
        self.run(|workshop| workshop.save()).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Workshop) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let span = Span::current();
        let job = move |workshop: &mut Workshop| {
            let result = span.in_scope(|| work(workshop));
            // A caller that has gone away needs no answer.
            drop(reply.send(result));
        };
        self.jobs.send(Box::new(job)).await.map_err(|_| Error::Died)?;
        answer.await.map_err(|_| Error::Died)?
    }
}

/// What lives on the thread.
struct Workshop {
    device: Device,
    /// The halves of the training set: for the weights, for the ranking.
    halves: (Images, Images),
    preprocess: Preprocess,
    study: Option<Study>,
}

/// The study being worked on.
struct Study {
    settings: Settings,
    directory: PathBuf,
    supernet: Supernet,
    /// Which images make a minibatch, for each half.
    batches: (Batches, Batches),
}

impl Workshop {
    fn new(config: &Config) -> Result<Workshop, Error> {
        if let Some(threads) = config.threads {
            tch::set_num_threads(threads.into());
        }
        let (train, rank) = Cifar10::load(&config.data)?.search_halves()?;
        let device = config.device;
        let halves = (train.to_device(device)?, rank.to_device(device)?);
        info!(
            ?device,
            threads = tch::get_num_threads(),
            images = halves.0.len() * 2,
            "data loaded"
        );
        let preprocess = Preprocess::cifar10(device, Kind::Float, true)?;
        Ok(Workshop { device, halves, preprocess, study: None })
    }

    fn open(&mut self, settings: Settings, directory: PathBuf) -> Result<bool, Error> {
        self.study = None;
        fs::create_dir_all(&directory)
            .map_err(|source| Error::Directory { directory: directory.clone(), source })?;
        let mut supernet = Supernet::new(&settings, 3, cifar10::CLASSES, self.device)?;
        let weights = directory.join(WEIGHTS_FILE);
        let found = weights.exists();
        if found {
            supernet.load(&weights)?;
        }
        // Each half has an order of its own.
        let seed = settings.seed.cast_unsigned();
        let batches = |images: &Images, half: u64| {
            let seed = seed.wrapping_mul(2).wrapping_add(half);
            Batches::new(seed, images.len() as usize, settings.batch_size as usize)
        };
        let batches = (batches(&self.halves.0, 0)?, batches(&self.halves.1, 1)?);
        self.study = Some(Study { settings, directory, supernet, batches });
        Ok(found)
    }

    fn step(&mut self, step: &Step) -> Result<Outcome, Error> {
        let started = Instant::now();
        let study = self.study.as_mut().ok_or(Error::NotOpen)?;
        let settings = &study.settings;
        let decode = |values: &Vec<i64>| Architecture::decode(settings.nodes as usize, values);
        let train: Vec<_> = step.train.iter().map(decode).collect::<Result<_, _>>()?;
        let rank: Vec<_> = step.rank.iter().map(decode).collect::<Result<_, _>>()?;
        let augment = Augment { cutout: settings.cutout as u16, ..Augment::PAPER };
        let batch = |images: &Images, batches: &mut Batches, seed: u64| {
            let images = images.select(batches.get(step.batch))?;
            let pixels = self.preprocess.augmented(&images.pixels, augment, seed, step.batch)?;
            Ok::<_, data::Error>(Batch { images: pixels, labels: images.labels })
        };
        let seed = settings.seed.cast_unsigned().wrapping_mul(2);
        let train_batch = batch(&self.halves.0, &mut study.batches.0, seed)?;
        let rank_batch = batch(&self.halves.1, &mut study.batches.1, seed.wrapping_add(1))?;
        let loading = started.elapsed();
        let learning_rate = cosine(settings.learning_rate, step.progress);
        let outcome =
            study.supernet.search_step(&train_batch, &train, &rank_batch, &rank, learning_rate)?;
        let computing = started.elapsed();
        let metrics = [
            ("train_loss", outcome.train_loss),
            ("train_accuracy", outcome.train_accuracy),
            ("rank_accuracy", outcome.rank_accuracy),
            ("gradient_norm", outcome.gradient_norm),
            ("learning_rate", learning_rate),
            ("computing_seconds", computing.as_secs_f64()),
            ("loading_seconds", loading.as_secs_f64()),
        ];
        Ok(Outcome {
            losses: outcome.losses,
            metrics: metrics.map(|(name, value)| (name.into(), value)).into(),
            computing,
        })
    }

    fn save(&self) -> Result<(), Error> {
        if let Some(study) = &self.study {
            study.supernet.save(&study.directory.join(WEIGHTS_FILE))?;
        }
        Ok(())
    }
}

/// The cosine schedule from `start` to 0 (Loshchilov and Hutter, 2017), at `progress` from 0 to 1.
pub fn cosine(start: f64, progress: f64) -> f64 {
    0.5 * start * (1.0 + (PI * progress.clamp(0.0, 1.0)).cos())
}

/// The device that a person named: `auto` is the first GPU, or the CPU when there is none.
pub fn device(name: &str) -> Result<Device, String> {
    let cuda = tch::utils::has_cuda();
    match (name, name.strip_prefix("cuda:").map(str::parse::<usize>)) {
        ("auto", _) => Ok(Device::cuda_if_available()),
        ("cpu", _) => Ok(Device::Cpu),
        (_, Some(Ok(_))) if !cuda => Err("this libtorch sees no GPU".into()),
        (_, Some(Ok(number))) if (number as i64) < tch::Cuda::device_count() => {
            Ok(Device::Cuda(number))
        }
        (_, Some(Ok(_))) => Err(format!("there are {} GPUs", tch::Cuda::device_count())),
        _ => Err("say auto, cpu, or cuda:0 and so on".into()),
    }
}
