//! The weights of the space `toy`, and one step of its search (section 5.1 of the paper).
//!
//! Each variable d has one weight x_dk for each of its K choices. An architecture that chooses k_d costs the sum over d of
//! k_d / K + (x_dk - t_d)^2, with noise t_d ~ N(0, 1 / K^2) that is one for the training and another for the ranking, as
//! two minibatches are. Without noise, the smallest cost of all is 0: of the first choices, with their weights at 0.

use std::{collections::BTreeMap, path::Path, time::Instant};

use rand_distr::{Distribution, Normal, StandardNormal};
use tch::Tensor;

use super::{Error, Snapshot, checkpoint};
use crate::{
    data::generator,
    metrics::{self, Phase},
    space::toy::Settings,
};

/// The weights, with their optimiser.
#[derive(Clone, Debug, PartialEq)]
pub struct Toy {
    settings: Settings,
    /// x, a row for each variable.
    weights: Vec<Vec<f64>>,
    momentum: Vec<Vec<f64>>,
}

/// What a step gave.
#[derive(Clone, Debug, PartialEq)]
pub struct ToyOutcome {
    /// The loss of each rank architecture, in order, after the weights moved.
    pub losses: Vec<f64>,
    /// Mean loss of the train architectures, before the weights moved.
    pub train_loss: f64,
    /// The smallest cost without noise of any architecture of the step, each with the weights with which it was measured.
    /// The paper's search has succeeded when it is at most 1 / K.
    pub best_noiseless: f64,
}

impl Toy {
    /// Weights drawn from N(0, 1) by the settings' seed.
    pub fn new(settings: &Settings) -> Toy {
        let mut rng = generator(settings.seed.cast_unsigned(), b"toy\0x\0\0\0", 0);
        let row = |_| (0..settings.choices).map(|_| StandardNormal.sample(&mut rng)).collect();
        let weights: Vec<Vec<f64>> = (0..settings.variables).map(row).collect();
        let momentum = weights.iter().map(|row| vec![0.0; row.len()]).collect();
        Toy { settings: settings.clone(), weights, momentum }
    }

    /// One step of the search. `number` is its own among those of the study and decides its noise; an architecture is the
    /// choice of each variable.
    pub fn search_step(
        &mut self,
        number: u64,
        train: &[Vec<usize>],
        rank: &[Vec<usize>],
        learning_rate: f64,
    ) -> ToyOutcome {
        let started = Instant::now();
        let (here, there) = (self.noise(2 * number), self.noise(2 * number + 1));
        let still = vec![0.0; self.weights.len()];
        let mut noiseless: Vec<f64> = train.iter().map(|a| self.cost(a, &still)).collect();
        let train_loss =
            train.iter().map(|a| self.cost(a, &here)).sum::<f64>() / train.len() as f64;
        if !train.is_empty() {
            self.descend(train, &here, learning_rate);
        }
        let trained = Instant::now();
        metrics::phase(Phase::Train, trained - started);
        noiseless.extend(rank.iter().map(|a| self.cost(a, &still)));
        let losses = rank.iter().map(|a| self.cost(a, &there)).collect();
        metrics::phase(Phase::Rank, trained.elapsed());
        ToyOutcome {
            losses,
            train_loss,
            best_noiseless: noiseless.into_iter().fold(f64::INFINITY, f64::min),
        }
    }

    /// What an architecture costs with the present weights, without noise.
    pub fn noiseless_cost(&self, architecture: &[usize]) -> f64 {
        self.cost(architecture, &vec![0.0; self.weights.len()])
    }

    /// Moves all weights along the mean gradient of the architectures, by SGD with momentum.
    fn descend(&mut self, architectures: &[Vec<usize>], noise: &[f64], learning_rate: f64) {
        let share = 1.0 / architectures.len() as f64;
        for (d, (row, momentum)) in self.weights.iter_mut().zip(&mut self.momentum).enumerate() {
            momentum.iter_mut().for_each(|m| *m *= self.settings.momentum);
            for architecture in architectures {
                let k = architecture[d];
                momentum[k] += share * 2.0 * (row[k] - noise[d]);
            }
            row.iter_mut().zip(momentum).for_each(|(x, m)| *x -= learning_rate * *m);
        }
    }

    fn cost(&self, architecture: &[usize], noise: &[f64]) -> f64 {
        let choices = self.settings.choices as f64;
        let rows = self.weights.iter().zip(architecture).zip(noise);
        rows.map(|((row, &k), t)| k as f64 / choices + (row[k] - t).powi(2)).sum()
    }

    /// t, one for each variable.
    fn noise(&self, number: u64) -> Vec<f64> {
        let mut rng = generator(self.settings.seed.cast_unsigned(), b"toy\0t\0\0\0", number);
        // Unwrap safety: there are choices, so the deviation is finite.
        let normal = Normal::new(0.0, 1.0 / self.settings.choices as f64).unwrap();
        self.weights.iter().map(|_| normal.sample(&mut rng)).collect()
    }

    /// Weights and momentum as they are now.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let (weights, momentum) = (tensors(&self.weights)?, tensors(&self.momentum)?);
        Snapshot::of(&[("weight", &weights), ("momentum", &momentum)])
    }

    /// Reads a [`Snapshot`] that was written; nothing changes unless all of it fits.
    pub fn load(&mut self, path: &Path) -> Result<(), Error> {
        let (mut weights, mut momentum) = (tensors(&self.weights)?, tensors(&self.momentum)?);
        checkpoint::load(path, &mut [("weight", &mut weights), ("momentum", &mut momentum)])?;
        (self.weights, self.momentum) = (rows(&weights)?, rows(&momentum)?);
        Ok(())
    }
}

/// A tensor called `x`, with a row for each variable.
fn tensors(rows: &[Vec<f64>]) -> Result<BTreeMap<String, Tensor>, Error> {
    let flat = Tensor::f_from_slice(&rows.concat())?;
    Ok([("x".to_owned(), flat.f_view([rows.len() as i64, -1])?)].into())
}

fn rows(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<Vec<f64>>, Error> {
    Ok(Vec::try_from(&tensors["x"])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toy(seed: i64) -> Toy {
        Toy::new(&Settings { variables: 3, choices: 5, seed, ..Settings::default() })
    }

    #[test]
    fn the_first_choices_cost_nothing_once_their_weights_are_0() {
        let mut toy = toy(0);
        for row in &mut toy.weights {
            row[0] = 0.0;
        }
        let outcome = toy.clone().search_step(7, &[], &[vec![0, 0, 0], vec![4, 1, 0]], 0.05);
        assert_eq!(outcome.best_noiseless, 0.0);
        assert!(outcome.train_loss.is_nan());
        let noise: f64 = toy.noise(15).iter().map(|t| t * t).sum();
        assert!((outcome.losses[0] - noise).abs() < 1e-12);
        let known = 5.0 / 5.0 + toy.weights[0][4].powi(2) + toy.weights[1][1].powi(2);
        assert!((toy.cost(&[4, 1, 0], &[0.0; 3]) - known).abs() < 1e-12);
    }

    #[test]
    fn the_weights_move_as_those_of_torch_sgd() {
        let mut toy = toy(1);
        let before = toy.clone();
        let train = [vec![0, 1, 2], vec![0, 3, 3]];
        toy.search_step(0, &train, &[vec![0, 0, 0]], 0.05);
        toy.search_step(1, &train, &[vec![0, 0, 0]], 0.04);
        // Of one weight that both architectures use: v = 2 (x - t), x -= lr v; then v = 0.9 v + 2 (x - t).
        let (x, t) = (before.weights[0][0], [before.noise(0)[0], before.noise(2)[0]]);
        let first = 2.0 * (x - t[0]);
        let x = x - 0.05 * first;
        let second = 0.9 * first + 2.0 * (x - t[1]);
        assert!((toy.weights[0][0] - (x - 0.04 * second)).abs() < 1e-12);
        assert_eq!(toy.weights[0][4], before.weights[0][4], "nobody used it");
    }

    #[test]
    fn a_saved_toy_continues_exactly_and_seeds_differ() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weights.safetensors");
        let architectures = [vec![0, 1, 2], vec![4, 3, 0]];
        let mut saved = toy(0);
        saved.search_step(0, &architectures, &architectures, 0.05);
        saved.snapshot().unwrap().write(&file).unwrap();
        let mut loaded = toy(1);
        assert_ne!(loaded.weights, toy(0).weights);
        loaded.load(&file).unwrap();
        assert_eq!(loaded.weights, saved.weights);
        loaded.settings.seed = 0;
        let step = |toy: &mut Toy| toy.search_step(1, &architectures, &architectures, 0.05);
        assert_eq!(step(&mut loaded), step(&mut saved));
        let mut wider = Toy::new(&Settings { variables: 4, ..Settings::default() });
        assert!(matches!(wider.load(&file), Err(Error::OtherNetwork { .. })));
        std::fs::write(&file, "half of a f").unwrap();
        let error = loaded.load(&file).unwrap_err().to_string();
        assert!(error.contains("is damaged, or of another network: "), "{error}");
    }
}
