//! The file of `--space-file`: a TOML text that defines a space. Trainers read all of it; `asngctl` reads its family and its name.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use asng_controller::study::{FAMILIES, MAX_DEFINITION};
use serde::Deserialize;

use crate::file;

/// The name of the space, and the tables of its family.
#[derive(Deserialize)]
struct Head {
    name: Option<String>,
    #[serde(flatten)]
    tables: toml::Table,
}

/// Returns the family and the text of a space file. Errors name the file and, where the text is not TOML, the line.
pub(crate) fn read(path: &Path) -> anyhow::Result<(String, String)> {
    let text = file::read_text(path)?;
    let family = family(&text).with_context(|| file::name(path))?;
    Ok((family, text))
}

fn family(text: &str) -> anyhow::Result<String> {
    let size = text.len();
    ensure!(size <= MAX_DEFINITION, "has {size} bytes; at most {MAX_DEFINITION} are allowed");
    let Head { tables, .. } = toml::from_str(text)?;
    let mut families = FAMILIES.into_iter().filter(|family| tables.contains_key(*family));
    match (families.next(), families.next()) {
        (Some(family), None) => Ok(family.into()),
        _ => bail!(
            "must have a table [cells] or a table [chain], which selects the family of the space"
        ),
    }
}

/// Returns the name that a definition gives its space, if it has one.
pub(crate) fn name(definition: &str) -> Option<String> {
    toml::from_str::<Head>(definition).ok()?.name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_the_family() {
        let text = "name = 'mine'\n[cells]\ncells = 8\n";
        assert_eq!(family(text).unwrap(), "cells");
        assert_eq!(family("[chain]\nrows = []").unwrap(), "chain");
        assert_eq!(name(text).as_deref(), Some("mine"));
        assert_eq!(name("[["), None);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told() {
        let told = |text: &str| format!("{:#}", family(text).unwrap_err());
        let broken = told("name = 'mine'\ncells = = 8\n");
        assert!(broken.contains("line 2"), "{broken}");
        for text in ["name = 'mine'", "[cells]\n[chain]"] {
            assert!(told(text).starts_with("must have a table [cells] or a table [chain]"));
        }
        assert_eq!(told(&"#".repeat(65_537)), "has 65537 bytes; at most 65536 are allowed");
    }
}
