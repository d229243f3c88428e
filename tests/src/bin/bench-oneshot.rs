//! One-shot searches on NAS-Bench-201 with a small supernet, through the real services: ASNG with and without a warm-up, a fixed
//! step, and weights that are trained uniformly. Started by `cargo xtask bench oneshot`, which builds everything for release.
//!
//! A table goes into docs/results.md between its marks, the curves beside it. The last line on standard output is JSON.

use std::{collections::BTreeMap, num::NonZero, path::PathBuf, sync::Arc, thread};

use anyhow::Context;
use asng_tests::{
    document::{Document, Table},
    draw::{Axes, Curve, draw},
    oneshot::{Arm, Bench, Found, Plan, Record},
};
use clap::{Args, Parser};
use tokio::task::JoinSet;

/// The searches are those of this preset.
const PRESET: &str = "small";
/// SNG's step: the best one on the paper's artificial problem (`cargo xtask bench toy`).
const FIXED_STEP: f64 = 0.1;
/// Cells drawn from the distribution at the end, from which shared weights select one.
const CANDIDATES: usize = 100;
/// Random cells on which shared weights are compared with the table.
const RANDOM_CELLS: usize = 100;
/// Test images for that.
const TEST_IMAGES: usize = 1000;

/// Measures one-shot searches on NAS-Bench-201.
#[derive(Parser)]
struct Arguments {
    /// Seeds: how many, from 0, or a list such as 0,2,5
    #[arg(long, default_value = "5", value_parser = seeds)]
    seeds: Seeds,
    /// A smoke test: one seed, 30 steps, few images; writes no document
    #[arg(long, conflicts_with_all = ["seeds", "Variation"])]
    quick: bool,
    /// Searches at a time, each on one core [default: one for each core]
    #[arg(long)]
    jobs: Option<NonZero<usize>>,
    /// Directory of the results: a JSON file for each search, and all from where it goes on after an interruption
    /// [default: target/oneshot; a temporary one with --quick]
    #[arg(long)]
    out: Option<PathBuf>,
    /// The document whose table is written anew; the curves are written beside it
    #[arg(long, default_value = "docs/results.md")]
    document: PathBuf,
    #[command(flatten)]
    variation: Option<Variation>,
}

/// ASNG alone, in other searches than the preset's; the document stays as it is.
#[derive(Args)]
#[group(multiple = true, requires = "out")]
struct Variation {
    /// A variation, of ASNG alone: other steps
    #[arg(long)]
    steps: Option<u64>,
    /// A variation: another share of the steps for the warm-up
    #[arg(long, value_name = "SHARE")]
    warmup: Option<f64>,
    /// A variation: another initial trust region
    #[arg(long, value_name = "X")]
    delta_init: Option<f64>,
    /// A variation: another setting of the supernet or its training, repeatable
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
}

impl Variation {
    fn change(self, plan: Plan) -> Plan {
        let share = self.warmup.unwrap_or(plan.warmup_steps as f64 / plan.steps as f64);
        let steps = self.steps.unwrap_or(plan.steps);
        let mut settings = plan.settings;
        settings.extend(self.settings);
        Plan {
            steps,
            warmup_steps: (share * steps as f64).round() as u64,
            delta_init: self.delta_init.or(plan.delta_init),
            settings,
            ..plan
        }
    }
}

fn setting(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.into(), value.into()))
}

#[derive(Clone)]
struct Seeds(Vec<u64>);

fn seeds(text: &str) -> Result<Seeds, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    if !text.contains(',') {
        return Ok(Seeds((0..number(text)?.max(1)).collect()));
    }
    // A comma at the end makes a list of one number.
    let list = text.trim_end_matches(',').split(',').map(number);
    list.collect::<Result<_, _>>().map(Seeds)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let preset = asng_client::preset("nasbench201", PRESET).context("the space has the preset")?;
    let steps = if arguments.quick { 30 } else { preset.max_steps };
    let plan = Plan {
        steps,
        warmup_steps: preset.warmup_steps(steps).unwrap_or_default(),
        delta_init: preset.delta_init,
        fixed_step: FIXED_STEP,
        settings: [("preset".into(), PRESET.into())].into(),
        candidates: CANDIDATES,
        random_cells: RANDOM_CELLS,
        test_images: TEST_IMAGES,
    };
    let temporary = tempfile::tempdir()?;
    let (plan, Seeds(seeds), out) = if arguments.quick {
        let plan = Plan { candidates: 10, random_cells: 10, test_images: 100, ..plan };
        (plan, Seeds(vec![0]), temporary.path().into())
    } else {
        (plan, arguments.seeds, "target/oneshot".into())
    };
    let out = arguments.out.unwrap_or(out);
    let whole = arguments.variation.is_none();
    let arms = if whole { &Arm::ALL[..] } else { &[Arm::Asng] };
    let plan = match arguments.variation {
        Some(variation) => variation.change(plan),
        None => plan,
    };
    let cores = || thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    let jobs = arguments.jobs.unwrap_or_else(cores).get();

    let bench = Arc::new(Bench::start(&out, plan, jobs)?);
    let records = run(&bench, arms, &seeds, jobs).await?;
    let rows: Vec<Row> = arms.iter().map(|arm| Row::new(*arm, &records)).collect();
    let table = table(&rows);
    println!("{table}");
    if whole && !arguments.quick {
        let mut document = Document::open(arguments.document)?;
        document.replace("oneshot", &format!("{table}\n![accuracy by steps](oneshot.svg)\n"))?;
        let axes = Axes { x: "steps", base: None, y: "accuracy, %", bottom: Some(BOTTOM) };
        let title = format!("CIFAR-10, mean of {} seeds", seeds.len());
        let curves = rows.iter().map(|row| row.curve(&records)).collect();
        draw(&document.beside("oneshot.svg"), &axes, &[(title, curves)])?;
    }
    println!("{}", figures(&rows, seeds.len()));
    Ok(())
}

/// Accuracy in percent where the drawing begins: nearly all cells are better.
const BOTTOM: f64 = 80.0;

/// All arms of all seeds, one seed after the other, `jobs` searches at a time. After an error nothing is begun any more.
async fn run(
    bench: &Arc<Bench>,
    arms: &[Arm],
    seeds: &[u64],
    jobs: usize,
) -> anyhow::Result<Vec<Record>> {
    let mut ended: Vec<anyhow::Result<Record>> = Vec::new();
    let mut running = JoinSet::new();
    for (arm, seed) in seeds.iter().flat_map(|seed| arms.iter().map(|arm| (*arm, *seed))) {
        if running.len() == jobs {
            ended.extend(running.join_next().await.transpose()?);
        }
        if ended.iter().any(Result::is_err) {
            break;
        }
        let bench = bench.clone();
        running.spawn(async move { bench.run(arm, seed).await });
    }
    while let Some(last) = running.join_next().await {
        ended.push(last?);
    }
    ended.into_iter().collect()
}

/// An arm, over all seeds.
struct Row {
    arm: Arm,
    found: Vec<Found>,
    /// Time of each search, and on so many cores.
    minutes: Vec<f64>,
    jobs: Vec<f64>,
}

impl Row {
    fn new(arm: Arm, records: &[Record]) -> Row {
        let of_arm = || records.iter().filter(|record| record.arm == arm);
        Row {
            arm,
            found: of_arm().filter_map(|record| record.result.clone()).collect(),
            minutes: of_arm().map(|record| record.seconds / 60.0).collect(),
            jobs: of_arm().map(|record| record.jobs as f64).collect(),
        }
    }

    fn each(&self, figure: impl Fn(&Found) -> f64) -> Vec<f64> {
        self.found.iter().map(figure).collect()
    }

    /// Validation accuracies on CIFAR-10 of the final cells.
    fn accuracies(&self) -> Vec<f64> {
        self.each(|found| found.cell.accuracies[0])
    }

    /// Those of the most likely cells; none where all cells are equally likely.
    fn modes(&self) -> Option<Vec<f64>> {
        (self.arm != Arm::Uniform).then(|| self.each(|found| found.mode.accuracies[0]))
    }

    fn rank(&self) -> f64 {
        median(&self.each(|found| found.cell.ranks[0] as f64))
    }

    fn tau(&self) -> f64 {
        mean(&self.found.iter().filter_map(|found| found.kendall_tau).collect::<Vec<_>>())
    }

    fn rho(&self) -> f64 {
        mean(&self.found.iter().filter_map(|found| found.spearman_rho).collect::<Vec<_>>())
    }

    /// Means over seeds of the most likely cell's accuracy; a level line at what was selected where no cell becomes likely.
    fn curve(&self, records: &[Record]) -> Curve {
        let mut points: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for record in records.iter().filter(|record| record.arm == self.arm) {
            for point in &record.curve {
                points.entry(point.step).or_default().extend(point.mode);
            }
        }
        let final_mean = mean(&self.accuracies());
        let level = |accuracies: &[f64]| match self.arm {
            Arm::Uniform => Some(final_mean),
            // Steps that only some seeds saw would make the line jump.
            _ => (accuracies.len() == self.found.len()).then(|| mean(accuracies)),
        };
        let points = points.iter().filter_map(|(step, accuracies)| {
            level(accuracies).map(|accuracy| (*step as f64, accuracy))
        });
        Curve { label: self.arm.title().into(), points: points.collect() }
    }
}

fn table(rows: &[Row]) -> String {
    let columns = [
        "CIFAR-10, %",
        "smallest",
        "mode, %",
        "median rank",
        "CIFAR-100, %",
        "ImageNet16-120, %",
        "Kendall's τ",
        "Spearman's ρ",
        "minutes",
    ];
    let mut table = Table::new([""], columns);
    for row in rows {
        let accuracies = row.accuracies();
        let on = |data_set: usize| {
            let accuracies = row.each(|found| found.cell.accuracies[data_set]);
            format!("{:.2}", mean(&accuracies))
        };
        let cells = [
            format!("{:.2} ± {:.2}", mean(&accuracies), deviation(&accuracies)),
            format!("{:.2}", smallest(&accuracies)),
            row.modes().map_or_else(String::new, |modes| format!("{:.2}", mean(&modes))),
            format!("{:.0}", row.rank()),
            on(1),
            on(2),
            format!("{:.3}", row.tau()),
            format!("{:.3}", row.rho()),
            format!("{:.1}", mean(&row.minutes)),
        ];
        table.row([row.arm.title()], cells);
    }
    table.text
}

fn figures(rows: &[Row], seeds: usize) -> serde_json::Value {
    let accuracies = rows[0].accuracies();
    // Of those that did not run it is NaN, which JSON has as null.
    let accuracy = |arm| {
        mean(
            &rows.iter().filter(|row| row.arm == arm).flat_map(Row::accuracies).collect::<Vec<_>>(),
        )
    };
    let minutes = |row: &Row| -> f64 {
        row.minutes.iter().zip(&row.jobs).map(|(minutes, jobs)| minutes / jobs).sum()
    };
    serde_json::json!({
        "seeds": seeds,
        "val_accuracy_mean": mean(&accuracies),
        "val_accuracy_std": deviation(&accuracies),
        "val_accuracy_min": smallest(&accuracies),
        "mode_accuracy_mean": rows[0].modes().map(|modes| mean(&modes)),
        "rank_median": rows[0].rank(),
        "kendall_tau_mean": rows[0].tau(),
        "spearman_rho_mean": rows[0].rho(),
        "without_warmup_mean": accuracy(Arm::WithoutWarmup),
        "sng_mean": accuracy(Arm::Sng),
        "uniform_best_of_100_mean": accuracy(Arm::Uniform),
        "minutes_per_seed": rows.iter().map(minutes).sum::<f64>() / seeds as f64,
    })
}

fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / figures.len() as f64
}

/// That of a sample; 0 of one alone.
fn deviation(figures: &[f64]) -> f64 {
    let mean = mean(figures);
    let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
    (squares / (figures.len() as f64 - 1.0).max(1.0)).sqrt()
}

fn smallest(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(f64::INFINITY, f64::min)
}

fn median(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    let half = figures.len() / 2;
    if figures.len() % 2 == 1 { figures[half] } else { (figures[half - 1] + figures[half]) / 2.0 }
}
