//! The file of `--space-file`: a TOML text that defines a space. Trainers read all of it; here only its family and name are.

use std::path::Path;

use anyhow::{Context, ensure};
use asng_controller::study::{FAMILIES, MAX_DEFINITION};
use serde::Deserialize;

use crate::file;

#[derive(Deserialize)]
struct Head {
    family: Option<String>,
    name: Option<String>,
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
    let head: Head = toml::from_str(text)?;
    let allowed = FAMILIES.map(|family| format!("family = {family:?}")).join(" or ");
    let family = head.family.with_context(|| {
        format!("does not say which family of spaces it defines; write {allowed} above its tables")
    })?;
    ensure!(
        FAMILIES.contains(&&*family),
        "{family:?} is not a family of spaces; {allowed} is allowed"
    );
    Ok(family)
}

/// Returns the name that a definition gives its space, if it has one.
pub(crate) fn name(definition: &str) -> Option<String> {
    toml::from_str::<Head>(definition).ok()?.name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_stands_at_the_top_of_the_file() {
        let text = "name = 'mine'\nfamily = 'cells'\n[skeleton]\ncells = 8\n";
        assert_eq!(family(text).unwrap(), "cells");
        assert_eq!(name(text).as_deref(), Some("mine"));
        assert_eq!(name("[["), None);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told() {
        let told = |text: &str| format!("{:#}", family(text).unwrap_err());
        let broken = told("family = 'cells'\ncells = = 8\n");
        assert!(broken.contains("line 2"), "{broken}");
        assert!(told("family = 8").contains("expected a string"), "{}", told("family = 8"));
        assert_eq!(
            told("[skeleton]\nfamily = 'cells'"),
            "does not say which family of spaces it defines; write family = \"cells\" or family = \"chain\" above its tables"
        );
        assert_eq!(
            told("family = 'cell'"),
            "\"cell\" is not a family of spaces; family = \"cells\" or family = \"chain\" is allowed"
        );
        assert_eq!(told(&"#".repeat(65_537)), "has 65537 bytes; at most 65536 are allowed");
    }
}
