//! What each choice of a study means to the trainer: the variables of a space, what its values
//! decode to, how to describe and count it. Pure values: no tensors, files or clocks.
//!
//! [`enas_micro`] is the space of convolutional cells of the paper's image classification.

pub mod enas_micro;

/// One categorical decision of a space. Its value is an index into `choices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Unique within the space, for example `normal.node2.input1`.
    pub name: String,
    /// What each value means, in order, for example `cell[-2]`, `cell[-1]`, `node0`.
    pub choices: Vec<String>,
}

/// Why one of a study's settings is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The setting, for example `settings.cells`; `settings` alone when only the combination is at
    /// fault.
    pub field: String,
    /// What is allowed, as a sentence for the person who typed the setting.
    pub description: String,
}
