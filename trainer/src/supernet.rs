//! Shared weights and how they are trained: the networks of each space, their optimiser, and their
//! files, on libtorch.
//!
//! [`Supernet`] holds the weights of every architecture of a study and trains them step by step;
//! [`Retrained`] is one architecture alone, trained from scratch. Both are plain values for one
//! thread to own. They know nothing of studies, leases or where images come from.
//!
//! * `search`: shared weights and one step of a search, for every network that is [`Shared`]
//! * [`enas_micro`]: the network of cells; [`loss`]: what it is trained on; [`gradients`] of it;
//!   [`sgd`] and [`adam`]: the optimisers
//! * [`inpaint`]: network and retraining of the autoencoders
//! * [`Toy`]: the weights of the artificial problem, which needs none of these
//! * `layers`: convolution, batch normalisation and the linear layer; `initial`: their values at
//!   the start
//! * [`Precision`]: how many bits training computes with
//! * `checkpoint`: named tensors in a safetensors file
//!
//! Whatever libtorch refuses, memory included, is an [`Error`] and no panic; after one, the tensors
//! are as they were before the failed operation or, at worst, as after a part of an update, so
//! whoever cares loads the last file again.

pub mod adam;
mod checkpoint;
pub mod enas_micro;
pub mod gradients;
mod initial;
pub mod inpaint;
mod layers;
pub mod loss;
mod precision;
mod retrained;
pub(crate) mod search;
pub mod sgd;
mod toy;

use tch::{TchError, Tensor};

use crate::files;

pub use checkpoint::{Numbers, Snapshot, numbers};
pub use precision::Precision;
pub use retrained::{AUXILIARY_WEIGHT, Retrained, TrainOutcome};
pub use search::{Failure, Shared, StepOutcome};
pub use toy::{Toy, ToyOutcome};

/// Shared weights of cells with their optimiser.
pub type Supernet = search::Supernet<enas_micro::Network>;

/// A minibatch, on the network's device and of its kind.
#[derive(Debug)]
pub struct Batch {
    /// `[batch, channels, height, width]`, normalised.
    pub images: Tensor,
    /// `[batch]`, the class of each image, 64-bit integers.
    pub labels: Tensor,
}

/// The quality of an architecture on one batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy; not finite for a diverged network.
    pub loss: f64,
    /// Part of the images whose class was found, 0 to 1.
    pub accuracy: f64,
}

/// Why something could not be computed, saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// libtorch cannot compute this, on any device: shapes that do not fit, an operation that it lacks.
    #[error("libtorch: {}", first_line(.0))]
    Torch(TchError),
    /// The device has not enough memory.
    #[error("out of memory: {}", first_line(.0))]
    OutOfMemory(TchError),
    /// The device computes nothing any more: the process must be started again, or the device be replaced.
    #[error("the device has failed: {}", first_line(.0))]
    Device(TchError),
    /// The network was built for other architectures than the one it was given.
    #[error("this network has no {0}")]
    NotBuilt(String),
    /// libtorch refused every architecture of a step: the fault is elsewhere.
    #[error("no architecture of the step can be computed: {0}")]
    NothingComputed(String),
    /// A step that ranks nothing.
    #[error("a step needs at least one architecture to rank")]
    NoArchitectures,
    /// A file is damaged, or of another network: another space, or other settings.
    #[error("{file} is damaged, or of another network: {reason}")]
    OtherNetwork {
        /// The file.
        file: String,
        /// The first tensor that does not fit, and how.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] files::Error),
}

/// Texts of libtorch, CUDA and their libraries when an allocation fails.
const OUT_OF_MEMORY: [&str; 5] = [
    "out of memory",
    "can't allocate memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
];
/// Their texts when a device can no longer be used. After an error of CUDA every later call of the process fails.
const DEVICE_FAILURES: [&str; 8] = [
    "CUDA error",
    "CUDA driver error",
    "device-side assert",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
];

/// libtorch has one kind of error for everything; its text tells them apart.
impl From<TchError> for Error {
    fn from(error: TchError) -> Error {
        let text = first_line(&error);
        let contains_one_of = |texts: &[&str]| texts.iter().any(|part| text.contains(part));
        if contains_one_of(&OUT_OF_MEMORY) {
            Error::OutOfMemory(error)
        } else if contains_one_of(&DEVICE_FAILURES) {
            Error::Device(error)
        } else {
            Error::Torch(error)
        }
    }
}

/// libtorch's messages carry a C++ backtrace after their first line.
fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
