//! The definition of a space: a TOML file that people write, and that travels with a study.
//!
//! This file reads the text and names the line of every mistake; what a table of a family means is the family's own.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Spanned, Value};

use super::{
    cells::{Cells, CellsTable},
    chain::{Chain, ChainTable},
    fault::Fault,
};
use crate::tasks::settings::{Given, Preset};

/// The longest text, in bytes: as much as a study's specification holds.
pub const MAX_BYTES: usize = 64 << 10;

/// The definitions that ship with the trainer, by name.
pub const BUILT_IN: [(&str, &str); 4] = [
    ("enas-micro", include_str!("../../../spaces/enas-micro.toml")),
    ("nasbench201", include_str!("../../../spaces/nasbench201.toml")),
    ("darts", include_str!("../../../spaces/darts.toml")),
    ("mobile", include_str!("../../../spaces/mobile.toml")),
];

/// A space of image classification.
#[derive(Clone, Debug)]
pub struct Definition {
    /// The name that architectures are described with: lower-case letters, digits and hyphens, at most 64.
    pub name: String,
    /// A sentence for people.
    pub description: String,
    /// The paper or program that it follows.
    pub source: Option<String>,
    /// Settings of a study by the name of a preset.
    pub presets: BTreeMap<String, Given>,
    /// Settings of a retraining by the name of a preset.
    retraining: BTreeMap<String, Given>,
    /// The architectures.
    pub family: Family,
}

/// A kind of networks, with what a definition decides about them.
#[derive(Clone, Debug)]
pub enum Family {
    /// Cells that are stacked.
    Cells(Cells),
    /// A row of blocks.
    Chain(Chain),
}

/// A mistake in a definition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {}{problem}", prefix(key))]
pub struct Error {
    /// The line, from 1 on.
    pub line: usize,
    /// The key at fault, such as `cells.normal.operations`; empty when the text is no TOML.
    pub key: String,
    /// The mistake, the given value and the allowed ones.
    pub problem: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DefinitionTable {
    name: Spanned<String>,
    description: String,
    source: Option<String>,
    #[serde(default)]
    presets: Presets,
    #[serde(default)]
    retraining: Presets,
    cells: Option<CellsTable>,
    chain: Option<ChainTable>,
}

/// Settings by the name of a preset.
type Presets = BTreeMap<String, BTreeMap<String, Spanned<Value>>>;

impl Definition {
    /// Reads a definition. The error names the first mistake and its line.
    pub fn parse(text: &str) -> Result<Definition, Error> {
        if text.len() > MAX_BYTES {
            let problem =
                format!("a definition has at most {MAX_BYTES} bytes, this one {}", text.len());
            return Err(Error { line: 1, key: String::new(), problem });
        }
        let table: DefinitionTable = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let problem = error.message().replace('\n', "; ");
            Error { line: line_of(text, start), key: key_at(text, start, &problem), problem }
        })?;
        Definition::new(table).map_err(|fault| Error {
            line: line_of(text, fault.span.start),
            key: fault.key,
            problem: fault.problem,
        })
    }

    /// The text of the definition of that name that ships with the trainer.
    pub fn built_in(name: &str) -> Option<&'static str> {
        BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
    }

    fn new(table: DefinitionTable) -> Result<Definition, Fault> {
        let name = table.name.get_ref();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=64).contains(&name.len()) || !name.chars().all(plain) {
            let problem =
                format!("must have 1 to 64 lower-case letters, digits and hyphens, not {name:?}");
            return Err(Fault::new(&table.name, "name", problem));
        }
        let family = match (&table.cells, &table.chain) {
            (Some(cells), None) => Family::Cells(Cells::new(name, cells)?),
            (None, Some(chain)) => Family::Chain(Chain::new(name, chain)?),
            (cells, _) => {
                let number = if cells.is_some() { "not both" } else { "and this one has neither" };
                let problem =
                    format!("a space has one of the tables [cells] and [chain], {number}");
                return Err(Fault::new(&table.name, "", problem));
            }
        };
        let presets = read_presets("presets", table.presets)?;
        let retraining = read_presets("retraining", table.retraining)?;
        let name = table.name.into_inner();
        let DefinitionTable { description, source, .. } = table;
        Ok(Definition { name, description, source, presets, retraining, family })
    }

    /// Returns the settings of a retraining. Those that the file leaves out are the paper's (Akimoto et al., section 5.2), or
    /// minutes on two cores.
    pub fn retraining(&self, preset: Preset) -> Given {
        let (cells, training): (&[_], _) = match preset {
            Preset::Paper => (
                &[("cells", "20"), ("max_parameters", "4000000")],
                [("epochs", "600"), ("drop_path", "0.3"), ("cutout", "16")],
            ),
            Preset::Small => (
                &[("cells", "8"), ("max_parameters", "100000")],
                [("epochs", "10"), ("drop_path", "0"), ("cutout", "0")],
            ),
            Preset::Quick => (
                &[("cells", "5"), ("max_parameters", "40000")],
                [("epochs", "1"), ("drop_path", "0"), ("cutout", "0")],
            ),
        };
        let cells = match self.family {
            Family::Cells(_) => [cells, &[("channels", "0")]].concat(),
            Family::Chain(_) => Vec::new(),
        };
        let text = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let mut settings: Given =
            cells.into_iter().chain(training).chain([("batch_size", "80")]).map(text).collect();
        settings.extend(self.retraining.get(preset.name()).cloned().unwrap_or_default());
        settings
    }
}

/// Reads the tables of settings below `key`.
fn read_presets(key: &str, tables: Presets) -> Result<BTreeMap<String, Given>, Fault> {
    let mut presets = BTreeMap::new();
    for (preset, table) in tables {
        let mut settings = Given::new();
        for (setting, value) in table {
            let key = format!("{key}.{preset}.{setting}");
            if !Preset::ALL.iter().any(|known| known.name() == preset) {
                let problem = "presets are paper, small and quick".to_owned();
                return Err(Fault::new(&value, &key, problem));
            }
            let text = match value.get_ref() {
                Value::String(text) => text.clone(),
                Value::Integer(number) => number.to_string(),
                Value::Float(number) => number.to_string(),
                Value::Boolean(on) => on.to_string(),
                Value::Datetime(_) | Value::Array(_) | Value::Table(_) => {
                    let problem = "must be a number, a text, true or false".to_owned();
                    return Err(Fault::new(&value, &key, problem));
                }
            };
            settings.insert(setting, text);
        }
        presets.insert(preset, settings);
    }
    Ok(presets)
}

fn prefix(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("{key}: ") }
}

fn line_of(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|&byte| byte == b'\n').count()
}

/// The key in the line of `byte`, behind the name of its table: serde knows neither. A field that is missing has no line.
fn key_at(text: &str, byte: usize, problem: &str) -> String {
    let lines: Vec<&str> = text.lines().take(line_of(text, byte)).collect();
    let own = lines.last().filter(|line| !line.starts_with('#') && !problem.starts_with("missing"));
    let key = own.and_then(|line| line.split_once('=')).map_or("", |(key, _)| key.trim());
    let table = lines.iter().rfind(|line| line.starts_with('[')).unwrap_or(&"");
    let table = table.split(']').next().unwrap_or_default().trim_start_matches('[');
    let parts = [table.trim(), key].into_iter().filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index};

    use super::*;

    /// Returns the error of enas-micro's definition with a part replaced.
    fn error(part: &str, replacement: &str) -> String {
        let text = Definition::built_in("enas-micro").unwrap();
        assert!(text.contains(part), "{part}");
        Definition::parse(&text.replacen(part, replacement, 1)).unwrap_err().to_string()
    }

    fn line(part: &str) -> usize {
        let text = Definition::built_in("enas-micro").unwrap();
        line_of(text, text.find(part).unwrap())
    }

    #[test]
    fn every_definition_that_ships_is_valid_and_named_as_its_file() {
        for (name, text) in BUILT_IN {
            let definition = Definition::parse(text).unwrap();
            assert_eq!(definition.name, name);
            assert!(definition.presets.keys().eq(["paper", "quick", "small"]), "{name}");
        }
        assert_eq!(Definition::built_in("enas"), None);
        let enas = Definition::parse(Definition::built_in("enas-micro").unwrap()).unwrap();
        assert_eq!(enas.presets["quick"]["batch_size"], "80");
        assert_eq!(enas.presets["paper"]["learning_rate"], "0.025");
    }

    #[test]
    fn a_mistake_is_named_with_its_line_and_what_is_allowed() {
        let at = line("\"sep_conv_3x3\"");
        assert!(
            error("\"sep_conv_3x3\"", "\"sepconv_3x3\"").starts_with(&format!(
                "line {at}: cells.normal.operations: unknown operation \"sepconv_3x3\"; did you mean \
                 \"sep_conv_3x3\"? Allowed: none, "
            )),
            "{}",
            error("\"sep_conv_3x3\"", "\"sepconv_3x3\"")
        );
        let at = line("channels = 16");
        assert_eq!(
            error("channels = 16", "channels = 2"),
            format!("line {at}: cells.channels: must be a whole number from 4 to 256, not 2")
        );
        assert_eq!(
            error("channels = 16", "channels = \"16\""),
            format!("line {at}: cells.channels: invalid type: string \"16\", expected i64")
        );
        let unknown = error("channels = 16", "chanels = 16");
        let expected =
            format!("line {at}: cells.chanels: unknown field `chanels`, expected one of");
        assert!(unknown.starts_with(&expected), "{unknown}");
        assert_eq!(
            error("name = \"enas-micro\"", "name = \"ENAS\""),
            format!(
                "line {}: name: must have 1 to 64 lower-case letters, digits and hyphens, not \"ENAS\"",
                line("name = ")
            )
        );
        assert!(
            error("batch_size = 80", "batch_size = [80]")
                .contains("presets.quick.batch_size: must be")
        );
        assert!(
            error("wiring = \"pairs\"", "wiring = \"pair\"").contains("expected `pairs` or `all`")
        );
        assert!(error("[cells]", "[cells").starts_with(&format!("line {}: ", line("[cells]"))));
        assert_eq!(Definition::parse("").unwrap_err().to_string(), "line 1: missing field `name`");
        let missing = Definition::parse("name = 'a'").unwrap_err().to_string();
        assert_eq!(missing, "line 1: missing field `description`");
        assert!(error("channels = 16", "").contains(": cells: missing field `channels`"));
        for deep in ["[", "{a=", "a."] {
            let text = format!("name = 'a'\na.b = {}", deep.repeat(20_000));
            assert!(Definition::parse(&text).is_err());
            assert!(Definition::parse(&text.replace(" = ", "")).is_err());
        }
        let keys = format!("[presets.paper]\n{}b = 1", "a.".repeat(30_000));
        assert!(Definition::parse(&keys).is_err());
        let both = error(
            "[cells]",
            "[chain]\nactivation = \"relu\"\nstem = { channels = 8, kernel = 3, stride = 1 }\nrows = [\"ds_k3_c8\"]\n[cells]",
        );
        assert!(both.contains("a space has one of the tables"), "{both}");
        let long = "#".repeat(MAX_BYTES + 1);
        assert!(Definition::parse(&long).unwrap_err().problem.contains("at most 65536 bytes"));
    }

    proptest! {
        #[test]
        fn no_text_panics(
            file in 0..BUILT_IN.len(),
            edits in prop::collection::vec((any::<Index>(), 0_usize..40, ".{0,8}|[0-9\\[\\]\"=.-]{0,4}"), 1..4),
        ) {
            let mut text = BUILT_IN[file].1.to_owned();
            for (place, length, replacement) in edits {
                let boundary = |at: usize| (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap();
                let start = boundary(place.index(text.len().max(1)));
                let end = boundary(start + length).max(start);
                text.replace_range(start..end, &replacement);
            }
            if let Err(error) = Definition::parse(&text) {
                prop_assert!(error.line <= text.lines().count().max(1) + 1, "{error}");
                prop_assert!(!error.problem.is_empty());
            }
        }
    }
}
