//! How two specs differ, in short texts for people.

use std::collections::BTreeMap;

use super::{CostRule, Kind, NamedMarginal, Retention, Spec, Start, Target, Violation};
use crate::asng::Marginal;

/// Bytes of a name or value in a text: what is longer is cut.
const MAX_VALUE: usize = 40;
/// Bytes of a text about several fields, beyond which the first of them is enough.
const MAX_SUMMARY: usize = 200;
/// Fields in such a text.
const MAX_SUMMARISED: usize = 3;

/// Returns the fields in which `here` differs from `there`, with both values: "is 10 there and 11 here".
pub fn differences(there: &Spec, here: &Spec) -> Vec<Violation> {
    // A field that is added to specs has to be compared too.
    let Spec {
        space,
        settings,
        variables,
        direction,
        algorithm,
        alpha,
        delta_init,
        delta_max,
        lambda_x,
        lambda_theta,
        steps_per_update,
        max_staleness,
        seed,
        warmup_steps,
        max_steps,
        max_duration,
        convergence,
        target,
        lease,
        start,
        fixed,
        labels,
        owner,
        retention,
        costs,
        space_definition,
    } = there;
    let mut found = Differences::default();
    let quoted = |text: &String| (!text.is_empty()).then(|| format!("{text:?}"));
    found.compare("space", quoted(space), quoted(&here.space));
    found.compare("space_definition", quoted(space_definition), quoted(&here.space_definition));
    found.compare_maps("settings", settings, &here.settings);
    found.compare_lists(
        "variables",
        &named_variables(variables),
        &named_variables(&here.variables),
    );
    let name = |direction| Some(format!("{direction:?}").to_uppercase());
    found.compare("direction", name(*direction), name(here.direction));
    let name = |algorithm| format!("{algorithm:?}").to_uppercase();
    found.compare("algorithm.algorithm", algorithm.map(name), here.algorithm.map(name));
    for (field, there, here) in [
        ("algorithm.alpha", alpha, here.alpha),
        ("algorithm.delta_init", delta_init, here.delta_init),
        ("algorithm.delta_max", delta_max, here.delta_max),
    ] {
        found.compare(field, text(*there), text(here));
    }
    for (field, there, here) in [
        ("algorithm.lambda_x", lambda_x, here.lambda_x),
        ("algorithm.lambda_theta", lambda_theta, here.lambda_theta),
        ("algorithm.steps_per_update", steps_per_update, here.steps_per_update),
        ("algorithm.max_staleness", max_staleness, here.max_staleness),
    ] {
        found.compare(field, text(*there), text(here));
    }
    found.compare("algorithm.seed", text(*seed), text(here.seed));
    found.compare("algorithm.warmup_steps", text(*warmup_steps), text(here.warmup_steps));
    found.compare("stop.max_steps", text(Some(max_steps)), text(Some(here.max_steps)));
    let length = |length| format!("{length:?}");
    found.compare("stop.max_duration", max_duration.map(length), here.max_duration.map(length));
    found.compare("stop.convergence", text(*convergence), text(here.convergence));
    let reached = |Target { metric, value, at_least }: &Target| {
        format!("{metric:?} {} {value}", if *at_least { ">=" } else { "<=" })
    };
    let targets = (target.as_ref().map(reached), here.target.as_ref().map(reached));
    found.compare("stop.target", targets.0, targets.1);
    found.compare("lease", lease.map(length), here.lease.map(length));
    found.compare_starts(start.as_ref(), here.start.as_ref());
    found.compare_maps("fixed", fixed, &here.fixed);
    found.compare_maps("labels", labels, &here.labels);
    found.compare("owner", quoted(owner), quoted(&here.owner));
    let kept = |retention| match retention {
        Retention::Every(every) => format!("every {every}"),
        Retention::Last(last) => format!("last {last}"),
    };
    found.compare("retention", retention.map(kept), here.retention.map(kept));
    found.compare_lists("costs", &named_rules(costs), &named_rules(&here.costs));
    found.0
}

/// Puts the first of `differences` into half a sentence: up to three, and how many more there are.
pub fn summary(differences: &[Violation]) -> String {
    let mut text = String::new();
    let mut told = 0;
    for Violation { field, description } in differences.iter().take(MAX_SUMMARISED) {
        let next = format!("{} {description}", field.trim_start_matches("spec."));
        if told > 0 && text.len() + next.len() > MAX_SUMMARY {
            break;
        }
        text += if told > 0 { ", " } else { "" };
        text += &next;
        told += 1;
    }
    match differences.len() - told {
        0 => text,
        more => format!("{text}, and {more} more"),
    }
}

fn text(value: Option<impl ToString>) -> Option<String> {
    value.map(|value| value.to_string())
}

/// Names of variables, and what values each takes.
fn named_variables(variables: &[super::Variable]) -> Vec<(&str, String)> {
    let values = |kind: &Kind| match kind {
        Kind::Categorical { choices } => format!("{choices:?}"),
        Kind::Integer { low, high } => format!("{low} to {high}"),
    };
    variables.iter().map(|variable| (&*variable.name, values(&variable.kind))).collect()
}

/// Names of costs, and what each counts for.
fn named_rules(rules: &[CostRule]) -> Vec<(&str, String)> {
    let terms = |rule: &CostRule| {
        let weight = rule.weight.map(|weight| format!("weight {weight}"));
        let limit = rule.limit.map(|limit| format!("limit {limit}"));
        weight.into_iter().chain(limit).collect::<Vec<_>>().join(", ")
    };
    rules.iter().map(|rule| (&*rule.cost, terms(rule))).collect()
}

fn named_marginals(marginals: &[NamedMarginal]) -> Vec<(&str, String)> {
    let values = |marginal: &Marginal| match marginal {
        Marginal::Categorical(probabilities) => format!("{probabilities:?}"),
        Marginal::Integer { mean, deviation } => format!("mean {mean}, deviation {deviation}"),
    };
    marginals.iter().map(|named| (&*named.name, values(&named.marginal))).collect()
}

#[derive(Default)]
struct Differences(Vec<Violation>);

impl Differences {
    fn compare(&mut self, field: &str, there: Option<String>, here: Option<String>) {
        if there == here {
            return;
        }
        let unset = || "not set".to_owned();
        let (there, here) = (there.unwrap_or_else(unset), here.unwrap_or_else(unset));
        let start = first_shown(&there, &here);
        let (there, here) = (cut(&there, start), cut(&here, start));
        let description = format!("is {there} there and {here} here");
        self.0.push(Violation::new(format!("spec.{field}"), description));
    }

    fn compare_maps(
        &mut self,
        field: &str,
        there: &BTreeMap<String, String>,
        here: &BTreeMap<String, String>,
    ) {
        let quoted = |value: Option<&String>| value.map(|value| format!("{value:?}"));
        let only_here = here.keys().filter(|key| !there.contains_key(*key));
        for key in there.keys().chain(only_here) {
            let field = format!("{field}[{:?}]", cut(key, 0));
            self.compare(&field, quoted(there.get(key)), quoted(here.get(key)));
        }
    }

    /// Compares entries by their names; where these have the same values, their order.
    fn compare_lists(&mut self, field: &str, there: &[(&str, String)], here: &[(&str, String)]) {
        let before = self.0.len();
        let there_by_name: BTreeMap<_, _> = there.iter().map(|(name, text)| (name, text)).collect();
        let here_by_name: BTreeMap<_, _> = here.iter().map(|(name, text)| (name, text)).collect();
        let only_here = here.iter().filter(|(name, _)| !there_by_name.contains_key(name));
        for (name, _) in there.iter().chain(only_here) {
            let text = |texts: &BTreeMap<_, &String>| texts.get(name).map(ToString::to_string);
            let field = format!("{field}[{:?}]", cut(name, 0));
            self.compare(&field, text(&there_by_name), text(&here_by_name));
        }
        if self.0.len() == before {
            let name =
                |list: &[(&str, String)], i: usize| list.get(i).map(|(n, _)| format!("{n:?}"));
            for i in 0..there.len().max(here.len()) {
                self.compare(&format!("{field}[{i}]"), name(there, i), name(here, i));
            }
        }
    }

    fn compare_starts(&mut self, there: Option<&Start>, here: Option<&Start>) {
        if let (Some(Start::Distribution(there)), Some(Start::Distribution(here))) = (there, here) {
            let (there, here) = (named_marginals(there), named_marginals(here));
            return self.compare_lists("start.distribution", &there, &here);
        }
        let text = |start: &Start| match start {
            Start::Study(study) => format!("study {study:?}"),
            Start::Distribution(marginals) => {
                format!("a distribution of {} variables", marginals.len())
            }
        };
        self.compare("start", there.map(text), here.map(text));
    }
}

/// Returns where texts that differ are to be shown from, so that the difference is seen where they are long.
fn first_shown(there: &str, here: &str) -> usize {
    if there.len().max(here.len()) <= MAX_VALUE {
        return 0;
    }
    let common = there.bytes().zip(here.bytes()).take_while(|(a, b)| a == b).count();
    there.floor_char_boundary(common.saturating_sub(MAX_VALUE / 2))
}

/// Returns the part of a text from `start` on, cut if it is long.
fn cut(text: &str, start: usize) -> String {
    let shown = &text[start..];
    let end = shown.floor_char_boundary(MAX_VALUE);
    let (before, after) =
        (if start > 0 { "…" } else { "" }, if end < shown.len() { "…" } else { "" });
    format!("{before}{}{after}", &shown[..end])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        asng,
        study::{Direction, Variable},
    };

    fn categorical(name: &str, choices: &[&str]) -> Variable {
        let choices = choices.iter().map(ToString::to_string).collect();
        Variable { name: name.into(), kind: Kind::Categorical { choices } }
    }

    fn map(key: &str, value: &str) -> BTreeMap<String, String> {
        [(key.to_owned(), value.to_owned())].into()
    }

    #[test]
    fn every_field_is_compared_and_shown() {
        let told = |change: fn(&mut Spec)| {
            let variables = vec![categorical("op", &["a", "b"])];
            let there = Spec { max_steps: 10, variables, ..Spec::default() };
            let mut here = there.clone();
            change(&mut here);
            summary(&differences(&there, &here))
        };
        let set = |field: &str, value: &str| format!("{field} is not set there and {value} here");
        assert_eq!(told(|s| s.space = "toy".into()), set("space", r#""toy""#));
        let text = told(|s| s.space_definition = "family = 'cells'".into());
        assert_eq!(text, set("space_definition", r#""family = 'cells'""#));
        let text = told(|s| s.settings = map("depth", "3"));
        assert_eq!(text, set(r#"settings["depth"]"#, r#""3""#));
        let text = told(|s| s.variables[0].kind = Kind::Integer { low: 1, high: 9 });
        assert_eq!(text, r#"variables["op"] is ["a", "b"] there and 1 to 9 here"#);
        let text = told(|s| s.direction = Direction::Maximize);
        assert_eq!(text, "direction is MINIMIZE there and MAXIMIZE here");
        let text = told(|s| s.algorithm = Some(asng::Algorithm::Sng));
        assert_eq!(text, set("algorithm.algorithm", "SNG"));
        assert_eq!(told(|s| s.alpha = Some(1.5)), set("algorithm.alpha", "1.5"));
        assert_eq!(told(|s| s.delta_init = Some(2.0)), set("algorithm.delta_init", "2"));
        assert_eq!(told(|s| s.delta_max = Some(2.0)), set("algorithm.delta_max", "2"));
        assert_eq!(told(|s| s.lambda_x = Some(2)), set("algorithm.lambda_x", "2"));
        assert_eq!(told(|s| s.lambda_theta = Some(2)), set("algorithm.lambda_theta", "2"));
        assert_eq!(told(|s| s.steps_per_update = Some(2)), set("algorithm.steps_per_update", "2"));
        assert_eq!(told(|s| s.max_staleness = Some(2)), set("algorithm.max_staleness", "2"));
        assert_eq!(told(|s| s.seed = Some(2)), set("algorithm.seed", "2"));
        assert_eq!(told(|s| s.max_steps = 11), "stop.max_steps is 10 there and 11 here");
        let text = told(|s| s.max_duration = Some(Duration::from_secs(90)));
        assert_eq!(text, set("stop.max_duration", "90s"));
        assert_eq!(told(|s| s.convergence = Some(0.9)), set("stop.convergence", "0.9"));
        let text = told(|s| {
            s.target = Some(Target { metric: "loss".into(), value: 0.5, at_least: false });
        });
        assert_eq!(text, set("stop.target", r#""loss" <= 0.5"#));
        let text = told(|s| s.lease = Some(Duration::from_millis(1500)));
        assert_eq!(text, set("lease", "1.5s"));
        let text = told(|s| s.start = Some(Start::Study("x".into())));
        assert_eq!(text, set("start", r#"study "x""#));
        assert_eq!(told(|s| s.fixed = map("op", "a")), set(r#"fixed["op"]"#, r#""a""#));
        assert_eq!(told(|s| s.labels = map("team", "a")), set(r#"labels["team"]"#, r#""a""#));
        assert_eq!(told(|s| s.owner = "ann".into()), set("owner", r#""ann""#));
        let text = told(|s| s.retention = Some(Retention::Last(5)));
        assert_eq!(text, set("retention", "last 5"));
        let text = told(|s| {
            let rule = CostRule { cost: "size".into(), weight: Some(0.5), limit: Some(3.0) };
            s.costs = vec![rule];
        });
        assert_eq!(text, set(r#"costs["size"]"#, "weight 0.5, limit 3"));
    }

    #[test]
    fn lists_are_compared_by_name_and_then_by_order() {
        let there = Spec {
            variables: vec![categorical("a", &["x"]), categorical("b", &["x"])],
            start: Some(Start::Distribution(vec![NamedMarginal {
                name: "a".into(),
                marginal: Marginal::Categorical(vec![1.0]),
            }])),
            ..Spec::default()
        };
        let mut here = there.clone();
        here.variables.swap(0, 1);
        assert_eq!(
            summary(&differences(&there, &here)),
            r#"variables[0] is "a" there and "b" here, variables[1] is "b" there and "a" here"#
        );
        here.variables = vec![categorical("a", &["x"]), categorical("c", &["x"])];
        let marginal = Marginal::Integer { mean: 1.0, deviation: 0.5 };
        here.start = Some(Start::Distribution(vec![NamedMarginal { name: "a".into(), marginal }]));
        let found = differences(&there, &here);
        let fields: Vec<_> = found.iter().map(|found| &*found.field).collect();
        assert_eq!(
            fields,
            ["spec.variables[\"b\"]", "spec.variables[\"c\"]", "spec.start.distribution[\"a\"]"]
        );
        assert_eq!(found[2].description, "is [1.0] there and mean 1, deviation 0.5 here");
    }

    #[test]
    fn a_summary_is_short_whatever_differs() {
        let key = |i: usize| format!("{i}{}", "é".repeat(90));
        let settings = |value: &str| -> BTreeMap<String, String> {
            (0..100).map(|i| (key(i), format!("{}{value}", "é".repeat(900)))).collect()
        };
        let there = Spec { settings: settings("1"), ..Spec::default() };
        let here = Spec { settings: settings("2"), ..Spec::default() };
        let text = summary(&differences(&there, &here));
        assert!(text.len() < 300 && text.ends_with(", and 99 more"), "{text}");
        assert!(text.contains(r#"éé1" there and …éé"#) && text.contains(r#"éé2" here"#), "{text}");
        let few = |max_steps, names: &[&str]| Spec {
            max_steps,
            labels: names.iter().map(|name| (name.to_string(), "1".into())).collect(),
            ..Spec::default()
        };
        assert_eq!(
            summary(&differences(&few(10, &["a", "b", "c"]), &few(11, &["b"]))),
            r#"stop.max_steps is 10 there and 11 here, labels["a"] is "1" there and not set here, labels["c"] is "1" there and not set here"#
        );
        let more = summary(&differences(&few(10, &["a", "b", "c"]), &few(11, &[])));
        assert!(
            more.ends_with(r#"labels["b"] is "1" there and not set here, and 1 more"#),
            "{more}"
        );
    }
}
