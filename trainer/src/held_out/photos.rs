//! Test photos with a part hidden.

use std::path::Path;

use anyhow::ensure;
use tch::{Device, Kind, Tensor};
use tracing::warn;

use super::first;
use crate::{
    data::{FashionMnist, Images, Photos, Preprocess, fashion_mnist, mask},
    space::inpaint::Mask,
    supernet::{
        Error,
        inpaint::{Batch, Evaluation},
    },
};

/// Photos in one forward pass.
const BATCH: i64 = 64;

/// Decides what is hidden of the test photos: the same for everybody.
const SEED: u64 = 0x7e57;

/// Images to train with and others to test with, on the CPU.
pub(crate) struct Pictures {
    pub(crate) train: Images,
    pub(crate) test: Images,
}

impl Pictures {
    /// Reads the photos of a directory at `side` pixels, or Fashion-MNIST, whose images keep their 28.
    pub(crate) fn load(directory: &Path, side: i64) -> anyhow::Result<Pictures> {
        let idx = ["train-images-idx3-ubyte.gz", "train-images-idx3-ubyte"];
        if idx.iter().any(|file| directory.join(file).exists()) {
            let FashionMnist { train, test } = FashionMnist::load(directory)?;
            return Ok(Pictures { train, test });
        }
        let Photos { train, test, refused, .. } = Photos::load(directory, side as u16)?;
        for refused in &refused {
            warn!(file = %refused.file.display(), reason = refused.reason, "photo is left out");
        }
        ensure!(
            !train.is_empty(),
            "{} has too few photos: one is held out for tests, and none is left",
            directory.display()
        );
        Ok(Pictures { train, test })
    }

    /// Channels, height and width of an image.
    pub(crate) fn shape(&self) -> [i64; 3] {
        let size = self.train.pixels.size();
        [size[1], size[2], size[3]]
    }
}

/// Photos on the device that no training has seen.
pub(crate) struct TestPhotos {
    images: Images,
    preprocess: Preprocess,
    mask: Mask,
    device: Device,
}

impl TestPhotos {
    /// The first `count` of these, or all of them.
    pub(crate) fn of(
        images: &Images,
        count: Option<i64>,
        mask: Mask,
        device: Device,
    ) -> anyhow::Result<TestPhotos> {
        let images = first(images, count)?.to_device(device)?;
        let preprocess = Preprocess::unit(device, Kind::Float, true)?;
        Ok(TestPhotos { images, preprocess, mask, device })
    }

    pub(crate) fn len(&self) -> i64 {
        self.images.len()
    }

    /// Forward passes over all of them.
    pub(crate) fn batches(&self) -> u64 {
        self.len().cast_unsigned().div_ceil(BATCH.cast_unsigned())
    }

    /// So many photos, all if there are fewer, from the first to the last at equal distances, since neighbours are often
    /// of one scene; and what is hidden of them.
    pub(crate) fn sample(&self, count: i64) -> anyhow::Result<Batch> {
        let count = count.min(self.len());
        let one = |i| self.batch(i * self.len() / count, 1);
        let batches = (0..count).map(one).collect::<anyhow::Result<Vec<_>>>()?;
        let together = |part: fn(&Batch) -> &Tensor| {
            Tensor::f_cat(&batches.iter().map(part).collect::<Vec<_>>(), 0)
        };
        Ok(Batch { images: together(|batch| &batch.images)?, mask: together(|batch| &batch.mask)? })
    }

    fn batch(&self, start: i64, count: i64) -> anyhow::Result<Batch> {
        let images = self.preprocess.plain(&self.images.narrow(start, count)?.pixels)?;
        let (_, _, height, width) = images.size4()?;
        let shape = [count, height, width];
        let mask = mask::draw(self.mask, SEED, start as u64, shape, Kind::Float, self.device)?;
        Ok(Batch { images, mask })
    }

    /// The mean over all photos.
    pub(crate) fn mean(
        &self,
        evaluate: impl Fn(&Batch) -> Result<Evaluation, Error>,
    ) -> anyhow::Result<Evaluation> {
        let mut mean = Evaluation { loss: 0.0, psnr: 0.0, ssim: 0.0 };
        for start in (0..self.len()).step_by(BATCH as usize) {
            let batch = self.batch(start, BATCH.min(self.len() - start))?;
            let part = batch.images.size()[0] as f64 / self.len() as f64;
            let Evaluation { loss, psnr, ssim } = evaluate(&batch)?;
            mean.loss += part * loss;
            mean.psnr += part * psnr;
            mean.ssim += part * ssim;
        }
        Ok(mean)
    }

    /// What one gets by leaving hidden black.
    pub(crate) fn masked(&self) -> anyhow::Result<Evaluation> {
        self.mean(|batch| Evaluation::of(&batch.images.f_mul(&batch.mask)?, batch))
    }
}

/// Whether an image of that shape is Fashion-MNIST's.
pub(crate) fn is_fashion(shape: [i64; 3]) -> bool {
    shape == [1, fashion_mnist::SIDE, fashion_mnist::SIDE]
}
