//! The space `enas-micro`: two cells (normal and reduction) of a few nodes, stacked into a
//! convolutional network. Each node picks two inputs among the cell's two inputs and the earlier
//! nodes, and one operation for each, and adds the two results. Nodes that no other node reads are
//! concatenated into the cell's output.
//!
//! Source: Pham et al., "Efficient Neural Architecture Search via Parameter Sharing" (ICML 2018),
//! section 2.4, in the variant of Akimoto et al. (ICML 2019) and their
//! `classification/cnn_model_micro.py`.

mod architecture;
mod describe;
mod retraining;
mod settings;
mod size;

pub use architecture::{Architecture, CellGraph, DecodeError, Node, Op};
pub use describe::{CellDescription, Description, NodeDescription};
pub use retraining::Retraining;
pub use settings::Settings;
pub(crate) use size::AUXILIARY_CHANNELS;
pub use size::{CellSize, Size};

use super::Variable;

/// The name a study asks for this space by.
pub const NAME: &str = "enas-micro";

/// The inputs a cell has before its first node: the output of the cell before the previous one, and
/// of the previous one.
pub const CELL_INPUTS: usize = 2;

/// The variables of one node: two inputs, then the operation on each.
const VARIABLES_PER_NODE: usize = 4;

/// The variables of a space whose cells have `nodes` nodes, in the order of an architecture's
/// values: the normal cell, then the reduction cell; for each node `input1`, `input2`, `op1`,
/// `op2`.
pub fn variables(nodes: usize) -> Vec<Variable> {
    let ops: Vec<String> = Op::ALL.iter().map(|op| op.name().to_owned()).collect();
    let mut variables = Vec::with_capacity(2 * nodes * VARIABLES_PER_NODE);
    for cell in ["normal", "reduction"] {
        for node in 0..nodes {
            let inputs: Vec<String> = (0..CELL_INPUTS + node).map(input_name).collect();
            for (what, choices) in
                [("input1", &inputs), ("input2", &inputs), ("op1", &ops), ("op2", &ops)]
            {
                let name = format!("{cell}.node{node}.{what}");
                variables.push(Variable { name, choices: choices.clone() });
            }
        }
    }
    variables
}

/// The name of a node's input: `cell[-2]`, `cell[-1]`, then the nodes before it.
fn input_name(input: usize) -> String {
    match input {
        0 => "cell[-2]".to_owned(),
        1 => "cell[-1]".to_owned(),
        _ => format!("node{}", input - CELL_INPUTS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paper_s_space_has_40_variables_and_140_free_parameters() {
        let variables = variables(5);
        assert_eq!(variables.len(), 40);
        assert_eq!(variables.iter().map(|v| v.choices.len() - 1).sum::<usize>(), 140);
        assert_eq!(variables[0].name, "normal.node0.input1");
        assert_eq!(variables[39].name, "reduction.node4.op2");
        assert_eq!(variables[9].name, "normal.node2.input2");
        assert_eq!(variables[9].choices, ["cell[-2]", "cell[-1]", "node0", "node1"]);
        assert_eq!(
            variables[39].choices,
            ["identity", "avg_pool_3x3", "max_pool_3x3", "sep_conv_3x3", "sep_conv_5x5"]
        );
    }
}
