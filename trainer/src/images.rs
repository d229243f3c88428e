//! Images as bytes on a device: readers, cache, batches, augmentation.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::Tensor;

pub use crate::data::{Augment, Batches};

/// What is known of a data set without its images; kept with weights, exported with networks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// The name.
    pub name: String,
    /// The classes.
    pub classes: Vec<String>,
    /// Channels, height and width.
    pub shape: [i64; 3],
    /// Mean.
    pub mean: Vec<f64>,
    /// Deviation.
    pub std: Vec<f64>,
    /// SHA-256.
    pub digest: String,
}

/// Labelled images.
#[derive(Debug)]
pub struct Images {
    /// uint8 [N, C, H, W]
    pub pixels: Tensor,
    /// int64 [N]
    pub labels: Tensor,
}

/// Which data set a task wants, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Name.
    pub name: String,
    /// Size.
    pub image_size: Option<i64>,
    /// Labels.
    pub labels: bool,
}

/// Starts the generator for number `index` of one purpose. The ChaCha key is the seed, the name of the purpose and the index side
/// by side, so no two generators share a stream.
pub(crate) fn generator(seed: u64, purpose: &[u8; 8], index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(purpose);
    key[16..24].copy_from_slice(&index.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Copies a tensor of the CPU to `device`, if that is another, without waiting for what a GPU still has to compute.
pub(crate) fn to_device(tensor: &Tensor, device: tch::Device) -> Tensor {
    let (non_blocking, copy) = (true, false);
    tensor.to_device_(device, tensor.kind(), non_blocking, copy)
}

/// Stub.
#[derive(Debug)]
pub struct Preprocess(crate::data::Preprocess, tch::Device);
impl Preprocess {
    /// Between 0 and 1.
    pub fn unit(device: tch::Device, kind: tch::Kind) -> Preprocess {
        Preprocess(crate::data::Preprocess::unit(device, kind, true).unwrap(), device)
    }
    /// Normalised.
    pub fn normalised(_info: &Info, device: tch::Device, kind: tch::Kind) -> Preprocess {
        Preprocess(crate::data::Preprocess::cifar10(device, kind, true).unwrap(), device)
    }
    /// As they are.
    pub fn plain(&self, pixels: &Tensor) -> Tensor {
        self.0.plain(pixels).unwrap()
    }
    /// Augmented.
    pub fn augmented(&self, pixels: &Tensor, augment: Augment, seed: u64, number: u64) -> Tensor {
        self.0.augmented(pixels, augment, seed, number).unwrap()
    }
    /// The device.
    pub fn device(&self) -> tch::Device {
        self.1
    }
}
