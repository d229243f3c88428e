//! Steps per second of a trainer far from its controller, by the number of steps that it leases ahead, and what their staleness costs. Started
//! by `cargo xtask bench remote`, which builds everything for release.
//!
//! A step sleeps in place of computing, so that a busy machine changes little. The table of docs/remote-gpu.md is written anew between its
//! marks. The last line on standard output is JSON.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use asng_proto::v1;
use asng_tests::{
    Controller, Trainer,
    document::{Document, Table},
    line,
    quality::{Mode, Problem, scale},
    trainer_command,
};
use clap::Parser;
use serde_json::json;
use tokio::{net::TcpListener, task::spawn_blocking};

/// The measured values of the trainer's option, and the number of steps ahead that each sets; "auto" sets none.
const PREFETCH: [(&str, Option<u32>); 4] =
    [("0", Some(0)), ("2", Some(2)), ("4", Some(4)), ("auto", None)];
/// Reports at the start that do not count: until then, steps are leased ahead one after the other, and times are measured.
const START: u64 = 40;
/// The number of steps ahead whose quality is compared with that of none.
const AHEAD: u64 = 4;
/// Evaluations after which a search has failed.
const LIMIT: u64 = 100_000;

/// Measures a trainer over a long line.
#[derive(Parser)]
struct Arguments {
    /// Milliseconds of a step
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    step_ms: u32,
    /// Milliseconds of a round trip
    #[arg(long, default_value_t = 100)]
    round_trip_ms: u32,
    /// Seconds of a measurement
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Searches of a noisy function, with and without steps ahead
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..))]
    seeds: u64,
    /// The document whose table is written anew
    #[arg(long, default_value = "docs/remote-gpu.md")]
    document: PathBuf,
}

/// A trainer's speed.
struct Measured {
    /// Steps per second.
    rate: f64,
    /// Mean staleness.
    staleness: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut document = Document::open(arguments.document.clone())?;
    let directory = tempfile::tempdir()?;
    let controller = Controller::start(&directory.path().join("state"));
    let round_trip = Duration::from_millis(arguments.round_trip_ms.into());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let far = listener.local_addr()?;
    let server: SocketAddr = controller.url().trim_start_matches("http://").parse()?;
    tokio::spawn(line(listener, server, round_trip));

    let (step, round_trip) = (f64::from(arguments.step_ms) / 1e3, round_trip.as_secs_f64());
    let columns =
        ["steps/s", "steps/s without the line", "ratio", "of the bound", "mean staleness"];
    let mut table = Table::new(["`--prefetch`"], columns);
    let mut figures = serde_json::Map::new();
    for (prefetch, ahead) in PREFETCH {
        let bound = |step: f64| {
            let with_line = |ahead: u32| f64::from(ahead + 1) / (step + round_trip);
            ahead.map_or(1.0 / step, |ahead| with_line(ahead).min(1.0 / step))
        };
        // At the same time, so that whatever else the machine does slows both down.
        let near = measure(&controller, &arguments, None, prefetch, "0", 1.0 / step);
        let far = measure(&controller, &arguments, Some(far), prefetch, prefetch, bound(step));
        let (near, Measured { rate, staleness }) = tokio::try_join!(near, far)?;
        // As long as a step takes without the line, the calls of a near controller among it.
        let [ratio, of_bound] = [rate / near.rate, rate / bound(1.0 / near.rate)];
        eprintln!(
            "--prefetch {prefetch}: {rate:.2} steps/s, {:.2} without the line, {of_bound:.3} of the bound, staleness {staleness:.2}",
            near.rate
        );
        table.row(
            [prefetch],
            [
                format!("{rate:.1}"),
                format!("{:.1}", near.rate),
                format!("{ratio:.2}"),
                format!("{of_bound:.2}"),
                format!("{staleness:.2}"),
            ],
        );
        figures.insert(
            format!("prefetch_{prefetch}"),
            json!({ "rate": rate, "near": near.rate, "of_bound": of_bound, "staleness": staleness }),
        );
    }
    document.replace("prefetch", &table.text)?;

    for ahead in [0, AHEAD] {
        let mut took = Vec::new();
        for seed in 0..arguments.seeds {
            let name = format!("quality-{ahead}-{seed}");
            // To the controller, a trainer with steps ahead is as many trainers more.
            let (channel, mode) = (controller.channel(), Mode::Asynchronous);
            let solved = scale(&Problem::Separable, mode, ahead + 1, &channel, &name, seed, LIMIT);
            took.push(solved.await?.unwrap_or(LIMIT) as f64);
        }
        let count = took.len() as f64;
        let mean = took.iter().sum::<f64>() / count;
        let squares: f64 = took.iter().map(|one| (one - mean).powi(2)).sum();
        let deviation = (squares / (count - 1.0)).sqrt();
        eprintln!(
            "{ahead} steps ahead: {mean:.0} ± {deviation:.0} evaluations until the noisy function is solved"
        );
        figures.insert(
            format!("evaluations_{ahead}_ahead"),
            json!({ "mean": mean, "deviation": deviation }),
        );
    }
    println!("{}", serde_json::Value::Object(figures));
    Ok(())
}

/// Has a trainer search, over the line whose end is `far` if there is one, at an expected number of steps per second.
async fn measure(
    controller: &Controller,
    arguments: &Arguments,
    far: Option<SocketAddr>,
    name: &str,
    prefetch: &str,
    expected: f64,
) -> anyhow::Result<Measured> {
    let name = format!("{}-{name}", if far.is_some() { "far" } else { "near" });
    let steps = START + 10 + (f64::from(arguments.seconds) * expected) as u64;
    let spec = v1::StudySpec {
        space: "toy".into(),
        settings: [("step_ms".into(), arguments.step_ms.to_string())].into(),
        stop: Some(v1::StopRules { max_steps: steps, ..Default::default() }),
        ..Default::default()
    };
    let request =
        v1::CreateStudyRequest { name: name.clone(), spec: Some(spec), ..Default::default() };
    let mut studies = controller.studies();
    studies.create_study(request).await?;
    let work_dir = tempfile::tempdir()?;
    let mut command = trainer_command(controller, work_dir.path());
    if let Some(far) = far {
        command.env("ASNG_CONTROLLER", format!("http://{far}"));
    }
    command.args(["serve", "--study", &name, "--prefetch", prefetch]);
    let mut trainer = Trainer(command.spawn()?);
    let ended = spawn_blocking(move || trainer.0.wait()).await??;
    ensure!(ended.success(), "the trainer has ended with {ended}");
    let mut reports = Vec::new();
    let mut request = v1::ListReportsRequest { study: name, page_size: 1000, ..Default::default() };
    loop {
        let page = studies.list_reports(request.clone()).await?.into_inner();
        reports.extend(page.reports);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    // Nothing is leased ahead at the end.
    let counted = &reports[START as usize..reports.len() - 10];
    let time = |report: &v1::Report| {
        let time = report.report_time.context("a report without a time")?;
        anyhow::Ok(time.seconds as f64 + f64::from(time.nanos) * 1e-9)
    };
    let (first, last) = (time(&counted[0])?, time(&counted[counted.len() - 1])?);
    let staleness: u64 = counted.iter().map(|report| report.staleness).sum();
    Ok(Measured {
        rate: (counted.len() - 1) as f64 / (last - first),
        staleness: staleness as f64 / counted.len() as f64,
    })
}
