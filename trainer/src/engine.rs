//! The one thread that owns tensors, and its handle.
//!
//! libtorch's objects may not be shared between threads, and its gradient mode belongs to a thread; so data, weights
//! and optimiser live on a thread of their own, and only plain values cross the channel to it. Steps are computed one
//! after the other. The handle may be dropped at any time; the thread then ends after the step it is in.

pub mod checkpoints;
mod error;
mod search;
pub mod supernet;

use std::{
    collections::BTreeMap,
    fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tch::Device;
use tokio::sync::{mpsc, oneshot};
use tracing::{Span, info, warn};

use self::{
    checkpoints::Writer,
    search::{Measured, Search},
};
use crate::{
    files,
    images::{Catalogue, DataSet, Info, Request},
    tasks::{Task, space, test_split::Metrics},
    torch::{self, Precision},
};

pub(crate) use self::search::{LATENCY, counted_costs};
pub use self::{
    error::Error,
    search::{Costs, Step},
};

/// Studies whose weights may wait in memory to be written; with as many, no other study is opened.
const MAX_UNWRITTEN: usize = 4;
/// The file with the images that a study's weights were trained on.
const IMAGES: &str = "images.json";

/// The images and the device.
#[derive(Clone)]
pub struct Config {
    /// The data sets of this trainer.
    pub catalogue: Arc<Catalogue>,
    /// The device.
    pub device: Device,
    /// Threads of one operation on a CPU; libtorch's own choice when absent.
    pub threads: Option<u16>,
    /// The number format of steps.
    pub precision: Precision,
    /// True if latencies are measured and reported as a cost.
    pub measure_latency: bool,
}

/// The results of a step.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Losses of the `rank` architectures, in order.
    pub losses: Vec<f64>,
    /// Their costs; empty where architectures are no networks.
    pub costs: Vec<Costs>,
    /// Metrics by name.
    pub metrics: BTreeMap<String, f64>,
    /// Images that passed through the network, once for each architecture.
    pub images: u64,
    /// Time that the engine was busy with it.
    pub computing: Duration,
}

/// The metrics of an architecture with the present weights.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// The last step that is in the weights, from 1; 0 for new ones.
    pub step: u64,
    /// Test images used.
    pub images: u64,
    /// Metrics by name, "loss" among them.
    pub metrics: Metrics,
}

/// The handle of the thread.
#[derive(Clone)]
pub struct Engine {
    jobs: mpsc::Sender<Job>,
    spaces: Vec<&'static str>,
    unserved: Vec<(&'static str, String)>,
    catalogue: Arc<Catalogue>,
    data_sets: Vec<String>,
    checkpoints: Writer,
}

type Job = Box<dyn FnOnce(&mut EngineState) + Send>;

impl Engine {
    /// Starts the thread. Images are read when a study is opened that wants them.
    pub fn start(config: Config) -> Result<Engine, Error> {
        let (jobs, mut queue) = mpsc::channel::<Job>(1);
        let checkpoints = Writer::start().map_err(Error::Thread)?;
        let mut spaces = space::names();
        let mut unserved = Vec::new();
        let data_sets = config.catalogue.available();
        if data_sets.is_empty() {
            let reason = "this trainer has no images: `asng-trainer data fetch cifar10` fetches some, --images NAME=DIR names others";
            unserved =
                spaces.split_off(1).into_iter().map(|space| (space, reason.to_owned())).collect();
            warn!("only the space toy is served: {reason}");
        }
        let (writer, catalogue) = (checkpoints.clone(), config.catalogue.clone());
        let run = move || {
            if let Some(threads) = config.threads {
                tch::set_num_threads(threads.into());
            }
            let (device, threads) = (config.device, tch::get_num_threads());
            info!(?device, threads, "engine starts");
            let mut state = EngineState { config, checkpoints: writer, open: None };
            while let Some(job) = queue.blocking_recv() {
                job(&mut state);
            }
        };
        thread::Builder::new().name("engine".into()).spawn(run).map_err(Error::Thread)?;
        Ok(Engine { jobs, spaces, unserved, catalogue, data_sets, checkpoints })
    }

    /// The spaces whose studies it can work on.
    pub fn spaces(&self) -> &[&'static str] {
        &self.spaces
    }

    /// The spaces that it implements but cannot work on, each with the reason.
    pub fn unserved(&self) -> &[(&'static str, String)] {
        &self.unserved
    }

    /// The names of its data sets.
    pub fn data_sets(&self) -> &[String] {
        &self.data_sets
    }

    /// Errors if the images that a task wants are not here. Nothing is read.
    pub fn has_images(&self, task: &dyn Task) -> Result<(), Error> {
        if let Some(request) = task.images() {
            self.catalogue.find(&request.name)?;
        }
        Ok(())
    }

    /// Prepares for the study whose checkpoints are in `directory`, which is made if it is not there. The newest is loaded;
    /// returns whether there was one.
    pub async fn open(&self, task: Box<dyn Task>, directory: PathBuf) -> Result<bool, Error> {
        self.run(move |state| state.open(task, directory)).await
    }

    /// Computes a step of the open study.
    pub async fn step(&self, step: Step) -> Result<Outcome, Error> {
        self.run(move |state| state.step(&step)).await
    }

    /// Has a checkpoint of the open study written; steps may go on meanwhile. Weights that cannot be written are kept in memory until
    /// they can: see [`Engine::checkpoint_problems`].
    pub async fn checkpoint(&self) -> Result<(), Error> {
        self.run(EngineState::checkpoint).await
    }

    /// Measures an architecture on the first `images` test images, or all, with the present weights of the study whose
    /// checkpoints are in `directory`. Changes nothing.
    pub async fn evaluate(
        &self,
        directory: PathBuf,
        values: Vec<i64>,
        images: Option<i64>,
    ) -> Result<Evaluated, Error> {
        self.run(move |state| {
            let open = state.open.as_ref().filter(|open| open.directory == directory);
            let Open { search, step, .. } = open.ok_or(Error::NotOpen)?;
            let (images, metrics) = search.evaluate(&values, images)?;
            Ok(Evaluated { step: *step, images, metrics })
        })
        .await
    }

    /// Writes a checkpoint of the study whose checkpoints are in `directory`, unless the weights are in one; returns when it is
    /// on the disk.
    pub async fn save(&self, directory: PathBuf) -> Result<(), Error> {
        self.run(move |state| {
            let open = state.open.as_mut().filter(|open| open.directory == directory);
            let open = open.ok_or(Error::NotOpen)?;
            open.checkpoint(&state.checkpoints);
            Ok(state.checkpoints.flush(&directory)?)
        })
        .await
    }

    /// Returns why checkpoints cannot be written now, one reason for each study that this concerns.
    pub fn checkpoint_problems(&self) -> Vec<String> {
        self.checkpoints.problems()
    }

    /// Returns whether the thread has ended, which only a fault of this program causes.
    pub fn has_died(&self) -> bool {
        self.jobs.is_closed()
    }

    /// Lets go of the open study, if there is one, with a last checkpoint. Errors if that is not on the disk yet.
    pub async fn close(&self) -> Result<(), Error> {
        self.run(EngineState::close).await
    }

    /// Tries to write every checkpoint that is still in memory. Errors if one could not be: it is lost when the process ends.
    pub async fn finish(&self) -> Result<(), Error> {
        self.run(|state| Ok(state.checkpoints.flush_all()?)).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut EngineState) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let span = Span::current();
        let job = move |state: &mut EngineState| {
            let work = || torch::attempt(|| span.in_scope(|| work(state)));
            let result = match panic::catch_unwind(AssertUnwindSafe(work)) {
                Ok(result) => result.map_err(Error::Torch).flatten(),
                Err(_) => {
                    // Its weights may be in disorder; those of its last checkpoint are not.
                    state.open = None;
                    Err(Error::Panicked)
                }
            };
            // A caller that has gone away needs no answer.
            drop(reply.send(result));
        };
        self.jobs.send(Box::new(job)).await.map_err(|_| Error::Died)?;
        answer.await.map_err(|_| Error::Died)?
    }
}

/// The state of the thread.
struct EngineState {
    config: Config,
    checkpoints: Writer,
    open: Option<Open>,
}

/// The study being worked on.
struct Open {
    search: Search,
    /// Of its checkpoints.
    directory: PathBuf,
    /// The last step that is in the weights; 0 for new ones.
    step: u64,
    /// The last step that is in the weights and in no snapshot.
    unsaved: Option<u64>,
}

impl Open {
    /// Has a checkpoint written, unless the weights are in one.
    fn checkpoint(&mut self, checkpoints: &Writer) {
        if let Some(step) = self.unsaved.take() {
            checkpoints.write(&self.directory, step, self.search.snapshot());
        }
    }
}

impl EngineState {
    fn open(&mut self, task: Box<dyn Task>, directory: PathBuf) -> Result<bool, Error> {
        self.open = None;
        // Of studies that could not be saved, their weights are in memory: it must not fill with them.
        if self.checkpoints.problems().len() >= MAX_UNWRITTEN {
            self.checkpoints.flush_all()?;
        }
        self.checkpoints.flush(&directory)?;
        let newest = checkpoints::newest(&directory)?;
        let data = self.data(task.images())?;
        if !data.train.is_empty() {
            if newest.is_some() {
                check_images(&directory, &data.info)?;
            }
            remember_images(&directory, &data.info);
        }
        let Config { device, precision, measure_latency, .. } = self.config;
        let mut search = Search::new(task, data, device, precision, measure_latency)?;
        if let Some(file) = &newest {
            search.load(file)?;
        }
        let step = newest.as_deref().and_then(checkpoints::step).unwrap_or(0);
        self.open = Some(Open { search, directory, step, unsaved: None });
        Ok(newest.is_some())
    }

    /// Reads the data set that a task wants, as it is now; an empty one if the task wants none.
    fn data(&self, request: Option<Request>) -> Result<DataSet, Error> {
        let Some(request) = request else { return Ok(DataSet::empty()) };
        let data = self.config.catalogue.open(&request)?;
        let (train, test) = (data.train.len(), data.test.len());
        info!(name = request.name, train, test, left_out = data.refused.len(), shape = ?data.info.shape, "images loaded");
        Ok(data)
    }

    fn step(&mut self, step: &Step) -> Result<Outcome, Error> {
        let started = Instant::now();
        let open = self.open.as_mut().ok_or(Error::NotOpen)?;
        // Whatever comes of it, the weights may have moved.
        open.step = step.batch + 1;
        open.unsaved = Some(open.step);
        let Measured { losses, costs, mut metrics, images } = open.search.step(step)?;
        let computing = started.elapsed();
        metrics.insert("computing_seconds", computing.as_secs_f64());
        let metrics = metrics.into_iter().map(|(name, value)| (name.into(), value)).collect();
        Ok(Outcome { losses, costs, metrics, images, computing })
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        if let Some(open) = &mut self.open {
            open.checkpoint(&self.checkpoints);
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Error> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.checkpoint(&self.checkpoints);
        Ok(self.checkpoints.flush(&open.directory)?)
    }
}

/// Errors if the weights in a study's directory were trained on other images than these.
pub fn check_images(directory: &Path, info: &Info) -> Result<(), Error> {
    let known = fs::read(directory.join(IMAGES)).ok();
    let known = known.and_then(|text| serde_json::from_slice::<Info>(&text).ok());
    match known.filter(|known| known.digest != info.digest) {
        None => Ok(()),
        Some(known) => Err(Error::OtherImages(format!(
            "the images of data set {} have changed since the weights in {} were trained: restore the images, or move that \
             directory away to start with new weights",
            known.name,
            directory.display()
        ))),
    }
}

/// Remembers the images that a study's weights are trained on. A disk that is full does not keep a study from being searched.
fn remember_images(directory: &Path, info: &Info) {
    let text = serde_json::json!(info).to_string();
    if let Err(error) = fs::create_dir_all(directory)
        .map_err(files::Error::cannot("make", directory))
        .and_then(|()| files::write(&directory.join(IMAGES), text))
    {
        warn!("{error}");
    }
}

/// The name of a device, as [`device`] takes it.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(number) => format!("cuda:{number}"),
        Device::Cpu => "cpu".into(),
        Device::Mps => "mps".into(),
        Device::Vulkan => "vulkan".into(),
    }
}

/// The device that a person named: `auto` is the first GPU, or the CPU when there is none. What it computes with 32 bits has 32 bits
/// until [`Precision::Tf32`] is asked for.
pub fn device(name: &str) -> Result<Device, String> {
    let loaded = asng_native::load_cuda();
    asng_native::allow_tf32(false);
    let cuda = tch::utils::has_cuda();
    match (name, name.strip_prefix("cuda:").map(str::parse::<usize>)) {
        ("auto", _) => Ok(Device::cuda_if_available()),
        ("cpu", _) => Ok(Device::Cpu),
        (_, Some(Ok(_))) if !cuda => {
            let reason = loaded.err().map_or(String::new(), |reason| format!(": {reason}"));
            Err(format!("this libtorch sees no GPU{reason}"))
        }
        (_, Some(Ok(number))) if (number as i64) < tch::Cuda::device_count() => {
            Ok(Device::Cuda(number))
        }
        (_, Some(Ok(_))) => Err(format!("there are {} GPUs", tch::Cuda::device_count())),
        _ => Err("say auto, cpu, or cuda:0 and so on".into()),
    }
}
