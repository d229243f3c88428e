//! The one thread that owns tensors, and its handle.
//!
//! libtorch's objects may not be shared between threads, and its gradient mode belongs to a thread; so data, weights
//! and optimiser live on a thread of their own, and only plain values cross the channel to it. Steps are computed one
//! after the other. The handle may be dropped at any time; the thread then ends after the step it is in.

mod classification;
mod images;
mod inpainting;
mod toy;

use std::{
    collections::BTreeMap,
    f64::consts::PI,
    io,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use tch::Device;
use tokio::sync::{mpsc, oneshot};
use tracing::{Span, info, warn};

use self::{
    classification::Classification,
    images::{Halves, Search},
    inpainting::Inpainting,
    toy::Toy,
};
use crate::{
    checkpoints::{self, Writer},
    data::{self, Photos, cifar10},
    space::{self, Space, inpaint::Coding},
    supernet::{self, Failure, Precision, Snapshot, Supernet},
};

/// Studies whose weights may wait in memory to be written; with as many, no other study is opened.
const MAX_UNWRITTEN: usize = 4;

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
    Cells(#[from] space::enas_micro::DecodeError),
    /// An architecture is not of the study's space.
    #[error(transparent)]
    Autoencoder(#[from] space::inpaint::DecodeError),
    /// An architecture is not of the study's space.
    #[error(transparent)]
    Toy(#[from] space::toy::DecodeError),
    /// The study's space needs images that are not there.
    #[error("{} has no images, without which studies of space {space:?} cannot be worked on", .data.display())]
    NoImages {
        /// The space.
        space: &'static str,
        /// Where they should be.
        data: PathBuf,
    },
    /// The study's checkpoints cannot be written or read.
    #[error(transparent)]
    Checkpoints(#[from] checkpoints::Error),
    /// The operating system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A step came before its study was opened, or another study is open now than who asks has seen.
    #[error("no study is open")]
    NotOpen,
    /// There are no such test images.
    #[error("{0:#}")]
    TestImages(anyhow::Error),
    /// An architecture cannot be evaluated.
    #[error("the evaluation failed: {0:#}")]
    Evaluation(anyhow::Error),
    /// The computation panicked: a fault of this program.
    #[error("a fault of this program ended the computation; its message is on standard error")]
    Panicked,
    /// The thread has ended, by a fault of this program.
    #[error("the engine's thread has died; its last message is on standard error")]
    Died,
}

impl Error {
    /// Returns whether nothing more can be computed in this process, whatever the study.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Error::Died | Error::Supernet(supernet::Error::Device(_)))
    }
}

/// Where the images are and what computes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of CIFAR-10's binary files; it may be missing.
    pub data: PathBuf,
    /// Directory of photos; it may be missing.
    pub photos: PathBuf,
    /// What computes.
    pub device: Device,
    /// Threads of one operation on a CPU; libtorch's own choice when absent.
    pub threads: Option<u16>,
    /// What steps compute with.
    pub precision: Precision,
}

impl Config {
    /// The spaces that this trainer implements but cannot serve, each with the reason.
    pub fn unserved(&self) -> Vec<(&'static str, String)> {
        let mut unserved = Vec::new();
        if !self.data.exists() {
            let error = data::Error::MissingDirectory(self.data.clone());
            unserved.push((space::enas_micro::NAME, error.to_string()));
        }
        if let Err(error) = Photos::find(&self.photos) {
            let reason = error.to_string();
            unserved.extend(Coding::ALL.map(|coding| (coding.name(), reason.clone())));
        }
        unserved
    }
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

/// What an architecture costs at the size at which it is searched: of what it uses of the supernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// Weights that are trained.
    pub parameters: i64,
    /// Multiplications with an addition, for one image.
    pub macs: i64,
}

/// What a step gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Losses of the `rank` architectures, in order.
    pub losses: Vec<f64>,
    /// Their costs; empty where architectures are no networks.
    pub costs: Vec<Costs>,
    /// Figures for people.
    pub metrics: BTreeMap<String, f64>,
    /// Images that passed through the network, once for each architecture.
    pub images: u64,
    /// Time that the engine was busy with it.
    pub computing: Duration,
}

/// How good an architecture is with the present weights.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// The last step that is in the weights, from 1; 0 for new ones.
    pub step: u64,
    /// Test images used.
    pub images: u64,
    /// Figures by name, "loss" among them.
    pub figures: BTreeMap<&'static str, f64>,
}

/// The handle of the thread.
#[derive(Clone)]
pub struct Engine {
    jobs: mpsc::Sender<Job>,
    spaces: Vec<&'static str>,
    unserved: Vec<(&'static str, String)>,
    checkpoints: Writer,
}

type Job = Box<dyn FnOnce(&mut Workshop) + Send>;

impl Engine {
    /// Starts the thread and waits until the images are on the device. Without a directory of images, only the spaces that
    /// need none are served.
    pub async fn start(config: Config) -> Result<Engine, Error> {
        let (jobs, mut queue) = mpsc::channel::<Job>(1);
        let (ready, started) = oneshot::channel();
        let checkpoints = Writer::start().map_err(Error::Thread)?;
        let writer = checkpoints.clone();
        let run = move || {
            let mut workshop = match Workshop::new(config, writer) {
                Ok(workshop) => workshop,
                // If nobody waits for the answer any more, nobody is left to work for either.
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(workshop.unserved.clone()));
            while let Some(job) = queue.blocking_recv() {
                job(&mut workshop);
            }
        };
        thread::Builder::new().name("engine".into()).spawn(run).map_err(Error::Thread)?;
        let unserved = started.await.map_err(|_| Error::Died)??;
        let mut spaces = vec![space::toy::NAME, space::enas_micro::NAME];
        spaces.extend(Coding::ALL.map(Coding::name));
        spaces.retain(|space| unserved.iter().all(|(other, _)| other != space));
        Ok(Engine { jobs, spaces, unserved, checkpoints })
    }

    /// The spaces whose studies it can work on.
    pub fn spaces(&self) -> &[&'static str] {
        &self.spaces
    }

    /// The spaces that it implements but cannot work on, each with the reason.
    pub fn unserved(&self) -> &[(&'static str, String)] {
        &self.unserved
    }

    /// Prepares for the study whose checkpoints are in `directory`, which is made if it is not there. The newest is loaded;
    /// returns whether there was one.
    pub async fn open(&self, space: Space, directory: PathBuf) -> Result<bool, Error> {
        self.run(move |workshop| workshop.open(space, directory)).await
    }

    /// Computes a step of the open study.
    pub async fn step(&self, step: Step) -> Result<Outcome, Error> {
        self.run(move |workshop| workshop.step(&step)).await
    }

    /// Has a checkpoint of the open study written; steps may go on meanwhile. Weights that cannot be written are kept in memory until
    /// they can: see [`Engine::checkpoint_problems`].
    pub async fn checkpoint(&self) -> Result<(), Error> {
        self.run(Workshop::checkpoint).await
    }

    /// Measures an architecture on the first `images` test images, or all, with the present weights of the study whose
    /// checkpoints are in `directory`. Changes nothing.
    pub async fn evaluate(
        &self,
        directory: PathBuf,
        values: Vec<i64>,
        images: Option<i64>,
    ) -> Result<Evaluated, Error> {
        self.run(move |workshop| {
            let open = workshop.open.as_ref().filter(|open| open.directory == directory);
            let Open { study, step, .. } = open.ok_or(Error::NotOpen)?;
            let (images, figures) = study.evaluate(&values, images)?;
            Ok(Evaluated { step: *step, images, figures })
        })
        .await
    }

    /// Writes a checkpoint of the study whose checkpoints are in `directory`, unless the weights are in one; returns when it is
    /// on the disk.
    pub async fn save(&self, directory: PathBuf) -> Result<(), Error> {
        self.run(move |workshop| {
            let open = workshop.open.as_mut().filter(|open| open.directory == directory);
            let open = open.ok_or(Error::NotOpen)?;
            open.checkpoint(&workshop.checkpoints)?;
            Ok(workshop.checkpoints.flush(&directory)?)
        })
        .await
    }

    /// Returns why checkpoints cannot be written now, one reason for each study that this concerns.
    pub fn checkpoint_problems(&self) -> Vec<String> {
        self.checkpoints.problems()
    }

    /// Whether the thread has ended, which it does by a fault of this program alone.
    pub fn has_died(&self) -> bool {
        self.jobs.is_closed()
    }

    /// Lets go of the open study, if there is one, with a last checkpoint. Errors if that is not on the disk yet.
    pub async fn close(&self) -> Result<(), Error> {
        self.run(Workshop::close).await
    }

    /// Tries to write every checkpoint that is still in memory. Errors if one could not be: it is lost when the process ends.
    pub async fn finish(&self) -> Result<(), Error> {
        self.run(|workshop| Ok(workshop.checkpoints.flush_all()?)).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Workshop) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let span = Span::current();
        let job = move |workshop: &mut Workshop| {
            let work = AssertUnwindSafe(|| span.in_scope(|| work(workshop)));
            let result = panic::catch_unwind(work).unwrap_or_else(|_| {
                // Its weights may be in disorder; those of its last checkpoint are not.
                workshop.open = None;
                Err(Error::Panicked)
            });
            // A caller that has gone away needs no answer.
            drop(reply.send(result));
        };
        self.jobs.send(Box::new(job)).await.map_err(|_| Error::Died)?;
        answer.await.map_err(|_| Error::Died)?
    }
}

/// What lives on the thread.
struct Workshop {
    config: Config,
    unserved: Vec<(&'static str, String)>,
    cifar10: Option<Rc<Halves>>,
    /// Of the size that a study wanted last.
    photos: Option<Rc<Halves>>,
    checkpoints: Writer,
    open: Option<Open>,
}

/// The study being worked on.
struct Open {
    study: Box<dyn Study>,
    /// Of its checkpoints.
    directory: PathBuf,
    /// The last step that is in the weights; 0 for new ones.
    step: u64,
    /// The last step that is in the weights and in no snapshot.
    unsaved: Option<u64>,
}

impl Open {
    /// Has a checkpoint written, unless the weights are in one.
    fn checkpoint(&mut self, checkpoints: &Writer) -> Result<(), Error> {
        if let Some(step) = self.unsaved {
            checkpoints.write(&self.directory, step, self.study.snapshot()?);
            self.unsaved = None;
        }
        Ok(())
    }
}

/// What a space's studies do.
trait Study {
    fn step(&mut self, step: &Step) -> Result<Measured, Error>;
    /// Figures of an architecture on the first `images` test images, or all; and how many these are.
    fn evaluate(
        &self,
        values: &[i64],
        images: Option<i64>,
    ) -> Result<(u64, BTreeMap<&'static str, f64>), Error>;
    /// Weights and momentum as they are now.
    fn snapshot(&self) -> Result<Snapshot, Error>;
    /// Reads a checkpoint; nothing changes unless all of it fits.
    fn load(&mut self, file: &Path) -> Result<(), Error>;
}

/// What a step measured.
struct Measured {
    losses: Vec<f64>,
    /// Empty where architectures are no networks.
    costs: Vec<Costs>,
    metrics: BTreeMap<&'static str, f64>,
    images: u64,
}

impl Workshop {
    fn new(config: Config, checkpoints: Writer) -> Result<Workshop, Error> {
        if let Some(threads) = config.threads {
            tch::set_num_threads(threads.into());
        }
        let Config { data, device, .. } = &config;
        let mut cifar10 = None;
        if data.exists() {
            cifar10 = Some(Rc::new(classification::load(data, *device)?));
            info!(?device, threads = tch::get_num_threads(), "images loaded");
        }
        let unserved = config.unserved();
        let mut reasons = BTreeMap::<_, Vec<_>>::new();
        for (space, reason) in &unserved {
            reasons.entry(reason).or_default().push(*space);
        }
        for (reason, spaces) in reasons {
            let are = if spaces.len() == 1 { "is" } else { "are" };
            warn!("{} {are} not served: {reason}", spaces.join(" and "));
        }
        Ok(Workshop { config, unserved, cifar10, photos: None, checkpoints, open: None })
    }

    fn open(&mut self, space: Space, directory: PathBuf) -> Result<bool, Error> {
        self.open = None;
        // Of studies that could not be saved, their weights are in memory: it must not fill with them.
        if self.checkpoints.problems().len() >= MAX_UNWRITTEN {
            self.checkpoints.flush_all()?;
        }
        self.checkpoints.flush(&directory)?;
        let newest = checkpoints::newest(&directory)?;
        let Config { device, precision, .. } = self.config;
        let mut study: Box<dyn Study> = match space {
            Space::EnasMicro(settings) => {
                let (space, data) = (space::enas_micro::NAME, &self.config.data);
                let images =
                    self.cifar10.clone().ok_or(Error::NoImages { space, data: data.clone() })?;
                let supernet = Supernet::new(&settings, 3, cifar10::CLASSES, device)?;
                let task = Classification { settings, device };
                Box::new(Search::new(task, images, supernet, precision)?)
            }
            Space::Inpaint(coding, settings) => {
                let photos = self.photos(settings.image_size)?;
                let supernet = supernet::inpaint::Supernet::new(&settings, 3, device)?;
                let task = Inpainting { coding, settings, device };
                Box::new(Search::new(task, photos, supernet, precision)?)
            }
            Space::Toy(settings) => Box::new(Toy::new(settings)),
        };
        if let Some(file) = &newest {
            study.load(file)?;
        }
        let step = newest.as_deref().and_then(checkpoints::step).unwrap_or(0);
        self.open = Some(Open { study, directory, step, unsaved: None });
        Ok(newest.is_some())
    }

    /// The photos, with sides of so many pixels.
    fn photos(&mut self, side: i64) -> Result<Rc<Halves>, Error> {
        if let Some(photos) = self.photos.as_ref().filter(|photos| photos.side() == side) {
            return Ok(photos.clone());
        }
        let Config { photos: directory, device, .. } = &self.config;
        let photos = Rc::new(inpainting::load(directory, side, *device)?);
        info!(photos = photos.train.len() + photos.rank.len(), side, "photos loaded");
        self.photos = Some(photos.clone());
        Ok(photos)
    }

    fn step(&mut self, step: &Step) -> Result<Outcome, Error> {
        let started = Instant::now();
        let open = self.open.as_mut().ok_or(Error::NotOpen)?;
        // Whatever comes of it, the weights may have moved.
        open.step = step.batch + 1;
        open.unsaved = Some(open.step);
        let Measured { losses, costs, mut metrics, images } = open.study.step(step)?;
        let computing = started.elapsed();
        metrics.insert("computing_seconds", computing.as_secs_f64());
        let metrics = metrics.into_iter().map(|(name, value)| (name.into(), value)).collect();
        Ok(Outcome { losses, costs, metrics, images, computing })
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        let open = self.open.as_mut();
        open.map_or(Ok(()), |open| open.checkpoint(&self.checkpoints))
    }

    fn close(&mut self) -> Result<(), Error> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.checkpoint(&self.checkpoints)?;
        Ok(self.checkpoints.flush(&open.directory)?)
    }
}

/// Logs what libtorch could not compute of a step.
fn warn_of(failures: &[Failure], step: &Step) {
    for Failure { place, reason } in failures {
        let values = step.train.iter().chain(&step.rank).nth(*place);
        warn!(?values, reason, "architecture cannot be computed, and counts as diverged");
    }
}

/// The cosine schedule from `start` to 0 (Loshchilov and Hutter, 2017), at `progress` from 0 to 1.
pub fn cosine(start: f64, progress: f64) -> f64 {
    0.5 * start * (1.0 + (PI * progress.clamp(0.0, 1.0)).cos())
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
