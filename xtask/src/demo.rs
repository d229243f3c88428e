//! `cargo xtask demo`: both services as real processes, a small search on real CIFAR-10, and what came of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{
    process::{Service, cargo, read, run},
    setup,
};

const STUDY: &str = "demo";
/// Test images that found and random architectures are compared on.
const IMAGES: &str = "2000";
const RANDOM: &str = "20";
/// Architectures that one is selected from.
const CANDIDATES: &str = "20";
/// Exit status of asngctl when the user leaves it before the study has ended.
const INTERRUPTED: i32 = 130;

/// Sizes of the demo. The defaults take a few minutes on two cores.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Steps of the search
    #[arg(long, default_value_t = Arguments::default().steps, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Nodes of a cell
    #[arg(long, default_value_t = Arguments::default().nodes)]
    nodes: u32,
    /// Cells of the supernet, and of the retrained network
    #[arg(long, default_value_t = Arguments::default().cells)]
    cells: u32,
    /// Channels of the first cells of both
    #[arg(long, default_value_t = Arguments::default().channels)]
    channels: u32,
    /// Images in a minibatch of the search
    #[arg(long, default_value_t = Arguments::default().batch_size)]
    batch_size: u32,
    /// Epochs of the retraining
    #[arg(long, default_value_t = Arguments::default().epochs)]
    epochs: u32,
    /// Device to run on: auto, cpu, cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Leave the controller running at the end, until Ctrl-C
    #[arg(long)]
    keep_running: bool,
}

impl Default for Arguments {
    fn default() -> Arguments {
        Arguments {
            steps: 500,
            nodes: 2,
            cells: 3,
            channels: 8,
            batch_size: 80,
            epochs: 1,
            device: "auto".into(),
            keep_running: false,
        }
    }
}

/// The last line of the demo.
#[derive(Serialize)]
struct Results {
    steps: u64,
    convergence: f64,
    architecture: Vec<i64>,
    found_accuracy: f64,
    random_accuracy: Random,
    retrained_accuracy: f64,
    steps_per_second: f64,
    overhead_share: f64,
}

#[derive(Deserialize, Serialize)]
struct Random {
    mean: f64,
    min: f64,
    max: f64,
}

/// The fields of `asngctl study show` that are used here.
#[derive(Deserialize)]
struct Study {
    state: String,
    progress: Progress,
}

#[derive(Deserialize)]
struct Progress {
    applied: u64,
    convergence: f64,
}

/// The output of `asng-trainer evaluate`.
#[derive(Deserialize)]
struct Evaluation {
    architecture: Vec<i64>,
    accuracy: f64,
    random: Random,
}

/// The output of `asng-trainer retrain`.
#[derive(Deserialize)]
struct Retrained {
    test_accuracy: f64,
}

/// The trainer's summary of its own work.
#[derive(Deserialize)]
struct Summary {
    steps: u64,
    seconds: f64,
    computing_seconds: f64,
}

/// Sets up first when needed.
pub(crate) fn demo(root: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    setup::setup(root)?;
    say("building the programs, which takes minutes the first time");
    run(&mut cargo(
        root,
        ["build", "--locked", "--release", "-p", "asng-controller", "-p", "asng-trainer"],
    ))?;
    let directory = fresh_directory(root)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let program = |name: &str| Command::new(target.join("release").join(name));

    let log = directory.join("controller.log");
    let mut command = program("asng-controller");
    command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--state-dir"]);
    command.arg(directory.join("state"));
    let mut controller = Service::start("controller", &mut command, &log)?;
    let url = format!("http://{}", address(&mut controller, &log)?);
    say(&format!("the controller serves {url}"));
    let asngctl = |arguments: &[&str]| {
        let mut command = program("asngctl");
        command.args(["--controller", &url]).args(arguments);
        command
    };
    let trainer = |subcommand: &[&str]| {
        let mut command = program("asng-trainer");
        command.args(subcommand).args(["--controller", &url, "--device", &arguments.device]);
        // The controller and the display need these cores as well: libtorch's threads must not spin for long.
        command.env("GOMP_SPINCOUNT", "10000");
        command.arg("--work-dir").arg(directory.join("work"));
        command.arg("--data").arg(root.join(setup::CIFAR10));
        command
    };

    let settings = [
        ("nodes", arguments.nodes),
        ("cells", arguments.cells),
        ("channels", arguments.channels),
        ("batch_size", arguments.batch_size),
    ];
    let settings = settings.map(|(name, value)| format!("--set={name}={value}"));
    let steps = arguments.steps.to_string();
    // For a warm-up of the preset's share of the steps.
    let mut create =
        asngctl(&["study", "create", STUDY, "--space", "enas-micro", "--preset", "quick"]);
    run(create.args(settings).args(["--max-steps", &steps]))?;
    say("starting the trainer; searching");
    let mut command = trainer(&["serve", "--study", STUDY]);
    let mut serving = Service::start("trainer", &mut command, &directory.join("trainer.log"))?;
    // While the trainer fails, nothing would end the watching.
    let mut watching = asngctl(&["study", "watch", STUDY]).spawn().context("cannot run asngctl")?;
    let watched = loop {
        if let Some(status) = watching.try_wait()? {
            break status;
        }
        serving.check().inspect_err(|_| {
            // Not killed: it has a terminal to leave as it was.
            let _ = Command::new("kill").arg(watching.id().to_string()).status();
            let _ = watching.wait();
        })?;
        thread::sleep(Duration::from_millis(100));
    };
    ensure!(watched.code() != Some(INTERRUPTED), "interrupted");
    serving.wait()?;

    let study: Study =
        serde_json::from_str(&read(&mut asngctl(&["study", "show", STUDY, "--output", "json"]))?)?;
    ensure!(study.state == "FINISHED", "the study is {}, not FINISHED", study.state);
    say("comparing the most likely architecture with other likely ones, with the shared weights");
    run(&mut trainer(&["select", "--study", STUDY, "--candidates", CANDIDATES, "--top", "5"]))?;
    say(&format!("comparing the selected architecture with {RANDOM} random ones"));
    let evaluation = read(&mut trainer(&[
        "evaluate",
        "--study",
        STUDY,
        "--architecture",
        "selected",
        "--test-images",
        IMAGES,
        "--random",
        RANDOM,
        "--json",
    ]))?;
    let evaluation: Evaluation = serde_json::from_str(&evaluation)?;
    let Random { mean, min, max } = &evaluation.random;
    println!("   accuracy on {IMAGES} test images: selected {:.4}", evaluation.accuracy);
    println!("   random {mean:.4} on average, from {min:.4} to {max:.4}");

    say("training the selected architecture from scratch");
    let out = directory.join("retrained");
    let [epochs, cells, channels] =
        [arguments.epochs, arguments.cells, arguments.channels].map(|number| number.to_string());
    let selected = ["--architecture", "selected", "--preset", "quick", "--json"];
    let mut retrain = trainer(&["retrain", "--study", STUDY]);
    retrain.args(selected);
    retrain.args(["--epochs", &epochs, "--cells", &cells, "--channels", &channels]);
    let retrained = read(retrain.arg("--out").arg(&out))?;
    let retrained: Retrained = serde_json::from_str(&retrained)?;
    println!("   accuracy on the test set: {:.4}", retrained.test_accuracy);

    say("files");
    println!("   {}  the controller's database", directory.join("state").display());
    println!("   {}  the trainer's weights", directory.join("work").display());
    println!("   {}  weights, architecture as JSON and Graphviz", out.display());
    println!("   {}  logs", directory.join("*.log").display());
    let summary = summary(&directory.join("work"))?;
    let results = Results {
        steps: study.progress.applied,
        convergence: study.progress.convergence,
        architecture: evaluation.architecture,
        found_accuracy: evaluation.accuracy,
        random_accuracy: evaluation.random,
        retrained_accuracy: retrained.test_accuracy,
        steps_per_second: summary.steps as f64 / summary.seconds,
        overhead_share: 1.0 - summary.computing_seconds / summary.seconds,
    };
    println!("{}", serde_json::to_string(&results)?);
    if arguments.keep_running {
        say(&format!("the controller goes on at {url}, until Ctrl-C"));
        controller.wait()?;
    }
    Ok(())
}

fn say(what: &str) {
    println!("==> {what}");
}

/// Makes `demo/<Unix time>`, so that an earlier demo's files stay.
fn fresh_directory(root: &Path) -> anyhow::Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let directory = root.join("demo").join(now.to_string());
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

/// The address that the controller says in its log that it listens on.
fn address(controller: &mut Service, log: &Path) -> anyhow::Result<String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        controller.check()?;
        let text = fs::read_to_string(log)?;
        if let Some((_, rest)) = text.split_once("address=")
            && let Some((address, _)) = rest.split_once(' ')
        {
            return Ok(address.into());
        }
        ensure!(Instant::now() < deadline, "the controller does not start; see {}", log.display());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the trainer's summary of its work on the only study.
fn summary(work_dir: &Path) -> anyhow::Result<Summary> {
    let mut studies = fs::read_dir(work_dir.join("studies"))?;
    let study = studies.next().context("the trainer has left no files")??;
    Ok(serde_json::from_str(&fs::read_to_string(study.path().join("trainer.json"))?)?)
}
