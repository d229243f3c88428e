//! The definition of a study, as submitted, and the limits within which it must lie.
//!
//! A spec keeps "absent" apart from "set to the default", since a study may be created again only with the same words.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::costs::{self, CostRule};
use crate::asng::{self, Marginal};

const MAX_VARIABLES: usize = 4096;
const MAX_CHOICES: usize = 4096;
const MAX_LAMBDA: usize = 1024;
const MAX_SETTINGS: usize = 100;
/// Bounds the size of a step, in memory and on the wire: values of all its architectures.
const MAX_VALUES_PER_STEP: usize = 1 << 18;
/// Bounds a study's state: probabilities and integers' parameters.
const MAX_PARAMETERS: usize = 1 << 17;
const MAX_STEPS: u64 = 1_000_000_000_000; // 10^12 and 10^9 in the texts below.
const MAX_EVERY: u64 = 1_000_000_000;
const MAX_LABELS: usize = 50;
/// Longest definition of a space, in bytes.
pub const MAX_DEFINITION: usize = 1 << 16;
/// Families of spaces that have definitions.
pub const FAMILIES: [&str; 2] = ["cells", "chain"];
const DURATION_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(10 * 366 * 24 * 3600);
const LEASE_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// The fault of one field of a request, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Path of the field, such as `spec.variables[3].choices`.
    pub field: String,
    /// A sentence for the person who sent it.
    pub description: String,
}

impl Violation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Violation {
        Violation { field: field.into(), description: description.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.description)
    }
}

/// One decision of a space, with its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Unique within the space.
    pub name: String,
    /// The domain of the variable.
    #[serde(flatten)]
    pub kind: Kind,
}

/// The domain of a variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One of the named choices.
    Categorical {
        /// Names of the choices.
        choices: Vec<String>,
    },
    /// A whole number in `[low, high]`.
    Integer {
        /// Smallest value.
        low: i64,
        /// Largest value.
        high: i64,
    },
}

impl Variable {
    /// The variable as the optimiser sees it, without names.
    pub fn shape(&self) -> asng::Variable {
        match self.kind {
            Kind::Categorical { ref choices } => {
                asng::Variable::Categorical { choices: choices.len() }
            }
            Kind::Integer { low, high } => asng::Variable::Integer { low, high },
        }
    }

    /// The same, kept at `value`: a choice by its name, or a number. An error says what `value` may be.
    fn shape_fixed_to(&self, value: &str) -> Result<asng::Variable, String> {
        match self.kind {
            Kind::Categorical { ref choices } => {
                let choice = choices.iter().position(|choice| choice == value);
                let choice = choice.ok_or_else(|| {
                    format!("{value:?} is not among its choices: {}", choices.join(", "))
                })?;
                Ok(asng::Variable::Fixed { choices: choices.len(), choice })
            }
            Kind::Integer { low, high } => match value.parse() {
                Ok(value) if (low..=high).contains(&value) => {
                    Ok(asng::Variable::Integer { low: value, high: value })
                }
                _ => Err(format!("{value:?} is not a whole number from {low} to {high}")),
            },
        }
    }
}

/// The distribution of a variable, by its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedMarginal {
    /// The variable.
    pub name: String,
    /// Its distribution.
    pub marginal: Marginal,
}

/// Where theta starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Where the study of this name is when this one is created.
    Study(String),
    /// Here.
    Distribution(Vec<NamedMarginal>),
}

/// Which of the reported losses are better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Smaller ones.
    #[default]
    Minimize,
    /// Larger ones.
    Maximize,
}

impl Direction {
    /// Returns what ranks in place of a reported loss: the smaller, the better.
    pub(super) fn key(self, loss: f64) -> f64 {
        match self {
            Direction::Minimize => loss,
            Direction::Maximize => -loss,
        }
    }

    fn is_default(&self) -> bool {
        *self == Direction::default()
    }
}

/// A figure that ends a study when a report reaches it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// A metric's name; "loss" stands for the best loss of a report, of what is within the limits.
    pub metric: String,
    /// The figure.
    pub value: f64,
    /// True if the target is reached from below.
    pub at_least: bool,
}

/// How much of a history is kept, where it is not all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retention {
    /// Every k-th step.
    Every(u64),
    /// The newest steps, this many or a few more.
    Last(u64),
}

/// The definition of a study, as its creator submitted it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Name of a space that trainers know; may be empty when `variables` are given.
    pub space: String,
    /// Settings of the space, understood by the trainer alone.
    pub settings: BTreeMap<String, String>,
    /// The variables, given by an external trainer; empty when a trainer is to describe them.
    pub variables: Vec<Variable>,
    /// Which of the reported losses are better.
    #[serde(default, skip_serializing_if = "Direction::is_default")]
    pub direction: Direction,
    /// How theta moves; ASNG when absent.
    pub algorithm: Option<asng::Algorithm>,
    /// Threshold of the signal-to-noise ratio.
    pub alpha: Option<f64>,
    /// Initial trust region.
    pub delta_init: Option<f64>,
    /// Upper bound of Delta.
    pub delta_max: Option<f64>,
    /// Architectures in a step for training the weights.
    pub lambda_x: Option<u32>,
    /// Architectures in a step to be ranked.
    pub lambda_theta: Option<u32>,
    /// Steps gathered into one update of theta.
    pub steps_per_update: Option<u32>,
    /// Largest staleness of a report that still counts.
    pub max_staleness: Option<u32>,
    /// Seed of everything the study draws.
    pub seed: Option<u64>,
    /// Reports to be applied before architectures are ranked and theta moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// Reports after which the study is finished.
    pub max_steps: u64,
    /// Time since the variables became known after which the study is finished.
    pub max_duration: Option<Duration>,
    /// Convergence of theta at which it is finished.
    pub convergence: Option<f64>,
    /// Figure at which it is finished.
    pub target: Option<Target>,
    /// How long a trainer may keep a step without extending its lease.
    pub lease: Option<Duration>,
    /// Where theta starts; in the middle when absent.
    pub start: Option<Start>,
    /// Variables that keep one value: by name, a choice's name or a number.
    pub fixed: BTreeMap<String, String>,
    /// For people and for access rules.
    pub labels: BTreeMap<String, String>,
    /// Whose it is; empty: its creator's.
    pub owner: String,
    /// How much of the history is kept; all when absent.
    pub retention: Option<Retention>,
    /// The rules about costs of architectures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub costs: Vec<CostRule>,
    /// The TOML text that defines the space; empty for a space that trainers know by its name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub space_definition: String,
}

impl Spec {
    /// Returns the data set that the study is about, if its settings name one.
    pub fn data_set(&self) -> Option<&str> {
        self.settings.get("dataset").map(String::as_str)
    }

    /// Returns whether a trainer with these data sets can work on the study. One that names no data set may have any.
    pub fn is_for(&self, data_sets: &[String]) -> bool {
        let wanted = self.data_set().filter(|_| !data_sets.is_empty());
        wanted.is_none_or(|wanted| data_sets.iter().any(|data_set| data_set == wanted))
    }

    /// Architectures in a step for training the weights; the paper's 2 by default.
    pub fn lambda_x(&self) -> usize {
        self.lambda_x.unwrap_or(2) as usize
    }

    /// Architectures in a step to be ranked; the paper's 2 by default.
    pub fn lambda_theta(&self) -> usize {
        self.lambda_theta.unwrap_or(2) as usize
    }

    /// Steps gathered into one update.
    pub fn steps_per_update(&self) -> usize {
        self.steps_per_update.unwrap_or(1) as usize
    }

    /// Largest staleness of a report that still counts. The default is generous: a tight limit throws away more
    /// evaluations than staleness costs.
    pub fn max_staleness(&self) -> u64 {
        self.max_staleness.unwrap_or(64).into()
    }

    /// Reports to be applied before architectures are ranked and theta moves; 0 by default, as in the paper.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup_steps.unwrap_or(0)
    }

    /// Returns the number of architectures to be ranked in a step that is sampled when `applied` reports have been applied: none
    /// in the warm-up.
    pub fn rank_count(&self, applied: u64) -> usize {
        if applied < self.warmup_steps() { 0 } else { self.lambda_theta() }
    }

    /// How long a lease runs.
    pub fn lease(&self) -> Duration {
        self.lease.unwrap_or(Duration::from_secs(60))
    }

    /// The optimiser's settings, with defaults filled in.
    pub fn optimiser(&self) -> asng::Settings {
        let default = asng::Settings::default();
        asng::Settings {
            algorithm: self.algorithm.unwrap_or(default.algorithm),
            alpha: self.alpha.unwrap_or(default.alpha),
            delta_init: self.delta_init.unwrap_or(default.delta_init),
            delta_max: self.delta_max.unwrap_or(default.delta_max),
        }
    }

    /// Everything that is wrong with the spec; empty when it can become a study.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut refuse = |field: &str, description: String| {
            found.push(Violation::new(format!("spec.{field}"), description));
        };
        if self.space.is_empty() && self.variables.is_empty() {
            refuse("space", "name a space, or give the variables".into());
        }
        if !self.space.is_empty() && !is_name(&self.space) {
            refuse("space", NAME_RULE.into());
        }
        if !self.space_definition.is_empty() {
            let size = self.space_definition.len();
            if size > MAX_DEFINITION {
                let description = format!("has {size} bytes; at most {MAX_DEFINITION} are allowed");
                refuse("space_definition", description);
            }
            let is_text = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\r');
            if !self.space_definition.chars().all(is_text) {
                refuse(
                    "space_definition",
                    "has control characters, which TOML does not allow".into(),
                );
            }
            if !FAMILIES.contains(&&*self.space) {
                let families = FAMILIES.join(" or ");
                let description = format!(
                    "{:?} is no family of spaces; with a space_definition it is {families}",
                    self.space
                );
                refuse("space", description);
            }
            if !self.variables.is_empty() {
                let description =
                    "are described by a trainer from space_definition; leave them out";
                refuse("variables", description.into());
            }
        }
        if self.settings.len() > MAX_SETTINGS {
            refuse("settings", format!("at most {MAX_SETTINGS} settings"));
        }
        for (key, value) in &self.settings {
            // PostgreSQL takes no NUL.
            let has_nul = key.contains('\0') || value.contains('\0');
            if key.is_empty()
                || key.chars().count() > 100
                || value.chars().count() > 1000
                || has_nul
            {
                let key: String = key.chars().take(100).collect();
                refuse(
                    &format!("settings[{key:?}]"),
                    "a key has 1 to 100 characters, a value up to 1000, none of them NUL".into(),
                );
            }
        }
        for (field, value, least) in [
            ("algorithm.lambda_x", self.lambda_x(), 0),
            ("algorithm.lambda_theta", self.lambda_theta(), 2),
            ("algorithm.steps_per_update", self.steps_per_update(), 1),
        ] {
            if !(least..=MAX_LAMBDA).contains(&value) {
                refuse(field, format!("is {value}; must be between {least} and {MAX_LAMBDA}"));
            }
        }
        if self.max_staleness() > 1_000_000 {
            refuse("algorithm.max_staleness", "must be between 0 and 1000000".into());
        }
        let warmup_steps = self.warmup_steps();
        if warmup_steps > 0 && self.lambda_x() == 0 {
            let description = "a warm-up trains weights, and lambda_x = 0 means that there are none; leave warmup_steps out";
            refuse("algorithm.warmup_steps", description.into());
        } else if warmup_steps > self.max_steps {
            let description = format!("{warmup_steps} is above stop.max_steps, {}", self.max_steps);
            refuse("algorithm.warmup_steps", description);
        }
        if let Err(error) = self.optimiser().check() {
            refuse(&format!("algorithm.{}", error.field), error.to_string());
        }
        if !(1..=MAX_STEPS).contains(&self.max_steps) {
            refuse("stop.max_steps", format!("is {}; must be between 1 and 10^12", self.max_steps));
        }
        if self.max_duration.is_some_and(|duration| !DURATION_RANGE.contains(&duration)) {
            refuse("stop.max_duration", "must be from 1 s to 10 years".into());
        }
        if self.convergence.is_some_and(|convergence| !(convergence > 0.0 && convergence <= 1.0)) {
            refuse("stop.convergence", "must be above 0 and up to 1".into());
        }
        if let Some(Target { metric, value, .. }) = &self.target {
            if !is_label(metric) {
                refuse("stop.target.metric", LABEL_RULE.into());
            }
            if !value.is_finite() {
                refuse("stop.target.value", "must be a finite number".into());
            }
        }
        if !LEASE_RANGE.contains(&self.lease()) {
            refuse("lease", "must be from 1 s to 24 h".into());
        }
        if let Some(Start::Distribution(marginals)) = &self.start
            && marginals.len() > MAX_VARIABLES
        {
            refuse("start.distribution", format!("at most {MAX_VARIABLES} marginals"));
        }
        if self.fixed.len() > MAX_VARIABLES {
            refuse("fixed", format!("at most {MAX_VARIABLES} variables"));
        }
        let fits = |(key, value): (&String, &String)| {
            is_label(key) && key.chars().count() <= 100 && value.chars().count() <= 200
        };
        if self.labels.len() > MAX_LABELS || !self.labels.iter().all(fits) {
            let rule = format!(
                "up to {MAX_LABELS} labels, keys of 1 to 100 characters, values of up to 200"
            );
            refuse("labels", rule);
        }
        if !self.owner.is_empty() && !is_label(&self.owner) {
            refuse("owner", LABEL_RULE.into());
        }
        match self.retention {
            Some(Retention::Every(every)) if !(1..=MAX_EVERY).contains(&every) => {
                refuse("retention.every", "must be between 1 and 10^9".into());
            }
            Some(Retention::Last(last)) if !(1..=MAX_STEPS).contains(&last) => {
                refuse("retention.last", "must be between 1 and 10^12".into());
            }
            _ => {}
        }
        found.extend(costs::rule_violations(&self.costs));
        if !self.variables.is_empty() && self.space_definition.is_empty() {
            found.extend(self.variable_violations("spec.variables", &self.variables));
            if found.is_empty()
                && let Err(violations) = self.shapes(&self.variables)
            {
                found.extend(violations);
            }
        }
        found
    }

    /// `variables`, or none if they are those that were given: they need not be kept twice.
    pub(super) fn unless_given(&self, variables: Vec<Variable>) -> Vec<Variable> {
        if self.variables.is_empty() { variables } else { Vec::new() }
    }

    /// `variables`, which are sound, as the optimiser sees them: some of them fixed. Says what is wrong with `fixed`.
    pub fn shapes(&self, variables: &[Variable]) -> Result<Vec<asng::Variable>, Vec<Violation>> {
        let mut found = Vec::new();
        let mut shapes: Vec<_> = variables.iter().map(Variable::shape).collect();
        let places: HashMap<_, _> =
            variables.iter().enumerate().map(|(i, variable)| (&variable.name, i)).collect();
        for (name, value) in &self.fixed {
            let fixed = match places.get(name) {
                Some(&place) => variables[place].shape_fixed_to(value).map(|shape| (place, shape)),
                None => Err("the study has no variable of this name".into()),
            };
            match fixed {
                Ok((place, shape)) => shapes[place] = shape,
                Err(description) => {
                    found.push(Violation::new(format!("spec.fixed[{name:?}]"), description));
                }
            }
        }
        if found.is_empty() && shapes.iter().all(|shape| shape.parameters() == 0) {
            found.push(Violation::new("spec.fixed", "leaves no variable free"));
        }
        if found.is_empty() { Ok(shapes) } else { Err(found) }
    }

    /// Returns true if a report with these metrics reaches the target; `losses` are those that count.
    pub fn reaches_target(
        &self,
        losses: impl Iterator<Item = f64>,
        metrics: &BTreeMap<String, f64>,
    ) -> bool {
        let Some(Target { metric, value, at_least }) = &self.target else { return false };
        let figure = match metric.as_str() {
            "loss" => {
                losses.min_by(|a, b| self.direction.key(*a).total_cmp(&self.direction.key(*b)))
            }
            metric => metrics.get(metric).copied(),
        };
        figure.is_some_and(|figure| if *at_least { figure >= *value } else { figure <= *value })
    }

    /// Everything that is wrong with `variables` as this study's space; `field` is where they were given.
    pub fn variable_violations(&self, field: &str, variables: &[Variable]) -> Vec<Violation> {
        if variables.is_empty() || variables.len() > MAX_VARIABLES {
            let count = variables.len();
            let description = format!("{count} variables; 1 to {MAX_VARIABLES} are allowed");
            return vec![Violation::new(field, description)];
        }
        let mut found = Vec::new();
        let mut names = HashSet::new();
        for (i, variable) in variables.iter().enumerate() {
            let here = format!("{field}[{i}]");
            if !is_label(&variable.name) {
                found.push(Violation::new(format!("{here}.name"), LABEL_RULE));
            } else if !names.insert(&variable.name) {
                let description = format!("{:?} is the name of an earlier variable", variable.name);
                found.push(Violation::new(format!("{here}.name"), description));
            }
            match &variable.kind {
                Kind::Categorical { choices } => {
                    let here = format!("{here}.choices");
                    if choices.is_empty() || choices.len() > MAX_CHOICES {
                        let count = choices.len();
                        let description =
                            format!("{count} choices; 1 to {MAX_CHOICES} are allowed");
                        found.push(Violation::new(here, description));
                    } else if !choices.iter().all(|choice| is_label(choice)) {
                        found.push(Violation::new(here, LABEL_RULE));
                    } else if choices.iter().collect::<HashSet<_>>().len() < choices.len() {
                        found.push(Violation::new(here, "two choices have the same name"));
                    }
                }
                Kind::Integer { .. } => {
                    if let Err(error) = variable.shape().check() {
                        found.push(Violation::new(here, error.to_string()));
                    }
                }
            }
        }
        if !found.is_empty() {
            return found;
        }
        let parameters: usize =
            variables.iter().map(|variable| variable.shape().parameters()).sum();
        let per_step = variables.len() * (self.lambda_x() + self.lambda_theta());
        let shapes: Vec<_> = variables.iter().map(Variable::shape).collect();
        if parameters > MAX_PARAMETERS {
            let description = format!("{parameters} parameters; at most {MAX_PARAMETERS}");
            found.push(Violation::new(field, description));
        } else if per_step > MAX_VALUES_PER_STEP {
            let description = format!(
                "variables x (lambda_x + lambda_theta) is {per_step}; at most {MAX_VALUES_PER_STEP}"
            );
            found.push(Violation::new(field, description));
        } else if let Err(error) = asng::Asng::new(&shapes, asng::Settings::default()) {
            found.push(Violation::new(field, error.to_string()));
        }
        found
    }
}

/// The condition of `is_name`.
pub const NAME_RULE: &str =
    "1 to 100 of a-z, A-Z, 0-9, '.', '_' and '-', starting with a letter or digit";
/// The condition of `is_label`.
pub const LABEL_RULE: &str = "names have 1 to 200 characters, none of them a control character";

/// Returns true if `name` can name a study or a space: it is safe in a URL, a file name and a log line.
pub fn is_name(name: &str) -> bool {
    name.len() <= 100
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
}

/// Returns true if `label` can name a variable, a choice or a trainer.
pub fn is_label(label: &str) -> bool {
    (1..=200).contains(&label.chars().count()) && !label.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn categorical(name: &str, choices: &[&str]) -> Variable {
        let choices = choices.iter().map(ToString::to_string).collect();
        Variable { name: name.into(), kind: Kind::Categorical { choices } }
    }

    fn integer(name: &str, low: i64, high: i64) -> Variable {
        Variable { name: name.into(), kind: Kind::Integer { low, high } }
    }

    fn fields(spec: &Spec) -> Vec<String> {
        spec.violations().into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn malformed_spaces_are_refused_with_the_field() {
        let many: Vec<String> = (0..5000).map(|i| i.to_string()).collect();
        let many = Variable { name: "many".into(), kind: Kind::Categorical { choices: many } };
        for (variables, field) in [
            (vec![categorical("a", &[])], "spec.variables[0].choices"),
            (vec![categorical("a", &["x", "x"])], "spec.variables[0].choices"),
            (vec![categorical("a", &["x", ""])], "spec.variables[0].choices"),
            (vec![categorical("", &["x", "y"])], "spec.variables[0].name"),
            (vec![categorical("a", &["x", "y"]), integer("a", 0, 1)], "spec.variables[1].name"),
            (vec![integer("a", 3, 2)], "spec.variables[0]"),
            (vec![integer("a", 0, 100_001)], "spec.variables[0]"),
            (vec![integer("a", i64::MIN, i64::MAX)], "spec.variables[0]"),
            (vec![many], "spec.variables[0].choices"),
            (vec![integer("a", 2, 2), categorical("b", &["x"])], "spec.variables"),
        ] {
            let spec = Spec { variables, max_steps: 1, ..Spec::default() };
            assert_eq!(fields(&spec), [field], "{spec:?}");
        }
    }

    #[test]
    fn settings_out_of_range_are_all_named() {
        let spec = Spec {
            space: "toy".into(),
            lambda_theta: Some(1),
            steps_per_update: Some(0),
            alpha: Some(f64::NAN),
            max_staleness: Some(2_000_000),
            lease: Some(Duration::ZERO),
            ..Spec::default()
        };
        assert_eq!(
            fields(&spec),
            [
                "spec.algorithm.lambda_theta",
                "spec.algorithm.steps_per_update",
                "spec.algorithm.max_staleness",
                "spec.algorithm.alpha",
                "spec.stop.max_steps",
                "spec.lease"
            ]
        );
    }

    #[test]
    fn an_empty_spec_is_told_what_it_needs() {
        assert_eq!(fields(&Spec::default()), ["spec.space", "spec.stop.max_steps"]);
    }

    #[test]
    fn a_definition_goes_with_a_family_and_without_variables() {
        let defined = Spec {
            space: "cells".into(),
            space_definition: "x".repeat(MAX_DEFINITION),
            max_steps: 1,
            ..Spec::default()
        };
        assert_eq!(fields(&defined), [""; 0]);
        let long = Spec { space_definition: "x".repeat(MAX_DEFINITION + 1), ..defined.clone() };
        let found = long.violations();
        assert_eq!(
            found[0].to_string(),
            "spec.space_definition: has 65537 bytes; at most 65536 are allowed"
        );
        let binary = Spec { space_definition: "\u{1b}[0m".into(), ..defined.clone() };
        assert_eq!(fields(&binary), ["spec.space_definition"]);
        let other = Spec { space: "enas-micro".into(), ..defined.clone() };
        assert_eq!(fields(&other), ["spec.space"]);
        let both = Spec { variables: vec![categorical("op", &["conv", "skip"])], ..defined };
        assert_eq!(fields(&both), ["spec.variables"]);
    }

    #[test]
    fn a_sound_spec_passes() {
        let spec = Spec {
            variables: vec![categorical("op", &["conv", "skip"]), integer("width", 8, 64)],
            max_steps: 100,
            ..Spec::default()
        };
        assert_eq!(spec.violations(), []);
        assert_eq!(
            Spec { space: "enas-micro".into(), max_steps: 1, ..Spec::default() }.violations(),
            []
        );
    }
}
