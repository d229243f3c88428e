//! The space `enas-micro` on CIFAR-10.

use std::{collections::BTreeMap, path::Path};

use anyhow::anyhow;
use tch::{Device, Kind};

use super::{
    Costs, Error,
    images::{Halves, Pace, Task},
};
use crate::{
    data::{self, Augment, Cifar10, Images, Preprocess, cifar10},
    held_out::{BATCH, TestImages},
    space::enas_micro::{Architecture, Settings},
    supernet::{Batch, Evaluation, Supernet, enas_micro::Network},
};

/// Reads the images of CIFAR-10.
pub(super) fn load(directory: &Path, device: Device) -> Result<Halves, data::Error> {
    let cifar10 = Cifar10::load(directory)?;
    let (train, rank) = cifar10.search_halves()?;
    let (train, rank) = (train.to_device(device)?, rank.to_device(device)?);
    let preprocess = Preprocess::cifar10(device, Kind::Float, true)?;
    Ok(Halves { train, rank, test: cifar10.test, preprocess })
}

/// To say what is on an image.
pub(super) struct Classification {
    pub(super) settings: Settings,
    pub(super) device: Device,
}

impl Task for Classification {
    type Network = Network;

    const QUALITIES: [&'static str; 2] = ["train_accuracy", "rank_accuracy"];

    fn pace(&self) -> Pace {
        let Settings { batch_size, learning_rate, seed, .. } = self.settings;
        Pace { batch_size, learning_rate, seed }
    }

    fn decode(&self, values: &[i64]) -> Result<Architecture, Error> {
        Ok(Architecture::decode(self.settings.nodes as usize, values)?)
    }

    fn batch(
        &self,
        preprocess: &Preprocess,
        images: Images,
        seed: u64,
        number: u64,
    ) -> Result<Batch, data::Error> {
        let augment = Augment { cutout: self.settings.cutout as u16, ..Augment::PAPER };
        let pixels = preprocess.augmented(&images.pixels, augment, seed, number)?;
        Ok(Batch { images: pixels, labels: images.labels })
    }

    fn costs(&self, architecture: &Architecture) -> Costs {
        let size = self.settings.size(3, cifar10::CLASSES);
        Costs {
            parameters: architecture.parameters(&size, false),
            macs: architecture.macs(&size, cifar10::SIDE),
        }
    }

    fn evaluate(
        &self,
        supernet: &Supernet,
        architecture: &Architecture,
        test: &Images,
        count: Option<i64>,
    ) -> Result<(u64, BTreeMap<&'static str, f64>), Error> {
        let images = TestImages::of(test, count, self.device).map_err(Error::TestImages)?;
        if images.len() % BATCH != 0 {
            return Err(Error::TestImages(anyhow!("must be a multiple of {BATCH}")));
        }
        let mean = images.mean(|batch| supernet.evaluate(batch, architecture));
        let Evaluation { loss, accuracy } = mean.map_err(Error::Evaluation)?;
        Ok((images.len() as u64, [("loss", loss), ("accuracy", accuracy)].into()))
    }
}
