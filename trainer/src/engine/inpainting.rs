//! The spaces `inpaint-cat` and `inpaint-int` on a directory of photos.

use std::{collections::BTreeMap, path::Path};

use tch::{Device, Kind};
use tracing::warn;

use super::{
    Costs, Error,
    images::{Halves, Pace, Task},
};
use crate::{
    data::{self, Augment, Images, Photos, Preprocess, mask},
    held_out::TestPhotos,
    space::inpaint::{Architecture, Coding, Settings},
    supernet::inpaint::{Batch, Evaluation, Network, Supernet},
};

/// Reads the photos, with sides of so many pixels.
pub(super) fn load(directory: &Path, side: i64, device: Device) -> Result<Halves, data::Error> {
    let photos = Photos::load(directory, side as u16)?;
    for refused in &photos.refused {
        warn!(file = %refused.file.display(), reason = refused.reason, "photo is left out");
    }
    let (train, rank) = photos.search_halves()?;
    let (train, rank) = (train.to_device(device)?, rank.to_device(device)?);
    let preprocess = Preprocess::unit(device, Kind::Float, true)?;
    Ok(Halves { train, rank, test: photos.test, preprocess })
}

/// To fill in what is hidden of a photo.
pub(super) struct Inpainting {
    pub(super) coding: Coding,
    pub(super) settings: Settings,
    pub(super) device: Device,
}

impl Task for Inpainting {
    type Network = Network;

    const QUALITIES: [&'static str; 2] = ["train_psnr", "rank_psnr"];

    fn pace(&self) -> Pace {
        let Settings { batch_size, learning_rate, seed, .. } = self.settings;
        Pace { batch_size, learning_rate, seed }
    }

    fn decode(&self, values: &[i64]) -> Result<Architecture, Error> {
        Ok(Architecture::decode(&self.settings.space(self.coding), values)?)
    }

    fn batch(
        &self,
        preprocess: &Preprocess,
        images: Images,
        seed: u64,
        number: u64,
    ) -> Result<Batch, data::Error> {
        let images = preprocess.augmented(&images.pixels, Augment::FLIP, seed, number)?;
        let Settings { batch_size, image_size, mask, .. } = self.settings;
        let shape = [batch_size, image_size, image_size];
        let mask = mask::draw(mask, seed, number, shape, Kind::Float, self.device)?;
        Ok(Batch { images, mask })
    }

    fn costs(&self, architecture: &Architecture) -> Costs {
        let side = self.settings.image_size;
        let image = [3, side, side];
        Costs { parameters: architecture.parameters(image, false), macs: architecture.macs(image) }
    }

    fn evaluate(
        &self,
        supernet: &Supernet,
        architecture: &Architecture,
        test: &Images,
        count: Option<i64>,
    ) -> Result<(u64, BTreeMap<&'static str, f64>), Error> {
        let photos = TestPhotos::of(test, count, self.settings.mask, self.device);
        let photos = photos.map_err(Error::TestImages)?;
        let mean = photos.mean(|batch| supernet.evaluate(batch, architecture));
        let Evaluation { loss, psnr, ssim } = mean.map_err(Error::Evaluation)?;
        Ok((photos.len() as u64, [("loss", loss), ("psnr", psnr), ("ssim", ssim)].into()))
    }
}
