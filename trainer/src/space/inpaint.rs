//! The spaces `inpaint-cat` and `inpaint-int`: a convolutional autoencoder that fills in what is
//! hidden of an image. Nodes stand in one row. Each is a convolution and reads one of the up to
//! `level_back` places before it, the image being the place before the first node; the last choice
//! says which node the encoder ends with. The nodes on the way back from there to the image are
//! *active* and make the encoder; the decoder is its mirror image. The others are not computed.
//!
//! A node's module is a kernel (1, 3 or 5 pixels wide) and one of two kinds: `down` halves height
//! and width, `skip` keeps them, and hands its output also to its mirror node in the decoder.
//!
//! The variables, with the paper's 20 nodes, level-back 5 and channels from 64:
//!
//! | space | of each node | at the end |
//! | --- | --- | --- |
//! | `inpaint-cat` | `module` (6), `channels` (64, 128, 256), `input` | `output.module` (1), `output.channels` (1), `output.input` (5) |
//! | `inpaint-int` | `kernel` (integer 1 to 3), `skip` (2), `channels` (integer 64 to 256), `input` | `output.input` (5) |
//!
//! Nodes 0 to 4 choose among 1, 2, 3, 4 and 5 inputs (the image and the nodes before them), later
//! ones among the 5 nodes before them: (0 + 1 + 2 + 3 + 4) + 15 x 4 + 4 = 74 free parameters with
//! the output's. So `inpaint-cat` has 20 x 3 + 3 = 63 variables and n = 20 x (5 + 2) + 74 = 214;
//! three of them are fixed (`node0.input` and two of the output, which the authors' space has as
//! well), which leaves 60. `inpaint-int` has 20 x 4 + 1 = 81 variables, one of them fixed, and
//! n = 20 x 1 + 74 = 94 for the categorical and 20 x 2 x 2 = 80 for the integer ones.
//!
//! Sources: Akimoto et al. (ICML 2019), section 5.2, and their `inpainting/`; Suganuma et al.,
//! "Exploiting the Potential of Standard Convolutional Autoencoders for Image Restoration by
//! Evolutionary Search" (ICML 2018).

mod architecture;
mod describe;
mod retraining;
mod settings;
mod size;

pub use architecture::{Architecture, DecodeError, Module, Node};
pub use describe::{Description, NodeDescription};
pub use retraining::Retraining;
pub use settings::{Mask, Settings};
pub(crate) use size::OUTPUT_KERNEL;
pub use size::{Layer, Size};

use super::{Decision, IntegerVariable, Variable};

/// Side of each choice of kernel, in the order of a variable's values.
pub(crate) const KERNELS: [i64; 3] = [1, 3, 5];

/// The three choices of channels are the smallest number times these.
const WIDTHS: [i64; 3] = [1, 2, 4];

/// The bounds that a [`Space`] is held to.
const MAX_NODES: i64 = 50;
const MAX_CHANNELS: i64 = 256;

/// How the choices of a node are put in variables: the difference between the two spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// `inpaint-cat`: all of them categorical.
    Categorical,
    /// `inpaint-int`: kernel and channels as integers.
    Integer,
}

impl Coding {
    /// Both spaces.
    pub const ALL: [Coding; 2] = [Coding::Categorical, Coding::Integer];

    /// The name a study asks for the space by.
    pub fn name(self) -> &'static str {
        match self {
            Coding::Categorical => "inpaint-cat",
            Coding::Integer => "inpaint-int",
        }
    }

    /// The space of that name.
    pub fn named(name: &str) -> Option<Coding> {
        Coding::ALL.into_iter().find(|coding| coding.name() == name)
    }

    /// Variables of each node, and of the output.
    fn variables(self) -> (usize, usize) {
        match self {
            Coding::Categorical => (3, 3),
            Coding::Integer => (4, 1),
        }
    }
}

/// What decides the variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// How choices are put in variables.
    pub coding: Coding,
    /// Nodes in the row, at least 1.
    pub nodes: usize,
    /// How far back a node can read, at least 1.
    pub level_back: usize,
    /// The smallest number of channels of a node; the largest is four times as many.
    pub channels: i64,
}

impl Space {
    /// The most channels a node can have.
    pub fn max_channels(&self) -> i64 {
        WIDTHS[WIDTHS.len() - 1] * self.channels
    }

    /// The variables, in the order of an architecture's values.
    pub fn variables(&self) -> Vec<Decision> {
        let categorical = |name, choices| Decision::Categorical(Variable { name, choices });
        let integer = |name, low, high| Decision::Integer(IntegerVariable { name, low, high });
        let mut variables = Vec::with_capacity(self.length());
        for node in 0..self.nodes {
            let name = |what: &str| format!("node{node}.{what}");
            match self.coding {
                Coding::Categorical => {
                    let modules = Module::ALL.iter().map(Module::name).collect();
                    let channels = WIDTHS.iter().map(|w| (w * self.channels).to_string());
                    variables.push(categorical(name("module"), modules));
                    variables.push(categorical(name("channels"), channels.collect()));
                }
                Coding::Integer => {
                    let kinds = ["down", "skip"].map(str::to_owned).to_vec();
                    variables.push(integer(name("kernel"), 1, KERNELS.len() as i64));
                    variables.push(categorical(name("skip"), kinds));
                    variables.push(integer(name("channels"), self.channels, self.max_channels()));
                }
            }
            variables.push(categorical(name("input"), self.inputs(node).map(place_name).collect()));
        }
        if self.coding == Coding::Categorical {
            variables.push(categorical("output.module".to_owned(), vec!["deconv_3x3".to_owned()]));
            variables.push(categorical("output.channels".to_owned(), vec!["image".to_owned()]));
        }
        let inputs = self.inputs(self.nodes).map(place_name).collect();
        variables.push(categorical("output.input".to_owned(), inputs));
        variables
    }

    /// The number of variables.
    fn length(&self) -> usize {
        let (of_node, of_output) = self.coding.variables();
        self.nodes * of_node + of_output
    }

    /// The places that a node can read, or the output if `node` is their number.
    fn inputs(&self, node: usize) -> std::ops::RangeInclusive<usize> {
        let first = if node >= self.level_back { node - self.level_back + 1 } else { 0 };
        first..=node
    }
}

/// The name of a place that can be read: 0 is the image, 1 + i is node i.
fn place_name(place: usize) -> String {
    match place {
        0 => "image".to_owned(),
        _ => format!("node{}", place - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAPER: Space =
        Space { coding: Coding::Categorical, nodes: 20, level_back: 5, channels: 64 };

    /// Free categorical variables and their free parameters.
    fn categorical(variables: &[Decision]) -> (usize, usize) {
        let free: Vec<usize> = variables
            .iter()
            .filter_map(|variable| match variable {
                Decision::Categorical(variable) => Some(variable.choices.len() - 1),
                Decision::Integer(_) => None,
            })
            .filter(|&free| free > 0)
            .collect();
        (free.len(), free.iter().sum())
    }

    fn names(variables: &[Decision]) -> Vec<&str> {
        let name = |variable| match variable {
            &Decision::Categorical(Variable { ref name, .. })
            | &Decision::Integer(IntegerVariable { ref name, .. }) => name.as_str(),
        };
        variables.iter().map(name).collect()
    }

    #[test]
    fn the_categorical_space_has_63_variables_60_of_them_free_and_n_214() {
        let variables = PAPER.variables();
        assert_eq!(variables.len(), 63);
        assert_eq!(PAPER.length(), 63);
        assert_eq!(categorical(&variables), (60, 214));
        let names = names(&variables);
        assert_eq!(names[..4], ["node0.module", "node0.channels", "node0.input", "node1.module"]);
        assert_eq!(names[60..], ["output.module", "output.channels", "output.input"]);
        let choices = |index: usize| match &variables[index] {
            Decision::Categorical(variable) => &variable.choices,
            Decision::Integer(_) => panic!("{index}"),
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
        let integers: Vec<(i64, i64)> = variables
            .iter()
            .filter_map(|variable| match variable {
                Decision::Integer(variable) => Some((variable.low, variable.high)),
                Decision::Categorical(_) => None,
            })
            .collect();
        assert_eq!(2 * integers.len(), 80);
        assert_eq!(integers[..2], [(1, 3), (64, 256)]);
        assert_eq!(
            names(&variables)[..4],
            ["node0.kernel", "node0.skip", "node0.channels", "node0.input"]
        );
    }

    #[test]
    fn names_lead_back_to_the_spaces() {
        assert_eq!(Coding::named("inpaint-int"), Some(Coding::Integer));
        assert_eq!(Coding::named("inpaint-cat"), Some(Coding::Categorical));
        assert_eq!(Coding::named("inpaint"), None);
    }
}
