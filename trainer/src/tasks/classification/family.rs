//! The interface that both families share.

use serde_json::Value;
use tch::{Device, Kind};

use super::{cells::Ends, definition::Family};
use crate::tasks::{
    Variable,
    network::{Costs, Network},
};

impl Family {
    /// The table of a definition that describes such a space.
    pub fn name(&self) -> &'static str {
        match self {
            Family::Cells(_) => "cells",
            Family::Chain(_) => "chain",
        }
    }

    /// The variables, in the order of an architecture's values. The other functions panic on values that
    /// [`check`](crate::tasks::check) refuses.
    pub fn variables(&self) -> Vec<Variable> {
        match self {
            Family::Cells(cells) => cells.variables(),
            Family::Chain(chain) => chain.variables(),
        }
    }

    /// Makes the supernet, or with `alone` the network of that architecture. Weights start as `seed` decides.
    pub fn network(
        &self,
        ends: &Ends,
        alone: Option<&[i64]>,
        seed: u64,
        device: Device,
        kind: Kind,
    ) -> Network {
        match self {
            Family::Cells(cells) => cells.network(ends, alone, seed, device, kind),
            Family::Chain(chain) => chain.network(ends, alone, seed, device, kind),
        }
    }

    /// The costs of an architecture alone. `affine`: its normalisations have weights and biases, as when it is trained alone.
    pub fn costs(&self, ends: &Ends, values: &[i64], affine: bool) -> Costs {
        match self {
            Family::Cells(cells) => cells.costs(ends, values, affine),
            Family::Chain(chain) => chain.costs(ends, values, affine),
        }
    }

    /// The number of the supernet's parameters.
    pub fn supernet_parameters(&self, ends: &Ends) -> i64 {
        match self {
            Family::Cells(cells) => cells.supernet_parameters(ends),
            Family::Chain(chain) => chain.supernet_parameters(ends),
        }
    }

    /// Height and width of images must be divisible by this number: cells halve both twice without losing a pixel, blocks of a
    /// chain round up.
    pub fn divisor(&self) -> i64 {
        match self {
            Family::Cells(_) => 4,
            Family::Chain(_) => 1,
        }
    }

    /// Describes an architecture as JSON.
    pub fn describe(&self, values: &[i64]) -> Value {
        match self {
            Family::Cells(cells) => cells.describe(values),
            Family::Chain(chain) => chain.describe(values),
        }
    }

    /// Draws an architecture as a Graphviz digraph.
    pub fn dot(&self, values: &[i64]) -> String {
        match self {
            Family::Cells(cells) => cells.dot(values),
            Family::Chain(chain) => chain.dot(values),
        }
    }
}
