//! The size of a space: variables, architectures, and the costs of its networks.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::{cells::Ends, definition::Family};
use crate::tasks::{Variable, draw, network::Costs};

/// Architectures that are drawn for the median.
const DRAWS: usize = 1000;
/// Architectures that are counted to get from a drawn one to an extreme, at most.
const STEPS: usize = 5_000;

/// The size of a space.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The number of variables.
    pub variables: usize,
    /// The free parameters of the distribution: the sum of each variable's choices less one.
    pub free_parameters: i64,
    /// The decimal logarithm of the number of architectures.
    pub architectures_log10: f64,
    /// The weights of the supernet.
    pub supernet_parameters: i64,
    /// The weights of architectures that are trained alone.
    pub parameters: Spread,
    /// Their multiplications, each with an addition, for one image.
    pub macs: Spread,
}

/// A number that depends on the architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// The smallest found: from the smallest of 1,000 drawn architectures, one variable is changed after the other as long as
    /// that helps.
    pub smallest: i64,
    /// The median of 1,000 drawn architectures.
    pub median: i64,
    /// The largest found, likewise.
    pub largest: i64,
}

impl Report {
    /// Measures a space. Architectures are drawn with the same seed each time.
    pub fn new(family: &Family, ends: &Ends) -> Report {
        let variables = family.variables();
        let choices = |variable: &Variable| {
            let (low, high) = variable.range();
            high - low + 1
        };
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let costs = |values: &[i64]| family.costs(ends, values, true);
        let drawn: Vec<(Vec<i64>, Costs)> = (0..DRAWS)
            .map(|_| draw(&variables, &mut random))
            .map(|values| (values.clone(), costs(&values)))
            .collect();
        let spread = |number: fn(Costs) -> i64| {
            let mut numbers: Vec<i64> = drawn.iter().map(|(_, costs)| number(*costs)).collect();
            numbers.sort_unstable();
            let smallest = descend(&variables, &drawn, number, costs);
            let largest = -descend(&variables, &drawn, |costs| -number(costs), costs);
            Spread { smallest, median: numbers[DRAWS / 2], largest }
        };
        Report {
            variables: variables.len(),
            free_parameters: variables.iter().map(|variable| choices(variable) - 1).sum(),
            architectures_log10: variables.iter().map(|v| (choices(v) as f64).log10()).sum(),
            supernet_parameters: family.supernet_parameters(ends),
            parameters: spread(|costs| costs.parameters),
            macs: spread(|costs| costs.macs),
        }
    }
}

/// Returns the smallest number found from the smallest drawn one on, by changing one variable at a time.
fn descend(
    variables: &[Variable],
    drawn: &[(Vec<i64>, Costs)],
    number: impl Fn(Costs) -> i64,
    costs: impl Fn(&[i64]) -> Costs,
) -> i64 {
    let start = drawn.iter().min_by_key(|(_, costs)| number(*costs));
    let (mut values, mut smallest) =
        start.map_or((Vec::new(), 0), |(v, costs)| (v.clone(), number(*costs)));
    let mut steps = 0;
    loop {
        let before = smallest;
        for (index, variable) in variables.iter().enumerate() {
            if steps > STEPS {
                return smallest;
            }
            let (low, high) = variable.range();
            let mut best = values[index];
            for value in low..=high {
                values[index] = value;
                let found = number(costs(&values));
                if found < smallest {
                    (smallest, best) = (found, value);
                }
                steps += 1;
            }
            values[index] = best;
        }
        if smallest == before {
            return smallest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::classification::definition::Definition;

    const CIFAR10: Ends = Ends { image: [3, 32, 32], classes: 10 };

    fn report(name: &str) -> Report {
        let definition = Definition::parse(Definition::built_in(name).unwrap()).unwrap();
        Report::new(&definition.family, &CIFAR10)
    }

    #[test]
    fn nasbench201_has_15625_architectures_of_the_published_sizes() {
        let report = report("nasbench201");
        assert_eq!((report.variables, report.free_parameters), (6, 24));
        assert_eq!(10_f64.powf(report.architectures_log10).round(), 15_625.0);
        // The smallest and the largest of the published table: 0.073306 and 1.531546 million.
        assert_eq!(report.parameters.smallest, 73_306);
        assert_eq!(report.parameters.largest, 1_531_546);
    }

    #[test]
    fn the_extremes_of_a_chain_are_exact() {
        let text = r#"
            name = "small"
            description = "two stages"
            [chain]
            stem = { channels = 8, kernel = 3, stride = 1 }
            activation = "relu"
            rows = ["ir_r[1-3]_k[3,5]_s1_e[3,6]_c[8,16]", "ir_r[1-2]_k3_s2_e[2,4]_c[8,24]_se[0,0.5]"]
        "#;
        let family = Definition::parse(text).unwrap().family;
        let report = Report::new(&family, &CIFAR10);
        let variables = family.variables();
        let mut values = vec![0; variables.len()];
        let mut all = Vec::new();
        'all: loop {
            all.push(family.costs(&CIFAR10, &values, true));
            for (value, variable) in values.iter_mut().zip(&variables) {
                *value += 1;
                if *value <= variable.range().1 {
                    continue 'all;
                }
                *value = 0;
            }
            break;
        }
        assert_eq!(all.len() as f64, 10_f64.powf(report.architectures_log10).round());
        let parameters = |costs: &Costs| costs.parameters;
        assert_eq!(Some(report.parameters.smallest), all.iter().map(parameters).min());
        assert_eq!(Some(report.parameters.largest), all.iter().map(parameters).max());
        assert_eq!(Some(report.macs.smallest), all.iter().map(|costs| costs.macs).min());
        assert_eq!(Some(report.macs.largest), all.iter().map(|costs| costs.macs).max());
    }

    #[test]
    fn a_space_without_a_choice_is_one_architecture() {
        let text = "name = \"one\"\ndescription = \"\"\n[chain]\nstem = { channels = 8, kernel = 3, stride = 1 }\n\
            activation = \"relu\"\nrows = [\"ds_k3_c8\"]";
        let report = Report::new(&Definition::parse(text).unwrap().family, &CIFAR10);
        assert_eq!((report.variables, report.architectures_log10), (0, 0.0));
        assert_eq!(report.parameters.smallest, report.parameters.largest);
    }
}
