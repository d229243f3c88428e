//! Settings of a space from the strings that a person typed, by a table of their names and ranges.

use std::collections::BTreeMap;

use super::Violation;

/// A setting's type, its smallest and largest value, and where it is kept.
pub(super) enum Kind<S> {
    Whole(i64, i64, fn(&mut S) -> &mut i64),
    Real(f64, f64, fn(&mut S) -> &mut f64),
}

/// The settings of a space, by their names.
pub(super) type Table<S> = [(&'static str, Kind<S>)];

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
        }
        Ok(())
    }
}

/// Reads the settings of `space`; one that is absent keeps its default. The error lists everything that is wrong.
pub(super) fn parse<S: Default>(
    space: &str,
    table: &Table<S>,
    settings: &BTreeMap<String, String>,
) -> Result<S, Vec<Violation>> {
    let mut parsed = S::default();
    let mut violations = Vec::new();
    for (name, text) in settings {
        let outcome = match table.iter().find(|(known, _)| known == name) {
            Some((_, kind)) => kind.set(&mut parsed, text),
            None => {
                let known: Vec<_> = table.iter().map(|(name, _)| *name).collect();
                Err(format!("is unknown; the settings of {space} are {}", known.join(", ")))
            }
        };
        if let Err(description) = outcome {
            violations.push(Violation { field: format!("settings.{name}"), description });
        }
    }
    if violations.is_empty() { Ok(parsed) } else { Err(violations) }
}
