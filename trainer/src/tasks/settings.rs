//! Settings of a study or of a retraining as a person typed them, read by a table: one row for each, so that a setting's name,
//! range and place stand in one line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Settings by name, as text.
pub type Given = BTreeMap<String, String>;

/// The reason why a setting is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The setting, such as `settings.cells`; `settings` alone when only a combination is at fault.
    pub field: String,
    /// The allowed values, as a sentence for the person who typed the setting.
    pub description: String,
}

impl Violation {
    /// Of the setting `name`, or of a combination when that is empty.
    pub fn new(name: &str, description: impl Into<String>) -> Violation {
        let field = if name.is_empty() { "settings".into() } else { format!("settings.{name}") };
        Violation { field, description: description.into() }
    }
}

/// Returns all violations as one sentence.
pub fn sentence(violations: &[Violation]) -> String {
    let all = violations.iter().map(|Violation { field, description }| match &**field {
        "space_definition" => description.clone(),
        field => format!("{} {description}", field.strip_prefix("settings.").unwrap_or(field)),
    });
    all.collect::<Vec<_>>().join("; ")
}

/// The source of all settings that are not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// The settings of the paper that the space comes from: days on a GPU
    #[default]
    Paper,
    /// A small network, or a short training: tens of minutes to hours on two cores
    Small,
    /// A tiny network, or one epoch: minutes on two cores
    Quick,
}

impl Preset {
    /// All of them.
    pub const ALL: [Preset; 3] = [Preset::Paper, Preset::Small, Preset::Quick];

    /// The name that a person types.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Paper => "paper",
            Preset::Small => "small",
            Preset::Quick => "quick",
        }
    }
}

/// The setting of a study that names its preset.
pub const PRESET: &str = "preset";

/// The type and range of a setting, and the field that keeps it.
pub enum Kind<S: 'static> {
    /// A whole number from .. to ..
    Whole(i64, i64, fn(&mut S) -> &mut i64),
    /// A real number from .. to ..
    Real(f64, f64, fn(&mut S) -> &mut f64),
    /// `true` or `false`.
    Flag(fn(&mut S) -> &mut bool),
    /// One of a few words.
    Word(&'static [&'static str], fn(&mut S) -> &mut String),
    /// The name of a data set.
    Name(fn(&mut S) -> &mut String),
}

/// A setting's name and kind.
pub type Row<S> = (&'static str, Kind<S>);

impl<S> Kind<S> {
    /// Stores the value. Errors with what is allowed.
    fn set(&self, settings: &mut S, text: &str) -> Result<(), String> {
        match *self {
            Kind::Whole(low, high, field) => match text.parse() {
                Ok(value) if (low..=high).contains(&value) => *field(settings) = value,
                _ => {
                    return Err(format!(
                        "must be a whole number from {low} to {high}, not {text:?}"
                    ));
                }
            },
            Kind::Real(low, high, field) => match text.parse() {
                Ok(value) if (low..=high).contains(&value) => *field(settings) = value,
                _ => return Err(format!("must be a number from {low} to {high}, not {text:?}")),
            },
            Kind::Flag(field) => match text {
                "true" | "false" => *field(settings) = text == "true",
                _ => return Err(format!("must be true or false, not {text:?}")),
            },
            Kind::Word(words, field) => match words.contains(&text) {
                true => *field(settings) = text.into(),
                false => return Err(format!("must be {}, not {text:?}", words.join(" or "))),
            },
            Kind::Name(field) => {
                let allowed =
                    |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
                if text.is_empty() || text.len() > 64 || !text.chars().all(allowed) {
                    return Err(format!(
                        "must be the name of a data set: up to 64 of a-z, 0-9, '.', '_' and '-', not {text:?}"
                    ));
                }
                *field(settings) = text.into();
            }
        }
        Ok(())
    }

    /// Returns the value as text.
    fn get(&self, settings: &mut S) -> String {
        match *self {
            Kind::Whole(_, _, field) => field(settings).to_string(),
            Kind::Real(_, _, field) => field(settings).to_string(),
            Kind::Flag(field) => field(settings).to_string(),
            Kind::Word(_, field) | Kind::Name(field) => field(settings).clone(),
        }
    }
}

/// Returns the preset that the settings of a study name.
pub fn preset(given: &Given) -> Result<Preset, Violation> {
    let Some(name) = given.get(PRESET) else { return Ok(Preset::default()) };
    Preset::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
        Violation::new(PRESET, format!("must be paper, small or quick, not {name:?}"))
    })
}

/// Applies what was given to `settings`. Returns everything that is wrong with it; `owner` names the space or task in the message
/// about an unknown setting.
pub fn apply<S>(owner: &str, settings: &mut S, table: &[Row<S>], given: &Given) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (name, text) in given.iter().filter(|(name, _)| *name != PRESET) {
        let outcome = match table.iter().find(|(known, _)| known == name) {
            Some((_, kind)) => kind.set(settings, text),
            None => {
                let known = table.iter().map(|(name, _)| *name);
                let known: Vec<&str> = [PRESET].into_iter().chain(known).collect();
                Err(format!("is unknown; the settings of {owner} are {}", known.join(", ")))
            }
        };
        violations.extend(outcome.err().map(|description| Violation::new(name, description)));
    }
    violations
}

/// Returns every setting of the table with its value as text.
pub fn all<S: Clone>(settings: &S, table: &[Row<S>]) -> Given {
    let mut settings = settings.clone();
    table.iter().map(|(name, kind)| ((*name).to_owned(), kind.get(&mut settings))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default, PartialEq, Debug)]
    struct Settings {
        cells: i64,
        rate: f64,
        flip: bool,
        mask: String,
        dataset: String,
    }

    const TABLE: [Row<Settings>; 5] = [
        ("cells", Kind::Whole(3, 50, |s| &mut s.cells)),
        ("rate", Kind::Real(0.0, 1.0, |s| &mut s.rate)),
        ("flip", Kind::Flag(|s| &mut s.flip)),
        ("mask", Kind::Word(&["half", "pixel"], |s| &mut s.mask)),
        ("dataset", Kind::Name(|s| &mut s.dataset)),
    ];

    fn given(settings: &[(&str, &str)]) -> Given {
        settings.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
    }

    #[test]
    fn settings_are_read_and_printed_alike() {
        let text = given(&[
            ("cells", "5"),
            ("rate", "0.025"),
            ("flip", "true"),
            ("mask", "half"),
            ("dataset", "my-flowers"),
        ]);
        let mut settings = Settings::default();
        assert_eq!(apply("s", &mut settings, &TABLE, &text), []);
        assert_eq!(all(&settings, &TABLE), text);
        assert_eq!(settings.rate, 0.025);
    }

    #[test]
    fn every_violation_is_listed() {
        let text = given(&[
            ("cells", "2"),
            ("cell", "3"),
            ("rate", "NaN"),
            ("flip", "yes"),
            ("mask", "center"),
            ("dataset", "../x"),
        ]);
        let violations = apply("mine", &mut Settings::default(), &TABLE, &text);
        let expected = "cell is unknown; the settings of mine are preset, cells, rate, flip, mask, dataset; \
            cells must be a whole number from 3 to 50, not \"2\"; \
            dataset must be the name of a data set: up to 64 of a-z, 0-9, '.', '_' and '-', not \"../x\"; \
            flip must be true or false, not \"yes\"; mask must be half or pixel, not \"center\"; \
            rate must be a number from 0 to 1, not \"NaN\"";
        assert_eq!(sentence(&violations), expected);
        assert_eq!(violations[1].field, "settings.cells");
    }

    #[test]
    fn presets_have_names() {
        assert_eq!(preset(&given(&[])), Ok(Preset::Paper));
        assert_eq!(preset(&given(&[("preset", "quick")])), Ok(Preset::Quick));
        let violation = preset(&given(&[("preset", "Quick")])).unwrap_err();
        assert_eq!(violation.description, "must be paper, small or quick, not \"Quick\"");
    }
}
