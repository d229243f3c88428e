//! `asng-trainer select`: the final choice of an architecture. Draws architectures from a study's distribution, evaluates each with
//! the shared weights on images that ranked architectures in the search, and keeps the best for `retrain --architecture selected`.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use asng_client::Options;
use asng_proto::v1::{self, marginal::Kind, study_service_client::StudyServiceClient};
use clap::Args;
use rand::{Rng, SeedableRng, distr::weighted::WeightedIndex};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use serde::Serialize;
use tch::Device;
use tracing::{info, warn};

use crate::{
    engine::{
        Costs, LATENCY, checkpoints, counted_costs,
        supernet::{Failure, contain},
    },
    evaluate::{Shared, newest_weights, shared_weights},
    images::{Catalogue, DataSet},
    progress::Progress,
    study::{self, Selection},
    tasks::{self, Domain, Task, Variable, test_split::TestSplit},
    torch,
};

/// The default of [`Arguments::candidates`].
const CANDIDATES: u16 = 100;
/// Draws for each candidate that is wanted, before the distribution is taken to have no others.
const DRAWS: usize = 100;

/// The options of `select`.
#[derive(Debug, Args)]
#[group(skip)]
#[command(
    after_help = "The candidates are ranked as in the search: within every limit on costs by loss and weighted costs, then over a limit \
    by the excess, then those whose loss is not finite. `asng-trainer retrain --study NAME --architecture selected` trains the first, \
    and `asng-trainer evaluate --study NAME --architecture selected` evaluates it on the test images, which `select` does not use."
)]
pub struct Arguments {
    /// The study whose architectures are compared; its shared weights are taken from --work-dir
    #[arg(long, value_name = "NAME")]
    study: String,
    /// Number of architectures to compare: the mode, and others drawn from the distribution
    #[arg(long, default_value_t = CANDIDATES, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    candidates: u16,
    /// Number of images to evaluate them on, of the half of the training images that ranks architectures in the search
    /// [default: 2000, or all if there are fewer]
    #[arg(long, value_name = "N")]
    ranking_images: Option<i64>,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of candidates to print, the best ones
    #[arg(long, default_value_t = 10, value_name = "N")]
    top: usize,
    /// Print one line of JSON, with all candidates
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Returns the options of a selection by default.
    pub(crate) fn of(study: String, seed: u64) -> Arguments {
        Arguments { study, candidates: CANDIDATES, ranking_images: None, seed, top: 0, json: false }
    }
}

/// The candidates in their order, and what they were compared by.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    study: String,
    study_id: String,
    /// Directory of the trainer whose shared weights were used.
    work_dir: PathBuf,
    /// The last step of the search that is in them.
    step: Option<u64>,
    /// The file of the weights.
    weights: PathBuf,
    /// Ranking images.
    images: i64,
    /// The data set that they are from.
    dataset: String,
    seed: u64,
    /// The file with the first candidate; none if that is over a limit or has diverged.
    selected: Option<PathBuf>,
    /// The name of the first metric on test images.
    #[serde(skip)]
    metric: &'static str,
    candidates: Vec<Candidate>,
}

impl Results {
    /// Errors if nothing was selected.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.selected.is_some(),
            "nothing was selected: none of the {} architectures is within the limits of study {:?} and has a finite loss; compare \
             more of them with --candidates, or search longer",
            self.candidates.len(),
            self.study
        );
        Ok(())
    }
}

/// An architecture that was evaluated.
#[derive(Debug, Serialize)]
struct Candidate {
    values: Vec<i64>,
    loss: f64,
    /// The other metrics.
    metrics: BTreeMap<&'static str, f64>,
    costs: Costs,
    /// True for the most likely architecture.
    mode: bool,
    #[serde(skip)]
    rank_key: RankKey,
}

/// The place of an architecture among others: the smallest is the best (the controller's rule 8 in ARCHITECTURE.md).
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum RankKey {
    /// Within every limit: the loss and the weighted costs together.
    Within(f64),
    /// Over a limit: the sum of the relative excesses.
    Over(f64),
    /// The loss is not finite.
    Diverged,
}

impl RankKey {
    fn of(rules: &[v1::CostRule], loss: f64, costs: &Costs) -> RankKey {
        if !loss.is_finite() {
            return RankKey::Diverged;
        }
        let (mut sum, mut excess) = (loss, 0.0);
        for v1::CostRule { cost, weight, limit } in rules {
            let cost = costs.get(&**cost).copied().unwrap_or(f64::INFINITY);
            sum += weight.map_or(0.0, |weight| weight * cost);
            excess += limit.map_or(0.0, |limit| ((cost - limit) / limit).max(0.0));
        }
        if excess > 0.0 { RankKey::Over(excess) } else { RankKey::Within(sum) }
    }
}

/// The distribution of one variable.
enum Marginal {
    Categorical(WeightedIndex<f64>),
    Integer { normal: Normal<f64>, low: i64, high: i64 },
}

impl Marginal {
    /// Errors if it is none of `variable`.
    fn new(variable: &Variable, marginal: &v1::Marginal) -> anyhow::Result<Marginal> {
        match (&variable.domain, &marginal.kind) {
            (Domain::Categorical(choices), Some(Kind::Categorical(of)))
                if of.probabilities.len() == choices.len() =>
            {
                let sum: f64 = of.probabilities.iter().sum();
                ensure!((sum - 1.0).abs() < 1e-6, "the sum of its probabilities is {sum}, not 1");
                Ok(Marginal::Categorical(WeightedIndex::new(&of.probabilities)?))
            }
            (&Domain::Integer { low, high }, Some(Kind::Integer(of))) => {
                ensure!(of.mean.is_finite(), "the mean is {}", of.mean);
                let normal = Normal::new(of.mean, of.deviation)?;
                Ok(Marginal::Integer { normal, low, high })
            }
            _ => bail!("the trainer knows the variable in another form"),
        }
    }

    /// Draws a value. That of an integer is rounded within its bounds, as the controller does.
    fn draw(&self, random: &mut impl Rng) -> i64 {
        match self {
            Marginal::Categorical(choices) => choices.sample(random) as i64,
            Marginal::Integer { normal, low, high } => {
                normal.sample(random).clamp(*low as f64, *high as f64).round() as i64
            }
        }
    }
}

/// Reads the distribution of a study. Errors unless it is one of these variables.
fn marginals(variables: &[Variable], marginals: &[v1::Marginal]) -> anyhow::Result<Vec<Marginal>> {
    let (ours, theirs) = (variables.len(), marginals.len());
    ensure!(ours == theirs, "the study has {theirs} variables, its space {ours} in this trainer");
    let read = |(variable, marginal): (&Variable, _)| {
        Marginal::new(variable, marginal)
            .with_context(|| format!("the distribution of {} cannot be used", variable.name))
    };
    variables.iter().zip(marginals).map(read).collect()
}

/// Returns up to `count` distinct architectures: the mode, and those drawn, in that order. There are fewer if the distribution has
/// hardly any others.
fn draw(
    marginals: &[Marginal],
    mode: Vec<i64>,
    count: usize,
    random: &mut impl Rng,
) -> Vec<Vec<i64>> {
    let mut seen = BTreeSet::from([mode.clone()]);
    let mut candidates = vec![mode];
    for _ in 0..DRAWS * count {
        if candidates.len() == count {
            break;
        }
        let values: Vec<_> = marginals.iter().map(|marginal| marginal.draw(random)).collect();
        if seen.insert(values.clone()) {
            candidates.push(values);
        }
    }
    candidates
}

/// Selects, writes and prints.
pub async fn run(
    arguments: Arguments,
    controller: &Options,
    work_dir: &Path,
    catalogue: &Catalogue,
    device: Device,
) -> anyhow::Result<()> {
    let results = select(&arguments, controller, work_dir, catalogue, device).await?;
    if arguments.json {
        println!("{}", serde_json::to_string(&results)?);
    } else {
        print(&results, arguments.top);
    }
    results.check()
}

/// Selects, and writes what was selected, if anything was.
pub(crate) async fn select(
    arguments: &Arguments,
    controller: &Options,
    work_dir: &Path,
    catalogue: &Catalogue,
    device: Device,
) -> anyhow::Result<Results> {
    let (name, seed) = (&arguments.study, arguments.seed);
    let connection = controller.connect()?;
    let study = study::get_within(study::PATIENCE, &connection, name).await?;
    study::check_alive(&study)?;
    let mode = study.mode.clone().with_context(|| {
        format!(
            "study {name:?} has no architectures yet: it is WAITING until a trainer describes its space, as \
             `asng-trainer serve --study {name}` does; `asngctl study show {name}` shows its state"
        )
    })?;
    let request = v1::GetDistributionRequest { name: name.clone() };
    let distribution = study::call_within(study::PATIENCE, &connection, &request, |request| {
        let mut studies = StudyServiceClient::new(connection.clone());
        async move { studies.get_distribution(request).await }
    });
    let distribution = distribution.await?;
    let task = study::task(&study::space(&study))?;
    ensure!(
        task.images().is_some(),
        "the architectures of the space {} are no networks and need no selection: `asngctl study show {name}` shows the final one",
        study::space(&study).name
    );
    let weights = newest_weights("select", &study, work_dir)?;

    let marginals = marginals(&task.variables(), &distribution.marginals)?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let wanted = usize::from(arguments.candidates);
    let candidates = draw(&marginals, mode.values, wanted, &mut random);
    if candidates.len() < wanted {
        info!(
            "the distribution has hardly more than {} distinct architectures: {} draws found no others, and {wanted} were wanted",
            candidates.len(),
            DRAWS * wanted
        );
    }
    let step = checkpoints::step(&weights);
    info!(
        "comparing {} architectures with {}",
        candidates.len(),
        shared_weights(step, name, work_dir)
    );
    let compare = || compare(arguments, &study, candidates, &weights, catalogue, device);
    let (shared, candidates) = torch::attempt(compare)??;

    // Unwrap safety: the mode is always a candidate.
    let best = &candidates[0];
    let selected = match best.rank_key {
        RankKey::Within(_) => {
            let selection = Selection {
                study: study.name.clone(),
                study_id: study.study_id.clone(),
                step,
                candidates: candidates.len(),
                images: shared.images.count(),
                seed,
                loss: best.loss,
                values: best.values.clone(),
            };
            Some(selection.write(&study::directory(work_dir, &study))?)
        }
        RankKey::Over(_) | RankKey::Diverged => None,
    };
    Ok(Results {
        study: study.name,
        study_id: study.study_id,
        work_dir: work_dir.into(),
        step,
        weights,
        images: shared.images.count(),
        dataset: shared.data.info.name,
        seed,
        selected,
        metric: shared.task.test_metrics()[0],
        candidates,
    })
}

/// Evaluates the architectures with the weights in a file and sorts them, the best first.
fn compare(
    arguments: &Arguments,
    study: &v1::Study,
    architectures: Vec<Vec<i64>>,
    weights: &Path,
    catalogue: &Catalogue,
    device: Device,
) -> anyhow::Result<(Shared, Vec<Candidate>)> {
    let split = |task: &dyn Task, data: &DataSet| {
        TestSplit::ranking(task, data, arguments.ranking_images, device)
    };
    let shared = Shared::load(&study::space(study), weights, split, catalogue, device)?;
    let Shared { task, data, supernet, images } = &shared;
    let variables = task.variables();
    architectures.iter().try_for_each(|values| tasks::check(&variables, values))?;
    let rules = study.spec.as_ref().map_or(&[][..], |spec| &spec.costs);
    let measured = rules.iter().any(|rule| rule.cost == LATENCY);
    let image = images.sample(&**task, 1).input;
    let shown = Progress::new(0, images.batches() * architectures.len() as u64)?;
    let (mut candidates, mut failures) = (Vec::new(), Vec::new());
    for (place, values) in architectures.into_iter().enumerate() {
        let evaluate = || shared.evaluate(&values, &shown);
        let evaluated = contain(device, evaluate, place, &mut failures)?;
        let mut metrics: BTreeMap<_, _> = match evaluated {
            Some(metrics) => metrics.into_iter().collect(),
            None => task.test_metrics().iter().map(|name| (*name, f64::NAN)).collect(),
        };
        let loss = metrics.remove("loss").context("the task has no loss")?;
        let mut costs = counted_costs(&**task, &data.info, &values).unwrap_or_default();
        if measured {
            costs.insert(LATENCY, supernet.latency(&image, &values));
        }
        if let Some(rule) = rules.iter().find(|rule| !costs.contains_key(&*rule.cost)) {
            bail!("study {:?} has a rule about the unknown cost {:?}", study.name, rule.cost);
        }
        let rank_key = RankKey::of(rules, loss, &costs);
        // The mode comes first.
        candidates.push(Candidate { values, loss, metrics, costs, mode: place == 0, rank_key });
    }
    shown.finish();
    for Failure { place, reason } in failures {
        let values = study::list(&candidates[place].values);
        warn!("architecture {values} cannot be computed, and counts as diverged: {reason}");
    }
    sort(&mut candidates);
    Ok((shared, candidates))
}

/// Sorts the best first; of equal ones the mode, and then what was drawn earlier.
fn sort(candidates: &mut [Candidate]) {
    candidates.sort_by(|a, b| a.rank_key.partial_cmp(&b.rank_key).unwrap_or(Ordering::Equal));
}

fn print(results: &Results, top: usize) {
    let Results {
        study, work_dir, step, weights, images, dataset, seed, candidates, metric, ..
    } = results;
    println!("weights       {}", shared_weights(*step, study, work_dir));
    println!("file          {}", weights.display());
    println!("images        {images} of {dataset} that rank architectures");
    println!("candidates    {}, seed {seed}", candidates.len());
    let header = candidates[0].costs.keys().rev().map(|name| format!(" {name:>12}"));
    println!("\n{:>5} {:>10} {metric:>10}{}", "place", "loss", header.collect::<String>());
    for (i, Candidate { loss, metrics, costs, mode, rank_key, .. }) in
        candidates.iter().take(top).enumerate()
    {
        // Parameters and multiplications are whole numbers.
        let digits = |name| if name == LATENCY { 3 } else { 0 };
        let costs = costs.iter().rev();
        let costs = costs.map(|(name, cost)| format!(" {cost:>12.*}", digits(*name)));
        let mut notes = Vec::from_iter(mode.then_some("mode"));
        match rank_key {
            RankKey::Within(_) => {}
            RankKey::Over(_) => notes.push("over a limit"),
            RankKey::Diverged => notes.push("diverged"),
        }
        let metric = metrics.get(metric).copied().unwrap_or(f64::NAN);
        let (place, costs, notes) = (i + 1, costs.collect::<String>(), notes.join(", "));
        let line = format!("{place:>5} {loss:>10.4} {metric:>10.4}{costs}  {notes}");
        println!("{}", line.trim_end());
    }
    let Some(file) = &results.selected else { return };
    let mode = candidates.iter().position(|candidate| candidate.mode).unwrap_or_default();
    println!("\nselected      {}", study::list(&candidates[0].values));
    match mode {
        0 => println!("              the mode of the study"),
        place => println!("              the mode of the study is in place {}", place + 1),
    }
    println!("file          {}", file.display());
    println!("next          asng-trainer retrain --study {study} --architecture selected");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn categorical(probabilities: &[f64]) -> v1::Marginal {
        let kind = v1::CategoricalMarginal { probabilities: probabilities.into() };
        v1::Marginal { name: String::new(), kind: Some(Kind::Categorical(kind)) }
    }

    fn integer(mean: f64, deviation: f64) -> v1::Marginal {
        let kind = v1::IntegerMarginal { mean, deviation };
        v1::Marginal { name: String::new(), kind: Some(Kind::Integer(kind)) }
    }

    /// A choice of three, and an integer from 6 to 10.
    fn variables() -> [Variable; 2] {
        let integer = Domain::Integer { low: 6, high: 10 };
        [
            Variable::categorical("op", ["a", "b", "c"].map(String::from).into()),
            Variable { name: "width".into(), domain: integer },
        ]
    }

    fn read(choice: &[f64], mean: f64, deviation: f64) -> anyhow::Result<Vec<Marginal>> {
        marginals(&variables(), &[categorical(choice), integer(mean, deviation)])
    }

    fn random(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    #[test]
    fn choices_come_by_probability_and_integers_by_the_normal_distribution_within_their_bounds() {
        const DRAWN: usize = 20_000;
        let marginals = read(&[0.7, 0.3, 0.0], 8.0, 2.0).unwrap();
        // A table of the normal distribution: 1 - Phi(0.75) = 0.2266, Phi(0.75) - Phi(0.25) = 0.1747, 2 Phi(0.25) - 1 = 0.1974.
        let widths = [0.2266, 0.1747, 0.1974, 0.1747, 0.2266];
        for (marginal, low, expected) in
            [(&marginals[0], 0, &[0.7, 0.3, 0.0][..]), (&marginals[1], 6, &widths)]
        {
            let mut random = random(1);
            let mut counts = vec![0; expected.len()];
            (0..DRAWN).for_each(|_| counts[(marginal.draw(&mut random) - low) as usize] += 1);
            for (count, expected) in counts.into_iter().zip(expected) {
                let part = f64::from(count) / DRAWN as f64;
                // Three deviations are 0.01.
                assert!((part - expected).abs() < 0.012, "{part}, not {expected}");
            }
        }
        let fixed = read(&[0.0, 1.0, 0.0], 7.0, 0.0).unwrap();
        assert_eq!(draw(&fixed, vec![1, 7], 5, &mut random(0)), [[1, 7]]);
    }

    #[test]
    fn candidates_are_the_mode_and_distinct_draws_decided_by_the_seed() {
        let marginals = read(&[0.5, 0.25, 0.25], 8.0, 2.0).unwrap();
        let drawn = |count, seed| draw(&marginals, vec![0, 8], count, &mut random(seed));
        assert_eq!(drawn(1, 0), [[0, 8]]);
        let some = drawn(8, 0);
        assert_eq!((&some[0], some.len()), (&vec![0, 8], 8));
        assert!(some.iter().all(|values| tasks::check(&variables(), values).is_ok()));
        assert_eq!(some.iter().collect::<BTreeSet<_>>().len(), 8);
        assert_eq!(drawn(8, 0), some);
        assert_ne!(drawn(8, 1), some);
        assert_eq!(drawn(100, 0).len(), 3 * 5, "there are no others");
    }

    #[test]
    fn a_distribution_that_is_none_of_the_space_is_refused() {
        let error = |given: anyhow::Result<Vec<Marginal>>| match given {
            Ok(_) => panic!("it is accepted"),
            Err(error) => format!("{error:#}"),
        };
        let huge = f64::MAX;
        for (choice, mean, deviation, reason) in [
            (&[0.5, 0.5][..], 8.0, 1.0, "the distribution of op cannot be used: the trainer knows"),
            (&[0.5, 0.5, 0.5], 8.0, 1.0, "is 1.5, not 1"),
            (&[huge, huge, 0.0], 8.0, 1.0, "is inf, not 1"),
            (&[f64::NAN, 0.5, 0.5], 8.0, 1.0, "is NaN, not 1"),
            (&[2.0, -1.0, 0.0], 8.0, 1.0, "the distribution of op cannot be used: "),
            (&[1.0, 0.0, 0.0], f64::NAN, 1.0, "the distribution of width cannot be used: the mean"),
            (&[1.0, 0.0, 0.0], 8.0, f64::INFINITY, "the distribution of width cannot be used: "),
        ] {
            let error = error(read(choice, mean, deviation));
            assert!(error.contains(reason), "{error}");
        }
        let error = error(marginals(&variables(), &[integer(8.0, 1.0)]));
        assert_eq!(error, "the study has 1 variables, its space 2 in this trainer");
        assert!(marginals(&variables(), &[integer(8.0, 1.0), categorical(&[1.0])]).is_err());
    }

    /// The numbers are those of the controller's own test of this rule (`controller/src/study/costs/tests.rs`).
    #[test]
    fn within_the_limits_comes_before_over_them_and_diverged_last() {
        let rule = |cost: &str, weight, limit| v1::CostRule { cost: cost.into(), weight, limit };
        let rules = [rule("size", Some(2.0), Some(10.0)), rule("time", None, Some(1.0))];
        let evaluated = [
            (0.0, [11.0, 1.0]), // a tenth over
            (f64::NAN, [1.0, 1.0]),
            (5.0, [10.0, 1.0]),  // 5 + 2 x 10
            (15.0, [5.0, 0.0]),  // 15 + 2 x 5
            (-9.0, [20.0, 0.0]), // twice the limit
            (1.0, [0.0, 0.5]),
            (f64::NEG_INFINITY, [0.0, 0.0]),
        ];
        let order = |rules: &[v1::CostRule]| -> Vec<i64> {
            let candidate = |(i, (loss, [size, time])): (usize, &(f64, [f64; 2]))| {
                let costs = Costs::from([("size", *size), ("time", *time)]);
                let rank_key = RankKey::of(rules, *loss, &costs);
                let (values, loss, mode) = (vec![i as i64], *loss, i == 0);
                Candidate { values, loss, metrics: BTreeMap::new(), costs, mode, rank_key }
            };
            let mut candidates: Vec<_> = evaluated.iter().enumerate().map(candidate).collect();
            sort(&mut candidates);
            candidates.into_iter().map(|candidate| candidate.values[0]).collect()
        };
        // 2 and 3 tie, and so do 1 and 6: they keep their order.
        assert_eq!(order(&rules), [5, 2, 3, 0, 4, 1, 6]);
        assert_eq!(order(&[]), [4, 0, 5, 2, 3, 1, 6], "by the loss alone");
        assert_eq!(RankKey::of(&rules, 0.0, &Costs::new()), RankKey::Over(f64::INFINITY));
    }
}
