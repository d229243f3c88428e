//! Steps of the space `enas-micro` on CIFAR-10.

use std::{collections::BTreeMap, path::Path, rc::Rc, time::Instant};

use tch::{Device, Kind};

use super::{Error, Measured, Step, Study, cosine, seeds, warn_of};
use crate::{
    data::{self, Augment, Batches, Cifar10, Images, Preprocess, cifar10},
    evaluate::{BATCH, TestImages},
    metrics::{self, Phase},
    space::enas_micro::{Architecture, Settings},
    supernet::{Batch, Evaluation, Precision, Snapshot, Supernet},
};

/// The training set on the device, in the halves for the weights and for the ranking.
pub(super) struct Halves {
    train: Images,
    rank: Images,
    /// Of the test set, on the CPU.
    test: Images,
    preprocess: Preprocess,
}

impl Halves {
    pub(super) fn load(directory: &Path, device: Device) -> Result<Halves, data::Error> {
        let cifar10 = Cifar10::load(directory)?;
        let (train, rank) = cifar10.search_halves()?;
        let (train, rank) = (train.to_device(device)?, rank.to_device(device)?);
        let preprocess = Preprocess::cifar10(device, Kind::Float, true)?;
        Ok(Halves { train, rank, test: cifar10.test, preprocess })
    }
}

/// A study's supernet, and which images make its minibatches.
pub(super) struct Classification {
    settings: Settings,
    images: Rc<Halves>,
    device: Device,
    supernet: Supernet,
    batches: (Batches, Batches),
}

impl Classification {
    pub(super) fn new(
        settings: Settings,
        images: Rc<Halves>,
        device: Device,
        precision: Precision,
    ) -> Result<Classification, Error> {
        let mut supernet = Supernet::new(&settings, 3, cifar10::CLASSES, device)?;
        supernet.set_precision(precision);
        // Each half has an order of its own.
        let batches = |half: &Images, seed: u64| {
            Batches::new(seed, half.len() as usize, settings.batch_size as usize)
        };
        let (train, rank) = seeds(settings.seed);
        let batches = (batches(&images.train, train)?, batches(&images.rank, rank)?);
        Ok(Classification { settings, images, device, supernet, batches })
    }
}

impl Study for Classification {
    fn step(&mut self, step: &Step) -> Result<Measured, Error> {
        let started = Instant::now();
        let settings = &self.settings;
        let decode = |values: &Vec<i64>| Architecture::decode(settings.nodes as usize, values);
        let train: Vec<_> = step.train.iter().map(decode).collect::<Result<_, _>>()?;
        let rank: Vec<_> = step.rank.iter().map(decode).collect::<Result<_, _>>()?;
        let augment = Augment { cutout: settings.cutout as u16, ..Augment::PAPER };
        let preprocess = &self.images.preprocess;
        let batch = |images: &Images, batches: &mut Batches, seed: u64| {
            let images = images.select(batches.get(step.batch))?;
            let pixels = preprocess.augmented(&images.pixels, augment, seed, step.batch)?;
            Ok::<_, data::Error>(Batch { images: pixels, labels: images.labels })
        };
        let seeds = seeds(settings.seed);
        let train_batch = batch(&self.images.train, &mut self.batches.0, seeds.0)?;
        let rank_batch = batch(&self.images.rank, &mut self.batches.1, seeds.1)?;
        let loading = started.elapsed();
        metrics::phase(Phase::Data, loading);
        let learning_rate = cosine(settings.learning_rate, step.progress);
        let outcome =
            self.supernet.search_step(&train_batch, &train, &rank_batch, &rank, learning_rate)?;
        warn_of(&outcome.failures, step);
        let metrics = [
            ("train_loss", outcome.train_loss),
            ("train_accuracy", outcome.train_accuracy),
            ("rank_accuracy", outcome.rank_accuracy),
            ("gradient_norm", outcome.gradient_norm),
            ("learning_rate", learning_rate),
            ("loading_seconds", loading.as_secs_f64()),
        ];
        let images = (step.train.len() + step.rank.len()) as u64 * settings.batch_size as u64;
        Ok(Measured { losses: outcome.losses, metrics: metrics.into(), images })
    }

    fn evaluate(
        &self,
        values: &[i64],
        images: Option<i64>,
    ) -> Result<(u64, BTreeMap<&'static str, f64>), Error> {
        let architecture = Architecture::decode(self.settings.nodes as usize, values)?;
        let images =
            TestImages::of(&self.images.test, images, self.device).map_err(Error::TestImages)?;
        if images.len() % BATCH != 0 {
            let fault = anyhow::anyhow!("must be a multiple of {BATCH}");
            return Err(Error::TestImages(fault));
        }
        let mean = images.mean(|batch| self.supernet.evaluate(batch, &architecture));
        let Evaluation { loss, accuracy } = mean.map_err(Error::Evaluation)?;
        Ok((images.len() as u64, [("loss", loss), ("accuracy", accuracy)].into()))
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        Ok(self.supernet.snapshot()?)
    }

    fn load(&mut self, file: &Path) -> Result<(), Error> {
        Ok(self.supernet.load(file)?)
    }
}
