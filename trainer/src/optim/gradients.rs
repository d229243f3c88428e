//! The gradient of a loss with respect to parameters, as a value. A parameter that the loss does not depend on has none, which
//! is not the same as zero: the optimiser leaves it alone.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::torch::Tensors;

/// Gradients in one flat tensor; parameters that took no part are absent.
#[derive(Debug)]
pub struct Gradients {
    /// The shape of each, by the name of its parameter.
    shapes: BTreeMap<String, Vec<i64>>,
    /// All of them one after the other, in the order of the names.
    pub(super) flat: Tensor,
}

impl Default for Gradients {
    fn default() -> Gradients {
        let flat = Tensor::zeros([0], (Kind::Float, Device::Cpu));
        Gradients { shapes: BTreeMap::new(), flat }
    }
}

impl Gradients {
    /// The gradient of `loss`, a tensor without dimensions. Frees the graph behind it.
    pub fn of(loss: &Tensor, parameters: &Tensors) -> Gradients {
        let (flat, touched) =
            asng_native::gradients(loss, &parameters.values().collect::<Vec<_>>()).unwrap();
        let touched = parameters.iter().zip(touched).filter(|(_, touched)| *touched);
        let shapes = touched.map(|((name, parameter), _)| (name.clone(), parameter.size()));
        Gradients { shapes: shapes.collect(), flat }
    }

    /// The sum of both; a parameter in either is in the sum.
    pub fn plus(self, other: Gradients) -> Gradients {
        if self.shapes.is_empty() {
            return other;
        }
        let mut shapes = self.shapes.clone();
        shapes.extend(other.shapes.clone());
        let flat = self.spread(&shapes) + other.spread(&shapes);
        Gradients { shapes, flat }
    }

    /// The flat tensor with zeros for parameters of `shapes` that are absent. Those of several architectures, which may be of several
    /// processes, can be added up when they are spread over the parameters of all.
    fn spread(self, shapes: &BTreeMap<String, Vec<i64>>) -> Tensor {
        if self.shapes.len() == shapes.len() {
            return self.flat;
        }
        let part = |(name, shape): (&String, &Vec<i64>)| {
            (shape.iter().product(), self.shapes.contains_key(name))
        };
        asng_native::spread(&self.flat, &shapes.iter().map(part).collect::<Vec<_>>()).unwrap()
    }

    /// Each gradient by its parameter's name.
    pub fn named(&self) -> Tensors {
        let lengths: Vec<i64> = self.shapes.values().map(|shape| shape.iter().product()).collect();
        let parts = self.flat.split_with_sizes(lengths, 0).into_iter();
        let named = self.shapes.iter().zip(parts);
        named.map(|((name, shape), part)| (name.clone(), part.view(&shape[..]))).collect()
    }

    /// Those of `tensors` that belong to the gradients' parameters, in the order of the flat tensor.
    pub(super) fn matching<'a>(&self, tensors: &'a Tensors) -> Vec<&'a Tensor> {
        // Indexing: tensors of an optimiser have the names of the parameters that the gradients are of.
        self.shapes.keys().map(|name| &tensors[name]).collect()
    }
}
