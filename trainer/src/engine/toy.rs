//! Steps of the space `toy`.

use std::{collections::BTreeMap, path::Path};

use super::{Error, Measured, Step, Study, cosine};
use crate::{
    space::toy::Settings,
    supernet::{self, Snapshot},
};

/// A study's weights.
pub(super) struct Toy {
    settings: Settings,
    weights: supernet::Toy,
}

impl Toy {
    pub(super) fn new(settings: Settings) -> Toy {
        Toy { weights: supernet::Toy::new(&settings), settings }
    }
}

impl Study for Toy {
    fn step(&mut self, step: &Step) -> Result<Measured, Error> {
        let decode = |values: &Vec<i64>| self.settings.decode(values);
        let train: Vec<_> = step.train.iter().map(decode).collect::<Result<_, _>>()?;
        let rank: Vec<_> = step.rank.iter().map(decode).collect::<Result<_, _>>()?;
        let learning_rate = cosine(self.settings.learning_rate, step.progress);
        let outcome = self.weights.search_step(step.batch, &train, &rank, learning_rate);
        let metrics = [
            ("train_loss", outcome.train_loss),
            ("best_noiseless", outcome.best_noiseless),
            ("learning_rate", learning_rate),
        ];
        let (losses, costs) = (outcome.losses, Vec::new());
        Ok(Measured { losses, costs, metrics: metrics.into(), images: 0 })
    }

    /// The cost without noise; of no images.
    fn evaluate(
        &self,
        values: &[i64],
        _: Option<i64>,
    ) -> Result<(u64, BTreeMap<&'static str, f64>), Error> {
        let architecture = self.settings.decode(values)?;
        Ok((0, [("loss", self.weights.noiseless_cost(&architecture))].into()))
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        Ok(self.weights.snapshot()?)
    }

    fn load(&mut self, file: &Path) -> Result<(), Error> {
        Ok(self.weights.load(file)?)
    }
}
