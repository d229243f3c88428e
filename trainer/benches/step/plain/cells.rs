//! Convolutional cells on libtorch's own operations alone, each where the paper has it, in whatever layout the images come.

use std::collections::BTreeMap;

use asng_trainer::{
    space::enas_micro::{Architecture, CELL_INPUTS, CellSize, Op, Settings, Size},
    supernet::{Batch, Error, enas_micro::Network, loss::cross_entropy, sgd::Rates},
};
use tch::{Device, Kind, Tensor};

use super::{Forward, Plain};

/// The network without its weights.
pub(crate) struct Cells {
    size: Size,
}

impl Plain<Cells> {
    /// Starts with the weights that a supernet of these settings starts with.
    pub(crate) fn cells(settings: &Settings, classes: i64) -> Result<Plain<Cells>, Error> {
        let size = settings.size(3, classes);
        let network = Network::supernet(&size, settings.seed as u64, Device::Cpu, Kind::Float)?;
        let &Settings { momentum, weight_decay, grad_clip, learning_rate, .. } = settings;
        let rates = Rates { momentum, weight_decay, grad_clip };
        Plain::new(Cells { size }, network.parameters(), rates, learning_rate)
    }
}

impl Forward for Cells {
    type Batch = Batch;
    type Architecture = Architecture;

    fn loss(
        &self,
        weights: &BTreeMap<String, Tensor>,
        batch: &Batch,
        architecture: &Architecture,
    ) -> Result<Tensor, Error> {
        let logits = Pass { size: &self.size, weights }.logits(batch, architecture);
        cross_entropy(&logits, &batch.labels)
    }
}

/// One forward pass.
struct Pass<'a> {
    size: &'a Size,
    weights: &'a BTreeMap<String, Tensor>,
}

impl Pass<'_> {
    fn logits(&self, batch: &Batch, architecture: &Architecture) -> Tensor {
        let x = conv(&batch.images, self.weight("stem.conv"), 1, 1);
        let bias = &self.weights["stem.norm.bias"];
        let x = norm(&x, Some((self.weight("stem.norm"), bias)));
        let mut last_two = [x.shallow_clone(), x];
        for (index, cell) in self.size.cells().iter().enumerate() {
            let output = self.cell(&format!("cell{index}"), cell, &last_two, architecture);
            let [_, previous] = last_two;
            last_two = [previous, output];
        }
        let pooled = last_two[1].mean_dim([2, 3].as_slice(), false, None::<Kind>);
        let bias = &self.weights["classifier.bias"];
        pooled.linear(self.weight("classifier"), Some(bias))
    }

    fn cell(
        &self,
        name: &str,
        cell: &CellSize,
        inputs: &[Tensor; CELL_INPUTS],
        architecture: &Architecture,
    ) -> Tensor {
        let graph = architecture.graph(cell);
        let first = format!("{name}.input1");
        let first = if cell.after_reduction {
            self.reduce(&first, &inputs[0])
        } else {
            self.relu_conv_norm(&first, &inputs[0])
        };
        let mut values = vec![first, self.relu_conv_norm(&format!("{name}.input2"), &inputs[1])];
        for (index, node) in graph.nodes.iter().enumerate() {
            let [one, other] = node.sides().map(|(input, op)| {
                let name = format!("{name}.node{index}.from{input}.{}", op.name());
                self.operation(&name, op, cell.stride(input), &values[input])
            });
            values.push(one + other);
        }
        let unused = graph.unused_nodes();
        let nodes: Vec<&Tensor> = unused.iter().map(|node| &values[CELL_INPUTS + node]).collect();
        let weight = self.weight(&format!("{name}.output.conv"));
        let block = |node: &usize| weight.narrow(1, *node as i64 * cell.channels, cell.channels);
        let blocks: Vec<Tensor> = unused.iter().map(block).collect();
        norm(&conv(&Tensor::cat(&nodes, 1).relu(), &Tensor::cat(&blocks, 1), 1, 0), None)
    }

    fn operation(&self, name: &str, op: Op, stride: i64, x: &Tensor) -> Tensor {
        match op {
            Op::Identity if stride == 1 => x.shallow_clone(),
            Op::Identity => self.reduce(name, x),
            Op::AvgPool3x3 => x.avg_pool2d([3, 3], [stride; 2], [1, 1], false, true, None::<i64>),
            Op::MaxPool3x3 => x.max_pool2d([3, 3], [stride; 2], [1, 1], [1, 1], false),
            Op::SepConv3x3 => self.sep_conv(name, 3, stride, x),
            Op::SepConv5x5 => self.sep_conv(name, 5, stride, x),
        }
    }

    fn relu_conv_norm(&self, name: &str, x: &Tensor) -> Tensor {
        norm(&conv(&x.relu(), self.weight(&format!("{name}.conv")), 1, 0), None)
    }

    fn reduce(&self, name: &str, x: &Tensor) -> Tensor {
        let x = x.relu();
        let (height, width) = (x.size()[2], x.size()[3]);
        let shifted = x.narrow(2, 1, height - 1).narrow(3, 1, width - 1);
        let one = conv(&x, self.weight(&format!("{name}.conv1")), 2, 0);
        let other = conv(&shifted, self.weight(&format!("{name}.conv2")), 2, 0);
        norm(&Tensor::cat(&[one, other], 1), None)
    }

    fn sep_conv(&self, name: &str, kernel: i64, stride: i64, x: &Tensor) -> Tensor {
        let mut x = x.shallow_clone();
        for (half, stride) in [(1, stride), (2, 1)] {
            let depthwise = self.weight(&format!("{name}.depthwise{half}"));
            x = conv(&x.relu(), depthwise, stride, kernel / 2);
            x = norm(&conv(&x, self.weight(&format!("{name}.pointwise{half}")), 1, 0), None);
        }
        x
    }

    fn weight(&self, layer: &str) -> &Tensor {
        &self.weights[&format!("{layer}.weight")]
    }
}

/// A weight for fewer inputs than there are is for groups of them.
fn conv(x: &Tensor, weight: &Tensor, stride: i64, padding: i64) -> Tensor {
    let groups = x.size()[1] / weight.size()[1];
    x.conv2d(weight, None::<Tensor>, [stride; 2], [padding; 2], [1, 1], groups)
}

fn norm(x: &Tensor, affine: Option<(&Tensor, &Tensor)>) -> Tensor {
    let (weight, bias) = affine.unzip();
    x.batch_norm(weight, bias, None, None, true, 0.1, 1e-5, true)
}
