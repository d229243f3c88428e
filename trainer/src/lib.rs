//! The trainer of ASNG-NAS: it holds the weights of a supernet, trains them on the architectures that the controller hands
//! out, measures the losses of others, and reports those few numbers.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`space`] | what each choice means: pure values |
//! | [`supernet`] | weights, forward passes and optimiser of each space |
//! | [`data`] | images, minibatches, augmentation |
//! | `held_out` | test images, and means over them |
//! | [`quality`] | how close images are: PSNR and SSIM |
//! | [`computing`] | options of how training computes |
//! | [`engine`] | the one thread that owns tensors, and its handle |
//! | [`checkpoints`] | a study's weights on disk |
//! | [`files`] | files that appear whole or not at all |
//! | [`client`] | the loop: lease, have it computed, report |
//! | [`serving`] | the ports: TrainerService (`service`), probes and `metrics`; both look at the loop's `state` |
//! | `progress` | progress of work that takes long, for people |
//! | `describe` | what the controller is told of a space |
//! | `first_step` | studies whose first step may have killed a process |
//! | `work_dir` | the work directory: its lock and its id |
//! | `set_aside` | studies that cannot be worked on for now |
//! | [`study`] | what a study means here: settings, architectures, files |
//! | [`datasets`] | fetches data sets, and looks at directories of images |
//! | [`space_command`] | `asng-trainer space`: lists, checks and draws spaces that are files |
//! | [`evaluate`], [`retrain`], [`export`], [`compare`] | what is done with an architecture after, or beside, the search |
//!
//! Imports point inwards: client, then engine, then supernet, then space.

pub mod checkpoints;
pub mod client;
pub mod compare;
pub mod computing;
pub mod data;
pub mod datasets;
mod describe;
pub mod engine;
pub mod evaluate;
pub mod export;
pub mod files;
mod first_step;
mod held_out;
mod metrics;
mod progress;
pub mod quality;
pub mod retrain;
mod service;
pub mod serving;
mod set_aside;
pub mod space;
pub mod space_command;
mod state;
pub mod study;
pub mod supernet;
pub mod tasks;
pub mod torch;
mod work_dir;
