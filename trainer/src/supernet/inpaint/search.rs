//! The supernet of a study: the weights that all of its architectures share, and one step of the
//! search.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Reduction, Tensor};

use super::super::sgd::{Rates, Sgd};
use super::super::step::{self, Shared};
use super::super::{Error, Failure, Precision, Snapshot, checkpoint, loss};
use super::{Batch, Evaluation, Mode, Network};
use crate::quality;
use crate::space::inpaint::{Architecture, Settings};

/// In the search all statistics are the batch's, so it makes no difference.
const MODE: Mode = Mode::Train { drop_path: 0.0 };

/// What a step reports.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// The mean squared error of each rank architecture, in order, after the weights moved; not
    /// finite where it diverged.
    pub losses: Vec<f64>,
    /// Mean over the rank architectures and their images of the peak signal-to-noise ratio, in
    /// decibels.
    pub rank_psnr: f64,
    /// Mean loss of the train architectures, before the weights moved.
    pub train_loss: f64,
    /// As `rank_psnr`, of the train architectures.
    pub train_psnr: f64,
    /// Norm of the mean gradient before it was clipped. Not finite: the step moved nothing but by
    /// its momentum.
    pub gradient_norm: f64,
    /// What could not be computed; it counts as diverged.
    pub failures: Vec<Failure>,
}

/// Shared weights with their optimiser.
#[derive(Debug)]
pub struct Supernet {
    network: Network,
    sgd: Sgd,
    precision: Precision,
}

impl Supernet {
    /// New weights, decided by the settings' seed, for images of `image_channels` channels.
    pub fn new(
        settings: &Settings,
        image_channels: i64,
        device: Device,
    ) -> Result<Supernet, Error> {
        let size = settings.size(image_channels);
        let rates = Rates {
            momentum: settings.momentum,
            weight_decay: settings.weight_decay,
            grad_clip: settings.grad_clip,
        };
        let network = Network::supernet(&size, settings.seed as u64, device, Kind::Float)?;
        let sgd = Sgd::new(network.parameters(), rates)?;
        Ok(Supernet { network, sgd, precision: Precision::F32 })
    }

    /// Computes the steps from now on with this precision, which is [`Precision::F32`] at first.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// One step of the search (authors' `arch_search_valid`): moves the weights along the mean
    /// gradient of the train architectures on one batch, then measures the rank architectures on
    /// another with the moved weights. Without train architectures the weights stay, and what is
    /// said of training is NaN. (The authors draw another mask for each architecture, and so rank
    /// them by different questions.)
    pub fn search_step(
        &mut self,
        train_batch: &Batch,
        train: &[Architecture],
        rank_batch: &Batch,
        rank: &[Architecture],
        learning_rate: f64,
    ) -> Result<StepOutcome, Error> {
        let measured = step::search(
            &mut self.network,
            &mut self.sgd,
            (train_batch, train),
            (rank_batch, rank),
            learning_rate,
            self.precision,
        )?;
        Ok(StepOutcome {
            losses: measured.losses,
            rank_psnr: measured.rank_quality,
            train_loss: measured.train_loss,
            train_psnr: measured.train_quality,
            gradient_norm: measured.gradient_norm,
            failures: measured.failures,
        })
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

    /// Weights and momentum as they are now.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let parts = [("weight", self.network.parameters()), ("momentum", self.sgd.momentum())];
        Snapshot::of(&parts)
    }

    /// Reads a [`Snapshot`] that was written; nothing changes unless all of it fits.
    pub fn load(&mut self, path: &Path) -> Result<(), Error> {
        let mut parts =
            [("weight", self.network.parameters_mut()), ("momentum", self.sgd.momentum_mut())];
        checkpoint::load(path, &mut parts)
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
