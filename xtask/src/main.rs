//! The developers' commands of ASNG-NAS: `cargo xtask setup | demo | test | docs | bench | dist | screenshots`.
//!
//! This crate must build on a machine that has no libtorch yet, so of the workspace's other members it depends
//! on the one that fetches data alone.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

mod bench;
mod comments;
mod demo;
mod dist;
mod docs;
mod process;
mod python;
mod setup;
mod test;

/// The developers' commands of ASNG-NAS.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetches libtorch to ./libtorch and CIFAR-10 to ./data, unless they exist.
    Setup {
        /// Fetch only these parts.
        #[arg(value_name = "PART")]
        parts: Vec<setup::Part>,
        /// Fetch PyTorch with CUDA, 5 GB, to ./libtorch-cuda, and build the trainer with it from now on.
        #[arg(long)]
        cuda: bool,
    },
    /// Starts both services and searches an architecture on CIFAR-10.
    Demo(demo::Arguments),
    /// Tests everything: lints, unit tests, end-to-end tests with the real programs, the Python package, documentation.
    Test(test::Arguments),
    /// Builds the manual as a book in target/book, and checks the links in all Markdown files.
    Docs,
    /// Measures speed, memory and growth, in a release build.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Builds the Python wheels of a release: asng, asng-controller and asng-trainer.
    Dist(dist::Arguments),
    /// Updates the pictures of the page in docs, from a real search in a real browser.
    Screenshots,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}"); // Never a backtrace: these are messages to people.
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let root = workspace_root()?;
    match args.command {
        Command::Setup { parts, cuda } => setup::command(&root, &parts, cuda),
        Command::Demo(arguments) => demo::demo(&root, &arguments),
        Command::Test(arguments) => test::test(&root, &arguments),
        Command::Docs => docs::command(&root),
        Command::Bench(what) => bench::bench(&root, &what),
        Command::Dist(arguments) => dist::dist(&root, &arguments),
        Command::Screenshots => test::screenshots(&root),
    }
}

/// The workspace's directory: the parent of this crate's, which cargo names to the programs it runs.
fn workspace_root() -> anyhow::Result<PathBuf> {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").context("start this with `cargo xtask`")?;
    let root = Path::new(&manifest).parent().context("CARGO_MANIFEST_DIR has no parent")?;
    Ok(root.to_owned())
}
