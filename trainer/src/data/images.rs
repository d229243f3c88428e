//! Images with their classes, as tensors.

use tch::{Device, Tensor};

use super::{Error, to_device};

/// Labelled images, resident on one device.
#[derive(Debug)]
pub struct Images {
    /// Raw pixels: uint8 `[N, channels, height, width]`, channels red, green, blue or only grey.
    pub pixels: Tensor,
    /// Class of each image: int64 `[N]`.
    pub labels: Tensor,
}

impl Images {
    /// Returns the number of images.
    pub fn len(&self) -> i64 {
        self.labels.numel() as i64
    }

    /// Tells whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the images to `device`; on the CPU already, they are shared.
    pub fn to_device(&self, device: Device) -> Result<Self, Error> {
        Ok(Self {
            pixels: self.pixels.f_to_device(device)?,
            labels: self.labels.f_to_device(device)?,
        })
    }

    /// Returns `length` images from `start` on, in their order and without copying: the batches of
    /// an evaluation.
    pub fn narrow(&self, start: i64, length: i64) -> Result<Self, Error> {
        Ok(Self {
            pixels: self.pixels.f_narrow(0, start, length)?,
            labels: self.labels.f_narrow(0, start, length)?,
        })
    }

    /// Copies the images at `indices`, in that order: the batches of training.
    pub fn select(&self, indices: &[i64]) -> Result<Self, Error> {
        // A GPU would abort on a bad index, and lose every later call with it.
        let examples = self.len();
        if let Some(&index) = indices.iter().find(|index| !(0..examples).contains(index)) {
            return Err(Error::Index { index, examples });
        }
        let indices = to_device(&Tensor::f_from_slice(indices)?, self.labels.device())?;
        Ok(Self {
            pixels: self.pixels.f_index_select(0, &indices)?,
            labels: self.labels.f_index_select(0, &indices)?,
        })
    }
}
