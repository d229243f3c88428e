//! The cells' shared weights: how architectures are measured with them.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::super::search::{self, Shared};
use super::super::sgd::Rates;
use super::super::{Batch, Error, Evaluation, loss};
use super::{Mode, Network};
use crate::space::enas_micro::{Architecture, Settings};

impl search::Supernet<Network> {
    /// New weights, decided by the settings' seed, for images of `image_channels` channels in
    /// `classes` classes.
    pub fn new(
        settings: &Settings,
        image_channels: i64,
        classes: i64,
        device: Device,
    ) -> Result<Self, Error> {
        let size = settings.size(image_channels, classes);
        let rates = Rates {
            momentum: settings.momentum,
            weight_decay: settings.weight_decay,
            grad_clip: settings.grad_clip,
        };
        let network = Network::supernet(&size, settings.seed as u64, device, Kind::Float)?;
        Self::untrained(network, rates)
    }

    /// Loss and accuracy of an architecture with the present weights. Like the ranking in a step it
    /// normalises with the batch's own statistics, so the batch should be a large one.
    pub fn evaluate(
        &self,
        batch: &Batch,
        architecture: &Architecture,
    ) -> Result<Evaluation, Error> {
        let _guard = tch::no_grad_guard();
        let numbers = loss::read(&self.network.measure(batch, architecture)?)?;
        Ok(Evaluation { loss: numbers[0], accuracy: numbers[1] })
    }
}

impl Shared for Network {
    type Batch = Batch;
    type Architecture = Architecture;

    /// Loss and accuracy.
    fn measure(&self, batch: &Batch, architecture: &Architecture) -> Result<[Tensor; 2], Error> {
        let mode = Mode::Train { drop_path: 0.0 };
        let logits = self.forward(&batch.images, architecture, mode)?.main;
        let loss = loss::cross_entropy(&logits, &batch.labels)?;
        let accuracy = loss::accuracy(&logits, &batch.labels)?;
        Ok([loss, accuracy])
    }

    fn shared(&self) -> &BTreeMap<String, Tensor> {
        self.parameters()
    }

    fn shared_mut(&mut self) -> &mut BTreeMap<String, Tensor> {
        self.parameters_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Precision, StepOutcome, Supernet};
    use super::*;

    const CELLS: usize = 3;
    const NODES: usize = 2;

    fn supernet(seed: i64) -> Supernet {
        let settings = Settings {
            nodes: NODES as i64,
            cells: CELLS as i64,
            channels: 4,
            seed,
            ..Settings::default()
        };
        Supernet::new(&settings, 3, 10, Device::Cpu).unwrap()
    }

    /// Images that differ from class to class, by formula.
    fn batch(phase: f64) -> Batch {
        let image = |i: i64| (0.3 * (i * i) as f64 + phase).sin() as f32;
        let images: Vec<f32> = (0..8 * 3 * 8 * 8).map(image).collect();
        let labels: Vec<i64> = (0..8).collect();
        Batch {
            images: Tensor::from_slice(&images).view([8, 3, 8, 8]),
            labels: Tensor::from_slice(&labels),
        }
    }

    fn architectures() -> [Architecture; 2] {
        let separable = [0, 1, 3, 0, 2, 0, 4, 1, 1, 1, 2, 2, 0, 1, 0, 3];
        let pooling = [0, 1, 1, 0, 0, 1, 2, 1, 1, 0, 0, 2, 0, 2, 0, 1];
        [separable, pooling].map(|values| Architecture::decode(NODES, &values).unwrap())
    }

    fn step(supernet: &mut Supernet) -> StepOutcome {
        let architectures = architectures();
        supernet
            .search_step(&batch(0.0), &architectures, &batch(1.0), &architectures, 0.05)
            .unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.detach().flatten(0, -1)).unwrap()
    }

    #[test]
    fn the_rank_losses_are_those_of_the_moved_weights() {
        let mut supernet = supernet(0);
        let before = supernet.evaluate(&batch(1.0), &architectures()[0]).unwrap();
        let outcome = step(&mut supernet);
        let after = architectures().map(|a| supernet.evaluate(&batch(1.0), &a).unwrap());
        assert_eq!(outcome.losses, after.map(|evaluation| evaluation.loss));
        assert_eq!(outcome.rank_quality, (after[0].accuracy + after[1].accuracy) / 2.0);
        assert_ne!(before.loss, after[0].loss);
        assert!(outcome.gradient_norm > 0.0);
    }

    #[test]
    fn steps_lower_the_loss_of_a_fixed_batch() {
        let mut supernet = supernet(0);
        let losses: Vec<f64> = (0..30).map(|_| step(&mut supernet).train_loss).collect();
        assert!(losses[29] < 0.5 * losses[0], "{losses:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_weights_and_the_same_steps() {
        let (mut one, mut same, other) = (supernet(7), supernet(7), supernet(8));
        let weight =
            |supernet: &Supernet| values(&supernet.network.parameters()["stem.conv.weight"]);
        assert_eq!(weight(&one), weight(&same));
        assert_ne!(weight(&one), weight(&other));
        for _ in 0..2 {
            assert_eq!(step(&mut one), step(&mut same));
        }
        assert_eq!(weight(&one), weight(&same));
    }

    #[test]
    fn with_16_bits_the_losses_are_near_and_the_weights_keep_32() {
        let (mut exact, mut short) = (supernet(0), supernet(0));
        short.set_precision(Precision::Bf16);
        let (exact, outcome) = (step(&mut exact), step(&mut short));
        assert_ne!(exact.losses, outcome.losses, "it has no effect");
        // A number of 16 bits is right to 1 part in 256.
        for (loss, exact) in outcome.losses.iter().zip(&exact.losses) {
            assert!((loss - exact).abs() < 0.03 * exact, "{loss}, not {exact}");
            // Of 32 bits.
            assert_ne!(Tensor::from(*loss).to_kind(Kind::BFloat16).double_value(&[]), *loss);
        }
        let norms = (outcome.gradient_norm, exact.gradient_norm);
        assert!((norms.0 - norms.1).abs() < 0.1 * norms.1, "{norms:?}");
        let all = [short.network.parameters(), short.sgd.momentum()];
        assert!(all.iter().all(|tensors| tensors.values().all(|t| t.kind() == Kind::Float)));
        let (one, other) = (supernet(0), &mut supernet(0));
        other.set_precision(Precision::Bf16);
        let evaluate = |supernet: &Supernet| supernet.evaluate(&batch(0.0), &architectures()[0]);
        assert_eq!(evaluate(&one).unwrap(), evaluate(other).unwrap());
    }

    #[test]
    fn a_saved_supernet_continues_exactly() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weights.safetensors");
        let mut supernet = supernet(0);
        step(&mut supernet);
        supernet.snapshot().unwrap().write(&file).unwrap();
        let mut loaded = self::supernet(1);
        loaded.load(&file).unwrap();
        assert_eq!(step(&mut supernet), step(&mut loaded));
        supernet.snapshot().unwrap().write(&file).unwrap(); // over the first one
        let files: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(files.len(), 1);
    }

    #[test]
    fn a_file_that_does_not_fit_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weights.safetensors");
        let deeper = Settings { nodes: NODES as i64, cells: 4, channels: 4, ..Settings::default() };
        let deeper = Supernet::new(&deeper, 3, 10, Device::Cpu).unwrap();
        deeper.snapshot().unwrap().write(&file).unwrap();
        let mut supernet = supernet(0);
        let evaluate =
            |supernet: &Supernet| supernet.evaluate(&batch(0.0), &architectures()[0]).unwrap();
        let before = evaluate(&supernet);
        assert!(matches!(supernet.load(&file), Err(Error::OtherNetwork { .. })));
        std::fs::write(&file, b"not tensors").unwrap();
        assert!(matches!(supernet.load(&file), Err(Error::OtherNetwork { .. })));
        let missing = directory.path().join("missing");
        assert!(matches!(supernet.load(&missing), Err(Error::File(_))));
        assert_eq!(before, evaluate(&supernet));
    }

    #[test]
    fn parameters_that_a_step_does_not_touch_stay() {
        let mut supernet = supernet(0);
        let pooling = &architectures()[1..];
        let untouched = |name: &str| name.contains("sep_conv") || name.starts_with("auxiliary");
        let snapshot = |supernet: &Supernet| -> Vec<Vec<f32>> {
            let parameters = supernet.network.parameters().iter();
            parameters.filter(|(name, _)| untouched(name)).map(|(_, p)| values(p)).collect()
        };
        let before = snapshot(&supernet);
        assert!(before.len() > 10);
        supernet.search_step(&batch(0.0), pooling, &batch(1.0), pooling, 0.05).unwrap();
        assert_eq!(before, snapshot(&supernet));
    }

    #[test]
    fn a_step_that_diverges_in_training_leaves_finite_weights() {
        let mut supernet = supernet(0);
        step(&mut supernet);
        let infinite =
            Batch { images: batch(0.0).images * f64::INFINITY, labels: batch(0.0).labels };
        let architectures = architectures();
        let outcome = supernet
            .search_step(&infinite, &architectures, &batch(1.0), &architectures, 0.05)
            .unwrap();
        assert!(!outcome.train_loss.is_finite() && !outcome.gradient_norm.is_finite());
        assert!(outcome.losses.iter().all(|loss| loss.is_finite()), "{outcome:?}");
    }

    #[test]
    fn without_train_architectures_the_weights_stay() {
        let mut supernet = supernet(0);
        let architectures = architectures();
        let before = supernet.evaluate(&batch(1.0), &architectures[0]).unwrap();
        let outcome =
            supernet.search_step(&batch(0.0), &[], &batch(1.0), &architectures, 0.05).unwrap();
        assert_eq!(outcome.losses[0], before.loss);
        assert!(outcome.train_loss.is_nan() && outcome.gradient_norm.is_nan());
    }

    #[test]
    fn a_diverged_loss_is_a_value() {
        let mut supernet = supernet(0);
        let infinite =
            Batch { images: batch(0.0).images * f64::INFINITY, labels: batch(0.0).labels };
        let architectures = architectures();
        let outcome = supernet
            .search_step(&batch(0.0), &architectures, &infinite, &architectures, 0.05)
            .unwrap();
        assert!(outcome.losses.iter().all(|loss| !loss.is_finite()));
        assert!(outcome.train_loss.is_finite());
    }

    #[test]
    fn what_libtorch_refuses_is_an_error_of_one_line() {
        let mut supernet = supernet(0);
        let architectures = architectures();
        let grey = Batch { images: batch(0.0).images.narrow(1, 0, 1), labels: batch(0.0).labels };
        let outcome =
            supernet.search_step(&grey, &architectures, &batch(0.0), &architectures, 0.05).unwrap();
        assert!(outcome.train_loss.is_nan() && outcome.losses.iter().all(|loss| loss.is_finite()));
        let places: Vec<_> = outcome.failures.iter().map(|failure| failure.place).collect();
        assert_eq!(places, [0, 1]);
        let outcome =
            supernet.search_step(&batch(0.0), &architectures, &grey, &architectures, 0.05).unwrap();
        assert!(outcome.losses.iter().all(|loss| loss.is_nan()) && outcome.train_loss.is_finite());
        let error =
            supernet.search_step(&grey, &architectures, &grey, &architectures, 0.05).unwrap_err();
        assert!(matches!(error, Error::NothingComputed(_)), "{error}");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
        let too_many_classes = Batch { images: batch(0.0).images, labels: batch(0.0).labels + 5 };
        assert!(supernet.evaluate(&too_many_classes, &architectures[0]).is_err());
        let huge = Tensor::zeros([1], (Kind::Float, Device::Cpu)).expand([1 << 46, 3, 8, 8], false);
        let huge = Batch { images: huge, labels: batch(0.0).labels };
        assert!(matches!(supernet.evaluate(&huge, &architectures[0]), Err(Error::OutOfMemory(_))));
        let outcome = supernet.search_step(&batch(0.0), &architectures, &batch(0.0), &[], 0.05);
        assert!(matches!(outcome, Err(Error::NoArchitectures)));
    }
}
