//! Benchmark of search steps of the paper's size: their time and their memory. Started by `cargo xtask bench trainer`, which builds
//! for release.
//!
//! Progress goes to standard error and tables for people to standard output, whose last line is JSON. A machine is noisy
//! and the numbers of two moments cannot be compared, so the implementations take turns on the same architectures, and
//! each speed-up is the median of the turns' ratios.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::ensure;
use asng_trainer::{
    engine::supernet::Supernet,
    images::Info,
    tasks::{Batch, Task, draw, network::channels_last, space::Space},
    torch::Precision,
};
use clap::{Parser, Subcommand};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use self::plain::{Plain, autoencoder, cells};

mod engine;
mod memory;
mod plain;

const THREADS: u16 = 2;
/// Architectures for the weights, and as many to be ranked.
const LAMBDA: usize = 2;
const ROUNDS: usize = 5;
const SEED: u64 = 1;
/// The largest difference by rounding between losses of the same weights.
const TOLERANCE: f64 = 1e-3;

/// Measures search steps of the trainer.
#[derive(Parser)]
struct Arguments {
    /// Directory of CIFAR-10's binary files
    #[arg(long)]
    data: PathBuf,
    /// Passed by cargo to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    command: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// Run as the process with an engine
    #[command(hide = true)]
    Engine,
    /// Run as the process of steps alone
    #[command(hide = true)]
    Memory,
}

fn main() -> anyhow::Result<()> {
    let Arguments { data, command, .. } = Arguments::parse();
    match command {
        Some(Role::Engine) => println!("{}", serde_json::to_string(&engine::measure(data)?)?),
        Some(Role::Memory) => println!("{}", memory::of_steps()?),
        None => bench(&data)?,
    }
    Ok(())
}

fn bench(data: &Path) -> anyhow::Result<()> {
    progress("memory");
    let peak_rss_mb: f64 = serde_json::from_slice(&in_a_process("memory", data)?)?;
    progress("through the engine, on CIFAR-10");
    let engine: engine::Figures = serde_json::from_slice(&in_a_process("engine", data)?)?;
    let [plain, layout, best] = compare_classification()?;
    let (layout_speedup, best_speedup) = (speedup(&plain, &layout), speedup(&plain, &best));
    let settings = task("enas-micro").settings();
    println!(
        "a search step: {} cells, {} channels, {} nodes, {} images, {LAMBDA} + {LAMBDA} architectures, {THREADS} threads",
        settings["cells"], settings["channels"], settings["nodes"], settings["batch_size"]
    );
    println!("                                       seconds   speed-up");
    println!("  {:36} {:7.3}", "libtorch's operations, contiguous", median(plain));
    println!("  {:36} {:7.3} {layout_speedup:10.2}", "  channels_last", median(layout));
    println!("  {:36} {:7.3} {best_speedup:10.2}", "the trainer", median(best));
    println!("  wanted: at least 3.0 by the trainer");
    println!("  peak of resident memory {peak_rss_mb:.0} MB; wanted: below 1200");
    println!("the trainer, through its engine");
    println!("  peak of resident memory {:.0} MB, CIFAR-10 included", engine.peak_rss_mb);
    println!("  not computing for {:.4} of a step; wanted: below 0.01", engine.loader_share);
    let [plain, best] = compare_inpainting()?;
    let inpaint_speedup = speedup(&plain, &best);
    let settings = task("inpaint-cat").settings();
    println!(
        "a search step of inpaint-cat: {} nodes, {} photos of {side} x {side}",
        settings["nodes"],
        settings["batch_size"],
        side = settings["image_size"]
    );
    println!("                                       seconds   speed-up");
    println!("  {:36} {:7.3}", "the authors' way, contiguous", median(plain));
    println!("  {:36} {:7.3} {inpaint_speedup:10.2}", "the trainer", median(best));
    println!("  wanted: at least 3.5");
    let json = serde_json::json!({
        "layout_speedup": layout_speedup,
        "best_speedup": best_speedup,
        "inpaint_speedup": inpaint_speedup,
        "peak_rss_mb": peak_rss_mb,
        "loader_share": engine.loader_share,
    });
    println!("{json}");
    Ok(())
}

/// Runs a role of this program in a process whose memory is then its own, and returns its output.
fn in_a_process(role: &str, data: &Path) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new(env::current_exe()?);
    let output = child.arg("--data").arg(data).arg(role).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the process {role}: {}", output.status);
    Ok(output.stdout)
}

/// A built-in space with the settings of the paper.
fn task(name: &str) -> Box<dyn Task> {
    let space = Space { name: name.into(), ..Space::default() };
    space.task().unwrap_or_else(|_| panic!("{name} is built in"))
}

/// Images of the given side and number of classes.
fn info(side: i64, classes: usize) -> Info {
    let classes = (0..classes).map(|class| class.to_string()).collect();
    Info { shape: [3, side, side], classes, ..Info::default() }
}

/// CIFAR-10's images and classes.
fn cifar10() -> Info {
    info(32, 10)
}

/// A search step on fixed batches: of the architectures for the weights and of those to be ranked, whose losses it returns.
type Step<'a> = Box<dyn FnMut(&[Vec<i64>], &[Vec<i64>]) -> anyhow::Result<Vec<f64>> + 'a>;

/// The step of plain libtorch, of one that lays channels side by side, and of the trainer: seconds of each.
fn compare_classification() -> anyhow::Result<[Vec<f64>; 3]> {
    let (task, info) = (task("enas-micro"), cifar10());
    let contiguous = [(); 2].map(|()| batch(&*task, &info));
    let last = contiguous.each_ref().map(|Batch { input, target }| Batch {
        input: channels_last(input),
        target: target.shallow_clone(),
    });
    compare(
        &*task,
        [
            plain(&*task, &info, cells::logits, &contiguous),
            plain(&*task, &info, cells::logits, &last),
            trainer(&*task, &info, &last),
        ],
    )
}

/// The step of the authors' autoencoders and of the trainer's, whose layout and whose cut weights cannot be told apart: seconds of
/// each.
fn compare_inpainting() -> anyhow::Result<[Vec<f64>; 2]> {
    let (task, info) = (task("inpaint-cat"), info(64, 0));
    let batches = [(); 2].map(|()| {
        let target = Tensor::rand([16, 3, 64, 64], (Kind::Float, Device::Cpu));
        let mask = Tensor::rand([16, 1, 64, 64], (Kind::Float, Device::Cpu)).gt(0.8);
        Batch { input: &target * mask, target }
    });
    compare(
        &*task,
        [plain(&*task, &info, autoencoder::output, &batches), trainer(&*task, &info, &batches)],
    )
}

fn plain<'a>(
    task: &'a dyn Task,
    info: &Info,
    forward: plain::Forward,
    [train_batch, rank_batch]: &'a [Batch; 2],
) -> Step<'a> {
    let mut plain = Plain::new(task, info, forward);
    Box::new(move |train, rank| Ok(plain.step((train_batch, train), (rank_batch, rank))))
}

fn trainer<'a>(
    task: &'a dyn Task,
    info: &Info,
    [train_batch, rank_batch]: &'a [Batch; 2],
) -> Step<'a> {
    let mut supernet = Supernet::new(task, info, Device::Cpu, Precision::F32);
    let learning_rate = task.training().learning_rate;
    Box::new(move |train, rank| {
        let batches = ((train_batch, train), (rank_batch, rank));
        Ok(supernet.step(task, batches.0, batches.1, learning_rate)?.losses)
    })
}

/// Has the implementations take turns. Returns the seconds of each, in the order of the turns. Errors if their losses differ.
fn compare<const N: usize>(task: &dyn Task, mut steps: [Step; N]) -> anyhow::Result<[Vec<f64>; N]> {
    tch::set_num_threads(THREADS.into());
    let variables = task.variables();
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut architectures =
        || -> Vec<_> { (0..LAMBDA).map(|_| draw(&variables, &mut random)).collect() };

    // With the weights that all start with, so before any training: rounding grows in a step.
    let rank = architectures();
    let [expected, others @ ..] = &steps.each_mut().map(|step| step(&[], &rank))[..] else {
        unreachable!("there are implementations")
    };
    for losses in others {
        let (Ok(expected), Ok(losses)) = (expected, losses) else {
            anyhow::bail!("{expected:?}, {losses:?}");
        };
        let same = expected.iter().zip(losses).all(|(a, b)| (a - b).abs() < TOLERANCE);
        ensure!(same, "the implementations differ: {expected:?}, {losses:?}");
    }

    let mut seconds = [(); N].map(|()| Vec::new());
    for round in 0..=ROUNDS {
        let (train, rank) = (architectures(), architectures());
        let mut turns = Vec::new();
        for (step, seconds) in steps.iter_mut().zip(&mut seconds) {
            let start = Instant::now();
            step(&train, &rank)?;
            turns.push(start.elapsed().as_secs_f64());
            // The first step warms caches and allocators.
            if round > 0 {
                seconds.push(turns[turns.len() - 1]);
            }
        }
        progress(&format!("round {round} of {ROUNDS}: {turns:.2?} s"));
    }
    Ok(seconds)
}

/// Noise in place of images, of the usual layout: no operation's time depends on the pixels.
fn batch(task: &dyn Task, info: &Info) -> Batch {
    let ([channels, height, width], images) = (info.shape, task.training().batch_size);
    let classes = info.classes.len() as i64;
    Batch {
        input: Tensor::randn([images, channels, height, width], (Kind::Float, Device::Cpu)),
        target: Tensor::randint(classes, [images], (Kind::Int64, Device::Cpu)),
    }
}

/// Returns the median of the ratios of `plain` to `other`, turn by turn.
fn speedup(plain: &[f64], other: &[f64]) -> f64 {
    median(plain.iter().zip(other).map(|(plain, other)| plain / other).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn progress(what: &str) {
    eprintln!("==> {what}");
}
