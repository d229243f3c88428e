//! Settings of a study as a person typed them, read by a table: one row for each, so that what is
//! allowed, what is said of a mistake and where the value is kept stand in one line.

use std::collections::BTreeMap;

use super::Violation;

/// A setting's type, its smallest and largest value, and where it is kept.
pub(super) enum Kind<S: 'static> {
    /// A whole number.
    Whole(i64, i64, fn(&mut S) -> &mut i64),
    /// A real number.
    Real(f64, f64, fn(&mut S) -> &mut f64),
    /// One of a few words.
    Word(&'static [Word<S>]),
}

/// A word and what it does.
pub(super) type Word<S> = (&'static str, fn(&mut S));

impl<S> Kind<S> {
    /// Stores the value, or says what is allowed.
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
            Kind::Word(words) => match words.iter().find(|(word, _)| *word == text) {
                Some((_, set)) => set(settings),
                None => {
                    let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                    return Err(format!("must be {}, not {text:?}", words.join(" or ")));
                }
            },
        }
        Ok(())
    }
}

/// The setting that names what the others start from: the paper's, or a search of minutes on two cores.
const PRESET: &str = "preset";

/// What to start from, by name.
pub(super) struct Presets<S> {
    /// `paper`, and what is meant when none is named.
    pub(super) paper: S,
    /// `quick`
    pub(super) quick: S,
}

/// What was typed, on top of the preset that it names; and everything that is wrong with it.
pub(super) fn parse<S>(
    space: &str,
    presets: Presets<S>,
    table: &[(&str, Kind<S>)],
    typed: &BTreeMap<String, String>,
) -> (S, Vec<Violation>) {
    let preset = typed.get(PRESET).map_or("paper", String::as_str);
    let mut settings = if preset == "quick" { presets.quick } else { presets.paper };
    let mut violations = Vec::new();
    for (name, text) in typed {
        let outcome = match table.iter().find(|(known, _)| known == name) {
            Some((_, kind)) => kind.set(&mut settings, text),
            None if name == PRESET && ["paper", "quick"].contains(&preset) => Ok(()),
            None if name == PRESET => Err(format!("must be paper or quick, not {text:?}")),
            None => {
                let known = table.iter().map(|(name, _)| *name);
                let known: Vec<&str> = [PRESET].into_iter().chain(known).collect();
                Err(format!("is unknown; the settings of {space} are {}", known.join(", ")))
            }
        };
        if let Err(description) = outcome {
            violations.push(Violation { field: format!("settings.{name}"), description });
        }
    }
    (settings, violations)
}
