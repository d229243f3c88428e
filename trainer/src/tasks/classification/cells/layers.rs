//! The network of a space of cells: a stem, cells, a classifier and perhaps an auxiliary head. The same code builds the
//! supernet, with every operation of every node, and one architecture alone, with only its own; and it counts both.
//!
//! Source: the authors' `classification/cnn_model_micro.py`. Parameters are named by their place, counted from 0:
//! `stem.conv.weight`, `cell3.input1.conv.weight`, `cell3.node2.from1.sep_conv_3x3.depthwise1.weight` (`from0` and `from1` are the
//! cell's inputs, `from2` is node 0), `cell3.output.conv.weight`, `auxiliary.conv2.weight`, `classifier.bias`.

use std::{cell::OnceCell, collections::BTreeMap, rc::Rc};

use tch::Tensor;

use super::{
    super::operation::{
        ConvNorm, FactorizedReduce, Layer, Operation, Place, Pooling, ResBlock, Value,
    },
    graph::{CellType, Graph, OutputKind},
    skeleton::{Cells, Ends},
};
use crate::tasks::network::{
    BatchNorm, Builder, Conv, ConvSize, Linear, Mode, NormKind, Output, channels_last, global_pool,
};

/// Channels of the auxiliary head's two convolutions.
const AUXILIARY_CHANNELS: [i64; 2] = [128, 768];

#[derive(Debug)]
pub(super) struct Layers {
    stem_conv: Conv,
    stem_norm: BatchNorm,
    /// Each with the index of its type.
    cells: Vec<(Cell, usize)>,
    /// All cells read what they read behind a ReLU, so it is computed once and together with the normalisation before it.
    rectified: bool,
    auxiliary: Option<Auxiliary>,
    auxiliary_cell: usize,
    final_norm: Option<BatchNorm>,
    classifier: Linear,
}

impl Layers {
    /// Layers for these graphs, one for each type of cells. `auxiliary`: with the auxiliary head, if the space has one.
    pub(super) fn new(
        root: &Builder,
        space: &Cells,
        ends: &Ends,
        graphs: &[Graph],
        shared: bool,
        auxiliary: bool,
    ) -> Layers {
        let [image_channels, height, width] = ends.image;
        let ends_at = |name| root.at(name).with_norm(NormKind { affine: true, running: !shared });
        let pooling =
            Pooling { norm: space.pool_norm && shared, count_padding: space.count_padding };
        let rectified = space.types.len() == 2 && space.types.iter().all(|cell| cell.input_convs);

        let stem = space.stem_multiplier * space.channels;
        let stem_size = ConvSize::square(image_channels, stem, 3, 1);
        let stem_conv = Conv::new(&ends_at("stem").at("conv"), stem_size, height * width);
        let stem_norm = BatchNorm::new(&ends_at("stem").at("norm"), stem);

        let reductions = [space.cells / 3, 2 * space.cells / 3];
        let mut place = CellPlace {
            reduction: false,
            after_reduction: false,
            inputs: [stem; 2],
            channels: space.channels,
            pixels: height * width,
            pooling,
        };
        let mut cells = Vec::with_capacity(space.cells as usize);
        let mut auxiliary_channels = 0;
        for index in 0..space.cells {
            place.after_reduction = place.reduction;
            place.reduction = reductions.contains(&index);
            if place.reduction {
                place.channels *= 2;
                place.pixels /= 4;
            }
            let at = root.at(format_args!("cell{index}"));
            let kind = usize::from(place.reduction);
            let (cell, outputs) = match space.types.get(kind) {
                Some(cell) => Cell::new(&at, cell, &graphs[kind], &place),
                None => Cell::residual(&at, &place),
            };
            cells.push((cell, kind));
            place.inputs = [place.inputs[1], outputs];
            if index == reductions[1] {
                auxiliary_channels = outputs;
            }
        }
        let last = place.inputs[1];
        Layers {
            stem_conv,
            stem_norm,
            cells,
            rectified,
            auxiliary: (auxiliary && space.auxiliary_head)
                .then(|| Auxiliary::new(&ends_at("auxiliary"), auxiliary_channels, ends)),
            auxiliary_cell: reductions[1] as usize,
            final_norm: space.final_norm.then(|| BatchNorm::new(&ends_at("final_norm"), last)),
            classifier: Linear::new(&ends_at("classifier"), last, ends.classes),
        }
    }

    /// The logits for `images` `[batch, channels, height, width]`. `auxiliary`: also those of the auxiliary head, in training.
    pub(super) fn forward(
        &self,
        images: &Tensor,
        graphs: &[Graph],
        mode: Mode,
        auxiliary: bool,
    ) -> Output {
        let stem = self.stem_conv.forward(&channels_last(images)); // [batch, m * c, h, w]
        let stem = Rc::new(normalise(&self.stem_norm, &stem, mode, self.rectified));
        let mut last_two = [stem.clone(), stem];
        let graphs: Vec<_> = graphs.iter().map(|graph| (graph, OnceCell::new())).collect();
        let auxiliary =
            self.auxiliary.as_ref().filter(|_| auxiliary && matches!(mode, Mode::Train { .. }));
        let mut auxiliary_logits = None;
        for (index, (cell, kind)) in self.cells.iter().enumerate() {
            let rectify = self.rectified && index + 1 < self.cells.len();
            let output = cell.forward(&last_two, graphs.get(*kind), mode, rectify);
            if index == self.auxiliary_cell {
                auxiliary_logits = auxiliary.map(|head| head.forward(output.relu(), mode));
            }
            let [_, previous] = last_two;
            last_two = [previous, Rc::new(output)];
        }
        let [_, last] = last_two;
        let pooled = match &self.final_norm {
            Some(norm) => global_pool(&norm.forward_relu(&last.plain, mode)),
            None => global_pool(&last.plain),
        };
        Output { main: self.classifier.forward(&pooled), auxiliary: auxiliary_logits }
    }
}

/// The normalised value, behind a ReLU if all its readers want one.
fn normalise(norm: &BatchNorm, x: &Tensor, mode: Mode, rectify: bool) -> Value {
    match rectify {
        true => Value::rectified(norm.forward_relu(x, mode)),
        false => Value::new(norm.forward(x, mode)),
    }
}

/// The place of a cell in the network.
#[derive(Clone, Copy, Debug)]
struct CellPlace {
    /// True if the cell halves height and width.
    reduction: bool,
    /// The previous cell does, so the output of the cell before that is twice as high and wide.
    after_reduction: bool,
    /// Channels of the outputs of the cell before the previous one, and of the previous one.
    inputs: [i64; 2],
    /// Channels of every node.
    channels: i64,
    /// Height times width of every node.
    pixels: i64,
    pooling: Pooling,
}

#[derive(Debug)]
enum Cell {
    Searched {
        /// None of the cell's inputs, or all.
        input_convs: Vec<InputConv>,
        /// The number of inputs.
        inputs: usize,
        /// By node, value and operation.
        layers: BTreeMap<(usize, usize, Operation), Layer>,
        output: CellOutput,
    },
    Residual(ResBlock),
}

/// The layer that brings an input to the cell's shape.
#[derive(Debug)]
enum InputConv {
    Same(ConvNorm),
    Halved(FactorizedReduce),
}

/// The layer that makes the cell's output of its nodes.
#[derive(Debug)]
enum CellOutput {
    /// Concatenated; one node as it is.
    Nodes,
    /// Concatenated, and convolved with the blocks of the weight that are theirs: of `[c, nodes, c]`.
    Conv {
        /// The nodes that the weight is for, one block of channels each, in order.
        nodes: Vec<usize>,
        channels: i64,
        conv: Conv,
        norm: BatchNorm,
    },
}

impl Cell {
    /// A searched cell with the operations of `graph`, and the channels of its output.
    fn new(at: &Builder, cell: &CellType, graph: &Graph, place: &CellPlace) -> (Cell, i64) {
        let CellPlace { reduction, channels, pixels, pooling, .. } = *place;
        let read = &place.inputs[2 - cell.inputs..];
        let input_conv = |(index, &inputs): (usize, &i64)| {
            let at = at.at(format_args!("input{}", index + 1));
            let pixels = if reduction { 4 * pixels } else { pixels };
            if place.after_reduction && index + 1 < read.len() {
                InputConv::Halved(FactorizedReduce::new(&at, inputs, channels, pixels))
            } else {
                InputConv::Same(ConvNorm::new(&at, ConvSize::pointwise(inputs, channels), pixels))
            }
        };
        let convolved = if cell.input_convs { read } else { &[] };
        let input_convs = convolved.iter().enumerate().map(input_conv).collect();

        let mut layers = BTreeMap::new();
        for (node, terms) in graph.nodes.iter().enumerate() {
            for &(value, operation) in terms {
                // Both terms of a node may be the same operation on the same value, which then exists once.
                layers.entry((node, value, operation)).or_insert_with(|| {
                    let at = at.at(format_args!("node{}", cell.node_number(node)));
                    let at = at.at(format_args!("from{value}"));
                    let as_it_is = value < cell.inputs && !cell.input_convs;
                    let place = Place {
                        inputs: if as_it_is { read[value] } else { channels },
                        outputs: channels,
                        stride: cell.stride(value, reduction),
                        pixels,
                        pooling,
                    };
                    operation.build(&at.at(operation.name()), &place)
                });
            }
        }
        let nodes = graph.output.len() as i64;
        let (output, outputs) = match cell.output {
            OutputKind::All | OutputKind::Last => (CellOutput::Nodes, nodes * channels),
            OutputKind::Unused => {
                let at = at.at("output");
                let size = ConvSize::pointwise(nodes * channels, channels);
                let output = CellOutput::Conv {
                    nodes: graph.output.clone(),
                    channels,
                    conv: Conv::new(&at.at("conv"), size, pixels),
                    norm: BatchNorm::new(&at.at("norm"), channels),
                };
                (output, channels)
            }
        };
        (Cell::Searched { input_convs, inputs: cell.inputs, layers, output }, outputs)
    }

    /// The residual block that halves height and width in NAS-Bench-201, and the channels of its output.
    fn residual(at: &Builder, place: &CellPlace) -> (Cell, i64) {
        let CellPlace { inputs: [_, inputs], channels, pixels, pooling, .. } = *place;
        let place = Place { inputs, outputs: channels, stride: 2, pixels, pooling };
        (Cell::Residual(ResBlock::new(at, &place)), channels)
    }

    /// `outputs` are those of the cell before the previous one, and of the previous one. `graph`: none of a residual block; with the
    /// numbers of the nodes that make the output, on the device once a cell of its type needs them.
    fn forward(
        &self,
        outputs: &[Rc<Value>; 2],
        graph: Option<&(&Graph, OnceCell<Tensor>)>,
        mode: Mode,
        rectify: bool,
    ) -> Value {
        let (input_convs, inputs, layers, output, (graph, chosen)) = match (self, graph) {
            (Cell::Searched { input_convs, inputs, layers, output }, Some(graph)) => {
                (input_convs, *inputs, layers, output, graph)
            }
            (Cell::Residual(block), _) => return Value::new(block.forward(&outputs[1], mode)),
            (Cell::Searched { .. }, None) => unreachable!("searched cells have a graph"),
        };
        let mut values = outputs[2 - inputs..].to_vec();
        for (value, conv) in values.iter_mut().zip(input_convs) {
            *value = Rc::new(Value::new(match conv {
                InputConv::Same(layer) => layer.forward(value.relu(), mode),
                InputConv::Halved(layer) => layer.forward(value.relu(), mode),
            }));
        }
        for (node, terms) in graph.nodes.iter().enumerate() {
            let term = |&(value, operation): &(usize, Operation)| {
                layers[&(node, value, operation)].forward(&values[value], mode)
            };
            let exist = terms.iter().filter(|(_, operation)| !operation.is_none());
            let sum = exist.map(term).reduce(|sum, term| sum + term);
            values.push(Rc::new(Value::new(sum.unwrap_or_else(|| term(&terms[0])))));
        }
        let nodes: Vec<&Tensor> =
            graph.output.iter().map(|node| &values[inputs + node].plain).collect();
        match output {
            CellOutput::Nodes if nodes.len() == 1 => Value::new(nodes[0].shallow_clone()),
            CellOutput::Nodes => Value::new(Tensor::cat(&nodes, 1)),
            CellOutput::Conv { nodes: built, channels, conv, norm } => {
                let x = Tensor::cat(&nodes, 1).relu_(); // [batch, nodes * c, h, w]
                let x = if graph.output == *built {
                    conv.forward(&x)
                } else {
                    // The supernet is built for every node, so a node is its own block.
                    let chosen = chosen.get_or_init(|| {
                        let nodes: Vec<i64> =
                            graph.output.iter().map(|&node| node as i64).collect();
                        Tensor::from_slice(&nodes).to_device(x.device())
                    });
                    let blocks = conv.weight.view([*channels, -1, *channels]);
                    let blocks = blocks.index_select(1, chosen).view([*channels, -1, 1, 1]);
                    conv.forward_with(&x, &blocks)
                };
                normalise(norm, &x, mode, rectify)
            }
        }
    }
}

/// The second classifier, which helps to train a deep network (Szegedy et al. 2015).
#[derive(Debug)]
struct Auxiliary {
    /// Height and width are 8, as in the papers: pooling has a window of 5 and a stride of 3 then.
    eight: bool,
    conv1: Conv,
    norm1: BatchNorm,
    conv2: Conv,
    norm2: BatchNorm,
    classifier: Linear,
}

impl Auxiliary {
    fn new(at: &Builder, channels: i64, ends: &Ends) -> Auxiliary {
        let [first, second] = AUXILIARY_CHANNELS;
        let conv2 = ConvSize { kernel: 2, ..ConvSize::pointwise(first, second) };
        Auxiliary {
            eight: ends.image[1..] == [32, 32],
            conv1: Conv::new(&at.at("conv1"), ConvSize::pointwise(channels, first), 2 * 2),
            norm1: BatchNorm::new(&at.at("norm1"), first),
            conv2: Conv::new(&at.at("conv2"), conv2, 1),
            norm2: BatchNorm::new(&at.at("norm2"), second),
            classifier: Linear::new(&at.at("classifier"), second, ends.classes),
        }
    }

    /// Of a cell's output `[batch, c, h / 4, w / 4]` behind a ReLU.
    fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        let x = match self.eight {
            true => x.avg_pool2d([5, 5], [3, 3], [0, 0], false, true, None::<i64>),
            false => x.adaptive_avg_pool2d([2, 2]),
        }; // [batch, c, 2, 2]
        let x = self.norm1.forward_relu(&self.conv1.forward(&x), mode); // [batch, 128, 2, 2]
        let x = self.norm2.forward_relu(&self.conv2.forward(&x), mode); // [batch, 768, 1, 1]
        self.classifier.forward(&global_pool(&x))
    }
}
