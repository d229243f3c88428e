//! Mistakes that a family finds in its table of a space file.

use std::ops::Range;

use toml::Spanned;

/// A mistake in a table of a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The place of the value in the text, in bytes.
    pub span: Range<usize>,
    /// Its key, such as `cells.normal.operations`.
    pub key: String,
    /// The mistake, the given value and the allowed ones.
    pub problem: String,
}

impl Fault {
    /// A mistake in this value.
    pub fn new<T>(value: &Spanned<T>, key: &str, problem: String) -> Fault {
        Fault { span: value.span(), key: key.to_owned(), problem }
    }
}

/// Errors unless the number is within the range.
pub(super) fn within(value: &Spanned<i64>, range: (i64, i64), key: &str) -> Result<i64, Fault> {
    let ((low, high), given) = (range, *value.get_ref());
    if (low..=high).contains(&given) {
        return Ok(given);
    }
    Err(Fault::new(value, key, format!("must be a whole number from {low} to {high}, not {given}")))
}
