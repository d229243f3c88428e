//! An architecture for people and other programs: JSON with the names of the choices, and Graphviz
//! DOT.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::{
    Architecture, CELL_INPUTS, CellGraph, DecodeError, Op, VARIABLES_PER_NODE, input_name,
};

/// An architecture as JSON. `values` is what counts when it is read back; the names are for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The space, `enas-micro`; may be missing.
    #[serde(default = "name")]
    pub space: String,
    /// One value for each variable.
    pub values: Vec<i64>,
    /// The normal cell.
    pub normal: CellDescription,
    /// The reduction cell.
    pub reduction: CellDescription,
}

/// A cell by the names of its choices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellDescription {
    /// The nodes, in order.
    pub nodes: Vec<NodeDescription>,
    /// The nodes whose concatenation is the cell's output.
    pub output: Vec<String>,
}

/// A node by the names of its choices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    /// What it reads.
    pub inputs: [String; 2],
    /// What it does to each input.
    pub ops: [String; 2],
}

fn name() -> String {
    super::NAME.to_owned()
}

impl Description {
    /// The architecture described.
    pub fn architecture(&self) -> Result<Architecture, DecodeError> {
        let nodes = self.values.len() / (2 * VARIABLES_PER_NODE);
        Architecture::decode(nodes.max(1), &self.values)
    }
}

impl Architecture {
    /// The description to serialise as JSON.
    pub fn describe(&self) -> Description {
        Description {
            space: super::NAME.to_owned(),
            values: self.values(),
            normal: describe_cell(&self.normal),
            reduction: describe_cell(&self.reduction),
        }
    }

    /// Both cells as a Graphviz digraph: an edge is an operation, a box is a node that adds its two
    /// inputs.
    pub fn dot(&self) -> String {
        let mut dot =
            String::from("digraph \"enas-micro\" {\n  rankdir=TB;\n  node [shape=box];\n");
        dot_cell(&mut dot, "normal", &self.normal);
        dot_cell(&mut dot, "reduction", &self.reduction);
        dot + "}\n"
    }
}

fn describe_cell(graph: &CellGraph) -> CellDescription {
    let describe_node = |node: &super::Node| NodeDescription {
        inputs: node.inputs.map(input_name),
        ops: node.ops.map(|op| op.name().to_owned()),
    };
    CellDescription {
        nodes: graph.nodes.iter().map(describe_node).collect(),
        output: graph.unused_nodes().into_iter().map(|n| input_name(CELL_INPUTS + n)).collect(),
    }
}

fn dot_cell(dot: &mut String, cell: &str, graph: &CellGraph) {
    let mut line = |text: String| writeln!(dot, "  {text}").expect("a String takes any text");
    line(format!("subgraph cluster_{cell} {{"));
    line(format!("  label=\"{cell} cell\";"));
    for input in 0..CELL_INPUTS + graph.nodes.len() {
        let name = input_name(input);
        let shape = if input < CELL_INPUTS { ", shape=ellipse" } else { "" };
        line(format!("  \"{cell}.{name}\" [label=\"{name}\"{shape}];"));
    }
    line(format!("  \"{cell}.output\" [label=\"output\", shape=ellipse];"));
    for (index, node) in graph.nodes.iter().enumerate() {
        let to = input_name(CELL_INPUTS + index);
        for (input, op) in node.sides() {
            let label = if cell == "reduction" && input < CELL_INPUTS {
                strided_label(op)
            } else {
                op.name()
            };
            let from = input_name(input);
            line(format!("  \"{cell}.{from}\" -> \"{cell}.{to}\" [label=\"{label}\"];"));
        }
    }
    for node in graph.unused_nodes() {
        let from = input_name(CELL_INPUTS + node);
        line(format!("  \"{cell}.{from}\" -> \"{cell}.output\" [style=dashed];"));
    }
    line("}".to_owned());
}

fn strided_label(op: Op) -> &'static str {
    match op {
        Op::Identity => "factorized_reduce",
        Op::AvgPool3x3 => "avg_pool_3x3 /2",
        Op::MaxPool3x3 => "max_pool_3x3 /2",
        Op::SepConv3x3 => "sep_conv_3x3 /2",
        Op::SepConv5x5 => "sep_conv_5x5 /2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architecture() -> Architecture {
        Architecture::decode(2, &[0, 1, 3, 0, 2, 0, 4, 1, 1, 1, 2, 2, 0, 1, 0, 3]).unwrap()
    }

    #[test]
    fn json_names_the_choices_and_reads_back() {
        let json = serde_json::to_value(architecture().describe()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "space": "enas-micro",
                "values": [0, 1, 3, 0, 2, 0, 4, 1, 1, 1, 2, 2, 0, 1, 0, 3],
                "normal": {
                    "nodes": [
                        {"inputs": ["cell[-2]", "cell[-1]"], "ops": ["sep_conv_3x3", "identity"]},
                        {"inputs": ["node0", "cell[-2]"], "ops": ["sep_conv_5x5", "avg_pool_3x3"]},
                    ],
                    "output": ["node1"],
                },
                "reduction": {
                    "nodes": [
                        {
                            "inputs": ["cell[-1]", "cell[-1]"],
                            "ops": ["max_pool_3x3", "max_pool_3x3"],
                        },
                        {"inputs": ["cell[-2]", "cell[-1]"], "ops": ["identity", "sep_conv_3x3"]},
                    ],
                    "output": ["node0", "node1"],
                },
            })
        );
        let read: Description = serde_json::from_value(json).unwrap();
        assert_eq!(read.architecture(), Ok(architecture()));
    }

    #[test]
    fn dot_draws_both_cells() {
        let expected = r#"digraph "enas-micro" {
  rankdir=TB;
  node [shape=box];
  subgraph cluster_normal {
    label="normal cell";
    "normal.cell[-2]" [label="cell[-2]", shape=ellipse];
    "normal.cell[-1]" [label="cell[-1]", shape=ellipse];
    "normal.node0" [label="node0"];
    "normal.node1" [label="node1"];
    "normal.output" [label="output", shape=ellipse];
    "normal.cell[-2]" -> "normal.node0" [label="sep_conv_3x3"];
    "normal.cell[-1]" -> "normal.node0" [label="identity"];
    "normal.node0" -> "normal.node1" [label="sep_conv_5x5"];
    "normal.cell[-2]" -> "normal.node1" [label="avg_pool_3x3"];
    "normal.node1" -> "normal.output" [style=dashed];
  }
  subgraph cluster_reduction {
    label="reduction cell";
    "reduction.cell[-2]" [label="cell[-2]", shape=ellipse];
    "reduction.cell[-1]" [label="cell[-1]", shape=ellipse];
    "reduction.node0" [label="node0"];
    "reduction.node1" [label="node1"];
    "reduction.output" [label="output", shape=ellipse];
    "reduction.cell[-1]" -> "reduction.node0" [label="max_pool_3x3 /2"];
    "reduction.cell[-1]" -> "reduction.node0" [label="max_pool_3x3 /2"];
    "reduction.cell[-2]" -> "reduction.node1" [label="factorized_reduce"];
    "reduction.cell[-1]" -> "reduction.node1" [label="sep_conv_3x3 /2"];
    "reduction.node0" -> "reduction.output" [style=dashed];
    "reduction.node1" -> "reduction.output" [style=dashed];
  }
}
"#;
        assert_eq!(architecture().dot(), expected);
    }
}
