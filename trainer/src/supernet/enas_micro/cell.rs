//! A cell: its inputs brought to one shape, its nodes, and the 1x1 convolution over the nodes that
//! no other node reads.

use std::collections::BTreeMap;

use tch::{Tensor, nn};

use super::super::Error;
use super::super::layers::{BatchNorm, Conv, ConvSize, Mode, NormKind};
use super::operation::{ConvNorm, FactorizedReduce, Operation, Value};
use crate::space::enas_micro::{Architecture, CELL_INPUTS, CellGraph, CellSize, Op};

/// How the output of the cell before the previous one is brought to this cell's shape.
#[derive(Debug)]
enum FirstInput {
    Same(ConvNorm),
    Halved(FactorizedReduce),
}

#[derive(Debug)]
pub(super) struct Cell {
    size: CellSize,
    input1: FirstInput,
    input2: ConvNorm,
    /// By node, input and choice.
    operations: BTreeMap<(usize, usize, Op), Operation>,
    /// The nodes that the output's weight is for, one block of channels each, in order.
    output_nodes: Vec<usize>,
    output_conv: Conv,
    output_norm: BatchNorm,
    /// Whether the output goes through the ReLU that the cells after this one begin with.
    output_relu: bool,
}

impl Cell {
    /// `alone`: only what this graph needs; None for all that any graph can need. `output_relu`:
    /// whether cells read the output.
    pub(super) fn new(
        path: &nn::Path,
        size: &CellSize,
        nodes: usize,
        alone: Option<&CellGraph>,
        norm: NormKind,
        output_relu: bool,
    ) -> Result<Cell, Error> {
        let channels = size.channels;
        let input1 = path / "input1";
        let input1 = if size.after_reduction {
            FirstInput::Halved(FactorizedReduce::new(&input1, size.inputs[0], channels, norm)?)
        } else {
            FirstInput::Same(ConvNorm::new(&input1, size.inputs[0], channels, norm)?)
        };
        let input2 = ConvNorm::new(&(path / "input2"), size.inputs[1], channels, norm)?;

        let mut operations = BTreeMap::new();
        for (node, input, op) in needed_operations(nodes, alone) {
            let path = path / format!("node{node}") / format!("from{input}") / op.name();
            let operation = Operation::new(&path, op, channels, size.stride(input), norm)?;
            operations.insert((node, input, op), operation);
        }
        let output_nodes = alone.map_or_else(|| (0..nodes).collect(), CellGraph::unused_nodes);
        let output = path / "output";
        let output_size = ConvSize::pointwise(output_nodes.len() as i64 * channels, channels);
        Ok(Cell {
            size: *size,
            input1,
            input2,
            operations,
            output_nodes,
            output_conv: Conv::new(&(&output / "conv"), output_size)?,
            output_norm: BatchNorm::new(&(&output / "norm"), channels, norm)?,
            output_relu,
        })
    }

    /// `inputs` are the outputs of the cell before the previous one, and of the previous one, both
    /// behind a ReLU: it belongs to what reads them, but so it is computed once and together with
    /// the normalisation before it.
    pub(super) fn forward(
        &self,
        inputs: &[Tensor; CELL_INPUTS],
        architecture: &Architecture,
        mode: Mode,
    ) -> Result<Tensor, Error> {
        let graph = architecture.graph(&self.size);
        let input1 = match &self.input1 {
            FirstInput::Same(layer) => layer.forward(&inputs[0], mode)?,
            FirstInput::Halved(layer) => layer.forward(&inputs[0], mode)?,
        };
        let input2 = self.input2.forward(&inputs[1], mode)?;
        let mut values = vec![Value::new(input1), Value::new(input2)];
        for (index, node) in graph.nodes.iter().enumerate() {
            let [side1, side2] = node.sides();
            let h1 = self.side(index, side1, &values, mode)?;
            let h2 = self.side(index, side2, &values, mode)?;
            values.push(Value::new(h1.f_add(&h2)?));
        }
        self.output(&values, &graph.unused_nodes(), mode)
    }

    /// The operation on one input of a node, dropped for some images when training with drop path.
    fn side(
        &self,
        node: usize,
        (input, op): (usize, Op),
        values: &[Value],
        mode: Mode,
    ) -> Result<Tensor, Error> {
        let Some(operation) = self.operations.get(&(node, input, op)) else {
            return Err(Error::NotBuilt(format!("{} on input {input} of node {node}", op.name())));
        };
        let output = operation.forward(&values[input], mode)?;
        match mode {
            Mode::Train { drop_path } if drop_path > 0.0 && !operation.is_identity() => {
                drop_images(&output, drop_path)
            }
            _ => Ok(output),
        }
    }

    /// Concatenates the unused nodes and convolves them with the blocks of the weight that are
    /// theirs.
    fn output(&self, values: &[Value], unused: &[usize], mode: Mode) -> Result<Tensor, Error> {
        let nodes: Vec<&Tensor> =
            unused.iter().map(|node| &values[CELL_INPUTS + node].plain).collect();
        let x = Tensor::f_cat(&nodes, 1)?.f_relu_()?; // [batch, unused * c, h, w]
        let x = if unused == self.output_nodes {
            self.output_conv.forward(&x)?
        } else {
            let channels = self.size.channels;
            let mut blocks = Vec::with_capacity(unused.len());
            for node in unused {
                let Ok(block) = self.output_nodes.binary_search(node) else {
                    return Err(Error::NotBuilt(format!("output of node {node}")));
                };
                let first = block as i64 * channels;
                blocks.push(self.output_conv.weight.f_narrow(1, first, channels)?);
            }
            self.output_conv.forward_with(&x, &Tensor::f_cat(&blocks, 1)?)?
        };
        match self.output_relu {
            true => self.output_norm.forward_relu(&x, mode),
            false => self.output_norm.forward(&x, mode),
        }
    }
}

fn needed_operations(nodes: usize, alone: Option<&CellGraph>) -> Vec<(usize, usize, Op)> {
    let mut needed = Vec::new();
    match alone {
        Some(graph) => {
            for (index, node) in graph.nodes.iter().enumerate() {
                needed.extend(node.sides().map(|(input, op)| (index, input, op)));
            }
        }
        None => {
            for node in 0..nodes {
                for input in 0..CELL_INPUTS + node {
                    needed.extend(Op::ALL.map(|op| (node, input, op)));
                }
            }
        }
    }
    // Both sides of a node may be the same operation on the same input, which then exists once.
    needed.dedup();
    needed
}

/// Sets the output to 0 for a random part of the images, and scales the others so that the mean
/// stays.
fn drop_images(x: &Tensor, part: f64) -> Result<Tensor, Error> {
    let kept = 1.0 - part;
    let mut mask = Tensor::f_empty([x.size()[0], 1, 1, 1], (x.kind(), x.device()))?;
    let mask = mask.f_bernoulli_float_(kept)?.f_div_scalar(kept)?;
    Ok(x.f_mul(&mask)?)
}
