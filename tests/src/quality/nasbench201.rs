//! NAS-Bench-201 (Dong and Yang, ICLR 2020): the validation accuracy of every cell of six edges with one of five operations
//! each, after 200 epochs, of two or three trainings.

use std::{collections::HashMap, fs::File, io::BufReader, path::Path};

use anyhow::{Context, ensure};
use asng_proto::v1;
use rand::{Rng, seq::IndexedRandom};
use serde::Deserialize;

use super::Search;

const EDGES: [&str; 6] = ["0>1", "0>2", "1>2", "0>3", "1>3", "2>3"];
const OPERATIONS: [&str; 5] = ["none", "skip", "conv1x1", "conv3x3", "avgpool"];
/// Of the tables: an architecture's key is its operations' numbers, edge after edge.
const ARCHITECTURES: usize = 15_625;

/// The data set that the cells were trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataSet {
    /// CIFAR-10.
    Cifar10,
    /// CIFAR-100.
    Cifar100,
    /// ImageNet16-120.
    ImageNet,
}

impl DataSet {
    /// All of them.
    pub const ALL: [DataSet; 3] = [DataSet::Cifar10, DataSet::Cifar100, DataSet::ImageNet];

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            DataSet::Cifar10 => "CIFAR-10",
            DataSet::Cifar100 => "CIFAR-100",
            DataSet::ImageNet => "ImageNet16-120",
        }
    }

    fn file(self) -> &'static str {
        match self {
            DataSet::Cifar10 => "cifar10.pkl",
            DataSet::Cifar100 => "cifar100.pkl",
            DataSet::ImageNet => "imagenet.pkl",
        }
    }
}

/// The table of a data set.
pub struct NasBench201 {
    /// Of each training, in percent, by the architecture's number.
    accuracies: Vec<Vec<f64>>,
}

/// The entry of an architecture in the file.
#[derive(Deserialize)]
struct Entry {
    val_acc: Vec<f64>,
}

/// How far a search has come after so many evaluations.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Evaluations.
    pub evaluations: u64,
    /// Accuracy in percent of the best architecture that it evaluated.
    pub incumbent: f64,
    /// That of its most likely one.
    pub mode: Option<f64>,
}

impl NasBench201 {
    /// Reads a table that `cargo xtask setup nasbench201` fetched.
    pub fn load(data_set: DataSet) -> anyhow::Result<NasBench201> {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../data/nasbench201"));
        let path = folder.join(data_set.file());
        let file = File::open(&path).with_context(|| {
            format!("cannot open {}: run `cargo xtask setup nasbench201`", path.display())
        })?;
        let options = serde_pickle::DeOptions::new();
        let entries: HashMap<String, Entry> =
            serde_pickle::from_reader(BufReader::new(file), options)?;
        let mut accuracies = vec![Vec::new(); ARCHITECTURES];
        for (key, entry) in entries {
            let number = usize::from_str_radix(&key, OPERATIONS.len() as u32)?;
            *accuracies.get_mut(number).with_context(|| format!("no architecture {key}"))? =
                entry.val_acc;
        }
        ensure!(accuracies.iter().all(|trained| !trained.is_empty()), "the table has holes");
        Ok(NasBench201 { accuracies })
    }

    /// An operation for each edge.
    pub fn variables() -> Vec<v1::Variable> {
        let choices = OPERATIONS.map(str::to_owned).to_vec();
        let variable = |edge: &str| v1::Variable {
            name: edge.into(),
            kind: Some(v1::variable::Kind::Categorical(v1::Categorical {
                choices: choices.clone(),
            })),
        };
        EDGES.map(variable).to_vec()
    }

    /// Accuracy in percent, the mean of its trainings.
    pub fn accuracy(&self, architecture: &[i64]) -> f64 {
        mean(self.trained(architecture))
    }

    /// Its place among all by that accuracy, from 1 for the best; those with the same accuracy share the first of their places.
    pub fn rank(&self, architecture: &[i64]) -> usize {
        let accuracy = self.accuracy(architecture);
        1 + self.accuracies.iter().filter(|trained| mean(trained) > accuracy).count()
    }

    /// Accuracy in percent of one of its trainings.
    pub fn of_one_training(&self, architecture: &[i64], random: &mut impl Rng) -> f64 {
        *self.trained(architecture).choose(random).expect("load has seen that there is one")
    }

    /// The best that there is.
    pub fn best(&self) -> f64 {
        self.accuracies.iter().map(|trained| mean(trained)).fold(f64::NEG_INFINITY, f64::max)
    }

    fn trained(&self, architecture: &[i64]) -> &[f64] {
        let number = |number, operation: &i64| number * OPERATIONS.len() + *operation as usize;
        &self.accuracies[architecture.iter().fold(0, number)]
    }

    /// Searches, and says how far it had come after so many evaluations, in order.
    pub async fn run(&self, mut search: Search, at: &[u64]) -> anyhow::Result<Vec<Point>> {
        let mut points = Vec::new();
        let (mut evaluations, mut incumbent) = (0, f64::NEG_INFINITY);
        for &at in at {
            while evaluations < at {
                let architectures = search.ask()?;
                let accuracies = architectures.iter().map(|a| self.accuracy(a)).collect::<Vec<_>>();
                evaluations += accuracies.len() as u64;
                incumbent = accuracies.iter().copied().fold(incumbent, f64::max);
                search.tell(accuracies.iter().map(|accuracy| -accuracy).collect()).await?;
            }
            let mode = search.mode().await?.map(|mode| self.accuracy(&mode));
            points.push(Point { evaluations, incumbent, mode });
        }
        Ok(points)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
