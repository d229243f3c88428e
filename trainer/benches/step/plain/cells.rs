//! Convolutional cells on libtorch's own operations alone, each where the paper has it, in whatever layout the images come.

use asng_trainer::torch::Tensors;
use tch::{Kind, Tensor};

/// The paper's.
const CELLS: usize = 8;
const CHANNELS: i64 = 16;
const REDUCTIONS: [usize; 2] = [2, 5];
/// Values of a node: two inputs and an operation on each.
const NODE: usize = 4;

/// Computes the logits of an architecture of `enas-micro`.
pub(crate) fn logits(weights: &Tensors, images: &Tensor, values: &[i64]) -> Tensor {
    let pass = Pass(weights);
    let x = conv(images, pass.weight("stem.conv"), 1, 1);
    let bias = &weights["stem.norm.bias"];
    let x = norm(&x, Some((pass.weight("stem.norm"), bias)));
    let (normal, reduction) = values.split_at(values.len() / 2);
    let mut last_two = [x.shallow_clone(), x];
    for cell in 0..CELLS {
        let values = if REDUCTIONS.contains(&cell) { reduction } else { normal };
        let output = pass.cell(cell, &last_two, values);
        let [_, previous] = last_two;
        last_two = [previous, output];
    }
    let pooled = last_two[1].mean_dim([2, 3].as_slice(), false, None::<Kind>);
    pooled.linear(pass.weight("classifier"), Some(&weights["classifier.bias"]))
}

/// One forward pass.
struct Pass<'a>(&'a Tensors);

impl Pass<'_> {
    fn cell(&self, cell: usize, inputs: &[Tensor; 2], values: &[i64]) -> Tensor {
        let reduction = REDUCTIONS.contains(&cell);
        let first = format!("cell{cell}.input1");
        let first = match cell > 0 && REDUCTIONS.contains(&(cell - 1)) {
            true => self.reduce(&first, &inputs[0]),
            false => self.relu_conv_norm(&first, &inputs[0]),
        };
        let mut states =
            vec![first, self.relu_conv_norm(&format!("cell{cell}.input2"), &inputs[1])];
        let mut unused = Vec::new();
        for (node, values) in values.chunks_exact(NODE).enumerate() {
            let term = |side: usize| {
                let (input, op) = (values[side] as usize, values[2 + side]);
                let stride = if reduction && input < inputs.len() { 2 } else { 1 };
                let name = format!("cell{cell}.node{node}.from{input}");
                self.operation(&name, op, stride, &states[input])
            };
            states.push(term(0) + term(1));
            unused.push(node);
            unused.retain(|node| !values[..2].contains(&((inputs.len() + node) as i64)));
        }
        let nodes: Vec<&Tensor> = unused.iter().map(|node| &states[inputs.len() + node]).collect();
        let weight = self.weight(&format!("cell{cell}.output.conv"));
        let reductions = REDUCTIONS.iter().filter(|reduction| **reduction <= cell).count();
        let channels = CHANNELS << reductions;
        let block = |node: &usize| weight.narrow(1, *node as i64 * channels, channels);
        let blocks: Vec<Tensor> = unused.iter().map(block).collect();
        norm(&conv(&Tensor::cat(&nodes, 1).relu(), &Tensor::cat(&blocks, 1), 1, 0), None)
    }

    fn operation(&self, from: &str, op: i64, stride: i64, x: &Tensor) -> Tensor {
        match op {
            0 if stride == 1 => x.shallow_clone(),
            0 => self.reduce(&format!("{from}.identity"), x),
            1 => x.avg_pool2d([3, 3], [stride; 2], [1, 1], false, true, None::<i64>),
            2 => x.max_pool2d([3, 3], [stride; 2], [1, 1], [1, 1], false),
            3 => self.sep_conv(&format!("{from}.sep_conv_3x3"), 3, stride, x),
            _ => self.sep_conv(&format!("{from}.sep_conv_5x5"), 5, stride, x),
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
        &self.0[&format!("{layer}.weight")]
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
