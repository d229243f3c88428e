//! `cargo xtask bench`: figures of a release build, compared within one run on one machine.

use std::path::Path;

use clap::Subcommand;

use crate::{
    process::{cargo, run},
    setup,
};

/// What to measure.
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
    /// Search steps of the trainer against plain libtorch: speed-ups, memory, time beside the network
    ///
    /// Takes a minute or two, and the data of `cargo xtask setup`. The last line of the output is JSON.
    Trainer,
}

/// Builds for release, and measures.
pub(crate) fn bench(root: &Path, bench: &Bench) -> anyhow::Result<()> {
    match bench {
        Bench::Controller { seconds, quick } => controller(root, *seconds, *quick),
        Bench::Trainer => trainer(root),
    }
}

fn controller(root: &Path, seconds: u64, quick: bool) -> anyhow::Result<()> {
    let build = ["build", "--locked", "--release", "-p", "asng-controller", "-p", "asng-tests"];
    run(&mut cargo(root, build))?;
    let program = ["-p", "asng-tests", "--bin", "bench-controller", "--"];
    let mut command = cargo(root, ["run", "--quiet", "--locked", "--release"]);
    command.args(program);
    if quick {
        command.arg("--quick");
    } else {
        command.args(["--seconds", &seconds.to_string()]);
    }
    run(&mut command)
}

fn trainer(root: &Path) -> anyhow::Result<()> {
    setup::setup(root)?;
    let bench = ["bench", "--locked", "-p", "asng-trainer", "--bench", "step", "--", "--data"];
    let mut command = cargo(root, bench);
    // Threads that spin for long take a shared machine's cores from each other, and the figures scatter.
    command.env("GOMP_SPINCOUNT", "10000");
    run(command.arg(root.join(setup::CIFAR10)))
}
