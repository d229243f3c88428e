//! One architecture alone, trained from scratch.

use std::path::Path;

use tch::{Device, Kind};

use super::enas_micro::{Mode, Network};
use super::gradients::Gradients;
use super::sgd::{Rates, Sgd};
use super::{Batch, Error, Evaluation, Numbers, Precision, Snapshot, checkpoint, loss};
use crate::space::enas_micro::{Architecture, Size};

/// How much the auxiliary head's loss counts (authors' `weight_auxiliary`).
pub const AUXILIARY_WEIGHT: f64 = 0.4;

/// What a step of training says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainOutcome {
    /// Cross-entropy of the main classifier, before the weights moved.
    pub loss: f64,
    /// Part of the images whose class was found, 0 to 1.
    pub accuracy: f64,
    /// Norm of the gradient before it was clipped. Not finite: the weights it moved are spoiled.
    pub gradient_norm: f64,
}

/// The architecture, its own weights and their optimiser.
#[derive(Debug)]
pub struct Retrained {
    architecture: Architecture,
    network: Network,
    sgd: Sgd,
    precision: Precision,
}

impl Retrained {
    /// New weights, decided by `seed`. Images must be 32 pixels high and wide, which the auxiliary
    /// head is made for.
    pub fn new(
        size: &Size,
        architecture: Architecture,
        rates: Rates,
        seed: u64,
        device: Device,
    ) -> Result<Retrained, Error> {
        let network = Network::alone(size, &architecture, seed, device, Kind::Float)?;
        let sgd = Sgd::new(network.parameters(), rates)?;
        Ok(Retrained { architecture, network, sgd, precision: Precision::F32 })
    }

    /// Computes the steps from now on with this precision, which is [`Precision::F32`] at first.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Moves the weights along the gradient of the main loss plus [`AUXILIARY_WEIGHT`] times the
    /// auxiliary one.
    pub fn train_step(
        &mut self,
        batch: &Batch,
        learning_rate: f64,
        drop_path: f64,
    ) -> Result<TrainOutcome, Error> {
        let autocast = self.precision.enter(batch.images.device());
        let logits =
            self.network.forward(&batch.images, &self.architecture, Mode::Train { drop_path })?;
        let main = loss::cross_entropy(&logits.main, &batch.labels)?;
        let accuracy = loss::accuracy(&logits.main, &batch.labels)?;
        let total = match &logits.auxiliary {
            Some(auxiliary) => {
                let auxiliary = loss::cross_entropy(auxiliary, &batch.labels)?;
                main.f_add(&auxiliary.f_mul_scalar(AUXILIARY_WEIGHT)?)?
            }
            None => main.shallow_clone(),
        };
        drop(autocast);
        let gradients = Gradients::of(&total, self.network.parameters())?;
        let norm = self.sgd.step(self.network.parameters_mut(), &gradients, learning_rate)?;
        let numbers = loss::read(&[main.f_detach()?, accuracy, norm])?;
        Ok(TrainOutcome { loss: numbers[0], accuracy: numbers[1], gradient_norm: numbers[2] })
    }

    /// Loss and accuracy with the running statistics.
    pub fn evaluate(&self, batch: &Batch) -> Result<Evaluation, Error> {
        let _guard = tch::no_grad_guard();
        let logits = self.network.forward(&batch.images, &self.architecture, Mode::Evaluate)?.main;
        let loss = loss::cross_entropy(&logits, &batch.labels)?;
        let numbers = loss::read(&[loss, loss::accuracy(&logits, &batch.labels)?])?;
        Ok(Evaluation { loss: numbers[0], accuracy: numbers[1] })
    }

    /// Writes weights, running statistics, momentum and `progress` to a safetensors file, whole or
    /// not at all.
    pub fn save(&self, path: &Path, progress: &Numbers) -> Result<(), Error> {
        let parts = [
            ("weight", self.network.parameters()),
            ("statistic", self.network.statistics()),
            ("momentum", self.sgd.momentum()),
            (checkpoint::NUMBERS, &checkpoint::tensors(progress)?),
        ];
        Snapshot::of(&parts)?.write(path)
    }

    /// Reads what [`Retrained::save`] wrote with `progress` of the same names; nothing changes
    /// unless all of it fits.
    pub fn load(&mut self, path: &Path, progress: &mut Numbers) -> Result<(), Error> {
        let mut numbers = checkpoint::tensors(progress)?;
        let (parameters, statistics) = self.network.tensors_mut();
        let mut parts = [
            ("weight", parameters),
            ("statistic", statistics),
            ("momentum", self.sgd.momentum_mut()),
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

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    const SIZE: Size = Size { nodes: 2, cells: 3, channels: 4, image_channels: 3, classes: 10 };
    const RATES: Rates = Rates { momentum: 0.9, weight_decay: 3e-4, grad_clip: 5.0 };

    fn architecture(last: i64) -> Architecture {
        let values = [0, 1, 3, 0, 2, 0, 4, 1, 1, 1, 2, 2, 0, 1, 0, last];
        Architecture::decode(2, &values).unwrap()
    }

    fn retrained(seed: u64) -> Retrained {
        Retrained::new(&SIZE, architecture(3), RATES, seed, Device::Cpu).unwrap()
    }

    fn batch() -> Batch {
        let image = |i: i64| (0.3 * (i * i) as f64).sin() as f32;
        let images: Vec<f32> = (0..4 * 3 * 32 * 32).map(image).collect();
        Batch {
            images: Tensor::from_slice(&images).view([4, 3, 32, 32]),
            labels: Tensor::from_slice(&[0_i64, 1, 2, 3]),
        }
    }

    #[test]
    fn training_lowers_the_loss_also_with_running_statistics() {
        let mut retrained = retrained(0);
        let before = retrained.evaluate(&batch()).unwrap();
        // The last steps move only the statistics, which trail behind the weights.
        for learning_rate in [[0.02; 30], [0.0; 30]].concat() {
            retrained.train_step(&batch(), learning_rate, 0.0).unwrap();
        }
        let after = retrained.evaluate(&batch()).unwrap();
        assert!(after.loss < 0.5 * before.loss, "{before:?} {after:?}");
    }

    #[test]
    fn training_with_16_bits_lowers_the_loss_of_32() {
        let mut retrained = retrained(0);
        retrained.set_precision(Precision::Bf16);
        let before = retrained.evaluate(&batch()).unwrap();
        for learning_rate in [[0.02; 30], [0.0; 30]].concat() {
            retrained.train_step(&batch(), learning_rate, 0.0).unwrap();
        }
        let after = retrained.evaluate(&batch()).unwrap();
        assert!(after.loss < 0.5 * before.loss, "{before:?} {after:?}");
    }

    #[test]
    fn a_saved_training_continues_exactly() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weights.safetensors");
        let (mut one, mut other) = (retrained(0), retrained(1));
        one.train_step(&batch(), 0.05, 0.0).unwrap();
        let mut progress: Numbers = [("iterations".to_owned(), 0.0)].into();
        one.save(&file, &[("iterations".to_owned(), 7.0)].into()).unwrap();
        other.load(&file, &mut progress).unwrap();
        assert_eq!(progress["iterations"], 7.0);
        assert_eq!(one.evaluate(&batch()).unwrap(), other.evaluate(&batch()).unwrap());
        for _ in 0..2 {
            assert_eq!(
                one.train_step(&batch(), 0.05, 0.0).unwrap(),
                other.train_step(&batch(), 0.05, 0.0).unwrap()
            );
        }
    }

    #[test]
    fn another_architecture_is_refused() {
        let network = retrained(0).network;
        let error = network.forward(&batch().images, &architecture(4), Mode::Evaluate).unwrap_err();
        let expected = "this network has no sep_conv_5x5 on input 1 of node 1";
        assert_eq!(error.to_string(), expected);
    }
}
