//! One-shot searches of the space `nasbench201` on CIFAR-10 with a small supernet, through the real services, judged by the
//! table of NAS-Bench-201.

mod correlation;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    future::Future,
    path::{Path, PathBuf},
    pin::pin,
    process::Stdio,
    time::Instant,
};

use anyhow::{Context, bail, ensure};
use asng_proto::v1::{self, AlgorithmSettings, StudyState, variable::Kind};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

pub use self::correlation::{kendall_tau, spearman_rho};
use crate::{
    Controller, applied,
    quality::{DataSet, NasBench201},
    signal_process, trainer_command, trainer_program,
};

/// A way to spend the steps of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// ASNG after a warm-up.
    Asng,
    /// ASNG from the first step.
    WithoutWarmup,
    /// A fixed step after the same warm-up.
    Sng,
    /// All steps train the weights of cells that are drawn uniformly, and the distribution stays uniform.
    Uniform,
}

impl Arm {
    /// All of them.
    pub const ALL: [Arm; 4] = [Arm::Asng, Arm::WithoutWarmup, Arm::Sng, Arm::Uniform];

    /// In names of studies and files.
    pub fn name(self) -> &'static str {
        match self {
            Arm::Asng => "asng",
            Arm::WithoutWarmup => "without_warmup",
            Arm::Sng => "sng",
            Arm::Uniform => "uniform",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Arm::Asng => "ASNG after a warm-up",
            Arm::WithoutWarmup => "ASNG from the first step",
            Arm::Sng => "SNG, fixed step, after a warm-up",
            Arm::Uniform => "no search: the best of random cells by uniformly trained weights",
        }
    }
}

/// The settings of every search; a record belongs to one plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Steps of each search.
    pub steps: u64,
    /// Those that are warm-up, in the searches that have one.
    pub warmup_steps: u64,
    /// ASNG's setting of that name; absent: the controller's default.
    pub delta_init: Option<f64>,
    /// SNG's fixed step, its `delta_init`.
    pub fixed_step: f64,
    /// Settings of the supernet and its training.
    pub settings: BTreeMap<String, String>,
    /// Cells drawn from the distribution at the end, of which shared weights select one.
    pub candidates: usize,
    /// Random cells whose shared weights are compared with the table, the same for all searches of a seed.
    pub random_cells: usize,
    /// Test images for that.
    pub test_images: usize,
}

impl Plan {
    fn warmup_steps(&self, arm: Arm) -> u64 {
        match arm {
            Arm::WithoutWarmup => 0,
            Arm::Uniform => self.steps,
            Arm::Asng | Arm::Sng => self.warmup_steps,
        }
    }

    fn request(&self, name: &str, arm: Arm, seed: u64) -> v1::CreateStudyRequest {
        let (algorithm, delta_init) = match arm {
            Arm::Sng => (v1::Algorithm::Sng, Some(self.fixed_step)),
            _ => (v1::Algorithm::Asng, self.delta_init),
        };
        let algorithm = AlgorithmSettings {
            algorithm: algorithm.into(),
            delta_init,
            seed: Some(seed),
            warmup_steps: Some(self.warmup_steps(arm)),
            ..Default::default()
        };
        let mut settings = self.settings.clone();
        settings.insert("seed".into(), seed.to_string());
        let spec = v1::StudySpec {
            space: "nasbench201".into(),
            settings: settings.into_iter().collect(),
            algorithm: Some(algorithm),
            stop: Some(v1::StopRules { max_steps: self.steps, ..Default::default() }),
            ..Default::default()
        };
        v1::CreateStudyRequest { name: name.into(), spec: Some(spec), ..Default::default() }
    }
}

/// The tables of all data sets.
pub struct Tables([NasBench201; DataSet::ALL.len()]);

/// A cell's accuracies and ranks in the tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// The cell, as the tables number its operations.
    pub cell: Vec<i64>,
    /// Mean validation accuracy in percent, in the order of [`DataSet::ALL`].
    pub accuracies: [f64; DataSet::ALL.len()],
    /// Its place among all cells by that accuracy, from 1.
    pub ranks: [usize; DataSet::ALL.len()],
}

impl Tables {
    /// Reads those that `cargo xtask setup nasbench201` fetched.
    pub fn load() -> anyhow::Result<Tables> {
        let [cifar10, cifar100, imagenet] = DataSet::ALL.map(NasBench201::load);
        Ok(Tables([cifar10?, cifar100?, imagenet?]))
    }

    /// That of CIFAR-10, on which the searches are.
    pub fn cifar10(&self) -> &NasBench201 {
        &self.0[0]
    }

    fn judge(&self, cell: &[i64]) -> Judged {
        Judged {
            cell: cell.into(),
            accuracies: self.0.each_ref().map(|table| table.accuracy(cell)),
            ranks: self.0.each_ref().map(|table| table.rank(cell)),
        }
    }
}

/// The trainer's variables, in order, and their choices, in order: those of the table, under other names.
const VARIABLES: [&str; 6] = [
    "normal.node1.from0",
    "normal.node2.from0",
    "normal.node2.from1",
    "normal.node3.from0",
    "normal.node3.from1",
    "normal.node3.from2",
];
const CHOICES: [&str; 5] = ["none", "skip", "conv_1x1", "conv_3x3", "avg_pool_3x3"];

/// Errors unless architectures of these variables are keys of the tables.
fn check_variables(variables: &[v1::Variable]) -> anyhow::Result<()> {
    let same = |(variable, name): (&v1::Variable, &str)| {
        let choices = match &variable.kind {
            Some(Kind::Categorical(categorical)) => categorical.choices.as_slice(),
            _ => &[],
        };
        variable.name == name && choices == CHOICES
    };
    ensure!(
        variables.len() == VARIABLES.len() && variables.iter().zip(VARIABLES).all(same),
        "the trainer's variables are not those of the table of NAS-Bench-201: {variables:?}"
    );
    Ok(())
}

/// A search, as far as it has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// How it searches.
    pub arm: Arm,
    /// Its seed.
    pub seed: u64,
    /// Its settings.
    pub plan: Plan,
    /// Searches that ran at a time.
    pub jobs: usize,
    /// How it went.
    pub curve: Vec<Point>,
    /// Time that it has taken, with the evaluation.
    pub seconds: f64,
    /// The result; absent until the search has ended.
    pub result: Option<Found>,
}

/// A moment of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps done.
    pub step: u64,
    /// Time that they took.
    pub seconds: f64,
    /// Accuracy on CIFAR-10 of the most likely cell, in percent; absent in the warm-up, where all are equally likely.
    pub mode: Option<f64>,
}

/// The result of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The final cell: the one that `asng-trainer select` selects.
    pub cell: Judged,
    /// The most likely cell.
    pub mode: Judged,
    /// Random cells.
    pub random: Vec<Drawn>,
    /// Kendall's tau between what shared weights and the table on CIFAR-10 say of the random cells; absent where either says the
    /// same of all.
    pub kendall_tau: Option<f64>,
    /// Spearman's rho of the same.
    pub spearman_rho: Option<f64>,
}

/// A random cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drawn {
    /// The cell.
    pub architecture: Vec<i64>,
    /// Loss on test images with shared weights; absent where it is not finite.
    pub loss: Option<f64>,
}

/// Searches that share a controller and a directory.
pub struct Bench {
    /// Becomes true when a signal asks the process to end.
    stop: watch::Receiver<bool>,
    controller: Controller,
    tables: Tables,
    plan: Plan,
    directory: PathBuf,
    jobs: usize,
}

/// Points of a curve.
const POINTS: u64 = 50;

impl Bench {
    /// Starts the controller. Records, weights, logs and the controller's state lie in `directory`, from where searches go on.
    pub fn start(directory: &Path, plan: Plan, jobs: usize) -> anyhow::Result<Bench> {
        let tables = Tables::load()?;
        for part in ["log", "work"] {
            let directory = directory.join(part);
            fs::create_dir_all(&directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        // The trainer is built now: connections would break off while the process that holds them waits for the compiler.
        trainer_program();
        // Before anything is started that must not be left behind.
        let stop = watch_signals()?;
        let controller = Controller::start_apart(&directory.join("state"));
        Ok(Bench { stop, controller, tables, plan, directory: directory.into(), jobs })
    }

    /// Searches to the end and judges what was found, from where an earlier search came to. A signal that asks the process to end
    /// has the trainer save its weights, and is an error.
    pub async fn run(&self, arm: Arm, seed: u64) -> anyhow::Result<Record> {
        let mut record = self.read(arm, seed)?;
        if record.result.is_some() {
            return Ok(record);
        }
        ensure!(!*self.stop.borrow(), "stopped");
        let mut stop = pin!(self.asked_to_end());
        let study = self.search(&mut record, &mut stop).await?;
        let began = Instant::now();
        let evaluated = tokio::select! {
            evaluated = self.evaluate(&study, &record) => evaluated?,
            () = &mut stop => bail!("{} is stopped", name(arm, seed)),
        };
        record.seconds += began.elapsed().as_secs_f64();
        record.result = Some(evaluated);
        self.write(&record)?;
        Ok(record)
    }

    async fn search(
        &self,
        record: &mut Record,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> anyhow::Result<v1::Study> {
        let name = name(record.arm, record.seed);
        let mut studies = self.controller.studies();
        studies.create_study(self.plan.request(&name, record.arm, record.seed)).await?;
        let mut trainer = self.trainer(&name)?;
        trainer.args(["serve", "--study", &name, "--checkpoint-every", "1m"]);
        let mut trainer = trainer.spawn().context("cannot start the trainer")?;
        let process = trainer.id().context("the trainer has just started")?;
        let request = v1::WatchStudyRequest { name: name.clone() };
        let mut watched = studies.watch_study(request).await?.into_inner();
        let (began, before) = (Instant::now(), record.seconds);
        let (mut watching, mut stopped) = (true, false);
        let status = loop {
            let seen = tokio::select! {
                seen = watched.message(), if watching => seen?,
                status = trainer.wait() => break status?,
                () = &mut *stop, if !stopped => {
                    stopped = true;
                    signal_process("TERM", process);
                    continue;
                }
            };
            record.seconds = before + began.elapsed().as_secs_f64();
            match seen.and_then(|seen| seen.study) {
                Some(study) => self.note(record, &study)?,
                None => watching = false,
            }
        };
        record.seconds = before + began.elapsed().as_secs_f64();
        self.write(record)?;
        ensure!(!stopped, "{name} is stopped; the same command goes on from there");
        let log = self.log(&name);
        ensure!(status.success(), "the trainer of {name} failed ({status}): {}", log.display());
        let request = v1::GetStudyRequest { name: name.clone() };
        let study = studies.get_study(request).await?.into_inner().study.context("no study")?;
        ensure!(
            study.state() == StudyState::Finished,
            "study {name} is {}: {:?}; {}",
            study.state().as_str_name(),
            study.failure,
            log.display()
        );
        self.note(record, &study)?;
        Ok(study)
    }

    /// Adds a point to the curve when it is time for one, and shows it.
    fn note(&self, record: &mut Record, study: &v1::Study) -> anyhow::Result<()> {
        let Plan { steps, .. } = self.plan;
        let (step, last) = (applied(study), record.curve.last().map_or(0, |point| point.step));
        if step == last || step < (last + steps.div_ceil(POINTS)).min(steps) {
            return Ok(());
        }
        let mode = self.mode(study)?.filter(|_| step > self.plan.warmup_steps(record.arm));
        let mode = mode.map(|mode| self.tables.cifar10().accuracy(&mode));
        let shown = mode.map_or_else(|| "warm-up".into(), |mode| format!("mode {mode:.2} %"));
        eprintln!("==> {}: step {step} of {steps}, {shown}", study.name);
        record.curve.push(Point { step, seconds: record.seconds, mode });
        self.write(record)
    }

    async fn evaluate(&self, study: &v1::Study, record: &Record) -> anyhow::Result<Found> {
        let seed = record.seed.to_string();
        let candidates = self.plan.candidates.to_string();
        let Selection { candidates } =
            self.ask(study, &["select", "--seed", &seed, "--candidates", &candidates]).await?;
        let selected = &candidates.first().context("nothing was selected")?.values;

        let random = self.plan.random_cells.to_string();
        let images = self.plan.test_images.to_string();
        let evaluate = ["evaluate", "--seed", &seed, "--random", &random, "--test-images", &images];
        let Evaluation { random: Random { architectures: random } } =
            self.ask(study, &evaluate).await?;
        // By larger is better, as accuracies are; what diverged is worst.
        let scores: Vec<f64> =
            random.iter().map(|cell| -cell.loss.unwrap_or(f64::INFINITY)).collect();
        let cifar10 = self.tables.cifar10();
        let accuracies: Vec<f64> =
            random.iter().map(|cell| cifar10.accuracy(&cell.architecture)).collect();
        let finite = |figure: f64| figure.is_finite().then_some(figure);
        let cell = self.tables.judge(selected);
        let mode = self.tables.judge(&self.mode(study)?.context("the study has no mode")?);
        eprintln!(
            "==> {}: {:.2} %, rank {}; mode {:.2} %, Kendall's tau {:.3}",
            study.name,
            cell.accuracies[0],
            cell.ranks[0],
            mode.accuracies[0],
            kendall_tau(&scores, &accuracies)
        );
        Ok(Found {
            cell,
            mode,
            kendall_tau: finite(kendall_tau(&scores, &accuracies)),
            spearman_rho: finite(spearman_rho(&scores, &accuracies)),
            random,
        })
    }

    /// The most likely cell, as soon as the variables are known.
    fn mode(&self, study: &v1::Study) -> anyhow::Result<Option<Vec<i64>>> {
        let Some(mode) = &study.mode else { return Ok(None) };
        check_variables(&study.variables)?;
        Ok(Some(mode.values.clone()))
    }

    /// Runs a command of the trainer on a study, and returns its JSON.
    async fn ask<T: DeserializeOwned>(
        &self,
        study: &v1::Study,
        arguments: &[&str],
    ) -> anyhow::Result<T> {
        let mut command = self.trainer(&study.name)?;
        command.args(arguments).args(["--study", &study.name, "--json"]).stdout(Stdio::piped());
        let output = command.output().await?;
        let (what, log) = (arguments[0], self.log(&study.name));
        ensure!(output.status.success(), "asng-trainer {what} failed: {}", log.display());
        serde_json::from_slice(&output.stdout).context(what.to_owned())
    }

    /// A trainer's command line, whose log goes to a file. It ends with this process.
    fn trainer(&self, name: &str) -> anyhow::Result<Command> {
        let log = self.log(name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let work_dir = self.directory.join("work").join(name);
        let mut command = Command::from(trainer_command(&self.controller, &work_dir));
        // In a group of its own, so that Ctrl-C in a terminal reaches it through this process alone.
        command.stdin(Stdio::null()).stderr(log).kill_on_drop(true).process_group(0);
        Ok(command)
    }

    async fn asked_to_end(&self) {
        // The sender stays as long as the process.
        let _ = self.stop.clone().wait_for(|stop| *stop).await;
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.join("log").join(format!("{name}.log"))
    }

    fn file(&self, arm: Arm, seed: u64) -> PathBuf {
        self.directory.join(format!("{}.json", name(arm, seed)))
    }

    /// The record of a search; an empty one if there is none. Errors if it is of another plan.
    fn read(&self, arm: Arm, seed: u64) -> anyhow::Result<Record> {
        let file = self.file(arm, seed);
        if !file.exists() {
            let (plan, jobs) = (self.plan.clone(), self.jobs);
            let (curve, seconds, result) = (Vec::new(), 0.0, None);
            return Ok(Record { arm, seed, plan, jobs, curve, seconds, result });
        }
        let text = fs::read_to_string(&file)?;
        let record: Record = serde_json::from_str(&text)
            .with_context(|| format!("cannot read {}", file.display()))?;
        ensure!(
            record.plan == self.plan,
            "{} is of other searches ({:?}) than these ({:?}): give another --out, or delete the directory",
            file.display(),
            record.plan,
            self.plan
        );
        Ok(record)
    }

    fn write(&self, record: &Record) -> anyhow::Result<()> {
        let file = self.file(record.arm, record.seed);
        let part = file.with_extension("part");
        fs::write(&part, serde_json::to_string(record)? + "\n")
            .and_then(|()| fs::rename(&part, &file))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Of a study, and of all that belongs to it.
fn name(arm: Arm, seed: u64) -> String {
    format!("{}-{seed}", arm.name())
}

/// Output of `asng-trainer select --json`.
#[derive(Deserialize)]
struct Selection {
    candidates: Vec<Candidate>,
}

#[derive(Deserialize)]
struct Candidate {
    values: Vec<i64>,
}

/// Output of `asng-trainer evaluate --random N --json`.
#[derive(Deserialize)]
struct Evaluation {
    random: Random,
}

#[derive(Deserialize)]
struct Random {
    architectures: Vec<Drawn>,
}

fn watch_signals() -> anyhow::Result<watch::Receiver<bool>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        eprintln!("==> stopping: trainers save their weights");
        let _ = sender.send(true); // fails when nobody waits for it any more
        // The sender stays, so that receivers never see it closed.
        std::future::pending::<()>().await;
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str, choices: &[&str]) -> v1::Variable {
        let choices = choices.iter().map(ToString::to_string).collect();
        let kind = Kind::Categorical(v1::Categorical { choices });
        v1::Variable { name: name.into(), kind: Some(kind) }
    }

    #[test]
    fn only_the_variables_of_the_table_are_keys() {
        let mut variables = VARIABLES.map(|name| variable(name, &CHOICES)).to_vec();
        check_variables(&variables).unwrap();
        assert!(check_variables(&variables[1..]).is_err());
        variables.swap(1, 2);
        assert!(check_variables(&variables).is_err());
        variables.swap(1, 2);
        variables[5] =
            variable(VARIABLES[5], &["skip", "none", "conv_1x1", "conv_3x3", "avg_pool_3x3"]);
        assert!(check_variables(&variables).is_err());
    }

    /// Accuracies and ranks as numpy has them from the same files.
    #[test]
    fn cells_are_judged_by_the_tables() {
        let tables = Tables::load().unwrap();
        let judged = |cell: [i64; 6]| {
            let Judged { accuracies, ranks, .. } = tables.judge(&cell);
            (accuracies.map(|accuracy| (1e4 * accuracy).round()), ranks)
        };
        assert_eq!(judged([3, 3, 3, 1, 3, 2]), ([916_067.0, 727_467.0, 455_556.0], [1, 10, 69]));
        assert_eq!(
            judged([2, 1, 1, 2, 3, 4]),
            ([879_227.0, 661_000.0, 391_556.0], [6620, 6837, 5048])
        );
    }
}
