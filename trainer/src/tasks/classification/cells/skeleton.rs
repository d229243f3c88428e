//! The part of stacked cells that a space file decides, and the graphs of an architecture.

use std::collections::BTreeSet;

use serde::Deserialize;
use toml::Spanned;

use super::{
    super::{
        fault::{Fault, within},
        operation::Operation,
    },
    graph::{CellType, Graph, OutputKind, Wiring},
};
use crate::tasks::Variable;

/// The table `[cells]` of a definition.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellsTable {
    cells: Spanned<i64>,
    channels: Spanned<i64>,
    nodes: Spanned<i64>,
    stem_multiplier: Spanned<i64>,
    auxiliary_head: bool,
    final_norm: bool,
    #[serde(default)]
    count_padding: bool,
    #[serde(default)]
    pool_norm: bool,
    normal: CellTable,
    reduction: Option<CellTable>,
}

/// The table of a type of cells.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CellTable {
    inputs: Spanned<i64>,
    input_convs: Spanned<bool>,
    wiring: Wiring,
    output: OutputKind,
    operations: Spanned<Vec<Spanned<String>>>,
}

/// The sizes of a network's input and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Channels, height and width of an image.
    pub image: [i64; 3],
    /// Classes to tell apart.
    pub classes: i64,
}

/// A space of stacked cells.
#[derive(Clone, Debug)]
pub struct Cells {
    /// Cells of the network, the two reductions included: 3 to 50.
    pub cells: i64,
    /// Channels of the first cell: 4 to 256 in a search, fewer in a small network alone.
    pub channels: i64,
    /// Nodes of each cell: 1 to 10.
    pub nodes: i64,
    pub(super) name: String,
    pub(super) stem_multiplier: i64,
    pub(super) auxiliary_head: bool,
    pub(super) final_norm: bool,
    pub(super) count_padding: bool,
    pub(super) pool_norm: bool,
    /// Normal cells, then reductions if they are searched.
    pub(super) types: Vec<CellType>,
}

impl Cells {
    /// The space that a definition of that name describes.
    pub fn new(name: &str, table: &CellsTable) -> Result<Cells, Fault> {
        let mut types = vec![CellType::new("normal", &table.normal)?];
        if let Some(reduction) = &table.reduction {
            types.push(CellType::new("reduction", reduction)?);
        }
        Ok(Cells {
            cells: within(&table.cells, (3, 50), "cells.cells")?,
            channels: within(&table.channels, (4, 256), "cells.channels")?,
            nodes: within(&table.nodes, (1, 10), "cells.nodes")?,
            name: name.to_owned(),
            stem_multiplier: within(&table.stem_multiplier, (1, 8), "cells.stem_multiplier")?,
            auxiliary_head: table.auxiliary_head,
            final_norm: table.final_norm,
            count_padding: table.count_padding,
            pool_norm: table.pool_norm,
            types,
        })
    }

    /// The variables, in the order of an architecture's values: those of the normal cell, then those of the reduction. The
    /// other functions panic on values that [`check`](crate::tasks::check) refuses.
    pub fn variables(&self) -> Vec<Variable> {
        self.types.iter().flat_map(|cell| cell.variables(self.nodes as usize)).collect()
    }

    /// The graph of each type of cells.
    pub(super) fn graphs(&self, mut values: &[i64]) -> Vec<Graph> {
        let nodes = self.nodes as usize;
        let graph = |cell: &CellType| {
            let (own, rest) = values.split_at(cell.decisions(nodes));
            values = rest;
            cell.graph(nodes, own)
        };
        self.types.iter().map(graph).collect()
    }

    /// Graphs with every operation that any architecture can choose.
    pub(super) fn everything(&self) -> Vec<Graph> {
        self.types.iter().map(|cell| cell.everything(self.nodes as usize)).collect()
    }
}

impl CellType {
    fn new(name: &'static str, table: &CellTable) -> Result<CellType, Fault> {
        let key = |field: &str| format!("cells.{name}.{field}");
        let inputs = within(&table.inputs, (1, 2), &key("inputs"))? as usize;
        let input_convs = *table.input_convs.get_ref();
        if inputs == 2 && !input_convs {
            let problem = "must be true where inputs is 2: the first input may have other channels, height and width";
            return Err(Fault::new(&table.input_convs, &key("input_convs"), problem.to_owned()));
        }
        let (mut operations, mut seen) = (Vec::new(), BTreeSet::new());
        for given in table.operations.get_ref() {
            let fault = |problem| Fault::new(given, &key("operations"), problem);
            let operation = Operation::parse(given.get_ref()).map_err(fault)?;
            if !seen.insert(operation) {
                return Err(fault(format!(
                    "{:?} stands twice; each may stand once",
                    operation.name()
                )));
            }
            operations.push(operation);
        }
        if operations.is_empty() {
            let problem = "must name at least one operation".to_owned();
            return Err(Fault::new(&table.operations, &key("operations"), problem));
        }
        let &CellTable { wiring, output, .. } = table;
        Ok(CellType { name, inputs, input_convs, wiring, output, operations })
    }
}
