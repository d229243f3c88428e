//! Test images of CIFAR-10.

use std::path::Path;

use tch::{Device, Kind};

use super::first;
use crate::{
    data::{Cifar10, Images, Preprocess},
    supernet::{Batch, Error, Evaluation},
};

/// Images in one forward pass. A supernet normalises with the statistics of these images.
pub(crate) const BATCH: i64 = 250;

/// Images on the device that no training has seen.
pub(crate) struct TestImages {
    images: Images,
    preprocess: Preprocess,
}

impl TestImages {
    /// The first `count` of the test set in `directory`, or all of them.
    pub(crate) fn load(
        directory: &Path,
        count: Option<i64>,
        device: Device,
    ) -> anyhow::Result<TestImages> {
        TestImages::of(&Cifar10::load(directory)?.test, count, device)
    }

    /// The first `count` of these, or all of them.
    pub(crate) fn of(
        images: &Images,
        count: Option<i64>,
        device: Device,
    ) -> anyhow::Result<TestImages> {
        let images = first(images, count)?.to_device(device)?;
        Ok(TestImages { images, preprocess: Preprocess::cifar10(device, Kind::Float, true)? })
    }

    pub(crate) fn len(&self) -> i64 {
        self.images.len()
    }

    /// Forward passes over all of them.
    pub(crate) fn batches(&self) -> u64 {
        self.len().cast_unsigned().div_ceil(BATCH.cast_unsigned())
    }

    /// The mean over all images.
    pub(crate) fn mean(
        &self,
        evaluate: impl Fn(&Batch) -> Result<Evaluation, Error>,
    ) -> anyhow::Result<Evaluation> {
        let mut mean = Evaluation { loss: 0.0, accuracy: 0.0 };
        for start in (0..self.len()).step_by(BATCH as usize) {
            let images = self.images.narrow(start, BATCH.min(self.len() - start))?;
            let part = images.len() as f64 / self.len() as f64;
            let pixels = self.preprocess.plain(&images.pixels)?;
            let Evaluation { loss, accuracy } =
                evaluate(&Batch { images: pixels, labels: images.labels })?;
            mean.loss += part * loss;
            mean.accuracy += part * accuracy;
        }
        Ok(mean)
    }
}
