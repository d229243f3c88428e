//! The trainer of ASNG-NAS: it holds the weights of a supernet, trains them on the architectures that the controller hands
//! out, measures the losses of others, and reports those few numbers.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`worker`] | `asng-trainer serve`: the loop that leases, computes and reports; TrainerService, probes, work directory |
//! | [`engine`] | the one thread that owns tensors: searches, supernets, checkpoints |
//! | [`select`], [`retrain`], [`evaluate`], [`export`], [`compare`] | an architecture after, or beside, the search; generic over a task |
//! | [`tasks`] | one folder for each task with all that is its own: classification, inpainting, toy |
//! | [`images`] | data sets: readers, cache, batches, augmentation |
//! | [`optim`] | gradients, optimisers, learning rates |
//! | [`torch`] | errors of libtorch, named tensors in files |
//! | [`spaces`], [`datasets`] | the commands `space` and `data` |
//! | [`study`] | studies of the controller: their spaces, architectures, directories |
//! | [`computing`], `latency` | options of how training computes; how long one image takes |
//! | [`files`], `metrics`, `progress` | atomic files and locks; counters for Prometheus; progress bars |
//!
//! Imports point inwards: worker, engine, tasks, then images, optim and torch.

pub mod compare;
pub mod computing;
pub mod datasets;
pub mod engine;
pub mod evaluate;
pub mod export;
pub mod files;
pub mod images;
mod latency;
mod metrics;
pub mod optim;
mod progress;
pub mod retrain;
pub mod select;
pub mod spaces;
pub mod study;
pub mod tasks;
pub mod torch;
pub mod worker;
