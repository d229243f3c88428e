//! Costs of architectures: the rules of a study about them, the ranking of evaluated architectures by loss and costs, and the
//! architectures that are kept for their costs. Costs are known by name only, whatever they count.

#[cfg(test)]
mod tests;

use std::{borrow::Cow, cmp::Ordering, collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Direction, Spec, Step, StepId, Violation, is_label, spec::LABEL_RULE};
use crate::asng::{self, Asng, Ranked, is_settled};

/// Costs of an architecture, rules of a study, fronts of a study.
const MAX_COSTS: usize = 10;
const MAX_CANDIDATES: usize = 256;
const MAX_POINTS: usize = 128;
/// Values of architectures among the candidates, and on a front: bounds both where a space has many variables.
const MAX_VALUES: usize = 1 << 16;

/// The costs of an architecture by name; finite and not below 0.
pub type Costs = BTreeMap<String, f64>;

/// A rule about a cost of an architecture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostRule {
    /// The cost's name.
    pub cost: String,
    /// The amount that a unit of it adds to the loss, or subtracts from one that is maximized.
    pub weight: Option<f64>,
    /// The most that is allowed.
    pub limit: Option<f64>,
}

/// Everything that is wrong with the rules of a spec.
pub(super) fn rule_violations(rules: &[CostRule]) -> Vec<Violation> {
    let mut found = Vec::new();
    if rules.len() > MAX_COSTS {
        found.push(Violation::new("spec.costs", format!("at most {MAX_COSTS} rules")));
    }
    for (i, CostRule { cost, weight, limit }) in rules.iter().enumerate() {
        let mut refuse = |field: &str, description: String| {
            found.push(Violation::new(format!("spec.costs[{i}]{field}"), description));
        };
        if !is_label(cost) {
            refuse(".cost", LABEL_RULE.into());
        } else if rules[..i].iter().any(|rule| rule.cost == *cost) {
            refuse(".cost", format!("{cost:?} has a rule already: one may have weight and limit"));
        }
        if weight.is_none() && limit.is_none() {
            refuse("", "give a weight, a limit or both".into());
        }
        for (field, value) in [(".weight", weight), (".limit", limit)] {
            if value.is_some_and(|value| !(value > 0.0 && value.is_finite())) {
                refuse(field, "must be a finite number above 0".into());
            }
        }
    }
    found
}

/// Returns true if these can be the costs of an architecture.
pub fn are_costs(costs: &Costs) -> bool {
    let sound = |(name, cost): (&String, &f64)| is_label(name) && (0.0..=f64::MAX).contains(cost);
    costs.len() <= MAX_COSTS && costs.iter().all(sound)
}

/// The condition of [`are_costs`].
pub const COSTS_RULE: &str =
    "up to 10 costs of an architecture, finite and not below 0, names of 1 to 200 characters";

/// Returns a violation for each rule about a cost that is not among those that a space reports.
pub(super) fn unreported(rules: &[CostRule], reported: &[String]) -> Vec<Violation> {
    let all = if reported.is_empty() { "no costs".into() } else { reported.join(", ") };
    let missing = rules.iter().enumerate().filter(|(_, rule)| !reported.contains(&rule.cost));
    let violation = |(i, rule): (usize, &CostRule)| {
        let description = format!("unknown cost {:?}; this space reports {all}", rule.cost);
        Violation::new(format!("spec.costs[{i}].cost"), description)
    };
    missing.map(violation).collect()
}

/// Everything that is wrong with the names of the costs that a space reports; `field` is where they were given.
pub fn cost_name_violations(field: &str, names: &[String]) -> Vec<Violation> {
    if names.len() > MAX_COSTS {
        let description = format!("{} names; at most {MAX_COSTS} are allowed", names.len());
        return vec![Violation::new(field, description)];
    }
    let malformed = names.iter().enumerate().filter(|(_, name)| !is_label(name));
    malformed.map(|(i, _)| Violation::new(format!("{field}[{i}]"), LABEL_RULE)).collect()
}

/// Everything that is wrong with the costs of a report of `count` architectures.
pub(super) fn report_violations(
    rules: &[CostRule],
    costs: &[Costs],
    count: usize,
) -> Vec<Violation> {
    if !costs.is_empty() && costs.len() != count {
        let description = format!("{} costs; the step has {count} rank architectures", costs.len());
        return vec![Violation::new("costs", description)];
    }
    let missing = |rule: &&CostRule| {
        costs.len() < count || costs.iter().any(|costs| !costs.contains_key(&rule.cost))
    };
    let violation = |CostRule { cost, .. }: &CostRule| {
        let description =
            format!("the study has a rule about {cost:?}: send it for each rank architecture");
        Violation::new("costs", description)
    };
    rules.iter().filter(missing).map(violation).collect()
}

/// Where an evaluated architecture stands among others: the first is the best.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) enum RankKey {
    /// Within every limit: loss, negated where it is maximized, and weighted costs together.
    Within(f64),
    /// Over a limit: the sum of the relative excesses.
    Over(f64),
    /// The loss is not finite.
    Diverged,
}

impl RankKey {
    /// Without rules every finite loss is within the limits. A cost that is missing counts as infinite.
    pub(super) fn of(spec: &Spec, loss: f64, costs: Option<&Costs>) -> RankKey {
        if !loss.is_finite() {
            return RankKey::Diverged;
        }
        // Neither becomes NaN: only numbers that are not below 0 are added.
        let (mut sum, mut excess) = (spec.direction.key(loss), 0.0);
        for CostRule { cost, weight, limit } in &spec.costs {
            let cost = costs.and_then(|costs| costs.get(cost)).copied().unwrap_or(f64::INFINITY);
            if let Some(weight) = weight {
                sum += weight * cost;
            }
            if let Some(limit) = limit.filter(|limit| cost > *limit) {
                excess += (cost - limit) / limit;
            }
        }
        if excess > 0.0 { RankKey::Over(excess) } else { RankKey::Within(sum) }
    }
}

/// Where the architectures of a report stand.
pub(super) fn rank_keys(
    spec: &Spec,
    losses: &[f64],
    costs: &[Costs],
) -> impl Iterator<Item = RankKey> {
    losses.iter().enumerate().map(|(i, &loss)| RankKey::of(spec, loss, costs.get(i)))
}

/// Returns the numbers that the optimiser ranks in place of losses: in the order of the rank_keys, equal where these are. Without
/// rules they are the losses themselves, negated where they are maximized.
fn keys<'a>(spec: &Spec, losses: &'a [f64], costs: &[Costs]) -> Cow<'a, [f64]> {
    if spec.costs.is_empty() {
        return match spec.direction {
            Direction::Minimize => losses.into(),
            Direction::Maximize => losses.iter().map(|&loss| spec.direction.key(loss)).collect(),
        };
    }
    let rank_keys: Vec<_> = rank_keys(spec, losses, costs).collect();
    let mut order: Vec<usize> = (0..rank_keys.len()).collect();
    order.sort_by(|&a, &b| rank_keys[a].partial_cmp(&rank_keys[b]).unwrap_or(Ordering::Equal));
    let mut keys = vec![f64::NAN; rank_keys.len()];
    let tied = order.chunk_by(|&a, &b| rank_keys[a] == rank_keys[b]);
    for (rank, tied) in tied.enumerate() {
        for &i in tied.iter().filter(|&&i| rank_keys[i] != RankKey::Diverged) {
            keys[i] = rank as f64;
        }
    }
    keys.into()
}

/// A report that enters an update.
#[derive(Clone, Copy, Debug)]
pub struct Evaluation<'a> {
    /// Its step.
    pub step: &'a Step,
    /// Losses of the step's `rank` architectures.
    pub losses: &'a [f64],
    /// Their costs; empty when none were reported.
    pub costs: &'a [Costs],
}

/// Moves theta once by a batch of reports, and remembers what they evaluated.
pub fn learn(
    asng: &mut Asng,
    selection: &mut Arc<Selection>,
    spec: &Spec,
    batch: &[Evaluation<'_>],
) -> Result<(), asng::Error> {
    let keys: Vec<_> = batch.iter().map(|report| keys(spec, report.losses, report.costs)).collect();
    let ranked = batch.iter().zip(&keys).filter(|(report, _)| !report.step.rank.is_empty());
    let ranked: Vec<Ranked<'_>> = ranked
        .map(|(report, keys)| Ranked { architectures: &report.step.rank, losses: keys })
        .collect();
    if !ranked.is_empty() {
        asng.tell(&ranked)?;
    }
    for report in batch.iter().filter(|report| !report.costs.is_empty()) {
        Arc::make_mut(selection).remember(asng, spec, report);
    }
    Ok(())
}

/// An architecture that was evaluated within the limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// A settled value for each variable.
    pub values: Arc<[i64]>,
    /// As last reported.
    pub costs: Arc<Costs>,
}

/// An evaluated architecture on the front of loss against a cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The cost.
    pub cost: f64,
    /// The loss that was reported with it.
    pub loss: f64,
    /// A settled value for each variable.
    pub values: Arc<[i64]>,
    /// The step whose report carried it.
    pub step: StepId,
}

/// The evaluated architectures that a study keeps for their costs: bounded, and empty where none are reported.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// Sorted by their values. None without limits.
    candidates: Vec<Candidate>,
    /// By the cost's name; the cheapest first, each with a better loss than the one before.
    fronts: BTreeMap<String, Vec<Point>>,
}

impl Selection {
    /// One that comes from elsewhere; a study checks that it makes sense.
    pub fn new(candidates: Vec<Candidate>, fronts: BTreeMap<String, Vec<Point>>) -> Selection {
        Selection { candidates, fronts }
    }

    /// Returns true if nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty() && self.fronts.is_empty()
    }

    /// Returns the architectures that were evaluated within the limits.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// The fronts, by the names of their costs.
    pub fn fronts(&self) -> &BTreeMap<String, Vec<Point>> {
        &self.fronts
    }

    /// Returns true if a study with this spec and variables can have it.
    pub(super) fn fits(&self, spec: &Spec, variables: &[asng::Variable]) -> bool {
        let within =
            |costs: &Costs| matches!(RankKey::of(spec, 0.0, Some(costs)), RankKey::Within(_));
        let key = |point: &Point| spec.direction.key(point.loss);
        let sound = |front: &Vec<Point>| {
            front.len() <= room(MAX_POINTS, variables.len())
                && front.iter().all(|point| {
                    point.loss.is_finite()
                        && (0.0..=f64::MAX).contains(&point.cost)
                        && is_settled(&point.values, variables)
                })
                && front.is_sorted_by(|a, b| a.cost < b.cost && key(a) > key(b))
        };
        let candidates = &self.candidates;
        candidates.len() <= room(MAX_CANDIDATES, variables.len())
            && candidates.is_sorted_by(|a, b| a.values < b.values)
            && candidates.iter().all(|Candidate { values, costs }| {
                is_settled(values, variables) && are_costs(costs) && within(costs)
            })
            && self.fronts.len() <= MAX_COSTS
            && self.fronts.iter().all(|(cost, front)| is_label(cost) && sound(front))
    }

    /// Returns the current best guess at the final architecture: the mode, if there is no limit or it was evaluated within all; else the
    /// most probable candidate.
    pub(super) fn chosen(&self, asng: &Asng, rules: &[CostRule]) -> Option<Candidate> {
        let mode = asng.mode().settled(asng.variables());
        if !have_limits(rules) {
            return Some(Candidate { values: mode.into(), costs: Arc::default() });
        }
        if let Ok(place) = self.place(&mode) {
            return Some(self.candidates[place].clone());
        }
        let probable = self.probabilities(asng).into_iter().zip(&self.candidates);
        let (_, likeliest) = probable.reduce(|a, b| if b.0 > a.0 { b } else { a })?;
        Some(likeliest.clone())
    }

    fn probabilities(&self, asng: &Asng) -> Vec<f64> {
        asng.log_probabilities(self.candidates.iter().map(|candidate| &*candidate.values))
    }

    /// Where the candidate of these values is, or would be.
    fn place(&self, values: &[i64]) -> Result<usize, usize> {
        self.candidates.binary_search_by(|candidate| (*candidate.values).cmp(values))
    }

    fn remember(&mut self, asng: &Asng, spec: &Spec, report: &Evaluation<'_>) {
        let Evaluation { step, losses, costs } = *report;
        for ((architecture, &loss), costs) in step.rank.iter().zip(losses).zip(costs) {
            let rank_key = RankKey::of(spec, loss, Some(costs));
            if rank_key == RankKey::Diverged {
                continue;
            }
            let values: Arc<[i64]> = architecture.settled(asng.variables()).into();
            for (name, &cost) in costs {
                if self.fronts.len() < MAX_COSTS || self.fronts.contains_key(name) {
                    let front = self.fronts.entry(name.clone()).or_default();
                    let point = Point { cost, loss, values: values.clone(), step: step.id };
                    enter(front, point, spec.direction, room(MAX_POINTS, values.len()));
                }
            }
            if have_limits(&spec.costs) {
                let costs = Arc::new(costs.clone());
                match (self.place(&values), rank_key) {
                    (Ok(place), RankKey::Within(_)) => self.candidates[place].costs = costs,
                    (Ok(place), _) => drop(self.candidates.remove(place)),
                    (Err(place), RankKey::Within(_)) => {
                        self.candidates.insert(place, Candidate { values, costs });
                        self.thin_out(asng);
                    }
                    (Err(_), _) => {}
                }
            }
        }
    }

    /// Drops the less probable half of the candidates if there are too many.
    fn thin_out(&mut self, asng: &Asng) {
        let room = room(MAX_CANDIDATES, asng.variables().len());
        if self.candidates.len() <= room {
            return;
        }
        let probabilities = self.probabilities(asng);
        let mut order: Vec<usize> = (0..self.candidates.len()).collect();
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
        order.truncate(room / 2);
        order.sort();
        self.candidates = order.into_iter().map(|i| self.candidates[i].clone()).collect();
    }
}

/// How many architectures are kept where there would be `most` of few variables.
fn room(most: usize, variables: usize) -> usize {
    most.min(MAX_VALUES / variables.max(1))
}

fn have_limits(rules: &[CostRule]) -> bool {
    rules.iter().any(|rule| rule.limit.is_some())
}

/// Adds a point to a front, unless another is as good and as cheap, and takes out those that it makes superfluous. Beyond
/// `room`, the one goes that stands out least: whose corner, between its neighbours' cost and loss, is smallest.
fn enter(front: &mut Vec<Point>, point: Point, direction: Direction, room: usize) {
    let key = |point: &Point| direction.key(point.loss);
    let start = front.partition_point(|other| other.cost < point.cost);
    let beaten = |other: &Point| other.cost <= point.cost && key(other) <= key(&point);
    if front[..start].last().is_some_and(beaten) || front.get(start).is_some_and(beaten) {
        return;
    }
    let end = start + front[start..].partition_point(|other| key(other) >= key(&point));
    front.splice(start..end, [point]);
    if front.len() > room {
        let corner = |i: &usize| {
            let [before, point, after] = [i - 1, *i, i + 1].map(|i| &front[i]);
            (after.cost - point.cost) * (key(before) - key(point))
        };
        let smallest = (1..front.len() - 1).min_by(|a, b| corner(a).total_cmp(&corner(b)));
        // Unwrap safety: there is room for more than one, as a space has at most 4096 variables.
        front.remove(smallest.unwrap());
    }
}
