//! How fast the controller is, against an echo server under the same load on the same machine: started by
//! `cargo xtask bench controller`, which builds everything for release.
//!
//! Progress goes to standard error and tables for people to standard output, whose last line is JSON. A machine is
//! noisy and the figures of two moments cannot be compared, so phases alternate between what is compared, and each
//! figure is the median of its phases.

use std::{
    env,
    fs::File,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use asng_controller::asng::{Asng, Ranked, Settings, Variable};
use asng_proto::v1::{self, ListStudiesRequest, study_service_client::StudyServiceClient};
use asng_tests::{Controller, categoricals};
use clap::{Parser, Subcommand};
use prost::Message;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use self::load::{Length, Load, Phase, connect, create, create_of};

mod echo;
mod load;

const CLIENTS: usize = 64;
const STUDIES: usize = 1000;
/// Reports in a phase of the comparison between a young study and an old one.
const WINDOW: u64 = 2000;

/// Measures the controller against an echo server.
#[derive(Parser)]
struct Arguments {
    /// Short phases and 100,000 reports instead of a million: a smoke test, too noisy to judge by
    #[arg(long)]
    quick: bool,
    /// Length of a phase; each is measured three times
    #[arg(long, value_name = "SECONDS", default_value_t = 5, conflicts_with = "quick",
          value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    #[command(subcommand)]
    command: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// Is the echo server
    #[command(hide = true)]
    Echo { reply: PathBuf },
}

/// How much is measured.
struct Scale {
    phase: Length,
    rounds: usize,
    reports: u64,
    windows: usize,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(Role::Echo { reply }) = arguments.command {
        return echo::serve(&reply).await;
    }
    let seconds = Duration::from_secs(arguments.seconds);
    let scale = if arguments.quick {
        Scale { phase: Length::For(seconds / 5), rounds: 1, reports: 100_000, windows: 5 }
    } else {
        Scale { phase: Length::For(seconds), rounds: 3, reports: 1_000_000, windows: 21 }
    };
    bench(&scale).await
}

/// The echo server in a process of its own; killed when dropped.
struct Echo(Child);

impl Drop for Echo {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_echo(reply: &Path) -> anyhow::Result<(Echo, SocketAddr)> {
    let mut command = Command::new(env::current_exe()?);
    let mut child = command.arg("echo").arg(reply).stdout(Stdio::piped()).spawn()?;
    let mut address = String::new();
    // Unwrap safety: it is piped.
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut address)?;
    Ok((Echo(child), address.trim().parse().context("the echo server's address")?))
}

async fn bench(scale: &Scale) -> anyhow::Result<()> {
    // Beside the program, which is on a disk, as /tmp may not be.
    let program = env::current_exe()?;
    let directory = tempfile::tempdir_in(program.parent().context("a program lies somewhere")?)?;
    let state = directory.path().join("state");
    let mut controller = Controller::start(&state);
    let address = controller.address;
    let mut studies = StudyServiceClient::new(connect(address).await?);
    progress(&format!("creating {STUDIES} studies"));
    let names: Vec<String> = (0..STUDIES).map(|i| format!("study-{i}")).collect();
    for name in &names {
        create(&mut studies, name).await?;
    }
    create(&mut studies, "one").await?;
    create(&mut studies, "single").await?;

    let reply_file = directory.path().join("reply");
    let reply = load::a_reply(address, "single").await?;
    std::fs::write(&reply_file, reply.encode_to_vec())?;
    let (_echo, echo_address) = start_echo(&reply_file)?;

    let same = vec!["one".to_string(); CLIENTS];
    let mut against = Comparison {
        echo: Load::start(echo_address, &same).await?,
        one: Load::start(address, &same).await?,
        many: Load::start(address, &names[..CLIENTS]).await?,
    };
    let rates = against.measure(scale, &format!("{CLIENTS} clients")).await?;
    let mut alone = Comparison {
        echo: Load::start(echo_address, &same[..1]).await?,
        one: Load::start(address, &["single".into()]).await?,
        many: Load::start(address, &names[CLIENTS..=CLIENTS]).await?,
    };
    let single = alone.measure(scale, "one client").await?;

    progress(&format!("a few reports for each of {STUDIES} studies"));
    for names in names.chunks(CLIENTS) {
        let mut load = Load::start(address, names).await?;
        load.run(Length::Reports(10 * CLIENTS as u64)).await?;
    }
    let before = megabytes(&controller);
    let restart = restarted(&mut controller).await?;
    let after = megabytes(&controller);

    let growth = growth(&mut controller, scale, directory.path()).await?;
    let long_restart = restarted(&mut controller).await?;
    let long_rss = megabytes(&controller);
    progress("what reports take in the database");
    let stored = stored_bytes(&directory.path().join("stored"), categoricals(40), 10_000).await?;
    let directory_of_integers = directory.path().join("stored-integers");
    let stored_integers = stored_bytes(&directory_of_integers, integers(1500), 500).await?;
    progress("the optimiser alone");
    let ask_tell = ask_tell_per_second();

    let worse = if rates.one.median(|p| p.millis(99.0)) > rates.many.median(|p| p.millis(99.0)) {
        &rates.one
    } else {
        &rates.many
    };
    let echo_rate = rates.echo.median(Phase::per_second);
    println!("{CLIENTS} clients on 8 connections    reports/s   of echo   p50 ms   p99 ms");
    for (name, phases) in [
        ("echo of the same bytes", &rates.echo),
        ("one study", &rates.one),
        ("64 studies", &rates.many),
    ] {
        let rate = phases.median(Phase::per_second);
        let [p50, p99] = [50.0, 99.0].map(|percent| phases.median(|p| p.millis(percent)));
        println!("  {name:28} {rate:10.0} {:9.2} {p50:8.2} {p99:8.2}", rate / echo_rate);
    }
    println!("  wanted: 0.35 of the echo's rate, and a p99 of at most 5 times its own");
    println!("one client                                        p50 ms   p99 ms");
    for (name, phases) in [("echo of the same bytes", &single.echo), ("one study", &single.one)] {
        let [p50, p99] = [50.0, 99.0].map(|percent| phases.median(|p| p.millis(percent)));
        println!("  {name:28} {:20} {p50:8.3} {p99:8.3}", "");
    }
    println!("  wanted: a p50 of at most 5 times the echo's");
    println!("a controller of {STUDIES} studies");
    println!("  resident memory {before:.1} MB, {after:.1} MB after a restart; wanted: under 64");
    println!("  first reply {:.0} ms after a restart", restart.as_secs_f64() * 1e3);
    println!("a study of {} reports", scale.reports);
    println!("  time for a report {growth:.3} of that at 1000; wanted: at most 1.2");
    println!("  resident memory {long_rss:.1} MB after a restart");
    println!(
        "  first reply {:.0} ms after a restart; wanted: under 2000",
        long_restart.as_secs_f64() * 1e3
    );
    println!("the database grows for each report, lambda 2 + 2");
    println!("  by {stored:.0} bytes with 40 categoricals of 5 choices");
    println!("  by {stored_integers:.0} bytes with 1500 integers");
    println!("the optimiser alone: {ask_tell:.0} steps/s; wanted: 70000");
    let json = serde_json::json!({
        "echo_per_second": echo_rate,
        "one_study_per_second": rates.one.median(Phase::per_second),
        "many_studies_per_second": rates.many.median(Phase::per_second),
        "echo_p50_ms": rates.echo.median(|p| p.millis(50.0)),
        "echo_p99_ms": rates.echo.median(|p| p.millis(99.0)),
        "p50_ms": worse.median(|p| p.millis(50.0)),
        "p99_ms": worse.median(|p| p.millis(99.0)),
        "single_client_p50_ms": single.one.median(|p| p.millis(50.0)),
        "single_client_echo_p50_ms": single.echo.median(|p| p.millis(50.0)),
        "rss_mb": before.max(after),
        "growth_ratio": growth,
        "bytes_per_report": stored,
        "bytes_per_report_of_1500_integers": stored_integers,
        "ask_tell_per_second": ask_tell,
    });
    println!("{json}");
    Ok(())
}

/// Loads that are measured in turn.
struct Comparison {
    echo: Load,
    one: Load,
    many: Load,
}

/// The phases of each.
#[derive(Default)]
struct Compared {
    echo: Phases,
    one: Phases,
    many: Phases,
}

#[derive(Default)]
struct Phases(Vec<Phase>);

impl Phases {
    fn median(&self, figure: impl Fn(&Phase) -> f64) -> f64 {
        median(self.0.iter().map(figure).collect())
    }
}

impl Comparison {
    async fn measure(&mut self, scale: &Scale, what: &str) -> anyhow::Result<Compared> {
        let mut compared = Compared::default();
        for round in 1..=scale.rounds {
            progress(&format!("{what}, round {round} of {}", scale.rounds));
            for (name, load, phases) in [
                ("echo", &mut self.echo, &mut compared.echo),
                ("one study", &mut self.one, &mut compared.one),
                ("many studies", &mut self.many, &mut compared.many),
            ] {
                let phase = load.run(scale.phase).await?;
                progress(&format!("  {name}: {:.0} reports/s", phase.per_second()));
                phases.0.push(phase);
            }
        }
        Ok(compared)
    }
}

/// Time for a report in a study of many reports over that in a young study of a fresh controller.
async fn growth(
    controller: &mut Controller,
    scale: &Scale,
    directory: &Path,
) -> anyhow::Result<f64> {
    let mut studies = StudyServiceClient::new(connect(controller.address).await?);
    create(&mut studies, "old").await?;
    let mut old = Load::start(controller.address, &vec!["old".to_string(); CLIENTS]).await?;
    for part in 0..10 {
        progress(&format!("{} of {} reports", part * scale.reports / 10, scale.reports));
        old.run(Length::Reports(scale.reports / 10)).await?;
    }
    let fresh = Controller::start(&directory.join("fresh"));
    let mut studies = StudyServiceClient::new(connect(fresh.address).await?);
    let (mut at_many, mut at_few) = (Vec::new(), Vec::new());
    for window in 0..scale.windows {
        let name = format!("young-{window}");
        create(&mut studies, &name).await?;
        let mut young = Load::start(fresh.address, &vec![name; CLIENTS]).await?;
        young.run(Length::Reports(1000)).await?;
        at_few.push(1.0 / young.run(Length::Reports(WINDOW)).await?.per_second());
        at_many.push(1.0 / old.run(Length::Reports(WINDOW)).await?.per_second());
    }
    Ok(median(at_many) / median(at_few))
}

/// Bytes by which the database of a fresh controller grows for a report of a study of these variables.
async fn stored_bytes(
    directory: &Path,
    variables: Vec<v1::Variable>,
    reports: u64,
) -> anyhow::Result<f64> {
    let mut controller = Controller::start(directory);
    create_of(&mut StudyServiceClient::new(connect(controller.address).await?), "s", variables)
        .await?;
    let mut sizes = [0, 0];
    for size in &mut sizes {
        let mut load = Load::start(controller.address, &["s".into()]).await?;
        load.run(Length::Reports(reports)).await?;
        // Reading a history empties the journal first.
        let request =
            v1::ListReportsRequest { study: "s".into(), page_size: 1, ..Default::default() };
        StudyServiceClient::new(connect(controller.address).await?).list_reports(request).await?;
        // With the end of the process all is in one file.
        controller.terminate();
        *size = used_bytes(&directory.join("asng.db"))?;
        controller.restart();
    }
    Ok((sizes[1] as f64 - sizes[0] as f64) / reports as f64)
}

/// Bytes of an SQLite database without its free pages, by its header: sqlite.org/fileformat.html, section 1.3.
fn used_bytes(file: &Path) -> anyhow::Result<u64> {
    let mut header = [0; 100];
    File::open(file)?.read_exact(&mut header)?;
    let number =
        |place: usize| u64::from(u32::from_be_bytes([0, 1, 2, 3].map(|i| header[place + i])));
    let (page, pages, free) =
        (u64::from(u16::from_be_bytes([header[16], header[17]])), number(28), number(36));
    Ok((pages - free) * page)
}

/// A space of `count` integers.
fn integers(count: usize) -> Vec<v1::Variable> {
    let kind = v1::variable::Kind::Integer(v1::Integer { low: 8, high: 64 });
    (0..count).map(|i| v1::Variable { name: format!("v{i}"), kind: Some(kind.clone()) }).collect()
}

/// Kills the controller and starts it again; returns how long it took from there to the first reply.
async fn restarted(controller: &mut Controller) -> anyhow::Result<Duration> {
    controller.kill();
    let start = Instant::now();
    controller.restart();
    let mut studies = StudyServiceClient::new(connect(controller.address).await?);
    studies.list_studies(ListStudiesRequest { page_size: 1, ..Default::default() }).await?;
    Ok(start.elapsed())
}

fn megabytes(controller: &Controller) -> f64 {
    controller.resident_bytes() as f64 / 1e6
}

/// Steps that the optimiser draws and learns from in a second: 40 variables of 5 choices, lambda 2 + 2.
fn ask_tell_per_second() -> f64 {
    // Unwrap safety: the variables and the settings are fixed, and right.
    let mut asng =
        Asng::new(&[Variable::Categorical { choices: 5 }; 40], Settings::default()).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut rate = || {
        const STEPS: usize = 20_000;
        let start = Instant::now();
        for _ in 0..STEPS {
            std::hint::black_box(asng.ask(2, &mut random));
            let rank = asng.ask(2, &mut random);
            // Unwrap safety: the optimiser's own architectures, with a loss for each.
            asng.tell(&[Ranked { architectures: &rank, losses: &[0.0, 1.0] }]).unwrap();
        }
        STEPS as f64 / start.elapsed().as_secs_f64()
    };
    median((0..9).map(|_| rate()).collect())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn progress(what: &str) {
    eprintln!("==> {what}");
}
