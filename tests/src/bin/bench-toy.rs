//! The paper's figure of the artificial problem, through the real services: how many steps ASNG, SNG with a fixed step and
//! random search take to success, beside the authors' own code. Started by `cargo xtask bench toy`, which builds everything for release.
//!
//! A table goes to standard output, whose last line is JSON; the curves go to a file.

use std::path::{Path, PathBuf};

use anyhow::Context;
use asng_proto::v1::{self, Algorithm, StopReason, StudyState};
use asng_tests::{
    Controller, Trainer, applied, study_when,
    toy::{AUTHORS, CRITICAL, MAX_STEPS, mann_whitney, request},
    trainer_command,
};
use clap::Parser;
use plotters::prelude::*;

/// The searches: a name, the algorithm, and its step size.
const SEARCHES: [(&str, Algorithm, f64); 6] = [
    ("ASNG", Algorithm::Asng, 1.0),
    ("SNG, steps of 1", Algorithm::Sng, 1.0),
    ("SNG, steps of 0.1", Algorithm::Sng, 0.1),
    ("SNG, steps of 0.01", Algorithm::Sng, 0.01),
    ("SNG, steps of 0.001", Algorithm::Sng, 0.001),
    ("random search", Algorithm::Random, 1.0),
];
/// From here on they hardly ever succeed: each seed takes all the steps there are.
const SLOW: usize = 4;
/// Trainers at work, each on a study of its own.
const TRAINERS: usize = 2;

/// Draws the paper's figure of the artificial problem.
#[derive(Parser)]
struct Arguments {
    /// Seeds of ASNG, and of SNG with steps that get there
    #[arg(long, default_value_t = 50)]
    seeds: u64,
    /// Seeds of SNG with the smallest step and of random search
    #[arg(long, default_value_t = 5)]
    slow_seeds: u64,
    /// Where the curves go
    #[arg(long, default_value = "docs/toy.svg")]
    out: PathBuf,
}

/// Of each seed, the steps to success; none where it failed.
struct Curve {
    name: &'static str,
    steps: Vec<Option<u64>>,
}

impl Curve {
    fn median(&self) -> Option<u64> {
        let mut steps: Vec<u64> =
            self.steps.iter().map(|steps| steps.unwrap_or(u64::MAX)).collect();
        steps.sort();
        Some(steps[steps.len() / 2]).filter(|median| *median < u64::MAX)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { seeds, slow_seeds, out } = Arguments::parse();
    let directory = tempfile::tempdir()?;
    let controller = Controller::start(&directory.path().join("state"));
    let mut studies = controller.studies();
    let count = |i| if i < SLOW { seeds } else { slow_seeds };
    let study = |i: usize, seed| format!("toy-{i}-{seed}");
    for (i, (_, algorithm, step)) in SEARCHES.into_iter().enumerate() {
        for seed in 0..count(i) {
            studies.create_study(request(&study(i, seed), seed, algorithm, step)).await?;
        }
    }
    let _trainers: Vec<Trainer> = (0..TRAINERS)
        .map(|trainer| {
            let work_dir = directory.path().join(format!("work-{trainer}"));
            Trainer(trainer_command(&controller, &work_dir).arg("serve").spawn().expect("trainer"))
        })
        .collect();
    let mut curves = Vec::new();
    for (i, (name, ..)) in SEARCHES.into_iter().enumerate() {
        let mut curve = Curve { name, steps: Vec::new() };
        for seed in 0..count(i) {
            let ended = |study: &v1::Study| study.state() == StudyState::Finished;
            let study = study_when(&controller, &study(i, seed), ended).await;
            let steps = (study.stop_reason() == StopReason::Target).then(|| applied(&study));
            eprintln!("==> {name}, seed {seed}: {steps:?}");
            curve.steps.push(steps);
        }
        curves.push(curve);
    }
    let ours: Vec<u64> = curves[0].steps.iter().map(|steps| steps.unwrap_or(MAX_STEPS)).collect();
    let deviations = mann_whitney(&ours, &AUTHORS);
    curves.push(Curve { name: "the authors' code", steps: AUTHORS.map(Some).into() });

    println!("{:32} {:>9} {:>12}", "", "succeeded", "median steps");
    for curve in &curves {
        let succeeded = curve.steps.iter().flatten().count();
        let median = curve.median().map_or("-".into(), |median| median.to_string());
        println!("{:32} {succeeded:>3} of {:<3} {median:>11}", curve.name, curve.steps.len());
    }
    println!(
        "ASNG lies {deviations:.2} deviations above the authors' code; wanted: below {CRITICAL}"
    );
    draw(&out, &curves).with_context(|| format!("cannot draw {}", out.display()))?;
    let medians = curves.iter().map(Curve::median).collect::<Vec<_>>();
    println!("{}", serde_json::json!({ "deviations": deviations, "medians": medians }));
    Ok(())
}

/// The share of the seeds that had succeeded after so many steps.
fn draw(file: &Path, curves: &[Curve]) -> anyhow::Result<()> {
    let area = SVGBackend::new(file, (800, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .margin_right(32)
        .x_label_area_size(44)
        .y_label_area_size(52)
        .build_cartesian_2d((500..MAX_STEPS).log_scale(), 0.0..1.0)?;
    chart
        .configure_mesh()
        .x_desc("steps")
        .y_desc("share of seeds that have succeeded")
        .x_label_formatter(&|steps| steps.to_string())
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (i, Curve { name, steps }) in curves.iter().enumerate() {
        let mut found: Vec<u64> = steps.iter().flatten().copied().collect();
        found.sort();
        let share = |count: usize| count as f64 / steps.len() as f64;
        let mut line = vec![(500, 0.0)];
        for (before, steps) in found.iter().enumerate() {
            line.extend([(*steps, share(before)), (*steps, share(before + 1))]);
        }
        line.push((MAX_STEPS, share(found.len())));
        let style = Palette99::pick(i).stroke_width(2);
        let key = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style);
        chart.draw_series(LineSeries::new(line, style))?.label(*name).legend(key);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}
