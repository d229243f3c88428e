//! How large a network of the space is: the channels of each cell, and counts of parameters and
//! operations in closed form. The network is built from the same [`Size::cells`], so the two cannot disagree about the
//! layout.

use super::{Architecture, CELL_INPUTS, CellGraph, Op};

/// The stem widens the image to this many times the channels of the first cell (authors'
/// `stem_multiplier`).
const STEM_MULTIPLIER: i64 = 3;

/// Channels of the auxiliary head's two convolutions (authors' `auxiliary_network`).
pub(crate) const AUXILIARY_CHANNELS: [i64; 2] = [128, 768];

/// Everything that decides the shapes of a network's weights, beside the architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Nodes in each cell.
    pub nodes: usize,
    /// Cells of the network, two of which are reductions (at 1/3 and 2/3 of the depth). At least 3.
    pub cells: usize,
    /// Channels of the cells before the first reduction.
    pub channels: i64,
    /// Channels of an image: 3 for RGB.
    pub image_channels: i64,
    /// Classes to tell apart.
    pub classes: i64,
}

/// The shape of one cell of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellSize {
    /// It halves height and width.
    pub reduction: bool,
    /// The previous cell is a reduction, so the output of the cell before that is twice as large.
    pub after_reduction: bool,
    /// Channels of the outputs of the cell before the previous one, and of the previous one.
    pub inputs: [i64; 2],
    /// Channels of every node and of the output.
    pub channels: i64,
}

impl Size {
    /// Channels of the stem.
    pub fn stem_channels(&self) -> i64 {
        STEM_MULTIPLIER * self.channels
    }

    /// The cells from the image to the classifier.
    pub fn cells(&self) -> Vec<CellSize> {
        let mut inputs = [self.stem_channels(); 2];
        let mut channels = self.channels;
        let mut after_reduction = false;
        let mut cells = Vec::with_capacity(self.cells);
        for index in 0..self.cells {
            let reduction = index == self.cells / 3 || index == self.auxiliary_cell();
            if reduction {
                channels *= 2;
            }
            cells.push(CellSize { reduction, after_reduction, inputs, channels });
            inputs = [inputs[1], channels];
            after_reduction = reduction;
        }
        cells
    }

    /// The cell whose output the auxiliary head reads: the second reduction.
    pub fn auxiliary_cell(&self) -> usize {
        2 * self.cells / 3
    }

    /// Trainable parameters of the supernet, with the auxiliary head: 2,274,052 at the paper's
    /// size.
    pub fn supernet_parameters(&self) -> i64 {
        let mut parameters = self.ends_parameters() + self.auxiliary_parameters();
        for cell in self.cells() {
            parameters += cell.input_parameters(false) + cell.output_parameters(self.nodes, false);
            for node in 0..self.nodes {
                for input in 0..CELL_INPUTS + node {
                    let op_parameters = |op| cell.op_parameters(input, op, false);
                    parameters += Op::ALL.into_iter().map(op_parameters).sum::<i64>();
                }
            }
        }
        parameters
    }

    /// Trainable parameters of the auxiliary head: 410,890 at the paper's size.
    pub fn auxiliary_parameters(&self) -> i64 {
        let [first, second] = AUXILIARY_CHANNELS;
        let channels = self.cells()[self.auxiliary_cell()].channels;
        let convolutions = channels * first + first * second * 2 * 2;
        convolutions + norm_parameters(first + second, true) + (second + 1) * self.classes
    }

    /// Stem and classifier.
    fn ends_parameters(&self) -> i64 {
        let stem = self.stem_channels();
        let last = self.cells()[self.cells - 1].channels;
        self.image_channels * 3 * 3 * stem + norm_parameters(stem, true) + (last + 1) * self.classes
    }
}

impl CellSize {
    /// The stride of an operation on `input`: 2 on a reduction cell's own inputs, else 1.
    pub fn stride(&self, input: usize) -> i64 {
        if self.reduction && input < CELL_INPUTS { 2 } else { 1 }
    }

    /// The two 1x1 convolutions that bring the cell's inputs to its channels.
    fn input_parameters(&self, affine: bool) -> i64 {
        (self.inputs[0] + self.inputs[1]) * self.channels
            + 2 * norm_parameters(self.channels, affine)
    }

    /// The 1x1 convolution over `nodes` concatenated nodes.
    fn output_parameters(&self, nodes: usize, affine: bool) -> i64 {
        nodes as i64 * self.channels * self.channels + norm_parameters(self.channels, affine)
    }

    fn op_parameters(&self, input: usize, op: Op, affine: bool) -> i64 {
        let separable = |kernel: i64| {
            let depthwise = self.channels * kernel * kernel;
            2 * (depthwise + self.channels * self.channels + norm_parameters(self.channels, affine))
        };
        match op {
            Op::Identity if self.stride(input) == 1 => 0,
            Op::Identity => self.channels * self.channels + norm_parameters(self.channels, affine),
            Op::AvgPool3x3 | Op::MaxPool3x3 => 0,
            Op::SepConv3x3 => separable(3),
            Op::SepConv5x5 => separable(5),
        }
    }

    /// What comes after the convolutions that bring the inputs to the cell's channels.
    fn graph_parameters(&self, graph: &CellGraph, affine: bool) -> i64 {
        let mut parameters = self.output_parameters(graph.unused_nodes().len(), affine);
        for node in &graph.nodes {
            let [(input1, op1), (input2, op2)] = node.sides();
            parameters += self.op_parameters(input1, op1, affine);
            // A node that picks the same operation on the same input twice has it once.
            if (input1, op1) != (input2, op2) {
                parameters += self.op_parameters(input2, op2, affine);
            }
        }
        parameters
    }
}

impl Architecture {
    /// The graph of a cell of this kind.
    pub fn graph(&self, cell: &CellSize) -> &CellGraph {
        if cell.reduction { &self.reduction } else { &self.normal }
    }

    /// Trainable parameters of this architecture alone, without the auxiliary head, whose number is
    /// [`Size::auxiliary_parameters`] (authors' `get_params`). `affine`: batch normalisation in the
    /// cells has a weight and a bias, as when retrained.
    pub fn parameters(&self, size: &Size, affine: bool) -> i64 {
        let of_cell = |cell: &CellSize| {
            cell.input_parameters(affine) + cell.graph_parameters(self.graph(cell), affine)
        };
        size.ends_parameters() + size.cells().iter().map(of_cell).sum::<i64>()
    }

    /// Multiplications, each with an addition, of the convolutions and the classifier for one image
    /// of height and width `side`, without the auxiliary head. An operation that a node has twice
    /// on the same input counts once.
    pub fn macs(&self, size: &Size, side: i64) -> i64 {
        let cells = size.cells();
        let stem = size.image_channels * 3 * 3 * size.stem_channels() * side * side;
        let mut macs = stem + cells[size.cells - 1].channels * size.classes;
        let mut side = side;
        for cell in &cells {
            // Without normalisation every parameter is a weight, used once for each pixel.
            macs += cell.input_parameters(false) * side * side;
            if cell.reduction {
                side /= 2;
            }
            macs += cell.graph_parameters(self.graph(cell), false) * side * side;
        }
        macs
    }

    /// The most channels, at most 127, with which this architecture alone (affine, without the
    /// auxiliary head) has at most `limit` parameters; None if one channel is too many. The paper
    /// retrains with 20 cells and a limit of 4 million, and the authors' bisection between 0 and 127
    /// gives the same.
    pub fn widest(&self, size: &Size, limit: i64) -> Option<i64> {
        let fits = |&channels: &i64| self.parameters(&Size { channels, ..*size }, true) <= limit;
        (1..128).rev().find(fits)
    }
}

fn norm_parameters(channels: i64, affine: bool) -> i64 {
    if affine { 2 * channels } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAPER: Size = Size { nodes: 5, cells: 8, channels: 16, image_channels: 3, classes: 10 };

    #[test]
    fn counts_of_the_paper() {
        assert_eq!(PAPER.supernet_parameters(), 2_274_052);
        assert_eq!(PAPER.auxiliary_parameters(), 410_890);
    }

    #[test]
    fn operations_of_a_small_network() {
        let size = Size { nodes: 1, cells: 3, channels: 4, image_channels: 3, classes: 10 };
        // Normal: 3x3 separable convolutions of both inputs. Reduction: identity and a pooling.
        let architecture = Architecture::decode(1, &[0, 1, 3, 3, 0, 1, 0, 2]).unwrap();
        let stem = 27 * 12 * 32 * 32;
        let normal = (24 * 4 + 2 * 2 * (4 * 9 + 4 * 4) + 4 * 4) * 32 * 32;
        let first = (12 + 4) * 8 * 32 * 32 + (8 * 8 + 8 * 8) * 16 * 16;
        // The output before the previous one is halved by this cell.
        let second = (4 + 8) * 16 * 16 * 16 + (16 * 16 + 16 * 16) * 8 * 8;
        assert_eq!(architecture.macs(&size, 32), stem + normal + first + second + 16 * 10);
    }

    #[test]
    fn channels_double_at_a_third_and_two_thirds_of_the_depth() {
        let cells = PAPER.cells();
        let channels: Vec<i64> = cells.iter().map(|cell| cell.channels).collect();
        assert_eq!(channels, [16, 16, 32, 32, 32, 64, 64, 64]);
        assert_eq!(cells[0].inputs, [48, 48]);
        assert_eq!(cells[1].inputs, [48, 16]);
        assert_eq!(cells[6].inputs, [32, 64]);
        let after: Vec<usize> = (0..8).filter(|&i| cells[i].after_reduction).collect();
        assert_eq!(after, [3, 6]);
    }

    #[test]
    fn the_widest_network_is_the_last_that_fits() {
        let architecture = Architecture::decode(5, &[0; 40]).unwrap();
        let size = Size { cells: 20, ..PAPER };
        let widest = architecture.widest(&size, 4_000_000).unwrap();
        let at = |channels| architecture.parameters(&Size { channels, ..size }, true);
        assert!(at(widest) <= 4_000_000);
        assert!(widest == 127 || at(widest + 1) > 4_000_000);
        assert_eq!(architecture.widest(&size, 10), None);
    }
}
