//! One architecture alone, trained from scratch.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::super::adam::Adam;
use super::super::gradients::Gradients;
use super::super::{Error, Numbers, Precision, Snapshot, checkpoint, loss};
use super::measure::squared_error;
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
    precision: Precision,
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
        Ok(Retrained { architecture, network, adam, precision: Precision::F32 })
    }

    /// Computes the steps from now on with this precision, which is [`Precision::F32`] at first.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Moves the weights along the gradient of the mean squared error.
    pub fn train_step(&mut self, batch: &Batch, learning_rate: f64) -> Result<TrainOutcome, Error> {
        let mode = Mode::Train { drop_path: 0.0 };
        let autocast = self.precision.enter(batch.images.device());
        let output = self.network.fill_in(batch, &self.architecture, mode)?;
        let error = squared_error(&output, batch)?;
        drop(autocast);
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

    /// Writes weights, running statistics, Adam's moments and `progress` to a safetensors file,
    /// whole or not at all.
    pub fn save(&self, path: &Path, progress: &Numbers) -> Result<(), Error> {
        let [first, second, steps] = self.adam.parts();
        let parts = [
            ("weight", self.network.parameters()),
            ("statistic", self.network.statistics()),
            first,
            second,
            steps,
            (checkpoint::NUMBERS, &checkpoint::tensors(progress)?),
        ];
        Snapshot::of(&parts)?.write(path)
    }

    /// Reads what [`Retrained::save`] wrote with `progress` of the same names; nothing changes
    /// unless all of it fits.
    pub fn load(&mut self, path: &Path, progress: &mut Numbers) -> Result<(), Error> {
        let mut numbers = checkpoint::tensors(progress)?;
        let (parameters, statistics) = self.network.tensors_mut();
        let [first, second, steps] = self.adam.parts_mut();
        let mut parts = [
            ("weight", parameters),
            ("statistic", statistics),
            first,
            second,
            steps,
            (checkpoint::NUMBERS, &mut numbers),
        ];
        checkpoint::load(path, &mut parts)?;
        checkpoint::read_numbers(progress, &numbers)
    }

    /// The network, when training is over.
    pub fn into_network(self) -> Network {
        self.network
    }

    /// Writes weights and running statistics alone.
    pub fn save_weights(&self, path: &Path) -> Result<(), Error> {
        self.network.snapshot()?.write(path)
    }

    /// Reads weights and running statistics from what [`Retrained::save`] or
    /// [`Retrained::save_weights`] wrote; nothing changes unless all of it fits.
    pub fn load_weights(&mut self, path: &Path) -> Result<(), Error> {
        let (parameters, statistics) = self.network.tensors_mut();
        checkpoint::load(path, &mut [("weight", parameters), ("statistic", statistics)])
    }
}
