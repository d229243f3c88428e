//! The spaces that studies can name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Task, classification, inpainting,
    settings::{Given, Violation},
    toy,
};

/// A space as a study names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// The name that trainers lease by: a built-in space, or the family of `definition`.
    #[serde(rename = "space")]
    pub name: String,
    /// The text of a space file; empty for a built-in space.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub definition: String,
    /// The settings that were given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: Given,
}

impl Space {
    /// The task with the settings of a study. Errors with everything that is wrong.
    pub fn task(&self) -> Result<Box<dyn Task>, Vec<Violation>> {
        let Space { name, definition, settings } = self;
        if !names().contains(&&**name) {
            let description = format!("{name:?} is unknown; known are {}", names().join(", "));
            return Err(vec![Violation { field: "space".into(), description }]);
        }
        if let Some(coding) = inpainting::Coding::named(name) {
            return Ok(Box::new(inpainting::Inpainting::new(coding, settings)?));
        }
        if name == toy::NAME {
            return Ok(Box::new(toy::Toy::new(settings)?));
        }
        Ok(Box::new(classification::Classification::new(name, definition, settings)?))
    }
}

/// The names of all spaces that trainers lease by; `toy`, which needs no images, is the first.
pub fn names() -> Vec<&'static str> {
    let mut names = vec![toy::NAME];
    names.extend(classification::names());
    names.extend(inpainting::Coding::ALL.map(inpainting::Coding::name));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::settings;

    #[test]
    fn every_name_is_that_of_a_space() {
        for name in names() {
            let definition = match name {
                "cells" => include_str!("../../spaces/darts.toml"),
                "chain" => include_str!("../../spaces/mobile.toml"),
                _ => "",
            };
            let space =
                Space { name: name.into(), definition: definition.into(), ..Space::default() };
            assert!(!space.task().unwrap().variables().is_empty(), "{name}");
        }
        let unknown = Space { name: "enas".into(), ..Space::default() };
        let text = settings::sentence(&unknown.task().err().unwrap());
        assert!(text.contains("\"enas\" is unknown; known are toy, enas-micro, "), "{text}");
    }
}
