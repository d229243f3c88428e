//! What each choice of a study means to the trainer: the variables of a space, what its values
//! decode to, how to describe and count it. Pure values: no tensors, files or clocks.
//!
//! [`enas_micro`] is the space of convolutional cells of the paper's image classification,
//! [`inpaint`] the two spaces of autoencoders of its inpainting, [`toy`] its artificial problem.

pub mod enas_micro;
pub mod inpaint;
mod setting;
pub mod toy;

use std::collections::BTreeMap;

use rand::{Rng, RngExt};

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

/// A space with what a study has set about it.
#[derive(Clone, Debug, PartialEq)]
pub enum Space {
    /// [`enas_micro`]
    EnasMicro(enas_micro::Settings),
    /// [`inpaint`]
    Inpaint(inpaint::Coding, inpaint::Settings),
    /// [`toy`]
    Toy(toy::Settings),
}

impl Space {
    /// The space called `name` with a study's settings; none if there is no such space. The error lists everything that is
    /// wrong with the settings.
    pub fn parse(
        name: &str,
        settings: &BTreeMap<String, String>,
    ) -> Option<Result<Space, Vec<Violation>>> {
        Some(match name {
            enas_micro::NAME => enas_micro::Settings::parse(settings).map(Space::EnasMicro),
            toy::NAME => toy::Settings::parse(settings).map(Space::Toy),
            _ => {
                let coding = inpaint::Coding::named(name)?;
                inpaint::Settings::parse(coding, settings)
                    .map(|settings| Space::Inpaint(coding, settings))
            }
        })
    }

    /// The name that a study asks for it by.
    pub fn name(&self) -> &'static str {
        match self {
            Space::EnasMicro(_) => enas_micro::NAME,
            Space::Inpaint(coding, _) => coding.name(),
            Space::Toy(_) => toy::NAME,
        }
    }

    /// Its variables.
    pub fn variables(&self) -> Vec<Decision> {
        let categorical =
            |variables: Vec<Variable>| variables.into_iter().map(Decision::Categorical).collect();
        match self {
            Space::EnasMicro(settings) => categorical(settings.variables()),
            Space::Inpaint(coding, settings) => settings.variables(*coding),
            Space::Toy(settings) => categorical(settings.variables()),
        }
    }

    /// Names of the costs that are reported of its architectures.
    pub fn costs(&self) -> &'static [&'static str] {
        match self {
            Space::EnasMicro(_) | Space::Inpaint(..) => &["parameters", "macs"],
            Space::Toy(_) => &[],
        }
    }

    /// An architecture drawn uniformly: one value for each variable.
    pub fn draw(&self, random: &mut impl Rng) -> Vec<i64> {
        let mut draw = |variable| match variable {
            Decision::Categorical(variable) => {
                random.random_range(0..variable.choices.len() as i64)
            }
            Decision::Integer(variable) => random.random_range(variable.low..=variable.high),
        };
        self.variables().into_iter().map(&mut draw).collect()
    }
}
