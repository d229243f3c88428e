//! The artificial problem of the paper's section 5.1: no images, a table of numbers as weights, and a best architecture that is
//! known: the first choice of every variable. It shows within minutes whether a search works.
//!
//! Each variable d has one weight x_dk for each of its K choices. An architecture that chooses k_d costs the sum over d of
//! k_d / K + (x_dk - t_d)^2, with noise t_d ~ N(0, 1 / K^2), drawn once for the training and once for the ranking, as two
//! minibatches are. Without noise the smallest cost of all is 0.

use rand_distr::{Distribution, Normal, StandardNormal};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use super::{
    Batch, Draw, Exported, Length, Task, Training, Variable,
    network::{Costs, Network, Output},
    settings::{self, Given, Kind as Setting, Preset, Row, Violation},
};
use crate::{
    images::{Images, Info, Preprocess, Request, generator},
    optim::Method,
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
}

const TABLE: [Row<Toy>; 5] = [
    ("variables", Setting::Whole(1, 1000, |s| &mut s.variables)),
    ("choices", Setting::Whole(2, 100, |s| &mut s.choices)),
    ("learning_rate", Setting::Real(0.0, 10.0, |s| &mut s.learning_rate)),
    ("momentum", Setting::Real(0.0, 0.999, |s| &mut s.momentum)),
    ("seed", Setting::Whole(0, i64::MAX, |s| &mut s.seed)),
];

impl Toy {
    /// Reads a study's settings. Errors with everything that is wrong.
    pub fn new(given: &Given) -> Result<Toy, Vec<Violation>> {
        let variables = match settings::preset(given).map_err(|violation| vec![violation])? {
            Preset::Paper => 30,
            Preset::Quick => 10,
        };
        let mut toy = Toy { variables, choices: 5, learning_rate: 0.05, momentum: 0.9, seed: 0 };
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
        let forward = move |noise: &Tensor, values: &[i64], _| {
            let noiseless = tch::no_grad(|| cost(&still, values));
            Output { main: cost(noise, values), auxiliary: Some(noiseless) }
        };
        Network::of([("x".to_owned(), x)].into(), Box::new(forward))
    }

    fn batch(&self, _: &Images, _: &Preprocess, draw: Draw) -> Batch {
        let input = match draw {
            Draw::Augmented { seed, number } => self.noise(seed, number),
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
        Box::new(Tensor::shallow_clone)
    }
}
