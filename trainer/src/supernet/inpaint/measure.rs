//! The autoencoders' shared weights: how architectures are measured with them.

use std::collections::BTreeMap;

use tch::{Device, Kind, Reduction, Tensor};

use super::super::search::{self, Shared};
use super::super::sgd::Rates;
use super::super::{Error, loss};
use super::{Batch, Evaluation, Mode, Network};
use crate::quality;
use crate::space::inpaint::{Architecture, Settings};

/// In the search all statistics are the batch's, so it makes no difference.
const MODE: Mode = Mode::Train { drop_path: 0.0 };

impl search::Supernet<Network> {
    /// New weights, decided by the settings' seed, for images of `image_channels` channels.
    pub fn new(settings: &Settings, image_channels: i64, device: Device) -> Result<Self, Error> {
        let size = settings.size(image_channels);
        let rates = Rates {
            momentum: settings.momentum,
            weight_decay: settings.weight_decay,
            grad_clip: settings.grad_clip,
        };
        let network = Network::supernet(&size, settings.seed as u64, device, Kind::Float)?;
        Self::untrained(network, rates)
    }

    /// What an architecture makes of a batch with the present weights: `[batch, channels, height,
    /// width]`, not clipped to 0 and 1.
    pub fn fill_in(&self, batch: &Batch, architecture: &Architecture) -> Result<Tensor, Error> {
        let _guard = tch::no_grad_guard();
        self.network.fill_in(batch, architecture, MODE)
    }

    /// Loss and qualities of an architecture with the present weights.
    pub fn evaluate(
        &self,
        batch: &Batch,
        architecture: &Architecture,
    ) -> Result<Evaluation, Error> {
        Evaluation::of(&self.fill_in(batch, architecture)?, batch)
    }
}

impl Network {
    /// What an architecture makes of the visible part of a batch.
    pub(super) fn fill_in(
        &self,
        batch: &Batch,
        architecture: &Architecture,
        mode: Mode,
    ) -> Result<Tensor, Error> {
        self.forward(&batch.images.f_mul(&batch.mask)?, architecture, mode)
    }
}

/// Mean squared error over all pixels, hidden or not.
pub(super) fn squared_error(output: &Tensor, batch: &Batch) -> Result<Tensor, Error> {
    Ok(output.f_mse_loss(&batch.images, Reduction::Mean)?)
}

impl Evaluation {
    /// Of what a network said, or anybody else.
    pub fn of(output: &Tensor, batch: &Batch) -> Result<Evaluation, Error> {
        let _guard = tch::no_grad_guard();
        let numbers = loss::read(&[
            squared_error(output, batch)?,
            quality::psnr(output, &batch.images)?.f_mean(Kind::Double)?,
            quality::ssim(output, &batch.images)?.f_mean(Kind::Double)?,
        ])?;
        Ok(Evaluation { loss: numbers[0], psnr: numbers[1], ssim: numbers[2] })
    }
}

impl Shared for Network {
    type Batch = Batch;
    type Architecture = Architecture;

    /// Mean squared error and peak signal-to-noise ratio.
    fn measure(&self, batch: &Batch, architecture: &Architecture) -> Result<[Tensor; 2], Error> {
        let output = self.fill_in(batch, architecture, MODE)?;
        let psnr = quality::psnr(&output.f_detach()?, &batch.images)?;
        Ok([squared_error(&output, batch)?, psnr.f_mean(Kind::Double)?])
    }

    fn shared(&self) -> &BTreeMap<String, Tensor> {
        self.parameters()
    }

    fn shared_mut(&mut self) -> &mut BTreeMap<String, Tensor> {
        self.parameters_mut()
    }
}
