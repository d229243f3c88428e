//! The artificial problem of the paper's section 5.1: no images, a table of numbers as weights, and a best architecture that is
//! known: the first choice of every variable. It shows within minutes whether a search works.
//!
//! Each variable d has one weight x_dk for each of its K choices. An architecture that chooses k_d costs the sum over d of
//! k_d / K + (x_dk - t_d)^2, with noise t_d ~ N(0, 1 / K^2), drawn once for the training and once for the ranking, as two
//! minibatches are. Without noise the smallest cost of all is 0.

use std::{thread::sleep, time::Duration};

use rand_distr::{Distribution, Normal, StandardNormal};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use super::{
    Batch, Draw, Exported, Length, Task, Training, Variable,
    network::{Costs, Mode, Network, Output},
    settings::{self, Given, Kind as Setting, Preset, Row, Violation},
};
use crate::{
    images::{Images, Info, Preprocess, Request, generator},
    optim::Method,
    torch::Tensors,
};

/// The name of the space.
pub const NAME: &str = "toy";

/// The settings of a study. The defaults are the paper's; its 100,000 steps are the study's own `max_steps`.
#[derive(Clone, Debug, PartialEq)]
pub struct Toy {
    /// Variables, D in the paper.
    variables: i64,
    /// Choices of each, K in the paper.
    choices: i64,
    /// Learning rate at the start of the cosine.
    learning_rate: f64,
    /// Momentum of SGD.
    momentum: f64,
    /// Seed of the weights at the start and of the noise.
    seed: i64,
    /// Milliseconds for which a step sleeps, half of them for each minibatch, as if it computed: for trials of a line or a trainer.
    step_ms: i64,
}

const TABLE: [Row<Toy>; 6] = [
    ("variables", Setting::Whole(1, 1000, |s| &mut s.variables)),
    ("choices", Setting::Whole(2, 100, |s| &mut s.choices)),
    ("learning_rate", Setting::Real(0.0, 10.0, |s| &mut s.learning_rate)),
    ("momentum", Setting::Real(0.0, 0.999, |s| &mut s.momentum)),
    ("seed", Setting::Whole(0, i64::MAX, |s| &mut s.seed)),
    ("step_ms", Setting::Whole(0, 3_600_000, |s| &mut s.step_ms)),
];

impl Toy {
    /// Reads a study's settings. Errors with everything that is wrong.
    pub fn new(given: &Given) -> Result<Toy, Vec<Violation>> {
        let variables = match settings::preset(given).map_err(|violation| vec![violation])? {
            Preset::Paper => 30,
            Preset::Small => 20,
            Preset::Quick => 10,
        };
        let mut toy =
            Toy { variables, choices: 5, learning_rate: 0.05, momentum: 0.9, seed: 0, step_ms: 0 };
        let violations = settings::apply(NAME, &mut toy, &TABLE, given);
        if violations.is_empty() { Ok(toy) } else { Err(violations) }
    }

    /// t, one for each variable: `[variables, 1]`.
    fn noise(&self, seed: u64, number: u64) -> Tensor {
        let mut rng = generator(seed, b"toy\0t\0\0\0", number);
        // Unwrap safety: there are choices, so the deviation is finite.
        let normal = Normal::new(0.0, 1.0 / self.choices as f64).unwrap();
        let noise: Vec<f64> = (0..self.variables).map(|_| normal.sample(&mut rng)).collect();
        Tensor::from_slice(&noise).unsqueeze(1)
    }
}

impl Task for Toy {
    fn variables(&self) -> Vec<Variable> {
        let choices: Vec<_> = (0..self.choices).map(|choice| choice.to_string()).collect();
        let variable = |d| Variable::categorical(format!("c{d}"), choices.clone());
        (0..self.variables).map(variable).collect()
    }

    fn settings(&self) -> Given {
        settings::all(self, &TABLE)
    }

    fn describe(&self, _: &[i64]) -> Map<String, Value> {
        Map::new()
    }

    fn dot(&self, _: &[i64]) -> String {
        format!("digraph \"{NAME}\" {{\n}}\n")
    }

    fn images(&self) -> Option<Request> {
        None
    }

    fn normalised(&self) -> bool {
        false
    }

    fn accepts(&self, _: &Info) -> Result<(), String> {
        Ok(())
    }

    fn training(&self) -> Training {
        Training {
            batch_size: 1,
            learning_rate: self.learning_rate,
            method: Method::Sgd { momentum: self.momentum, weight_decay: 0.0 },
            grad_clip: 0.0,
            seed: self.seed.cast_unsigned(),
            length: Length::Epochs(0),
            drop_path: 0.0,
        }
    }

    fn costs(&self, _: &Info, _: &[i64]) -> Option<Costs> {
        None
    }

    /// x ~ N(0, 1), and k_d / K + (x_dk - t_d)^2 of each variable.
    fn network(&self, _: &Info, _: Option<&[i64]>, _: Device, _: Kind) -> Network {
        let mut rng = generator(self.seed.cast_unsigned(), b"toy\0x\0\0\0", 0);
        let (variables, choices) = (self.variables, self.choices);
        let x: Vec<f64> =
            (0..variables * choices).map(|_| StandardNormal.sample(&mut rng)).collect();
        let x = Tensor::from_slice(&x).view([variables, choices]).set_requires_grad(true);
        let weights = x.shallow_clone();
        let cost = move |noise: &Tensor, values: &[i64]| {
            let chosen = Tensor::from_slice(values).unsqueeze(1);
            let weights = weights.gather(1, &chosen, false);
            (chosen.to_kind(Kind::Double) / choices as f64 + (weights - noise).square()).sum(None)
        };
        let still = Tensor::zeros([variables, 1], (Kind::Double, Device::Cpu));
        let forward = move |noise: &Tensor, values: &[i64], _: Mode| {
            let noiseless = tch::no_grad(|| cost(&still, values));
            Output { main: cost(noise, values), auxiliary: Some(noiseless) }
        };
        Network::of([("x".to_owned(), x)].into(), Box::new(forward))
    }

    fn batch(&self, _: &Images, _: &Preprocess, draw: Draw) -> Batch {
        let input = match draw {
            Draw::Augmented { seed, number } => {
                sleep(Duration::from_millis(self.step_ms.cast_unsigned()) / 2);
                self.noise(seed, number)
            }
            Draw::Plain { .. } => Tensor::zeros([self.variables, 1], (Kind::Double, Device::Cpu)),
        };
        Batch { input, target: Tensor::new() }
    }

    /// The cost with noise, and without.
    fn loss(&self, output: &Output, _: &Batch) -> [Tensor; 2] {
        let noiseless = output.auxiliary.as_ref().expect("the network always computes it");
        [output.main.shallow_clone(), noiseless.shallow_clone()]
    }

    /// The smallest cost without noise of any architecture of the step, each with the weights with which it was measured. The
    /// paper's search has succeeded when it is at most 1 / K.
    fn step_metrics(&self, train: &[f64], rank: &[f64]) -> Vec<(&'static str, f64)> {
        vec![("best_noiseless", train.iter().chain(rank).copied().fold(f64::INFINITY, f64::min))]
    }

    fn test_metrics(&self) -> &'static [&'static str] {
        &["loss"]
    }

    fn test(&self, main: &Tensor, _: &Batch) -> Vec<Tensor> {
        vec![main.shallow_clone()]
    }

    fn retraining(
        &self,
        _: &Info,
        _: &[i64],
        _: Preset,
        _: &Given,
    ) -> Result<Box<dyn Task>, Vec<Violation>> {
        Err(vec![Violation::new("", "an architecture of the space toy is no network to retrain")])
    }

    fn interface(&self, _: &Info) -> Map<String, Value> {
        Map::from_iter([("task".to_owned(), json!(NAME))])
    }

    fn exported(&self, _: Network, _: &Info, _: &[i64]) -> Exported {
        Exported { forward: Box::new(Tensor::shallow_clone), constants: Tensors::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::supernet::{StepOutcome, Supernet},
        torch::{self, Precision, Tensors},
    };

    fn given(settings: &[(&str, &str)]) -> Given {
        settings.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
    }

    fn toy(seed: i64) -> Toy {
        Toy { variables: 3, ..Toy::new(&given(&[("seed", &seed.to_string())])).unwrap() }
    }

    fn supernet(toy: &Toy) -> Supernet {
        Supernet::new(toy, &Info::default(), Device::Cpu, Precision::F32)
    }

    /// Noise that is the same for every variable.
    fn noise(t: f64) -> Batch {
        let input = Tensor::full([3, 1], t, (Kind::Double, Device::Cpu));
        Batch { input, target: Tensor::new() }
    }

    const ARCHITECTURES: [[i64; 3]; 2] = [[0, 1, 2], [0, 3, 3]];

    fn step(toy: &Toy, supernet: &mut Supernet, learning_rate: f64) -> StepOutcome {
        let all = ARCHITECTURES.map(Vec::from);
        supernet.step(toy, (&noise(0.1), &all), (&noise(0.2), &all), learning_rate).unwrap()
    }

    /// The weights of a supernet, as its file has them.
    fn weights(supernet: &Supernet) -> Vec<Vec<f64>> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weights.safetensors");
        supernet.snapshot().write(&file).unwrap();
        let zeros = Tensor::zeros([3, 5], (Kind::Double, Device::Cpu));
        let mut loaded: Tensors = [("x".to_owned(), zeros)].into();
        torch::load(&file, &mut [("weight", &mut loaded)]).unwrap();
        Vec::try_from(&loaded["x"]).unwrap()
    }

    #[test]
    fn the_defaults_are_the_paper_s() {
        // Section 5.1, as in the authors' toy problem.
        let (learning_rate, momentum) = (0.05, 0.9);
        let paper = Toy { variables: 30, choices: 5, learning_rate, momentum, seed: 0, step_ms: 0 };
        assert_eq!(Toy::new(&given(&[("preset", "paper")])), Ok(paper.clone()));
        assert_eq!(Toy::new(&Given::new()), Ok(paper.clone()));
        assert_eq!(Toy::new(&paper.settings()), Ok(paper.clone()));
        let quick = Toy { variables: 10, ..paper.clone() };
        assert_eq!(Toy::new(&given(&[("preset", "quick")])), Ok(quick));
        assert_eq!(paper.variables().len(), 30);
        let violations = Toy::new(&given(&[("choices", "1"), ("momentum", "1")])).unwrap_err();
        assert_eq!(violations.len(), 2, "{violations:?}");
    }

    #[test]
    fn noise_has_the_deviation_of_the_paper_and_differs_between_batches() {
        let toy = Toy::new(&given(&[("variables", "1000")])).unwrap();
        let draw = |seed, number| toy.noise(seed, number);
        let deviation = f64::try_from(draw(0, 0).std(false)).unwrap();
        assert!((deviation - 0.2).abs() < 0.02, "{deviation}");
        assert_eq!(draw(0, 0), draw(0, 0));
        assert_ne!(draw(0, 0), draw(0, 1));
        assert_ne!(draw(0, 0), draw(1, 0));
    }

    #[test]
    fn the_first_choices_cost_nothing_once_their_weights_are_0() {
        let toy = toy(0);
        let network = toy.network(&Info::default(), None, Device::Cpu, Kind::Double);
        let x = network.parameters["x"].detach();
        let _ = x.narrow(1, 0, 1).zero_();
        let cost = |values: &[i64]| {
            let output = network.forward(&noise(0.3).input, values, Mode::Evaluate);
            torch::read(&toy.loss(&output, &noise(0.3)))
        };
        let first = cost(&[0; 3]);
        assert!((first[0] - 3.0 * 0.3 * 0.3).abs() < 1e-12);
        assert_eq!(first[1], 0.0);
        let square = |row, choice| x.double_value(&[row, choice]).powi(2);
        let known = 5.0 / 5.0 + square(0, 4) + square(1, 1);
        assert!((cost(&[4, 1, 0])[1] - known).abs() < 1e-12);
        assert_eq!(toy.step_metrics(&[2.0, 0.5], &[1.0]), [("best_noiseless", 0.5)]);
    }

    #[test]
    fn the_weights_move_as_those_of_torch_sgd() {
        let toy = toy(1);
        let mut supernet = supernet(&toy);
        let before = weights(&supernet);
        step(&toy, &mut supernet, 0.05);
        step(&toy, &mut supernet, 0.04);
        // Of one weight that both architectures use: v = 2 (x - t), x -= lr v; then v = 0.9 v + 2 (x - t).
        let (x, t) = (before[0][0], 0.1);
        let first = 2.0 * (x - t);
        let x = x - 0.05 * first;
        let second = 0.9 * first + 2.0 * (x - t);
        let after = weights(&supernet);
        assert!((after[0][0] - (x - 0.04 * second)).abs() < 1e-12);
        assert_eq!(after[0][4], before[0][4], "nobody used it");
    }

    #[test]
    fn a_saved_toy_continues_exactly_and_seeds_differ() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weights.safetensors");
        let toys = [0, 1].map(toy);
        let [mut saved, mut loaded] = toys.each_ref().map(supernet);
        assert_ne!(weights(&loaded), weights(&saved));
        step(&toys[0], &mut saved, 0.05);
        saved.snapshot().write(&file).unwrap();
        loaded.load(&file).unwrap();
        assert_eq!(step(&toys[1], &mut loaded, 0.05), step(&toys[0], &mut saved, 0.05));
        let wider = Toy { variables: 4, ..toy(0) };
        assert!(matches!(supernet(&wider).load(&file), Err(torch::Error::OtherNetwork { .. })));
    }
}
