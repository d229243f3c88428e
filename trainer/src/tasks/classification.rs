//! Image classification: spaces that are files, of the families cells and chain.

pub mod cells;
pub mod chain;
pub mod check;
pub mod definition;
mod mbconv;
pub mod operation;
