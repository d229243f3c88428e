//! Classifiers of CIFAR-10.

use std::path::Path;

use anyhow::Context;
use clap::Args;
use rand::RngExt;
use tch::{Device, Kind};

use super::{
    Flag, flag,
    recipe::Classification as Recipe,
    training::{Figure, Training},
};
use crate::{
    data::{Augment, Batches, Cifar10, Images, Preprocess, cifar10, generator},
    engine::cosine,
    held_out::TestImages,
    space::enas_micro::{Architecture, Retraining, Size},
    supernet::{self, Batch, Numbers, Precision, Retrained},
};

/// What can be set of classifiers alone.
#[derive(Debug, Args)]
#[group(skip)]
#[command(next_help_heading = "Classifiers (enas-micro)")]
pub(super) struct Flags {
    /// Passes over the training images [paper: 600]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    epochs: Option<u64>,
    /// Cells of the network, two of which are reductions [paper: 20]
    #[arg(long, value_parser = clap::value_parser!(u16).range(3..=100))]
    cells: Option<u16>,
    /// Channels of the first cells [default: as many as --max-parameters allows]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    channels: Option<u16>,
    /// Largest number of trainable parameters, without the auxiliary head [paper: 4000000]
    #[arg(long, value_name = "N", conflicts_with = "channels")]
    max_parameters: Option<i64>,
    /// Probability of dropping an operation's output, reached at the end [paper: 0.3]
    #[arg(long, value_name = "P", value_parser = probability)]
    drop_path: Option<f64>,
    /// Side of the square cut out of each training image, in pixels [paper: 16]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(..=64))]
    cutout: Option<u16>,
}

fn probability(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=0.9).contains(number));
    number.ok_or_else(|| "say a number from 0 to 0.9".to_owned())
}

impl Flags {
    /// Each flag, with its value if it was given.
    pub(super) fn flags(&self) -> [Flag; 6] {
        [
            flag("--epochs", self.epochs),
            flag("--cells", self.cells),
            flag("--channels", self.channels),
            flag("--max-parameters", self.max_parameters),
            flag("--drop-path", self.drop_path),
            flag("--cutout", self.cutout),
        ]
    }

    /// What decides the training of this architecture.
    pub(super) fn recipe(
        &self,
        how: &super::How,
        seed: u64,
        architecture: &Architecture,
        data: &Cifar10,
    ) -> anyhow::Result<Recipe> {
        let preset = match how.preset() {
            super::Preset::Paper => Retraining::PAPER,
            super::Preset::Quick => Retraining::QUICK,
        };
        let schedule = Retraining {
            cells: self.cells.map_or(preset.cells, usize::from),
            max_parameters: self.max_parameters.unwrap_or(preset.max_parameters),
            epochs: self.epochs.unwrap_or(preset.epochs),
            batch_size: how.batch_size.map_or(preset.batch_size, usize::from),
            learning_rate: how.learning_rate.unwrap_or(preset.learning_rate),
            drop_path: self.drop_path.unwrap_or(preset.drop_path),
            cutout: self.cutout.unwrap_or(preset.cutout),
            ..preset
        };
        let size = Size {
            nodes: architecture.normal.nodes.len(),
            cells: schedule.cells,
            channels: 1,
            image_channels: 3,
            classes: cifar10::CLASSES,
        };
        let channels = match self.channels {
            Some(channels) => channels.into(),
            None => architecture
                .widest(&size, schedule.max_parameters)
                .context("--max-parameters is too small for this many cells")?,
        };
        Ok(Recipe {
            architecture: architecture.describe(),
            channels,
            schedule,
            seed,
            images: how.images.unwrap_or(data.train.len()),
            test_images: how.test_images.unwrap_or(data.test.len()),
        })
    }
}

/// A network with the images that it learns from.
pub(super) struct Classification {
    schedule: Retraining,
    seed: u64,
    augment: Augment,
    preprocess: Preprocess,
    train: Images,
    batches: Batches,
    test: TestImages,
    network: Retrained,
}

impl Classification {
    pub(super) fn new(
        recipe: &Recipe,
        data: &Cifar10,
        device: Device,
        precision: Precision,
    ) -> anyhow::Result<Classification> {
        let Recipe { schedule, seed, images, test_images, .. } = recipe;
        let train = super::first(&data.train, *images)?.to_device(device)?;
        let mut network = recipe.network(device)?;
        network.set_precision(precision);
        Ok(Classification {
            schedule: schedule.clone(),
            seed: *seed,
            augment: Augment { cutout: schedule.cutout, ..Augment::PAPER },
            preprocess: Preprocess::cifar10(device, Kind::Float, true)?,
            batches: Batches::new(*seed, train.len() as usize, schedule.batch_size)?,
            train,
            test: TestImages::of(&data.test, Some(*test_images), device)?,
            network,
        })
    }
}

impl Training for Classification {
    fn iterations(&self) -> u64 {
        self.schedule.epochs * self.per_epoch()
    }

    fn per_epoch(&self) -> u64 {
        self.batches.per_epoch()
    }

    fn per_round(&self) -> u64 {
        self.per_epoch()
    }

    /// Moves once an epoch, as the authors' does.
    fn learning_rate(&self, iteration: u64) -> f64 {
        let epoch = iteration / self.per_epoch();
        cosine(self.schedule.learning_rate, epoch as f64 / self.schedule.epochs as f64)
    }

    fn train(&mut self, iteration: u64) -> anyhow::Result<Vec<Figure>> {
        // Which paths are dropped is drawn by libtorch's own generator.
        tch::manual_seed(generator(self.seed, b"droppath", iteration).random());
        let images = self.train.select(self.batches.get(iteration))?;
        let pixels =
            self.preprocess.augmented(&images.pixels, self.augment, self.seed, iteration)?;
        let batch = Batch { images: pixels, labels: images.labels };
        let drop_path = self.schedule.drop_path_at(iteration / self.per_epoch());
        let learning_rate = self.learning_rate(iteration);
        let outcome = self.network.train_step(&batch, learning_rate, drop_path)?;
        Ok(vec![("train_loss", outcome.loss), ("train_accuracy", outcome.accuracy)])
    }

    fn evaluate(&self) -> anyhow::Result<Vec<Figure>> {
        let test = self.test.mean(|batch| self.network.evaluate(batch))?;
        Ok(vec![("test_accuracy", test.accuracy), ("test_loss", test.loss)])
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
