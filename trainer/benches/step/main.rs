//! How fast a search step of the paper's size is, and what it takes: started by `cargo xtask bench trainer`, which builds
//! for release.
//!
//! Progress goes to standard error and tables for people to standard output, whose last line is JSON. A machine is noisy
//! and the figures of two moments cannot be compared, so the implementations take turns on the same architectures, and
//! each figure is the median of the turns' ratios.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::ensure;
use asng_trainer::{
    data::cifar10::CLASSES,
    space::{
        Decision,
        enas_micro::{self, Architecture, DecodeError, Settings},
        inpaint,
    },
    supernet::{self, Batch, Supernet},
};
use clap::{Parser, Subcommand};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use self::plain::Plain;

mod engine;
mod memory;
mod plain;

const THREADS: u16 = 2;
/// Architectures for the weights, and as many to be ranked.
const LAMBDA: usize = 2;
const ROUNDS: usize = 5;
const SEED: u64 = 1;
/// How far the losses of the same weights may lie apart by rounding.
const TOLERANCE: f64 = 1e-3;

/// Measures search steps of the trainer.
#[derive(Parser)]
struct Arguments {
    /// Directory of CIFAR-10's binary files
    #[arg(long)]
    data: PathBuf,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    command: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// Is the process with an engine
    #[command(hide = true)]
    Engine,
    /// Is the process of steps alone
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
    let compared = compare()?;
    let Settings { cells, channels, nodes, batch_size, .. } = settings();
    println!(
        "a search step: {cells} cells, {channels} channels, {nodes} nodes, {batch_size} images, \
         {LAMBDA} + {LAMBDA} architectures, {THREADS} threads"
    );
    println!("                                       seconds   speed-up");
    for (name, seconds, ratio) in [
        ("libtorch's operations, contiguous", &compared.plain, None),
        ("  channels_last", &compared.layout, Some(compared.layout_speedup())),
        ("the trainer", &compared.best, Some(compared.best_speedup())),
    ] {
        let ratio = ratio.map(|ratio| format!("{ratio:10.2}")).unwrap_or_default();
        println!("  {name:36} {:7.3} {ratio}", median(seconds.clone()));
    }
    println!("  wanted: 1.8 by the layout, 2.2 by the trainer");
    println!("  peak of resident memory {peak_rss_mb:.0} MB; wanted: under 1300");
    println!("the trainer, through its engine");
    println!("  peak of resident memory {:.0} MB, CIFAR-10 included", engine.peak_rss_mb);
    println!("  not computing for {:.4} of a step; wanted: under 0.03", engine.loader_share);
    let inpainting = compare_inpainting()?;
    let inpaint_speedup = speedup(&inpainting.plain, &inpainting.best);
    let inpaint::Settings { nodes, image_size, batch_size, .. } = inpaint::Settings::default();
    println!(
        "a step of inpaint-cat: {nodes} nodes, {batch_size} photos of {image_size} x {image_size}"
    );
    println!("                                       seconds   speed-up");
    println!("  {:36} {:7.3}", "the authors' way, contiguous", median(inpainting.plain));
    println!("  {:36} {:7.3} {inpaint_speedup:10.2}", "the trainer", median(inpainting.best));
    println!("  wanted: 1.5");
    let json = serde_json::json!({
        "layout_speedup": compared.layout_speedup(),
        "best_speedup": compared.best_speedup(),
        "inpaint_speedup": inpaint_speedup,
        "peak_rss_mb": peak_rss_mb,
        "loader_share": engine.loader_share,
    });
    println!("{json}");
    Ok(())
}

/// What a role of this program prints, in a process whose memory is then its own.
fn in_a_process(role: &str, data: &Path) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new(env::current_exe()?);
    let output = child.arg("--data").arg(data).arg(role).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the process {role}: {}", output.status);
    Ok(output.stdout)
}

/// The paper's.
fn settings() -> Settings {
    Settings::default()
}

/// Seconds of each implementation's steps, in the order of the turns.
#[derive(Default)]
struct Compared {
    plain: Vec<f64>,
    layout: Vec<f64>,
    best: Vec<f64>,
}

impl Compared {
    fn layout_speedup(&self) -> f64 {
        speedup(&self.plain, &self.layout)
    }

    fn best_speedup(&self) -> f64 {
        speedup(&self.plain, &self.best)
    }
}

fn compare() -> anyhow::Result<Compared> {
    tch::set_num_threads(THREADS.into());
    tch::manual_seed(SEED as i64);
    let settings = settings();
    let mut plain = Plain::cells(&settings, CLASSES)?;
    let mut layout = Plain::cells(&settings, CLASSES)?;
    let mut best = Supernet::new(&settings, 3, CLASSES, Device::Cpu)?;
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let batches = [(); 2].map(|()| batch(settings.batch_size));
    let [train_batch, rank_batch] = &batches;
    let [train_last, rank_last] = batches.each_ref().map(channels_last);

    // With the weights that all start with, so before any training: rounding grows in a step.
    let rank = architectures(&mut random)?;
    let expected = plain.search_step(train_batch, &[], rank_batch, &rank)?;
    for losses in [
        layout.search_step(&train_last, &[], &rank_last, &rank)?,
        best.search_step(&train_last, &[], &rank_last, &rank, 0.0)?.losses,
    ] {
        let same = expected.iter().zip(&losses).all(|(a, b)| (a - b).abs() < TOLERANCE);
        ensure!(same, "the implementations differ: {expected:?}, {losses:?}");
    }

    let mut compared = Compared::default();
    for round in 0..=ROUNDS {
        let (train, rank) = (architectures(&mut random)?, architectures(&mut random)?);
        let plain_seconds = seconds(|| plain.search_step(train_batch, &train, rank_batch, &rank))?;
        let layout_seconds =
            seconds(|| layout.search_step(&train_last, &train, &rank_last, &rank))?;
        let rate = settings.learning_rate;
        let best_seconds =
            seconds(|| best.search_step(&train_last, &train, &rank_last, &rank, rate))?;
        progress(&format!(
            "round {round} of {ROUNDS}: {plain_seconds:.2} s, channels_last {layout_seconds:.2} s, \
             trainer {best_seconds:.2} s"
        ));
        if round == 0 {
            continue; // the first step warms caches and allocators
        }
        compared.plain.push(plain_seconds);
        compared.layout.push(layout_seconds);
        compared.best.push(best_seconds);
    }
    Ok(compared)
}

/// The same of the paper's autoencoders, whose layout and whose cut weights are one thing.
fn compare_inpainting() -> anyhow::Result<Compared> {
    let settings = inpaint::Settings::default();
    let mut plain = Plain::autoencoder(&settings)?;
    let mut best = supernet::inpaint::Supernet::new(&settings, 3, Device::Cpu)?;
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let [train_batch, rank_batch] = [(); 2].map(|()| photos(&settings));

    let rank = autoencoders(&settings, &mut random)?;
    let expected = plain.search_step(&train_batch, &[], &rank_batch, &rank)?;
    let losses = best.search_step(&train_batch, &[], &rank_batch, &rank, 0.0)?.losses;
    let same = expected.iter().zip(&losses).all(|(a, b)| (a - b).abs() < TOLERANCE);
    ensure!(same, "the implementations differ: {expected:?}, {losses:?}");

    let mut compared = Compared::default();
    for round in 0..=ROUNDS {
        let [train, rank] = [(); 2].map(|()| autoencoders(&settings, &mut random));
        let (train, rank) = (train?, rank?);
        let plain_seconds =
            seconds(|| plain.search_step(&train_batch, &train, &rank_batch, &rank))?;
        let rate = settings.learning_rate;
        let best_seconds =
            seconds(|| best.search_step(&train_batch, &train, &rank_batch, &rank, rate))?;
        progress(&format!(
            "inpaint-cat, round {round} of {ROUNDS}: {plain_seconds:.2} s, trainer {best_seconds:.2} s"
        ));
        if round > 0 {
            compared.plain.push(plain_seconds);
            compared.best.push(best_seconds);
        }
    }
    Ok(compared)
}

fn photos(settings: &inpaint::Settings) -> supernet::inpaint::Batch {
    let (side, options) = (settings.image_size, (Kind::Float, Device::Cpu));
    supernet::inpaint::Batch {
        images: Tensor::rand([settings.batch_size, 3, side, side], options),
        mask: Tensor::rand([settings.batch_size, 1, side, side], options)
            .gt(0.8)
            .to_kind(Kind::Float),
    }
}

fn autoencoders(
    settings: &inpaint::Settings,
    random: &mut ChaCha8Rng,
) -> Result<Vec<inpaint::Architecture>, inpaint::DecodeError> {
    let space = settings.space(inpaint::Coding::Categorical);
    let draw = |random: &mut ChaCha8Rng| -> Vec<i64> {
        let decisions = space.variables().into_iter();
        let value = |decision| match decision {
            Decision::Categorical(variable) => {
                random.random_range(0..variable.choices.len() as i64)
            }
            Decision::Integer(variable) => random.random_range(variable.low..=variable.high),
        };
        decisions.map(value).collect()
    };
    (0..LAMBDA).map(|_| inpaint::Architecture::decode(&space, &draw(random))).collect()
}

fn seconds<T, E>(step: impl FnOnce() -> Result<T, E>) -> Result<f64, E> {
    let start = Instant::now();
    step()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Noise in place of images, of the usual layout: no operation's time depends on the pixels.
fn batch(images: i64) -> Batch {
    Batch {
        images: Tensor::randn([images, 3, 32, 32], (Kind::Float, Device::Cpu)),
        labels: Tensor::randint(CLASSES, [images], (Kind::Int64, Device::Cpu)),
    }
}

fn channels_last(batch: &Batch) -> Batch {
    Batch {
        images: batch.images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]),
        labels: batch.labels.shallow_clone(),
    }
}

/// As many as a step has of each kind.
fn architectures(random: &mut ChaCha8Rng) -> Result<Vec<Architecture>, DecodeError> {
    let nodes = settings().nodes as usize;
    (0..LAMBDA).map(|_| Architecture::decode(nodes, &draw(random))).collect()
}

/// An architecture of the paper's space, each equally likely.
fn draw(random: &mut ChaCha8Rng) -> Vec<i64> {
    let variables = enas_micro::variables(settings().nodes as usize);
    let choices = variables.iter().map(|variable| variable.choices.len() as i64);
    choices.map(|choices| random.random_range(0..choices)).collect()
}

/// Median of the ratios of `plain` to `other`, turn by turn.
fn speedup(plain: &[f64], other: &[f64]) -> f64 {
    median(plain.iter().zip(other).map(|(plain, other)| plain / other).collect())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn progress(what: &str) {
    eprintln!("==> {what}");
}
