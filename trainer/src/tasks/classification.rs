//! Image classification: spaces that are files, of the families cells and chain.

pub mod cells;
pub mod definition;
pub mod operation;
