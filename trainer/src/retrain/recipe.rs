//! What decides a retraining, as it is written beside the weights: with it, the network can be built again.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::{
    data::cifar10,
    held_out::Pictures,
    space::{
        enas_micro::{self, Size},
        inpaint::{self, Mask},
    },
    supernet::{self, sgd::Rates},
};

/// The file of a [`Recipe`].
pub(crate) const RECIPE: &str = "retraining.json";
/// The file of the newest weights, with all that is needed to go on.
pub(crate) const LAST: &str = "last.safetensors";
/// The file of the weights with the best figure on the test images.
pub(crate) const BEST: &str = "best.safetensors";

/// What decides a retraining.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "lowercase")]
pub(crate) enum Recipe {
    Classification(Classification),
    Inpainting(Inpainting),
}

/// A classifier of CIFAR-10.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Classification {
    pub(crate) architecture: enas_micro::Description,
    pub(crate) channels: i64,
    pub(crate) schedule: enas_micro::Retraining,
    pub(crate) seed: u64,
    /// Training and test images that are used, the first ones.
    pub(crate) images: i64,
    pub(crate) test_images: i64,
}

/// An autoencoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Inpainting {
    pub(crate) architecture: inpaint::Description,
    /// Channels, height and width.
    pub(crate) image: [i64; 3],
    pub(crate) mask: Mask,
    pub(crate) batch_norm: bool,
    pub(crate) schedule: inpaint::Retraining,
    pub(crate) seed: u64,
    /// Training and test images that are used, the first ones.
    pub(crate) images: i64,
    pub(crate) test_images: i64,
}

impl Recipe {
    /// Reads it from the directory of a retraining.
    pub(crate) fn read(directory: &Path) -> anyhow::Result<Recipe> {
        let file = directory.join(RECIPE);
        let text = fs::read_to_string(&file).with_context(|| {
            format!("cannot read {}: give the --out of a `retrain` that has begun", file.display())
        })?;
        serde_json::from_str(&text).with_context(|| format!("{} makes no sense", file.display()))
    }
}

impl Classification {
    /// The size of its network.
    pub(crate) fn size(&self) -> anyhow::Result<Size> {
        Ok(Size {
            nodes: self.architecture.architecture()?.normal.nodes.len(),
            cells: self.schedule.cells,
            channels: self.channels,
            image_channels: 3,
            classes: cifar10::CLASSES,
        })
    }

    /// Its network with new weights.
    pub(crate) fn network(&self, device: Device) -> anyhow::Result<supernet::Retrained> {
        let enas_micro::Retraining { momentum, weight_decay, grad_clip, .. } = self.schedule;
        let rates = Rates { momentum, weight_decay, grad_clip };
        let architecture = self.architecture.architecture()?;
        Ok(supernet::Retrained::new(&self.size()?, architecture, rates, self.seed, device)?)
    }
}

impl Inpainting {
    /// Says when pictures are not those that it was trained on.
    pub(crate) fn check(&self, pictures: &Pictures, directory: &Path) -> anyhow::Result<()> {
        let (ours, [channels, height, width]) = (self.image, pictures.shape());
        ensure!(
            ours == [channels, height, width],
            "the network is for images of {ours:?}, and those in {} are [{channels}, {height}, {width}]",
            directory.display()
        );
        Ok(())
    }

    /// Its network with new weights.
    pub(crate) fn network(&self, device: Device) -> anyhow::Result<supernet::inpaint::Retrained> {
        let (architecture, clip) = (self.architecture.architecture()?, self.schedule.grad_clip);
        let (image, batch_norm, seed) = (self.image, self.batch_norm, self.seed);
        Ok(supernet::inpaint::Retrained::new(architecture, image, batch_norm, clip, seed, device)?)
    }
}
