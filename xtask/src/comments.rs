//! The lint of doc comments: each begins with the subject of a sentence.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

/// Directories with source files, under the workspace's directory.
const DIRECTORIES: [&str; 7] =
    ["clients", "controller", "proto", "serving", "tests", "trainer", "xtask"];
/// Words that begin a clause without a subject, such as "What the study has learnt".
const WORDS: [&str; 5] = ["It", "What", "When", "Whether", "Who"];

/// Errors with all doc comments that begin with one of the words.
pub(crate) fn lint(root: &Path) -> Result<()> {
    let mut found = Vec::new();
    for directory in DIRECTORIES {
        visit(root, &root.join(directory), &mut found)?;
    }
    ensure!(
        found.is_empty(),
        "{} doc comments begin with {}; begin with a subject or a verb, such as \"Returns the …\":\n{}",
        found.len(),
        WORDS.join(", "),
        found.join("\n")
    );
    Ok(())
}

/// Adds the lines that are found in the files of a directory and its subdirectories.
fn visit(root: &Path, directory: &Path, found: &mut Vec<String>) -> Result<()> {
    let entries = fs::read_dir(directory);
    for entry in entries.with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                visit(root, &path, found)?;
            }
            continue;
        }
        let markers = match path.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => &["///", "//!"][..],
            Some("proto") => &["//"][..],
            _ => continue,
        };
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = path.strip_prefix(root).unwrap_or(&path).display();
        let lines = text.lines().collect::<Vec<_>>();
        let place = |i: usize| format!("{file}:{}: {}", i + 1, lines[i].trim());
        found.extend(openings(&lines, markers).into_iter().map(place));
    }
    Ok(())
}

/// Returns the indices of the lines that begin a comment with one of the words.
fn openings(lines: &[&str], markers: &[&str]) -> Vec<usize> {
    let comment = |i: usize| {
        let line = lines[i].trim_start();
        markers.iter().find_map(|marker| line.strip_prefix(marker))
    };
    let is_opening = |&i: &usize| {
        let first = comment(i).filter(|_| i == 0 || comment(i - 1).is_none());
        let word =
            first.and_then(|text| text.trim_start().split(|c: char| !c.is_alphabetic()).next());
        word.is_some_and(|word| WORDS.contains(&word))
    };
    (0..lines.len()).filter(is_opening).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_begins_with_a_subject() {
        let rust = [
            "//! What is kept.",
            "/// Returns it.",
            "/// What follows on a later line is not looked at.",
            "fn a() {} // What is no doc comment.",
            "    /// It.",
            "    b: u64,",
            "    /// Items.",
        ];
        assert_eq!(openings(&rust, &["///", "//!"]), [0, 4]);
        assert_eq!(openings(&["// Who asks.", "message A {"], &["//"]), [0]);
    }
}
