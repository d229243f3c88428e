//! A type of cells and the graphs that its variables choose from. Pure values: no tensors.

use serde::Deserialize;

use super::super::operation::Operation;
use crate::tasks::Variable;

/// The connections between the nodes of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Wiring {
    /// A node chooses two inputs and an operation on each (ENAS, DARTS).
    Pairs,
    /// A node reads every earlier one by an operation that it chooses (NAS-Bench-201).
    All,
}

/// The output of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OutputKind {
    /// A 1x1 convolution over the nodes that no other node reads (ENAS).
    Unused,
    /// All nodes, concatenated (DARTS).
    All,
    /// The last node (NAS-Bench-201).
    Last,
}

/// A kind of searched cells, such as the normal ones.
#[derive(Clone, Debug)]
pub(super) struct CellType {
    /// `normal` or `reduction`.
    pub(super) name: &'static str,
    /// 1: the previous cell's output; 2: also that of the cell before.
    pub(super) inputs: usize,
    /// Inputs go through a 1x1 convolution first, which brings them to the cell's channels.
    pub(super) input_convs: bool,
    pub(super) wiring: Wiring,
    pub(super) output: OutputKind,
    pub(super) operations: Vec<Operation>,
}

/// An operation on a value of the cell: values are the cell's inputs, then its nodes.
pub(super) type Term = (usize, Operation);

/// The inside of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Graph {
    /// The terms of each node's sum.
    pub(super) nodes: Vec<Vec<Term>>,
    /// The nodes that the cell puts out.
    pub(super) output: Vec<usize>,
}

impl CellType {
    /// One variable for each decision, in the order of an architecture's values.
    pub(super) fn variables(&self, nodes: usize) -> Vec<Variable> {
        let operations: Vec<String> =
            self.operations.iter().map(|operation| operation.name().to_owned()).collect();
        let mut variables = Vec::new();
        for node in 0..nodes {
            let values = 0..self.inputs + node;
            let mut add = |what: String, choices: &[String]| {
                let name = format!("{}.{}", self.name, what);
                variables.push(Variable::categorical(name, choices.to_vec()));
            };
            match self.wiring {
                Wiring::Pairs => {
                    let inputs: Vec<String> = values.map(|value| self.value_name(value)).collect();
                    for (what, choices) in [
                        ("input1", &inputs),
                        ("input2", &inputs),
                        ("op1", &operations),
                        ("op2", &operations),
                    ] {
                        add(format!("node{node}.{what}"), choices);
                    }
                }
                Wiring::All => {
                    let node = self.node_number(node);
                    values.for_each(|from| add(format!("node{node}.from{from}"), &operations));
                }
            }
        }
        variables
    }

    /// The number of variables of a cell with so many nodes.
    pub(super) fn decisions(&self, nodes: usize) -> usize {
        match self.wiring {
            Wiring::Pairs => 4 * nodes,
            Wiring::All => (self.inputs..self.inputs + nodes).sum(),
        }
    }

    /// The graph that these values of the variables choose.
    pub(super) fn graph(&self, nodes: usize, mut values: &[i64]) -> Graph {
        let mut next = || {
            let (value, rest) = values.split_first().expect("a value for each variable");
            values = rest;
            *value as usize
        };
        let mut graph = Graph { nodes: Vec::with_capacity(nodes), output: Vec::new() };
        for node in 0..nodes {
            graph.nodes.push(match self.wiring {
                Wiring::Pairs => {
                    let [input1, input2, op1, op2] = [next(), next(), next(), next()];
                    vec![(input1, self.operations[op1]), (input2, self.operations[op2])]
                }
                Wiring::All => {
                    (0..self.inputs + node).map(|value| (value, self.operations[next()])).collect()
                }
            });
        }
        graph.output = match self.output {
            OutputKind::All => (0..nodes).collect(),
            OutputKind::Last => vec![nodes - 1],
            OutputKind::Unused => {
                let read = |node: &usize| {
                    let mut terms = graph.nodes.iter().flatten();
                    terms.any(|(value, op)| *value == self.inputs + node && !op.is_none())
                };
                (0..nodes).filter(|node| !read(node)).collect()
            }
        };
        graph
    }

    /// Every operation that any values can choose.
    pub(super) fn everything(&self, nodes: usize) -> Graph {
        let terms = |node| {
            let values = 0..self.inputs + node;
            values.flat_map(|value| self.operations.iter().map(move |op| (value, *op))).collect()
        };
        let output = match self.output {
            OutputKind::Last => vec![nodes - 1],
            OutputKind::All | OutputKind::Unused => (0..nodes).collect(),
        };
        Graph { nodes: (0..nodes).map(terms).collect(), output }
    }

    /// The stride of an operation on a value: 2 on the inputs of a reduction.
    pub(super) fn stride(&self, value: usize, reduction: bool) -> i64 {
        if reduction && value < self.inputs { 2 } else { 1 }
    }

    /// The number that names a node. A cell that wires all counts its inputs as nodes, as NAS-Bench-201 does.
    pub(super) fn node_number(&self, node: usize) -> usize {
        match self.wiring {
            Wiring::Pairs => node,
            Wiring::All => self.inputs + node,
        }
    }

    /// The name of a value for people.
    pub(super) fn value_name(&self, value: usize) -> String {
        match self.wiring {
            Wiring::All => format!("node{value}"),
            Wiring::Pairs if value < self.inputs => {
                format!("cell[-{}]", self.inputs - value)
            }
            Wiring::Pairs => format!("node{}", value - self.inputs),
        }
    }
}
