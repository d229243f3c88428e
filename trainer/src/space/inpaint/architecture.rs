//! An architecture of either space, decoded from the controller's values.

use super::{Coding, KERNELS, Space, WIDTHS};
use crate::space::Decision;

/// What a node does to its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Module {
    /// Side of the convolution's kernel: 1, 3 or 5.
    pub kernel: i64,
    /// True: height and width stay, and the output goes to the mirror node as well. False: height
    /// and width are halved.
    pub skip: bool,
}

impl Module {
    /// Every module, in the order of the values of `module`.
    pub const ALL: [Module; 6] = [
        Module { kernel: 1, skip: true },
        Module { kernel: 1, skip: false },
        Module { kernel: 3, skip: true },
        Module { kernel: 3, skip: false },
        Module { kernel: 5, skip: true },
        Module { kernel: 5, skip: false },
    ];

    /// The name of the choice.
    pub fn name(&self) -> String {
        let Module { kernel, skip } = self;
        format!("conv_{kernel}x{kernel}_{}", if *skip { "skip" } else { "down" })
    }

    /// The stride of its convolution.
    pub fn stride(&self) -> i64 {
        if self.skip { 1 } else { 2 }
    }
}

/// One node of the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it does.
    pub module: Module,
    /// Channels of its output, and of its mirror node's.
    pub channels: i64,
    /// What it reads: 0 is the image, 1 + i is node i.
    pub input: usize,
}

/// One value for each variable, as the nodes they stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Architecture {
    space: Space,
    nodes: Vec<Node>,
    output: usize,
}

/// Values that are no architecture of the space.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not one value for each variable.
    #[error("an architecture of {nodes} nodes has {expected} values, not {got}")]
    Length {
        /// Nodes in the row.
        nodes: usize,
        /// The number of variables.
        expected: usize,
        /// The number of values.
        got: usize,
    },
    /// A value that its variable cannot take.
    #[error("{variable} is {low} to {high}, not {value}")]
    Value {
        /// The variable's name.
        variable: String,
        /// The smallest value it can take.
        low: i64,
        /// The largest value it can take.
        high: i64,
        /// The value given.
        value: i64,
    },
    /// A description of another space.
    #[error("{0:?} is no space of autoencoders")]
    OtherSpace(String),
}

impl Architecture {
    /// Decodes values in the order of [`Space::variables`].
    pub fn decode(space: &Space, values: &[i64]) -> Result<Architecture, DecodeError> {
        if values.len() != space.length() {
            let (nodes, expected) = (space.nodes, space.length());
            return Err(DecodeError::Length { nodes, expected, got: values.len() });
        }
        for (variable, &value) in space.variables().into_iter().zip(values) {
            let (variable, low, high) = match variable {
                Decision::Categorical(v) => (v.name, 0, v.choices.len() as i64 - 1),
                Decision::Integer(v) => (v.name, v.low, v.high),
            };
            if !(low..=high).contains(&value) {
                return Err(DecodeError::Value { variable, low, high, value });
            }
        }
        // Every value is within its range from here on.
        let (of_node, _) = space.coding.variables();
        let decode = |(index, values): (usize, &[i64])| {
            let input = space.inputs(index).start() + values[of_node - 1] as usize;
            match space.coding {
                Coding::Categorical => Node {
                    module: Module::ALL[values[0] as usize],
                    channels: WIDTHS[values[1] as usize] * space.channels,
                    input,
                },
                Coding::Integer => Node {
                    module: Module {
                        kernel: KERNELS[values[0] as usize - 1],
                        skip: values[1] == 1,
                    },
                    channels: values[2],
                    input,
                },
            }
        };
        let nodes = values.chunks_exact(of_node).take(space.nodes).enumerate().map(decode);
        let output = space.inputs(space.nodes).start() + values[values.len() - 1] as usize;
        Ok(Architecture { space: *space, nodes: nodes.collect(), output })
    }

    /// The values that [`Architecture::decode`] takes.
    pub fn values(&self) -> Vec<i64> {
        let space = &self.space;
        let mut values = Vec::with_capacity(space.length());
        for (index, node) in self.nodes.iter().enumerate() {
            let place = |all: &[i64], value| all.iter().position(|&other| other == value);
            // Unwrap safety: `decode` took kernel, module and width from these very lists.
            let kernel = place(&KERNELS, node.module.kernel).unwrap() as i64;
            match space.coding {
                Coding::Categorical => {
                    let width = place(&WIDTHS, node.channels / space.channels).unwrap();
                    values.push(2 * kernel + i64::from(!node.module.skip));
                    values.push(width as i64);
                }
                Coding::Integer => {
                    values.extend([kernel + 1, i64::from(node.module.skip), node.channels]);
                }
            }
            values.push((node.input - space.inputs(index).start()) as i64);
        }
        if space.coding == Coding::Categorical {
            values.extend([0, 0]);
        }
        values.push((self.output - space.inputs(space.nodes).start()) as i64);
        values
    }

    /// The space it is of.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Every node of the row, active or not.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The active nodes, from the image on: those on the way from the output back to the image.
    /// None if the output reads the image, which only a row shorter than `level_back` allows.
    pub fn active(&self) -> Vec<usize> {
        let mut active = Vec::new();
        let mut place = self.output;
        while place > 0 {
            active.push(place - 1);
            place = self.nodes[place - 1].input;
        }
        active.reverse();
        active
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: Space =
        Space { coding: Coding::Categorical, nodes: 3, level_back: 2, channels: 8 };

    #[test]
    fn decodes_in_the_order_of_the_variables() {
        let values = [3, 2, 0, /* node1 */ 4, 0, 1, /* node2 */ 1, 1, 0, 0, 0, 1];
        let architecture = Architecture::decode(&SMALL, &values).unwrap();
        let node = |kernel, skip, channels, input| Node {
            module: Module { kernel, skip },
            channels,
            input,
        };
        let nodes = [node(3, false, 32, 0), node(5, true, 8, 1), node(1, false, 16, 1)];
        assert_eq!(architecture.nodes(), nodes);
        assert_eq!(architecture.active(), [0, 2]);

        let space = Space { coding: Coding::Integer, ..SMALL };
        let values = [2, 0, 32, 0, /* node1 */ 3, 1, 8, 1, /* node2 */ 1, 0, 16, 0, 1];
        let same = Architecture::decode(&space, &values).unwrap();
        assert_eq!(same.nodes(), nodes);
        assert_eq!(same.values(), values);
    }

    #[test]
    fn names_what_is_wrong() {
        let error = Architecture::decode(&SMALL, &[0; 8]).unwrap_err();
        assert_eq!(error.to_string(), "an architecture of 3 nodes has 12 values, not 8");
        let mut values = [0; 12];
        values[7] = 3;
        let error = Architecture::decode(&SMALL, &values).unwrap_err();
        assert_eq!(error.to_string(), "node2.channels is 0 to 2, not 3");
        values[7] = 0;
        values[9] = 1;
        let error = Architecture::decode(&SMALL, &values).unwrap_err();
        assert_eq!(error.to_string(), "output.module is 0 to 0, not 1");
        let space = Space { coding: Coding::Integer, ..SMALL };
        let error = Architecture::decode(&space, &[0; 13]).unwrap_err();
        assert_eq!(error.to_string(), "node0.kernel is 1 to 3, not 0");
    }

    fn any_space() -> impl Strategy<Value = Space> {
        let coding = prop::sample::select(Coding::ALL.to_vec());
        (coding, 1_usize..9, 1_usize..7, 1_i64..4).prop_map(
            |(coding, nodes, level_back, channels)| Space { coding, nodes, level_back, channels },
        )
    }

    fn any_values(space: Space) -> impl Strategy<Value = (Space, Vec<i64>)> {
        let ranges = space.variables().into_iter().map(|variable| match variable {
            Decision::Categorical(v) => 0..=v.choices.len() as i64 - 1,
            Decision::Integer(v) => v.low..=v.high,
        });
        ranges.collect::<Vec<_>>().prop_map(move |values| (space, values))
    }

    proptest! {
        #[test]
        fn values_within_their_ranges_decode_and_come_back(
            (space, values) in any_space().prop_flat_map(any_values),
        ) {
            let architecture = Architecture::decode(&space, &values).unwrap();
            prop_assert_eq!(architecture.values(), values);
            let active = architecture.active();
            prop_assert!(active.is_sorted());
            for (index, node) in architecture.nodes().iter().enumerate() {
                prop_assert!(node.input <= index && node.input + space.level_back > index);
                prop_assert!((space.channels..=4 * space.channels).contains(&node.channels));
            }
            let mut before = 0;
            for node in active {
                prop_assert_eq!(architecture.nodes()[node].input, before);
                before = node + 1;
            }
        }

        #[test]
        fn any_values_decode_or_are_an_error(
            space in any_space(),
            values in prop::collection::vec(prop_oneof![4 => 0_i64..3, 1 => any::<i64>()], 0..40),
        ) {
            if let Ok(architecture) = Architecture::decode(&space, &values) {
                prop_assert_eq!(architecture.values(), values);
            }
        }
    }
}
