//! Documents whose tables benchmarks write.

use std::{fs, path::PathBuf};

use anyhow::Context;

/// A table in Markdown.
pub struct Table {
    /// Its lines.
    pub text: String,
}

impl Table {
    /// Begins one with titles of columns, first those of names.
    pub fn new<const M: usize, const N: usize>(
        names: [&str; M],
        columns: [impl ToString; N],
    ) -> Table {
        let mut table = Table { text: String::new() };
        table.row(names, columns.map(|column| column.to_string()));
        table.text += &format!("|{}\n", " --- |".repeat(M + N));
        table
    }

    /// Adds a row.
    pub fn row<const M: usize, const N: usize>(&mut self, names: [&str; M], cells: [String; N]) {
        self.text += &format!("| {} | {} |\n", names.join(" | "), cells.join(" | "));
    }
}

/// A document with marks around what is written anew.
pub struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    /// Reads one.
    pub fn open(path: PathBuf) -> anyhow::Result<Document> {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Document { path, text })
    }

    /// Puts a text between the marks of that name. Errors if they are not there.
    pub fn replace(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
        let marks = self
            .text
            .split_once(&begin)
            .and_then(|(before, rest)| rest.split_once(&end).map(|(_, after)| (before, after)));
        let (before, after) =
            marks.with_context(|| format!("{} has no marks of {name}", self.path.display()))?;
        self.text = format!("{before}{begin}\n{text}\n{end}{after}");
        fs::write(&self.path, &self.text)?;
        Ok(())
    }

    /// The path of a file in the same directory.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.path.with_file_name(name)
    }
}
