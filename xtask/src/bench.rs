//! `cargo xtask bench`: figures of a release build, compared within one run on one machine.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::{
    process::{cargo, run},
    setup,
};

/// A benchmark.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// The controller against an echo server: rates, latencies, memory, growth, restarts
    ///
    /// Takes some minutes. The last line of the output is JSON.
    Controller {
        /// Length of a phase in seconds; each is measured three times
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
        /// A smoke test: short phases, a tenth of the reports
        #[arg(long, conflicts_with = "seconds")]
        quick: bool,
    },
    /// One-shot searches with shared weights on NAS-Bench-201: ASNG with and without a warm-up, SNG, uniform weights
    ///
    /// Takes hours on two cores. Each search lies in DIR when it is done: after an interruption the same command goes on. Writes
    /// a table into docs/results.md and draws docs/oneshot.svg; the last line of the output is JSON.
    Oneshot {
        /// Seeds: how many, from 0, or a list such as 0,2,5
        #[arg(long, default_value = "5")]
        seeds: String,
        /// A smoke test: one seed, 30 steps, few images; writes no document
        #[arg(long, conflicts_with = "seeds")]
        quick: bool,
        /// Number of parallel searches, each on one core [default: one for each core]
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        jobs: Option<u64>,
        /// Directory of the results: a JSON file for each search [default: target/oneshot; a temporary one with --quick]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Variations of ASNG's search, such as --warmup 0.5 or --set channels=16, with another --out; -- --help lists them
        #[arg(last = true, value_name = "OPTION")]
        variation: Vec<String>,
    },
    /// Search quality: NAS-Bench-201, and a noisy function with 1 to 64 trainers
    ///
    /// Takes some minutes, and fetches 36 MB. Writes the tables and curves of docs/quality.md; the last line of the output is JSON.
    Quality {
        /// Searches of each algorithm on each data set
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(2..))]
        runs: u64,
        /// Searches for each number of trainers
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
        scaling_runs: u64,
    },
    /// A trainer far from its controller: steps per second by the number of steps leased ahead, and what their staleness costs
    ///
    /// Takes three minutes. Writes the table of docs/remote-gpu.md; the last line of the output is JSON.
    Remote {
        /// Milliseconds of a step, which sleeps in place of computing
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
        step_ms: u64,
        /// Milliseconds of a round trip
        #[arg(long, default_value_t = 100)]
        round_trip_ms: u64,
    },
    /// The paper's artificial problem: steps to success of ASNG, of SNG with four steps, of random search, of the authors' code
    ///
    /// A search that fails takes 100,000 steps. Writes docs/toy.svg; the last line of the output is JSON.
    Toy {
        /// Seeds of ASNG, and of SNG with step sizes that succeed
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
        /// Seeds of SNG with the smallest step and of random search
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
        slow_seeds: u64,
    },
    /// Search steps of the trainer against plain libtorch: speed-ups, memory, time beside the network
    ///
    /// Takes a minute or two, and the data of `cargo xtask setup`. The last line of the output is JSON.
    Trainer,
}

/// Builds for release, and measures.
pub(crate) fn bench(root: &Path, bench: &Bench) -> anyhow::Result<()> {
    match bench {
        Bench::Controller { quick: true, .. } => {
            program(root, "bench-controller", &["--quick".into()])
        }
        Bench::Controller { seconds, .. } => {
            program(root, "bench-controller", &[format!("--seconds={seconds}")])
        }
        Bench::Oneshot { seeds, quick, jobs, out, variation } => {
            setup::setup(root)?;
            setup::nasbench201(root)?;
            let what = if *quick { "--quick".to_owned() } else { format!("--seeds={seeds}") };
            let jobs = jobs.map(|jobs| format!("--jobs={jobs}"));
            let out = out.as_ref().map(|out| format!("--out={}", out.display()));
            let own = [Some(what), jobs, out].into_iter().flatten();
            let arguments: Vec<_> = own.chain(variation.iter().cloned()).collect();
            program(root, "bench-oneshot", &arguments)
        }
        Bench::Quality { runs, scaling_runs } => {
            setup::nasbench201(root)?;
            let runs = [format!("--runs={runs}"), format!("--scaling-runs={scaling_runs}")];
            program(root, "bench-quality", &runs)
        }
        Bench::Remote { step_ms, round_trip_ms } => {
            let times =
                [format!("--step-ms={step_ms}"), format!("--round-trip-ms={round_trip_ms}")];
            program(root, "bench-remote", &times)
        }
        Bench::Toy { seeds, slow_seeds } => program(
            root,
            "bench-toy",
            &[format!("--seeds={seeds}"), format!("--slow-seeds={slow_seeds}")],
        ),
        Bench::Trainer => trainer(root),
    }
}

fn program(root: &Path, name: &str, arguments: &[String]) -> anyhow::Result<()> {
    // One by one, as the program asks for them: built together they would have other features, and be built twice.
    for package in ["asng-controller", "asng-trainer", "asng-tests"] {
        run(&mut cargo(root, ["build", "--locked", "--release", "-p", package]))?;
    }
    let mut command = cargo(root, ["run", "--quiet", "--locked", "--release"]);
    run(command.args(["-p", "asng-tests", "--bin", name, "--"]).args(arguments))
}

fn trainer(root: &Path) -> anyhow::Result<()> {
    setup::setup(root)?;
    let bench = ["bench", "--locked", "-p", "asng-trainer", "--bench", "step", "--", "--data"];
    let mut command = cargo(root, bench);
    // Threads that spin for long take a shared machine's cores from each other, and the figures scatter.
    command.env("GOMP_SPINCOUNT", "10000");
    run(command.arg(root.join(setup::CIFAR10)))
}
