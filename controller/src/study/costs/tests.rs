use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::asng::{Algorithm, Architecture, Marginal, Settings, Variable};

fn rule(cost: &str, weight: Option<f64>, limit: Option<f64>) -> CostRule {
    CostRule { cost: cost.into(), weight, limit }
}

fn costs(figures: &[(&str, f64)]) -> Costs {
    figures.iter().map(|(name, cost)| (name.to_string(), *cost)).collect()
}

fn step(id: u64, rank: Vec<Architecture>) -> Step {
    Step {
        id: StepId(id),
        generation: 0,
        applied: 0,
        train: [].into(),
        rank: rank.into(),
        attempt: 1,
        lease: None,
    }
}

fn with(costs: Vec<CostRule>) -> Spec {
    Spec { costs, ..Spec::default() }
}

/// A study's part in [`learn`].
struct Learner {
    asng: Asng,
    selection: Arc<Selection>,
    spec: Spec,
    steps: u64,
    random: ChaCha8Rng,
}

impl Learner {
    fn new(categoricals: usize, rules: Vec<CostRule>) -> Learner {
        let variables = vec![Variable::Categorical { choices: 3 }; categoricals];
        Learner {
            asng: Asng::new(&variables, Settings::default()).unwrap(),
            selection: Arc::default(),
            spec: with(rules),
            steps: 0,
            random: ChaCha8Rng::seed_from_u64(1),
        }
    }

    /// Samples `count` architectures and learns from what `evaluate` says of each.
    fn step(&mut self, count: usize, mut evaluate: impl FnMut(&[i64]) -> (f64, Costs)) {
        self.steps += 1;
        let step = step(self.steps, self.asng.ask(count, &mut self.random));
        let (losses, costs): (Vec<_>, Vec<_>) =
            step.rank.iter().map(|a| evaluate(&a.settled(self.asng.variables()))).unzip();
        let report = Evaluation { step: &step, losses: &losses, costs: &costs };
        learn(&mut self.asng, &mut self.selection, &self.spec, &[report]).unwrap();
        assert!(self.selection.fits(&self.spec, self.asng.variables()));
    }

    fn chosen(&self) -> Option<Candidate> {
        self.selection.chosen(&self.asng, &self.spec.costs)
    }
}

#[test]
fn within_the_limits_comes_before_over_them_and_diverged_last() {
    let spec = with(vec![rule("size", Some(2.0), Some(10.0)), rule("time", None, Some(1.0))]);
    let reported = [
        (0.0, [11.0, 1.0]), // a tenth over
        (f64::NAN, [1.0, 1.0]),
        (5.0, [10.0, 1.0]),  // 5 + 2 x 10
        (0.0, [10.5, 1.05]), // a tenth over, by both
        (15.0, [5.0, 0.0]),  // 15 + 2 x 5
        (-9.0, [20.0, 0.0]), // twice the limit
        (1.0, [0.0, 0.5]),
        (f64::NEG_INFINITY, [0.0, 0.0]),
    ];
    let losses: Vec<f64> = reported.iter().map(|(loss, _)| *loss).collect();
    let costs: Vec<_> = reported
        .iter()
        .map(|(_, [size, time])| costs(&[("size", *size), ("time", *time)]))
        .collect();
    let rank_key = |i: usize| RankKey::of(&spec, losses[i], Some(&costs[i]));
    assert_eq!([rank_key(2), rank_key(4), rank_key(6)], [25.0, 25.0, 1.0].map(RankKey::Within));
    let keys = keys(&spec, &losses, &costs);
    assert!(keys[1].is_nan() && keys[7].is_nan());
    assert_eq!(keys[2], keys[4], "they tie");
    assert!(keys[6] < keys[2] && keys[2] < keys[0] && keys[0] < keys[5], "{keys:?}");
    assert!(matches!(rank_key(3), RankKey::Over(excess) if (excess - 0.1).abs() < 1e-12));
    assert_eq!(RankKey::of(&spec, 0.0, None), RankKey::Over(f64::INFINITY), "nothing is known");
}

#[test]
fn without_rules_the_losses_are_ranked_as_they_are() {
    let losses = [0.5, f64::NAN, -0.0];
    let mut spec = with(Vec::new());
    assert!(
        matches!(keys(&spec, &losses, &[]), Cow::Borrowed(same) if std::ptr::eq(same, &losses[..]))
    );
    spec.direction = Direction::Maximize;
    assert_eq!(keys(&spec, &losses, &[])[0], -0.5);
}

#[test]
fn rules_that_make_no_sense_are_refused_with_the_field() {
    let fields = |rules: &[CostRule]| -> Vec<String> {
        rule_violations(rules).into_iter().map(|violation| violation.field).collect()
    };
    assert_eq!(fields(&[rule("a", Some(1.0), None), rule("b", None, Some(1.0))]), [""; 0]);
    for (rule, field) in [
        (rule("", Some(1.0), None), "spec.costs[0].cost"),
        (rule("a", None, None), "spec.costs[0]"),
        (rule("a", Some(0.0), None), "spec.costs[0].weight"),
        (rule("a", Some(f64::INFINITY), None), "spec.costs[0].weight"),
        (rule("a", None, Some(f64::NAN)), "spec.costs[0].limit"),
        (rule("a", None, Some(-1.0)), "spec.costs[0].limit"),
    ] {
        assert_eq!(fields(&[rule]), [field]);
    }
    let twice = [rule("a", Some(1.0), None), rule("a", None, Some(1.0))];
    assert_eq!(fields(&twice), ["spec.costs[1].cost"]);
    let many: Vec<_> = (0..11).map(|i| rule(&i.to_string(), Some(1.0), None)).collect();
    assert_eq!(fields(&many), ["spec.costs"]);
}

#[test]
fn a_front_has_what_nothing_beats_and_is_bounded() {
    let mut learner = Learner::new(8, Vec::new());
    let mut evaluated: Vec<(f64, f64)> = Vec::new();
    for i in 0..500 {
        let n = f64::from(i % 40);
        let (cost, loss) = ((n * 7.0) % 13.0, (n * 11.0) % 17.0);
        learner.step(2, |_| (loss, costs(&[("size", cost)])));
        evaluated.push((cost, loss));
    }
    let best = |&(cost, loss): &(f64, f64)| {
        !evaluated.iter().any(|o| o.0 <= cost && o.1 <= loss && *o != (cost, loss))
    };
    let mut expected: Vec<_> = evaluated.iter().copied().filter(best).collect();
    expected.sort_by(|a, b| a.0.total_cmp(&b.0));
    expected.dedup();
    let front = |learner: &Learner| {
        let points = learner.selection.fronts()["size"].iter();
        points.map(|point| (point.cost, point.loss)).collect::<Vec<_>>()
    };
    assert_eq!(front(&learner), expected);
    assert_eq!(learner.selection.candidates(), [], "there is no limit");
    assert_eq!(learner.chosen().unwrap().values.len(), 8, "it is the mode");

    // None of these beats another.
    let mut learner = Learner::new(8, Vec::new());
    for i in (1..1000).rev() {
        learner.step(2, |_| (1000.0 - f64::from(i), costs(&[("size", f64::from(i))])));
    }
    let front = front(&learner);
    assert_eq!(front.len(), MAX_POINTS);
    assert_eq!((front[0], front[MAX_POINTS - 1]), ((1.0, 999.0), (999.0, 1.0)), "the ends stay");
    // Of a space with many variables there are fewer.
    assert_eq!((room(MAX_POINTS, 4096), room(MAX_CANDIDATES, 4096)), (16, 16));
}

#[test]
fn maximizing_is_minimizing_the_negated_loss_and_costs_count_against_it() {
    let rules = vec![rule("size", Some(0.5), Some(2.0)), rule("time", Some(3.0), None)];
    let mut minimizes = Learner::new(5, rules);
    let mut maximizes = Learner::new(5, minimizes.spec.costs.clone());
    maximizes.spec.direction = Direction::Maximize;
    let evaluate = |values: &[i64]| {
        let [zeros, ones] = [0, 1].map(|of| values.iter().filter(|&&v| v == of).count() as f64);
        let loss = if ones == 4.0 { f64::NAN } else { 1.0 - zeros * zeros };
        (loss, costs(&[("size", zeros), ("time", ones / 7.0)]))
    };
    for _ in 0..200 {
        minimizes.step(2, evaluate);
        maximizes.step(2, |values| {
            let (loss, costs) = evaluate(values);
            (-loss, costs)
        });
        assert_eq!(minimizes.asng.state(), maximizes.asng.state());
    }
    assert_eq!(minimizes.selection.candidates(), maximizes.selection.candidates());
    assert!(maximizes.selection.candidates().len() > 1);
    let fronts = |learner: &Learner, sign: f64| -> Vec<(f64, f64)> {
        let points = learner.selection.fronts().values().flatten();
        points.map(|point| (point.cost, sign * point.loss)).collect()
    };
    assert_eq!(fronts(&minimizes, 1.0), fronts(&maximizes, -1.0));
    assert!(maximizes.selection.fronts()["size"].len() > 1);
    assert!(!maximizes.selection.fits(&minimizes.spec, maximizes.asng.variables()));

    let rank_key =
        |loss| RankKey::of(&maximizes.spec, loss, Some(&costs(&[("size", 2.0), ("time", 1.0)])));
    assert_eq!(rank_key(10.0), RankKey::Within(-6.0), "10 - 0.5 x 2 - 3 x 1");
    assert!(rank_key(10.0) < rank_key(9.0) && rank_key(9.0) < rank_key(f64::INFINITY));
}

#[test]
fn the_most_probable_candidates_stay_when_there_are_too_many() {
    let mut learner = Learner::new(40, vec![rule("size", None, Some(1.0))]);
    // Of a theta that stays as it is, so that what was the most probable is so at the end.
    let settings = Settings { algorithm: Algorithm::Random, ..Settings::default() };
    learner.asng = Asng::new(learner.asng.variables(), settings).unwrap();
    for i in 0..40 {
        learner.asng.start_at(i, &Marginal::Categorical(vec![0.6, 0.2, 0.2])).unwrap();
    }
    let zeros = |values: &[i64]| values.iter().filter(|value| **value == 0).count();
    let mut most = 0;
    for _ in 0..500 {
        learner.step(2, |values| {
            most = most.max(zeros(values));
            (1.0, costs(&[("size", 1.0)]))
        });
        assert_eq!(zeros(&learner.chosen().unwrap().values), most);
    }
    assert!((MAX_CANDIDATES / 2..=MAX_CANDIDATES).contains(&learner.selection.candidates().len()));
}

#[test]
fn an_integer_s_final_value_is_the_evaluated_one_next_to_its_mean() {
    let variables = [Variable::Integer { low: 0, high: 100 }];
    let asng = Asng::new(&variables, Settings::default()).unwrap();
    let rules = [rule("size", None, Some(1.0))];
    let candidate = |value| Candidate { values: [value].into(), costs: Arc::default() };
    let selection = |values: &[i64]| {
        Selection::new(values.iter().copied().map(candidate).collect(), BTreeMap::new())
    };
    let chosen = |values: &[i64]| selection(values).chosen(&asng, &rules).map(|c| c.values[0]);
    assert_eq!(chosen(&[0, 44, 61, 100]), Some(44));
    assert_eq!(chosen(&[44, 50]), Some(50), "the mode");
    assert_eq!(chosen(&[]), None);
}

fn evaluation() -> impl Strategy<Value = (f64, f64, f64)> {
    let loss = prop_oneof![5 => -1e3..1e3, 1 => Just(f64::NAN), 1 => Just(f64::MAX)];
    let cost = || prop_oneof![9 => 0.0..3.0, 1 => Just(f64::MAX), 1 => Just(1.0), 1 => Just(0.0)];
    (loss, cost(), cost())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_final_architecture_never_exceeds_a_limit_whatever_is_reported(
        categoricals in 1..50_usize,
        limits in (1e-3..3.0, prop::option::of(1e-3..3.0)),
        reports in prop::collection::vec(evaluation(), 1..300),
    ) {
        let rules = vec![
            rule("size", Some(0.1), Some(limits.0)),
            rule("time", Some(1e-9), limits.1),
        ];
        let mut learner = Learner::new(categoricals, rules);
        let mut last = BTreeMap::new();
        for pair in reports.chunks_exact(2) {
            let mut pair = pair.iter();
            learner.step(2, |values| {
                let (loss, size, time) = *pair.next().unwrap();
                if loss.is_finite() {
                    last.insert(values.to_vec(), (size, time));
                }
                (loss, costs(&[("size", size), ("time", time)]))
            });
            let within = |&(size, time): &(f64, f64)| {
                size <= limits.0 && limits.1.is_none_or(|limit| time <= limit)
            };
            match learner.chosen() {
                Some(Candidate { values, costs }) => {
                    let reported = last[&*values];
                    prop_assert!(within(&reported));
                    prop_assert_eq!(reported, (costs["size"], costs["time"]));
                }
                None => prop_assert!(!last.values().any(within)),
            }
        }
    }
}
