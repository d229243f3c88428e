//! The file of `--start-distribution`: what `study distribution --output json` prints.

use std::path::Path;

use anyhow::{Context, bail};
use asng_proto::v1::{CategoricalMarginal, IntegerMarginal, Marginal, marginal::Kind};
use serde::Deserialize;

use crate::file;

/// Of all that is printed only this counts; the choices and bounds are the study's own.
#[derive(Deserialize)]
struct Entry {
    name: String,
    probabilities: Option<Vec<f64>>,
    mean: Option<f64>,
    deviation: Option<f64>,
}

#[derive(Deserialize)]
struct Printed {
    marginals: Vec<Entry>,
}

/// Reads the marginals of a file. Errors name the file and the place in it.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Marginal>> {
    parse(&file::read_text(path)?).with_context(|| file::name(path))
}

fn parse(text: &str) -> anyhow::Result<Vec<Marginal>> {
    let Printed { marginals } = serde_json::from_str(text)?;
    let marginals = marginals.into_iter().enumerate().map(|(i, entry)| {
        let Entry { name, probabilities, mean, deviation } = entry;
        let kind = match (probabilities, mean, deviation) {
            (Some(probabilities), None, None) => {
                Kind::Categorical(CategoricalMarginal { probabilities })
            }
            (None, Some(mean), Some(deviation)) => {
                Kind::Integer(IntegerMarginal { mean, deviation })
            }
            _ => bail!(
                "marginals[{i}] ({name}): give either `probabilities`, or both `mean` and `deviation`"
            ),
        };
        Ok(Marginal { name, kind: Some(kind) })
    });
    marginals.collect()
}

#[cfg(test)]
mod tests {
    use asng_proto::v1::GetDistributionResponse;

    use super::*;
    use crate::{json, names::tests::two_variables};

    #[test]
    fn what_is_printed_can_be_read() {
        let op = Kind::Categorical(CategoricalMarginal { probabilities: vec![0.1, 0.9] });
        let width = Kind::Integer(IntegerMarginal { mean: 1.0 / 3.0, deviation: 2.0 });
        let marginals: Vec<_> = [("op", op), ("width", width)]
            .map(|(name, kind)| Marginal { name: name.into(), kind: Some(kind) })
            .into();
        let d = GetDistributionResponse { marginals: marginals.clone(), ..Default::default() };
        let printed = json::distribution(&d, &two_variables()).to_string();
        assert_eq!(parse(&printed).unwrap(), marginals);
    }

    #[test]
    fn says_where_a_file_is_wrong() {
        let error = |text| parse(text).unwrap_err().to_string();
        let neither = error(r#"{"marginals": [{"name": "op", "mean": 1}]}"#);
        assert!(neither.starts_with("marginals[0] (op): give either"), "{neither}");
        assert!(error("[]").contains("line 1 column"));
    }
}
