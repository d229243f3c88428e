//! What decides a retraining, as it is written beside the weights: with it, the network can be built again.

use std::{collections::BTreeMap, fmt, fs, io, path::Path};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Device;

use super::{Preset, training};
use crate::{
    data::cifar10,
    held_out::Pictures,
    space::{
        enas_micro::{self, Size},
        inpaint::{self, Mask},
    },
    study::Source,
    supernet::{self, sgd::Rates},
};

/// The file of a [`Record`].
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

/// All that [`RECIPE`] holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(flatten)]
    pub(crate) recipe: Recipe,
    /// Where all settings came from that were not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) preset: Option<Preset>,
    /// Where the architecture came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<Source>,
}

impl Record {
    /// Reads it from the directory of a retraining.
    pub(crate) fn read(directory: &Path) -> anyhow::Result<Record> {
        let record = Record::find(directory)?;
        record.with_context(|| {
            format!(
                "there is no {}: give the --out of a `retrain` that has begun",
                directory.join(RECIPE).display()
            )
        })
    }

    /// Reads it from a directory in which there may be no retraining.
    pub(crate) fn find(directory: &Path) -> anyhow::Result<Option<Record>> {
        let file = directory.join(RECIPE);
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", file.display()))?,
        };
        let record = serde_json::from_str(&text);
        record.map(Some).with_context(|| format!("{} describes no retraining", file.display()))
    }

    /// Returns where the architecture came from and its values, such as "chosen of study a: 0,4,1".
    pub(crate) fn architecture(&self) -> String {
        architecture(self.source.as_ref(), self.recipe.values())
    }

    /// Returns the value of each flag that decides the training.
    pub(crate) fn flags(&self) -> BTreeMap<&'static str, String> {
        let mut flags = self.recipe.flags();
        flags.extend(self.preset.map(|preset| ("--preset", name(&preset))));
        flags
    }
}

/// Returns an architecture as text: where it came from, if that is known, and its values.
pub(crate) fn architecture(source: Option<&Source>, values: &[i64]) -> String {
    let values = crate::study::list(values);
    source.map_or(values.clone(), |source| format!("{source}: {values}"))
}

/// Returns the name that a person gives a value on the command line.
pub(super) fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Recipe {
    /// The space of the architecture.
    pub(crate) fn space(&self) -> &str {
        match self {
            Recipe::Classification(recipe) => &recipe.architecture.space,
            Recipe::Inpainting(recipe) => &recipe.architecture.space,
        }
    }

    /// The architecture's values.
    pub(crate) fn values(&self) -> &[i64] {
        match self {
            Recipe::Classification(recipe) => &recipe.architecture.values,
            Recipe::Inpainting(recipe) => &recipe.architecture.values,
        }
    }

    /// Returns a number that no other recipe has: SHA-256, hexadecimal.
    pub(crate) fn digest(&self) -> anyhow::Result<String> {
        Ok(HEXLOWER.encode(&Sha256::digest(serde_json::to_vec(self)?)))
    }

    fn flags(&self) -> BTreeMap<&'static str, String> {
        match self {
            Recipe::Classification(recipe) => {
                let schedule = &recipe.schedule;
                [
                    ("--batch-size", schedule.batch_size.to_string()),
                    ("--learning-rate", schedule.learning_rate.to_string()),
                    ("--images", recipe.images.to_string()),
                    ("--test-images", recipe.test_images.to_string()),
                    ("--seed", recipe.seed.to_string()),
                    ("--epochs", schedule.epochs.to_string()),
                    ("--cells", schedule.cells.to_string()),
                    ("--channels", recipe.channels.to_string()),
                    ("--max-parameters", schedule.max_parameters.to_string()),
                    ("--drop-path", schedule.drop_path.to_string()),
                    ("--cutout", schedule.cutout.to_string()),
                ]
                .into()
            }
            Recipe::Inpainting(recipe) => {
                let schedule = &recipe.schedule;
                [
                    ("--batch-size", schedule.batch_size.to_string()),
                    ("--learning-rate", schedule.learning_rate.to_string()),
                    ("--images", recipe.images.to_string()),
                    ("--test-images", recipe.test_images.to_string()),
                    ("--seed", recipe.seed.to_string()),
                    ("--iterations", schedule.iterations.to_string()),
                    ("--evaluate-every", schedule.evaluate_every.to_string()),
                    ("--mask", name(&recipe.mask)),
                    ("--image-size", recipe.image[1].to_string()),
                    ("--batch-norm", recipe.batch_norm.to_string()),
                ]
                .into()
            }
        }
    }

    /// Returns the length of the training as text, such as "600 epochs of 625 batches of 80 images".
    pub(crate) fn length(&self) -> String {
        match self {
            Recipe::Classification(Classification { schedule, .. }) => format!(
                "{} epochs of {} batches of {} images",
                schedule.epochs,
                self.per_epoch(),
                schedule.batch_size
            ),
            Recipe::Inpainting(Inpainting { schedule, .. }) => {
                format!("{} batches of {} images", schedule.iterations, schedule.batch_size)
            }
        }
    }

    /// Returns how far the retraining in `directory` has come.
    pub(crate) fn progress(&self, directory: &Path) -> anyhow::Result<Progress> {
        let last = directory.join(LAST);
        let iterations = if last.exists() { training::iterations(&last)? } else { 0 };
        let per_epoch = self.per_epoch();
        let (total, epochs) = match self {
            Recipe::Classification(recipe) => (recipe.schedule.epochs * per_epoch, true),
            Recipe::Inpainting(recipe) => (recipe.schedule.iterations, false),
        };
        Ok(Progress { iterations, total, per_epoch: epochs.then_some(per_epoch) })
    }

    /// The whole minibatches of a pass over the training images.
    fn per_epoch(&self) -> u64 {
        let (images, batch_size) = match self {
            Recipe::Classification(Classification { images, schedule, .. }) => {
                (*images, schedule.batch_size as i64)
            }
            Recipe::Inpainting(Inpainting { images, schedule, .. }) => {
                (*images, schedule.batch_size)
            }
        };
        (images / batch_size.max(1)) as u64
    }
}

/// How far a retraining has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Progress {
    /// Minibatches done.
    iterations: u64,
    /// Minibatches in all.
    total: u64,
    /// Minibatches of an epoch, where the length is a number of epochs.
    #[serde(skip)]
    per_epoch: Option<u64>,
}

impl Progress {
    pub(crate) fn finished(&self) -> bool {
        self.iterations >= self.total
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, per_unit) = match self.per_epoch {
            Some(per_epoch) => ("epochs", per_epoch.max(1)),
            None => ("batches", 1),
        };
        let total = self.total / per_unit;
        if self.finished() {
            return write!(f, "finished: {total} {unit}");
        }
        let tenths = self.iterations * 10 / per_unit;
        write!(f, "not finished: {}", tenths / 10)?;
        if !tenths.is_multiple_of(10) {
            write!(f, ".{}", tenths % 10)?;
        }
        write!(f, " of {total} {unit}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_epochs_or_batches() {
        let text =
            |iterations, total, per_epoch| Progress { iterations, total, per_epoch }.to_string();
        assert_eq!(text(75_000, 375_000, Some(625)), "not finished: 120 of 600 epochs");
        assert_eq!(text(75_100, 375_000, Some(625)), "not finished: 120.1 of 600 epochs");
        assert_eq!(text(375_000, 375_000, Some(625)), "finished: 600 epochs");
        assert_eq!(text(20, 500, None), "not finished: 20 of 500 batches");
    }
}
