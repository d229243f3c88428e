//! Image classification: spaces that are files, of the families cells and chain.

pub mod chain;
mod mbconv;
