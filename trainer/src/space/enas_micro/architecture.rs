//! An architecture of the space, decoded from the controller's values.

use super::{CELL_INPUTS, VARIABLES_PER_NODE, variables};

/// What a node does to one of its inputs. In a reduction cell, an operation on one of the cell's
/// own inputs has stride 2, and [`Op::Identity`] becomes a factorised reduction there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Passes its input on.
    Identity,
    /// 3x3 average pooling; the zeros of the padding count.
    AvgPool3x3,
    /// 3x3 max pooling.
    MaxPool3x3,
    /// 3x3 depthwise separable convolution, applied twice.
    SepConv3x3,
    /// 5x5 depthwise separable convolution, applied twice.
    SepConv5x5,
}

impl Op {
    /// Every operation, in the order of a variable's values.
    pub const ALL: [Op; 5] =
        [Op::Identity, Op::AvgPool3x3, Op::MaxPool3x3, Op::SepConv3x3, Op::SepConv5x5];

    /// The name of the choice.
    pub fn name(self) -> &'static str {
        match self {
            Op::Identity => "identity",
            Op::AvgPool3x3 => "avg_pool_3x3",
            Op::MaxPool3x3 => "max_pool_3x3",
            Op::SepConv3x3 => "sep_conv_3x3",
            Op::SepConv5x5 => "sep_conv_5x5",
        }
    }
}

/// One node: the sum of `ops[0]` of `inputs[0]` and `ops[1]` of `inputs[1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// 0 and 1 are the cell's inputs (the cell before the previous one, the previous one), 2 + i is
    /// node i.
    pub inputs: [usize; 2],
    /// The operation on each input.
    pub ops: [Op; 2],
}

impl Node {
    /// The node's two (input, operation) pairs.
    pub fn sides(&self) -> [(usize, Op); 2] {
        [(self.inputs[0], self.ops[0]), (self.inputs[1], self.ops[1])]
    }
}

/// The graph inside a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellGraph {
    /// In order: a node reads only the cell's inputs and the nodes before it.
    pub nodes: Vec<Node>,
}

impl CellGraph {
    /// The nodes that no other node reads, in order. Their concatenation is the cell's output; the
    /// last node is always one.
    pub fn unused_nodes(&self) -> Vec<usize> {
        let read =
            |node| self.nodes.iter().any(|other| other.inputs.contains(&(CELL_INPUTS + node)));
        (0..self.nodes.len()).filter(|&node| !read(node)).collect()
    }
}

/// One value for each variable, as the two cells it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// The cell that keeps the size of the image.
    pub normal: CellGraph,
    /// The cell that halves height and width and doubles the channels.
    pub reduction: CellGraph,
}

/// Values that are no architecture of the space.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not one value for each variable.
    #[error("an architecture of {nodes} nodes for each cell has {expected} values, not {got}")]
    Length {
        /// Nodes for each cell.
        nodes: usize,
        /// The number of variables.
        expected: usize,
        /// The number of values.
        got: usize,
    },
    /// A value that is not an index into the variable's choices.
    #[error("{variable} is 0 to {largest}, not {value}")]
    Value {
        /// The variable's name.
        variable: String,
        /// The largest value it can take.
        largest: usize,
        /// The value given.
        value: i64,
    },
}

impl Architecture {
    /// Decodes values in the order of [`variables`].
    pub fn decode(nodes: usize, values: &[i64]) -> Result<Architecture, DecodeError> {
        let variables = variables(nodes);
        if values.len() != variables.len() {
            return Err(DecodeError::Length {
                nodes,
                expected: variables.len(),
                got: values.len(),
            });
        }
        let mut choices = Vec::with_capacity(values.len());
        for (variable, &value) in variables.into_iter().zip(values) {
            match usize::try_from(value) {
                Ok(choice) if choice < variable.choices.len() => choices.push(choice),
                _ => {
                    let largest = variable.choices.len() - 1;
                    return Err(DecodeError::Value { variable: variable.name, largest, value });
                }
            }
        }
        let (normal, reduction) = choices.split_at(nodes * VARIABLES_PER_NODE);
        Ok(Architecture { normal: cell_graph(normal), reduction: cell_graph(reduction) })
    }

    /// The values that [`Architecture::decode`] takes.
    pub fn values(&self) -> Vec<i64> {
        let nodes = self.normal.nodes.iter().chain(&self.reduction.nodes);
        let choices =
            nodes.flat_map(|n| [n.inputs[0], n.inputs[1], n.ops[0] as usize, n.ops[1] as usize]);
        choices.map(|choice| choice as i64).collect()
    }
}

fn cell_graph(choices: &[usize]) -> CellGraph {
    let node = |c: &[usize]| Node { inputs: [c[0], c[1]], ops: [Op::ALL[c[2]], Op::ALL[c[3]]] };
    CellGraph { nodes: choices.chunks_exact(VARIABLES_PER_NODE).map(node).collect() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decodes_in_the_order_of_the_variables() {
        let values =
            [0, 1, 3, 0, /* node1 */ 2, 0, 4, 1, /* reduction */ 1, 1, 2, 2, 0, 1, 0, 3];
        let architecture = Architecture::decode(2, &values).unwrap();
        assert_eq!(
            architecture.normal.nodes,
            [
                Node { inputs: [0, 1], ops: [Op::SepConv3x3, Op::Identity] },
                Node { inputs: [2, 0], ops: [Op::SepConv5x5, Op::AvgPool3x3] },
            ]
        );
        assert_eq!(architecture.normal.unused_nodes(), [1]);
        assert_eq!(architecture.reduction.unused_nodes(), [0, 1]);
    }

    #[test]
    fn names_what_is_wrong() {
        let error = Architecture::decode(2, &[0; 8]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "an architecture of 2 nodes for each cell has 16 values, not 8"
        );
        let mut values = [0; 16];
        values[13] = 3;
        let error = Architecture::decode(2, &values).unwrap_err();
        assert_eq!(error.to_string(), "reduction.node1.input2 is 0 to 2, not 3");
        values[13] = -1;
        let error = Architecture::decode(2, &values).unwrap_err();
        assert_eq!(error.to_string(), "reduction.node1.input2 is 0 to 2, not -1");
    }

    proptest! {
        #[test]
        fn any_values_decode_to_a_graph_or_name_a_variable(
            nodes in 1_usize..6,
            values in prop::collection::vec(prop_oneof![4 => 0_i64..2, 1 => any::<i64>()], 0..50),
        ) {
            match Architecture::decode(nodes, &values) {
                Ok(architecture) => {
                    prop_assert_eq!(architecture.values(), values);
                    for cell in [&architecture.normal, &architecture.reduction] {
                        prop_assert!(cell.unused_nodes().contains(&(nodes - 1)));
                    }
                }
                Err(DecodeError::Length { expected, .. }) => {
                    prop_assert_ne!(expected, values.len());
                }
                Err(DecodeError::Value { variable, .. }) => {
                    prop_assert!(variables(nodes).iter().any(|v| v.name == variable));
                }
            }
        }
    }
}
