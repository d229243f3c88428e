//! The file of `--variables`: a JSON array, in the order in which architectures give their values.

use std::path::Path;

use anyhow::Context;
use asng_proto::v1::{Categorical, Integer, Variable, variable::Kind};
use serde::Deserialize;

use crate::file;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    choices: Option<Vec<String>>,
    low: Option<i64>,
    high: Option<i64>,
}

/// Reads the variables of a file. Errors name the file and the place in it.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Variable>> {
    parse(&file::read_text(path)?).with_context(|| file::name(path))
}

fn parse(text: &str) -> anyhow::Result<Vec<Variable>> {
    let entries: Vec<Entry> = serde_json::from_str(text)?;
    let variables =
        entries.into_iter().enumerate().map(|(i, Entry { name, choices, low, high })| {
            let kind = match (choices, low, high) {
                (Some(choices), None, None) => Kind::Categorical(Categorical { choices }),
                (None, Some(low), Some(high)) => Kind::Integer(Integer { low, high }),
                _ => {
                    anyhow::bail!("[{i}] ({name}): give either `choices`, or both `low` and `high`")
                }
            };
            Ok(Variable { name, kind: Some(kind) })
        });
    variables.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_order_of_the_file() {
        let text = r#"[{"name": "op", "choices": ["conv3", "conv5"]},
                       {"name": "a width", "low": 8, "high": 64}]"#;
        let variables = parse(text).unwrap();
        let choices = vec!["conv3".into(), "conv5".into()];
        assert_eq!(variables[0].kind, Some(Kind::Categorical(Categorical { choices })));
        assert_eq!(variables[1].name, "a width");
        assert_eq!(variables[1].kind, Some(Kind::Integer(Integer { low: 8, high: 64 })));
    }

    #[test]
    fn says_where_a_file_is_wrong() {
        let error = |text| parse(text).unwrap_err().to_string();
        let both = r#"[{"name": "op", "choices": ["a"], "low": 1}]"#;
        assert_eq!(error(both), "[0] (op): give either `choices`, or both `low` and `high`");
        assert!(error(r#"[{"name": "op"}]"#).starts_with("[0] (op)"));
        assert!(error("[\n{\"name\": \"w\", \"low\": \"8\"}]").contains("line 2 column"));
        assert!(error(r#"[{"name": "w", "lo": 8}]"#).contains("unknown field `lo`"));
        assert!(error(r#"{"op": ["a"]}"#).contains("expected a sequence"));
    }
}
