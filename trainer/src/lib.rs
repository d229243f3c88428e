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
//! | [`files`] | files that appear whole or not at all, locked directories |
//! | [`worker`] | `asng-trainer serve`: the loop that leases, computes and reports; TrainerService, probes, work directory |
//! | [`latency`] | median time of an inference |
//! | `metrics` | counters for Prometheus |
//! | `progress` | progress of work that takes long, for people |
//! | [`study`] | what a study means here: settings, architectures, files |
//! | [`datasets`] | fetches data sets, and looks at directories of images |
//! | [`tasks`] | what is learnt: reports of a classifier's quality |
//! | [`evaluate`], [`retrain`], [`export`], [`compare`] | what is done with an architecture after, or beside, the search |
//!
//! Imports point inwards: worker, then engine, then supernet, then space.

pub mod checkpoints;
pub mod compare;
pub mod computing;
pub mod data;
pub mod datasets;
pub mod engine;
pub mod evaluate;
pub mod export;
pub mod files;
mod held_out;
pub mod latency;
mod metrics;
mod progress;
pub mod quality;
pub mod retrain;
pub mod space;
pub mod study;
pub mod supernet;
/// What is learnt.
pub mod tasks {
    /// Classes of images.
    pub mod classification {
        pub mod report;
    }
}
pub mod worker;
