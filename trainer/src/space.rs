//! What each choice of a study means to the trainer: the variables of a space, what its values
//! decode to, how to describe and count it. Pure values: no tensors, files or clocks.
//!
//! [`enas_micro`] is the space of convolutional cells of the paper's image classification,
//! [`inpaint`] the two spaces of autoencoders of its inpainting.

pub mod enas_micro;
pub mod inpaint;
mod setting;

/// One categorical decision of a space. Its value is an index into `choices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Unique within the space, for example `normal.node2.input1`.
    pub name: String,
    /// What each value means, in order, for example `cell[-2]`, `cell[-1]`, `node0`.
    pub choices: Vec<String>,
}

/// One decision of a space that has integers among its variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// An index into choices.
    Categorical(Variable),
    /// A whole number, whose neighbours mean similar things.
    Integer(IntegerVariable),
}

/// One integer decision of a space. Its value is the number itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntegerVariable {
    /// Unique within the space, for example `node2.channels`.
    pub name: String,
    /// The smallest value.
    pub low: i64,
    /// The largest value.
    pub high: i64,
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
