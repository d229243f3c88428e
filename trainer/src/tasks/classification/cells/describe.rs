//! An architecture of cells for people and other programs: JSON with the names of the choices, and Graphviz DOT.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{
    graph::{CellType, Graph},
    skeleton::Cells,
};

impl Cells {
    /// Describes an architecture as JSON: the space, the values, and for each searched cell its nodes (what they read and do)
    /// and the nodes that it puts out.
    pub fn describe(&self, values: &[i64]) -> Value {
        let mut description = json!({ "space": self.name, "values": values });
        for (cell, graph) in self.types.iter().zip(&self.graphs(values)) {
            let node = |terms: &Vec<(usize, _)>| {
                let inputs: Vec<String> = terms.iter().map(|t| cell.value_name(t.0)).collect();
                let ops: Vec<&str> =
                    terms.iter().map(|t: &super::graph::Term| t.1.name()).collect();
                json!({ "inputs": inputs, "ops": ops })
            };
            let nodes: Vec<Value> = graph.nodes.iter().map(node).collect();
            let name = |node: &usize| cell.value_name(cell.inputs + node);
            let output: Vec<String> = graph.output.iter().map(name).collect();
            description[cell.name] = json!({ "nodes": nodes, "output": output });
        }
        description
    }

    /// Draws the searched cells as a Graphviz digraph: an edge is an operation, a box is a node that adds its edges.
    pub fn dot(&self, values: &[i64]) -> String {
        let mut dot = format!("digraph \"{}\" {{\n  rankdir=TB;\n  node [shape=box];\n", self.name);
        for (cell, graph) in self.types.iter().zip(&self.graphs(values)) {
            draw(&mut dot, cell, graph);
        }
        dot + "}\n"
    }
}

fn draw(dot: &mut String, cell: &CellType, graph: &Graph) {
    let mut line = |text: String| writeln!(dot, "  {text}").expect("a String takes any text");
    let id = |value: usize| format!("\"{}.{}\"", cell.name, cell.value_name(value));
    let name = cell.name;
    line(format!("subgraph cluster_{name} {{"));
    line(format!("  label=\"{name} cell\";"));
    for value in 0..cell.inputs + graph.nodes.len() {
        let shape = if value < cell.inputs { ", shape=ellipse" } else { "" };
        line(format!("  {} [label=\"{}\"{shape}];", id(value), cell.value_name(value)));
    }
    line(format!("  \"{name}.output\" [label=\"output\", shape=ellipse];"));
    for (node, terms) in graph.nodes.iter().enumerate() {
        for (value, operation) in terms.iter().filter(|(_, operation)| !operation.is_none()) {
            let label = operation.label(cell.stride(*value, name == "reduction"));
            line(format!("  {} -> {} [label=\"{label}\"];", id(*value), id(cell.inputs + node)));
        }
    }
    for node in &graph.output {
        line(format!("  {} -> \"{name}.output\" [style=dashed];", id(cell.inputs + node)));
    }
    line("}".to_owned());
}

#[cfg(test)]
mod tests {
    use super::{super::super::definition::*, *};

    const VALUES: [i64; 16] = [0, 1, 3, 0, 2, 0, 4, 1, 1, 1, 2, 2, 0, 1, 0, 3];

    fn built_in(name: &str, nodes: i64) -> Cells {
        let Family::Cells(cells) =
            Definition::parse(Definition::built_in(name).unwrap()).unwrap().family
        else {
            unreachable!()
        };
        Cells { nodes, ..cells }
    }

    #[test]
    fn json_names_the_choices() {
        assert_eq!(
            built_in("enas-micro", 2).describe(&VALUES),
            json!({
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
        assert_eq!(
            built_in("nasbench201", 2).describe(&[3, 1, 0])["normal"],
            json!({
                "nodes": [
                    {"inputs": ["node0"], "ops": ["conv_3x3"]},
                    {"inputs": ["node0", "node1"], "ops": ["skip", "none"]},
                ],
                "output": ["node2"],
            })
        );
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
        assert_eq!(built_in("enas-micro", 2).dot(&VALUES), expected);
        // An edge of `none` does not exist.
        let dot = built_in("nasbench201", 2).dot(&[3, 1, 0]);
        assert!(dot.contains("\"normal.node0\" -> \"normal.node2\" [label=\"skip\"]"), "{dot}");
        assert!(!dot.contains("\"normal.node1\" ->"), "{dot}");
    }
}
