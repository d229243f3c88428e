//! Steps of the spaces `inpaint-cat` and `inpaint-int` on a directory of photos.

use std::{collections::BTreeMap, path::Path, rc::Rc, time::Instant};

use tch::{Device, Kind};
use tracing::warn;

use super::{Error, Measured, Step, Study, cosine, seeds, warn_of};
use crate::{
    data::{self, Augment, Batches, Images, Photos, Preprocess, mask},
    evaluate::TestPhotos,
    metrics::{self, Phase},
    space::inpaint::{Architecture, Coding, Settings},
    supernet::{
        Precision, Snapshot,
        inpaint::{Batch, Evaluation, Supernet},
    },
};

/// The photos on the device, in the halves for the weights and for the ranking.
pub(super) struct Halves {
    pub(super) side: i64,
    train: Images,
    rank: Images,
    /// Those held out for tests, on the CPU.
    test: Images,
    preprocess: Preprocess,
}

impl Halves {
    pub(super) fn load(directory: &Path, side: i64, device: Device) -> Result<Halves, data::Error> {
        let photos = Photos::load(directory, side as u16)?;
        for refused in &photos.refused {
            warn!(file = %refused.file.display(), reason = refused.reason, "photo is left out");
        }
        let (train, rank) = photos.search_halves()?;
        let (train, rank) = (train.to_device(device)?, rank.to_device(device)?);
        let preprocess = Preprocess::unit(device, Kind::Float, true)?;
        Ok(Halves { side, train, rank, test: photos.test, preprocess })
    }

    /// How many photos there are.
    pub(super) fn len(&self) -> i64 {
        self.train.len() + self.rank.len()
    }
}

/// A study's supernet, and which photos make its minibatches.
pub(super) struct Inpainting {
    coding: Coding,
    settings: Settings,
    photos: Rc<Halves>,
    device: Device,
    supernet: Supernet,
    batches: (Batches, Batches),
}

impl Inpainting {
    pub(super) fn new(
        coding: Coding,
        settings: Settings,
        photos: Rc<Halves>,
        device: Device,
        precision: Precision,
    ) -> Result<Inpainting, Error> {
        let mut supernet = Supernet::new(&settings, 3, device)?;
        supernet.set_precision(precision);
        // Each half has an order of its own.
        let batches = |half: &Images, seed: u64| {
            Batches::new(seed, half.len() as usize, settings.batch_size as usize)
        };
        let (train, rank) = seeds(settings.seed);
        let batches = (batches(&photos.train, train)?, batches(&photos.rank, rank)?);
        Ok(Inpainting { coding, settings, photos, device, supernet, batches })
    }
}

impl Study for Inpainting {
    fn step(&mut self, step: &Step) -> Result<Measured, Error> {
        let started = Instant::now();
        let settings = &self.settings;
        let space = settings.space(self.coding);
        let decode = |values: &Vec<i64>| Architecture::decode(&space, values);
        let train: Vec<_> = step.train.iter().map(decode).collect::<Result<_, _>>()?;
        let rank: Vec<_> = step.rank.iter().map(decode).collect::<Result<_, _>>()?;
        let (preprocess, side) = (&self.photos.preprocess, self.photos.side);
        let batch = |images: &Images, batches: &mut Batches, seed: u64| {
            let images = images.select(batches.get(step.batch))?;
            let images = preprocess.augmented(&images.pixels, Augment::FLIP, seed, step.batch)?;
            let shape = [settings.batch_size, side, side];
            let mask =
                mask::draw(settings.mask, seed, step.batch, shape, Kind::Float, self.device)?;
            Ok::<_, data::Error>(Batch { images, mask })
        };
        let seeds = seeds(settings.seed);
        let train_batch = batch(&self.photos.train, &mut self.batches.0, seeds.0)?;
        let rank_batch = batch(&self.photos.rank, &mut self.batches.1, seeds.1)?;
        let loading = started.elapsed();
        metrics::phase(Phase::Data, loading);
        let learning_rate = cosine(settings.learning_rate, step.progress);
        let outcome =
            self.supernet.search_step(&train_batch, &train, &rank_batch, &rank, learning_rate)?;
        warn_of(&outcome.failures, step);
        let metrics = [
            ("train_loss", outcome.train_loss),
            ("train_psnr", outcome.train_psnr),
            ("rank_psnr", outcome.rank_psnr),
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
        let architecture = Architecture::decode(&self.settings.space(self.coding), values)?;
        let photos = TestPhotos::of(&self.photos.test, images, self.settings.mask, self.device);
        let photos = photos.map_err(Error::TestImages)?;
        let mean = photos.mean(|batch| self.supernet.evaluate(batch, &architecture));
        let Evaluation { loss, psnr, ssim } = mean.map_err(Error::Evaluation)?;
        Ok((photos.len() as u64, [("loss", loss), ("psnr", psnr), ("ssim", ssim)].into()))
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        Ok(self.supernet.snapshot()?)
    }

    fn load(&mut self, file: &Path) -> Result<(), Error> {
        Ok(self.supernet.load(file)?)
    }
}
