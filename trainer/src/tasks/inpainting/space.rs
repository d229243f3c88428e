//! The variables of the spaces `inpaint-cat` and `inpaint-int`.
//!
//! Nodes stand in one row. Each is a convolution and reads one of the up to `level_back` places before it, the image being the
//! place before the first node; the last variable chooses the node that the encoder ends with.
//!
//! With the paper's 20 nodes, level-back 5 and channels from 64:
//!
//! | space | of each node | at the end |
//! | --- | --- | --- |
//! | `inpaint-cat` | `module` (6), `channels` (64, 128, 256), `input` | `output.module` (1), `output.channels` (1), `output.input` (5) |
//! | `inpaint-int` | `kernel` (integer 1 to 3), `skip` (2), `channels` (integer 64 to 256), `input` | `output.input` (5) |
//!
//! Nodes 0 to 4 choose among 1, 2, 3, 4 and 5 inputs (the image and the nodes before them), later ones among the 5 nodes before
//! them: (0 + 1 + 2 + 3 + 4) + 15 x 4 + 4 = 74 free parameters with the output's. So `inpaint-cat` has 20 x 3 + 3 = 63 variables
//! and n = 20 x (5 + 2) + 74 = 214; three variables are fixed (`node0.input` and two of the output, which the authors' space has
//! too), 60 are free. `inpaint-int` has 20 x 4 + 1 = 81 variables, one of them fixed, and n = 20 x 1 + 74 = 94 for the categorical
//! and 20 x 2 x 2 = 80 for the integer ones.

use std::ops::RangeInclusive;

use super::architecture::{Architecture, Layer, Module, Node, place_name};
use crate::tasks::{Domain, Variable};

/// The three choices of channels are the smallest number times these.
const WIDTHS: [i64; 3] = [1, 2, 4];

/// The coding of a node's choices as variables, which is the difference between the two spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// `inpaint-cat`: all of them categorical.
    Categorical,
    /// `inpaint-int`: kernel and channels as integers.
    Integer,
}

impl Coding {
    /// Both codings.
    pub const ALL: [Coding; 2] = [Coding::Categorical, Coding::Integer];

    /// Returns the name of the space.
    pub fn name(self) -> &'static str {
        match self {
            Coding::Categorical => "inpaint-cat",
            Coding::Integer => "inpaint-int",
        }
    }

    /// Returns the coding of the space `name`.
    pub fn named(name: &str) -> Option<Coding> {
        Coding::ALL.into_iter().find(|coding| coding.name() == name)
    }
}

/// The settings that decide the variables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) coding: Coding,
    /// Nodes in the row, at least 1.
    pub(super) nodes: usize,
    /// Places before a node that it can read, at least 1.
    pub(super) level_back: usize,
    /// The smallest number of channels of a node; the largest is four times as many.
    pub(super) channels: i64,
}

impl Space {
    /// Returns the largest number of channels of a node.
    pub(super) fn max_channels(&self) -> i64 {
        WIDTHS[WIDTHS.len() - 1] * self.channels
    }

    /// Returns the variables, in the order of an architecture's values.
    pub(super) fn variables(&self) -> Vec<Variable> {
        let categorical = |name: String, choices| Variable::categorical(name, choices);
        let integer = |name, low, high| Variable { name, domain: Domain::Integer { low, high } };
        let inputs = |node| self.inputs(node).map(place_name).collect();
        let mut variables = Vec::new();
        for node in 0..self.nodes {
            let name = |part: &str| format!("node{node}.{part}");
            match self.coding {
                Coding::Categorical => {
                    let modules = Module::ALL.map(|module| module.to_string()).to_vec();
                    let channels = WIDTHS.map(|width| (width * self.channels).to_string());
                    variables.push(categorical(name("module"), modules));
                    variables.push(categorical(name("channels"), channels.to_vec()));
                }
                Coding::Integer => {
                    let kinds = ["down", "skip"].map(str::to_owned).to_vec();
                    variables.push(integer(name("kernel"), 1, 3));
                    variables.push(categorical(name("skip"), kinds));
                    variables.push(integer(name("channels"), self.channels, self.max_channels()));
                }
            }
            variables.push(categorical(name("input"), inputs(node)));
        }
        if self.coding == Coding::Categorical {
            variables.push(categorical("output.module".into(), vec!["deconv_3x3".into()]));
            variables.push(categorical("output.channels".into(), vec!["image".into()]));
        }
        variables.push(categorical("output.input".into(), inputs(self.nodes)));
        variables
    }

    /// Returns the places that a node can read, or the output if `node` is the number of nodes.
    fn inputs(&self, node: usize) -> RangeInclusive<usize> {
        (node + 1).saturating_sub(self.level_back)..=node
    }

    /// Decodes values that [`crate::tasks::check`] accepts.
    pub(super) fn decode(&self, values: &[i64]) -> Architecture {
        let place = |node, value| self.inputs(node).start() + value as usize;
        let decode = |(index, values): (usize, &[i64])| match (self.coding, values) {
            (Coding::Categorical, &[module, width, input]) => Node {
                module: Module::ALL[module as usize],
                channels: WIDTHS[width as usize] * self.channels,
                input: place(index, input),
            },
            (Coding::Integer, &[kernel, skip, channels, input]) => Node {
                module: Module { kernel: 2 * kernel - 1, skip: skip == 1 },
                channels,
                input: place(index, input),
            },
            _ => unreachable!("chunks have the length of the coding"),
        };
        let length = match self.coding {
            Coding::Categorical => 3,
            Coding::Integer => 4,
        };
        let nodes = values.chunks_exact(length).take(self.nodes).enumerate().map(decode);
        let output = place(self.nodes, values[values.len() - 1]);
        Architecture { nodes: nodes.collect(), output }
    }

    /// Returns the layers of the supernet: every module at every node, all with the most channels.
    pub(super) fn layers(&self) -> Vec<Layer> {
        let most = self.max_channels();
        let layer = |node, module| Layer {
            node,
            module,
            inputs: most,
            mirror_inputs: most,
            channels: most,
            image: [0, 0],
        };
        (0..self.nodes).flat_map(|node| Module::ALL.map(|module| layer(node, module))).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tasks::check;

    const PAPER: Space =
        Space { coding: Coding::Categorical, nodes: 20, level_back: 5, channels: 64 };
    const SMALL: Space =
        Space { coding: Coding::Categorical, nodes: 3, level_back: 2, channels: 8 };

    /// Free categorical variables and their free parameters.
    fn categorical(variables: &[Variable]) -> (usize, usize) {
        let free: Vec<usize> = variables
            .iter()
            .filter_map(|variable| match &variable.domain {
                Domain::Categorical(choices) => Some(choices.len() - 1),
                Domain::Integer { .. } => None,
            })
            .filter(|&free| free > 0)
            .collect();
        (free.len(), free.iter().sum())
    }

    fn names(variables: &[Variable]) -> Vec<&str> {
        variables.iter().map(|variable| variable.name.as_str()).collect()
    }

    #[test]
    fn the_categorical_space_has_63_variables_60_of_them_free_and_n_214() {
        let variables = PAPER.variables();
        assert_eq!(variables.len(), 63);
        assert_eq!(categorical(&variables), (60, 214));
        let names = names(&variables);
        assert_eq!(names[..4], ["node0.module", "node0.channels", "node0.input", "node1.module"]);
        assert_eq!(names[60..], ["output.module", "output.channels", "output.input"]);
        let choices = |index: usize| match &variables[index].domain {
            Domain::Categorical(choices) => choices,
            Domain::Integer { .. } => panic!("{index}"),
        };
        assert_eq!(
            *choices(0),
            [
                "conv_1x1_skip",
                "conv_1x1_down",
                "conv_3x3_skip",
                "conv_3x3_down",
                "conv_5x5_skip",
                "conv_5x5_down"
            ]
        );
        assert_eq!(*choices(1), ["64", "128", "256"]);
        assert_eq!(*choices(2), ["image"]);
        assert_eq!(*choices(14), ["image", "node0", "node1", "node2", "node3"]);
        assert_eq!(*choices(17), ["node0", "node1", "node2", "node3", "node4"]);
        assert_eq!(*choices(62), ["node15", "node16", "node17", "node18", "node19"]);
    }

    #[test]
    fn the_integer_space_has_n_94_plus_80() {
        let variables = Space { coding: Coding::Integer, ..PAPER }.variables();
        assert_eq!(variables.len(), 81);
        assert_eq!(categorical(&variables), (40, 94));
        let integers = variables.iter().filter(|v| matches!(v.domain, Domain::Integer { .. }));
        let ranges: Vec<_> = integers.map(Variable::range).collect();
        assert_eq!(2 * ranges.len(), 80);
        assert_eq!(ranges[..2], [(1, 3), (64, 256)]);
        assert_eq!(
            names(&variables)[..4],
            ["node0.kernel", "node0.skip", "node0.channels", "node0.input"]
        );
    }

    #[test]
    fn names_lead_back_to_the_codings() {
        assert_eq!(Coding::named("inpaint-int"), Some(Coding::Integer));
        assert_eq!(Coding::named("inpaint-cat"), Some(Coding::Categorical));
        assert_eq!(Coding::named("inpaint"), None);
    }

    #[test]
    fn values_are_decoded_in_the_order_of_the_variables() {
        let values = [3, 2, 0, /* node1 */ 4, 0, 1, /* node2 */ 1, 1, 0, 0, 0, 1];
        let architecture = SMALL.decode(&values);
        let node = |kernel, skip, channels, input| Node {
            module: Module { kernel, skip },
            channels,
            input,
        };
        let nodes = [node(3, false, 32, 0), node(5, true, 8, 1), node(1, false, 16, 1)];
        assert_eq!(architecture.nodes, nodes);
        assert_eq!(architecture.active(), [0, 2]);

        let space = Space { coding: Coding::Integer, ..SMALL };
        let values = [2, 0, 32, 0, /* node1 */ 3, 1, 8, 1, /* node2 */ 1, 0, 16, 0, 1];
        assert_eq!(space.decode(&values).nodes, nodes);
    }

    fn any_values() -> impl Strategy<Value = (Space, Vec<i64>)> {
        let coding = prop::sample::select(Coding::ALL.to_vec());
        let space = (coding, 1_usize..9, 1_usize..7, 1_i64..4).prop_map(
            |(coding, nodes, level_back, channels)| Space { coding, nodes, level_back, channels },
        );
        space.prop_flat_map(|space| {
            let ranges = space.variables().into_iter().map(|variable| {
                let (low, high) = variable.range();
                low..=high
            });
            ranges.collect::<Vec<_>>().prop_map(move |values| (space, values))
        })
    }

    proptest! {
        #[test]
        fn all_accepted_values_are_networks_of_the_space((space, values) in any_values()) {
            prop_assert_eq!(check(&space.variables(), &values), Ok(()));
            let architecture = space.decode(&values);
            prop_assert_eq!(architecture.nodes.len(), space.nodes);
            for (index, node) in architecture.nodes.iter().enumerate() {
                prop_assert!(node.input <= index && node.input + space.level_back > index);
                prop_assert!((space.channels..=4 * space.channels).contains(&node.channels));
            }
            let mut before = 0;
            for node in architecture.active() {
                prop_assert_eq!(architecture.nodes[node].input, before);
                before = node + 1;
            }
            prop_assert_eq!(architecture.output, before);
        }
    }
}
