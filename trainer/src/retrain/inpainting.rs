//! Autoencoders of photos.

use std::path::Path;

use anyhow::ensure;
use clap::Args;
use tch::{Device, Kind};

use super::{
    Flag, flag,
    recipe::{Inpainting as Recipe, name},
    training::{Figure, Training},
};
use crate::{
    data::{Augment, Batches, Images, Preprocess, mask},
    held_out::{Pictures, TestPhotos},
    space::inpaint::{Architecture, Mask, Retraining, Settings},
    supernet::{
        self, Numbers, Precision,
        inpaint::{Batch, Retrained},
    },
};

/// What can be set of autoencoders alone.
#[derive(Debug, Args)]
#[group(skip)]
#[command(next_help_heading = "Autoencoders (inpaint-cat, inpaint-int)")]
pub(super) struct Flags {
    /// Minibatches in all [paper: 500000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    iterations: Option<u64>,
    /// Minibatches between two evaluations [paper: 5000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    evaluate_every: Option<u64>,
    /// What is hidden of each photo [default: the study's]
    #[arg(long, value_enum)]
    mask: Option<Mask>,
    /// Height and width that photos are brought to [default: the study's]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(16..=256))]
    image_size: Option<u16>,
    /// Whether batch normalisation follows the nodes' convolutions [default: the study's]
    #[arg(long, value_name = "BOOL")]
    batch_norm: Option<bool>,
}

impl Flags {
    /// Each flag, with its value if it was given.
    pub(super) fn flags(&self) -> [Flag; 5] {
        [
            flag("--iterations", self.iterations),
            flag("--evaluate-every", self.evaluate_every),
            flag("--mask", self.mask.as_ref().map(name)),
            flag("--image-size", self.image_size),
            flag("--batch-norm", self.batch_norm),
        ]
    }

    /// Height and width of the photos.
    pub(super) fn side(&self, settings: &Settings) -> i64 {
        self.image_size.map_or(settings.image_size, i64::from)
    }

    /// What decides the training of this architecture.
    pub(super) fn recipe(
        &self,
        how: &super::How,
        seed: u64,
        settings: &Settings,
        architecture: &Architecture,
        pictures: &Pictures,
    ) -> anyhow::Result<Recipe> {
        let preset = match how.preset() {
            super::Preset::Paper => Retraining::PAPER,
            super::Preset::Quick => Retraining::QUICK,
        };
        let image = pictures.shape();
        if let Some(side) = self.image_size {
            ensure!(
                image[1] == i64::from(side),
                "--image-size: the images of Fashion-MNIST have {} pixels",
                image[1]
            );
        }
        Ok(Recipe {
            architecture: architecture.describe(),
            image,
            mask: self.mask.unwrap_or(settings.mask),
            batch_norm: self.batch_norm.unwrap_or(settings.batch_norm),
            schedule: Retraining {
                batch_size: how.batch_size.map_or(preset.batch_size, i64::from),
                iterations: self.iterations.unwrap_or(preset.iterations),
                learning_rate: how.learning_rate.unwrap_or(preset.learning_rate),
                evaluate_every: self.evaluate_every.unwrap_or(preset.evaluate_every),
                ..preset
            },
            seed,
            images: how.images.unwrap_or(pictures.train.len()),
            test_images: how.test_images.unwrap_or(pictures.test.len()),
        })
    }
}

/// A network with the photos that it learns from.
pub(super) struct Inpainting {
    schedule: Retraining,
    seed: u64,
    mask: Mask,
    device: Device,
    preprocess: Preprocess,
    train: Images,
    batches: Batches,
    test: TestPhotos,
    network: Retrained,
}

impl Inpainting {
    pub(super) fn new(
        recipe: &Recipe,
        pictures: &Pictures,
        device: Device,
        precision: Precision,
    ) -> anyhow::Result<Inpainting> {
        let Recipe { schedule, seed, images, test_images, mask, .. } = *recipe;
        let train = super::first(&pictures.train, images)?.to_device(device)?;
        let mut network = recipe.network(device)?;
        network.set_precision(precision);
        Ok(Inpainting {
            schedule,
            seed,
            mask,
            device,
            preprocess: Preprocess::unit(device, Kind::Float, true)?,
            batches: Batches::new(seed, train.len() as usize, schedule.batch_size as usize)?,
            train,
            test: TestPhotos::of(&pictures.test, Some(test_images), mask, device)?,
            network,
        })
    }
}

impl Training for Inpainting {
    fn iterations(&self) -> u64 {
        self.schedule.iterations
    }

    fn per_epoch(&self) -> u64 {
        self.batches.per_epoch()
    }

    fn per_round(&self) -> u64 {
        self.schedule.evaluate_every
    }

    fn learning_rate(&self, iteration: u64) -> f64 {
        self.schedule.learning_rate_at(iteration)
    }

    fn train(&mut self, iteration: u64) -> anyhow::Result<Vec<Figure>> {
        let images = self.train.select(self.batches.get(iteration))?;
        let images =
            self.preprocess.augmented(&images.pixels, Augment::FLIP, self.seed, iteration)?;
        let (count, _, height, width) = images.size4()?;
        let shape = [count, height, width];
        let mask = mask::draw(self.mask, self.seed, iteration, shape, Kind::Float, self.device)?;
        let batch = Batch { images, mask };
        let outcome = self.network.train_step(&batch, self.learning_rate(iteration))?;
        Ok(vec![("train_loss", outcome.loss)])
    }

    fn evaluate(&self) -> anyhow::Result<Vec<Figure>> {
        let test = self.test.mean(|batch| self.network.evaluate(batch))?;
        Ok(vec![("test_psnr", test.psnr), ("test_ssim", test.ssim), ("test_loss", test.loss)])
    }

    fn save(&self, file: &Path, progress: &Numbers) -> Result<(), supernet::Error> {
        self.network.save(file, progress)
    }

    fn load(&mut self, file: &Path, progress: &mut Numbers) -> Result<(), supernet::Error> {
        self.network.load(file, progress)
    }

    fn save_weights(&self, file: &Path) -> Result<(), supernet::Error> {
        self.network.save_weights(file)
    }
}
