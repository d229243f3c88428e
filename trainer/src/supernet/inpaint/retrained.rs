//! One architecture alone, trained from scratch.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::super::adam::Adam;
use super::super::gradients::Gradients;
use super::super::{Error, Snapshot, checkpoint, loss};
use super::search::squared_error;
use super::{Batch, Evaluation, Mode, Network};
use crate::space::inpaint::Architecture;

/// What a step of training says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainOutcome {
    /// Mean squared error, before the weights moved.
    pub loss: f64,
    /// Norm of the gradient before it was clipped.
    pub gradient_norm: f64,
}

/// The architecture, its own weights and their optimiser.
#[derive(Debug)]
pub struct Retrained {
    architecture: Architecture,
    network: Network,
    adam: Adam,
}

impl Retrained {
    /// New weights, decided by `seed`, for images of that shape (channels, height, width).
    pub fn new(
        architecture: Architecture,
        image: [i64; 3],
        batch_norm: bool,
        grad_clip: f64,
        seed: u64,
        device: Device,
    ) -> Result<Retrained, Error> {
        let network = Network::alone(&architecture, image, batch_norm, seed, device, Kind::Float)?;
        let adam = Adam::new(network.parameters(), grad_clip)?;
        Ok(Retrained { architecture, network, adam })
    }

    /// Moves the weights along the gradient of the mean squared error.
    pub fn train_step(&mut self, batch: &Batch, learning_rate: f64) -> Result<TrainOutcome, Error> {
        let mode = Mode::Train { drop_path: 0.0 };
        let output = self.network.fill_in(batch, &self.architecture, mode)?;
        let error = squared_error(&output, batch)?;
        let gradients = Gradients::of(&error, self.network.parameters())?;
        let norm = self.adam.step(self.network.parameters_mut(), &gradients, learning_rate)?;
        let numbers = loss::read(&[error.f_detach()?, norm])?;
        Ok(TrainOutcome { loss: numbers[0], gradient_norm: numbers[1] })
    }

    /// What it makes of a batch, `[batch, channels, height, width]`, not clipped to 0 and 1; with
    /// the running statistics.
    pub fn fill_in(&self, batch: &Batch) -> Result<Tensor, Error> {
        let _guard = tch::no_grad_guard();
        self.network.fill_in(batch, &self.architecture, Mode::Evaluate)
    }

    /// Loss and qualities with the running statistics.
    pub fn evaluate(&self, batch: &Batch) -> Result<Evaluation, Error> {
        Evaluation::of(&self.fill_in(batch)?, batch)
    }

    /// Writes weights, running statistics and Adam's moments to a safetensors file, whole or not at
    /// all.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let [first, second, steps] = self.adam.parts();
        let weights = ("weight", self.network.parameters());
        let statistics = ("statistic", self.network.statistics());
        Snapshot::of(&[weights, statistics, first, second, steps])?.write(path)
    }

    /// Reads what [`Retrained::save`] wrote; nothing changes unless all of it fits.
    pub fn load(&mut self, path: &Path) -> Result<(), Error> {
        let (parameters, statistics) = self.network.tensors_mut();
        let [first, second, steps] = self.adam.parts_mut();
        let weights = ("weight", parameters);
        checkpoint::load(path, &mut [weights, ("statistic", statistics), first, second, steps])
    }
}
