//! Shared code of the end-to-end tests: real processes that are started, killed and asked, and a scripted trainer whose
//! losses follow from a formula. Each file in `tests/` holds one promise.

mod browser;
mod buildah;
mod disk;
mod distance;
pub mod document;
pub mod draw;
pub mod hostile;
pub mod oneshot;
mod postgres;
mod proxy;
pub mod quality;
pub mod toy;

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, OnceLock},
    thread,
    time::{Duration, Instant},
};

use asng_proto::v1::{
    self, search_service_client::SearchServiceClient, study_service_client::StudyServiceClient,
    trainer_service_client::TrainerServiceClient,
};
use tonic::{Code, Status, body::Body, client::GrpcService, transport::Channel};

pub use self::{
    browser::Browser,
    buildah::{Buildah, Contained, Container},
    disk::Disk,
    distance::{Distance, Machine, line},
    postgres::Postgres,
    proxy::{FAULTS, Proxy},
};

/// Path of the workspace's binary `name` of package `package`, built if need be.
pub fn binary(package: &str, name: &str) -> PathBuf {
    built(escargot::CargoBuild::new().package(package).bin(name), name)
}

/// Path of the example `name` of package `package`, built if need be.
pub fn example(package: &str, name: &str) -> PathBuf {
    built(escargot::CargoBuild::new().package(package).example(name), name)
}

fn built(build: escargot::CargoBuild, name: &str) -> PathBuf {
    let mut build = build.manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
    // Cargo sets these for the program it runs; inherited, they would make build scripts that watch them run again.
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            build = build.env_remove(&variable);
        }
    }
    let release = cfg!(not(debug_assertions));
    let build = if release { build.release() } else { build };
    build.run().unwrap_or_else(|error| panic!("cannot build {name}: {error}")).path().into()
}

/// Path of `asngctl`.
pub fn asngctl() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| binary("asng-controller", "asngctl")).clone()
}

/// Path of `asng-controller`.
pub fn asng_controller() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| binary("asng-controller", "asng-controller")).clone()
}

/// A controller in a process of its own; killed when dropped.
pub struct Controller {
    child: Child,
    state_dir: PathBuf,
    arguments: Vec<String>,
    /// True for a controller in a process group of its own.
    apart: bool,
    log: Arc<Mutex<String>>,
    /// Where it listens, the same after a restart.
    pub address: SocketAddr,
    /// Where it serves HTTP, elsewhere after a restart.
    pub http: SocketAddr,
}

impl Controller {
    /// Starts one on any free port and waits until it listens.
    pub fn start(state_dir: &Path) -> Controller {
        Controller::start_with(state_dir, &[])
    }

    /// Starts one with further arguments.
    pub fn start_with(state_dir: &Path, arguments: &[&str]) -> Controller {
        Controller::begin(state_dir, arguments, false)
    }

    /// Starts one in a process group of its own: Ctrl-C in a terminal reaches whoever started it, who can let others finish first.
    pub fn start_apart(state_dir: &Path) -> Controller {
        Controller::begin(state_dir, &[], true)
    }

    fn begin(state_dir: &Path, arguments: &[&str], apart: bool) -> Controller {
        let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
        let log = Arc::default();
        let (child, address, http) =
            spawn(state_dir, "127.0.0.1:0".parse().unwrap(), &arguments, apart, &log);
        Controller { child, state_dir: state_dir.into(), arguments, apart, log, address, http }
    }

    /// Waits until its log holds `text`, and returns the log.
    pub fn log_with(&self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let log = self.log.lock().unwrap().clone();
            if log.contains(text) {
                return log;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{text:?} is not in its log");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it with SIGKILL, as the kernel or a power cut would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same state directory and port, after [`kill`](Controller::kill).
    pub fn restart(&mut self) {
        (self.child, _, self.http) =
            spawn(&self.state_dir, self.address, &self.arguments, self.apart, &self.log);
    }

    /// Asks it to end with SIGTERM and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        terminate(&mut self.child)
    }

    /// Sends it a signal, given by its name such as "HUP".
    pub fn signal(&self, signal: &str) {
        send(signal, &self.child);
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Its resident memory in bytes, as the kernel counts it.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("the controller runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A connection that is made when it is first used, and made again when it broke.
    pub fn channel(&self) -> Channel {
        Channel::from_shared(self.url()).unwrap().connect_lazy()
    }

    /// A client of StudyService.
    pub fn studies(&self) -> StudyServiceClient<Channel> {
        StudyServiceClient::new(self.channel())
    }

    /// A client of SearchService.
    pub fn search(&self) -> SearchServiceClient<Channel> {
        SearchServiceClient::new(self.channel())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // Both fail if it has ended already, as some tests want it to.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon's command line.
pub fn controller_command(state_dir: &Path, listen: SocketAddr) -> Command {
    let mut command = Command::new(asng_controller());
    command.args(["--listen", &listen.to_string(), "--state-dir"]).arg(state_dir);
    command.env("ASNG_HTTP", "127.0.0.1:0");
    command
}

fn spawn(
    state_dir: &Path,
    listen: SocketAddr,
    arguments: &[String],
    apart: bool,
    log: &Arc<Mutex<String>>,
) -> (Child, SocketAddr, SocketAddr) {
    let mut command = controller_command(state_dir, listen);
    if apart {
        command.process_group(0);
    }
    let mut child = command.args(arguments).stderr(Stdio::piped()).spawn().expect("controller");
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let log = log.clone();
    let mut next = move || {
        let mut line = String::new();
        let read = lines.read_line(&mut line).unwrap();
        log.lock().unwrap().push_str(&line);
        // A failing test's harness shows it.
        eprint!("{line}");
        (read > 0).then_some(line)
    };
    let (address, http) = ports(&mut next);
    // Keeps the pipe empty.
    thread::spawn(move || while next().is_some() {});
    (child, address, http)
}

/// The addresses of gRPC and of HTTP that a program's log says it serves.
pub fn ports(next: &mut impl FnMut() -> Option<String>) -> (SocketAddr, SocketAddr) {
    loop {
        let line = next().expect("the program has started");
        let field = |name: &str| {
            let (_, rest) = line.split_once(name)?;
            rest.split_whitespace().next()?.parse().ok()
        };
        if let (Some(address), Some(http)) = (field("address="), field("http=")) {
            return (address, http);
        }
    }
}

/// A process; killed when dropped.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A trainer in a process of its own; killed when dropped.
pub struct Trainer(pub Child);

impl Drop for Trainer {
    fn drop(&mut self) {
        // Both fail if it has ended already, as most tests want it to.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Trainer {
    /// Starts one that works on `study` until it ends, with its files in `work_dir`.
    pub fn start(controller: &Controller, study: &str, work_dir: &Path) -> Trainer {
        let mut command = trainer_command(controller, work_dir);
        Trainer(command.args(["serve", "--study", study]).spawn().expect("trainer"))
    }
}

/// A trainer that serves TrainerService and HTTP; killed when dropped.
pub struct ServedTrainer {
    /// Its process.
    pub trainer: Trainer,
    /// Where it serves TrainerService.
    pub address: SocketAddr,
    /// Where it serves HTTP.
    pub http: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl ServedTrainer {
    /// Starts one that works on any study, on free ports, with further arguments of `serve`.
    pub fn start(controller: &Controller, work_dir: &Path, arguments: &[&str]) -> ServedTrainer {
        let mut command = trainer_command(controller, work_dir);
        command.args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.args(arguments);
        ServedTrainer::spawn(command)
    }

    /// Starts one by its whole command line, and waits until it serves.
    pub fn spawn(mut command: Command) -> ServedTrainer {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("trainer");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let log = Arc::<Mutex<String>>::default();
        let kept = log.clone();
        let mut next = move || {
            let line = lines.next()?;
            // A failing test's harness shows it.
            eprintln!("{line}");
            *kept.lock().unwrap() += &format!("{line}\n");
            Some(line)
        };
        let (address, http) = ports(&mut next);
        // Keeps the pipe empty.
        thread::spawn(move || while next().is_some() {});
        ServedTrainer { trainer: Trainer(child), address, http, log }
    }

    /// Returns what the process has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// A connection that is made when it is first used.
    pub fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect_lazy()
    }

    /// A client of TrainerService.
    pub fn client(&self) -> TrainerServiceClient<Channel> {
        TrainerServiceClient::new(self.channel())
    }

    /// Waits until its status satisfies `condition`, and returns it.
    pub async fn status_when(
        &self,
        condition: impl Fn(&v1::GetStatusResponse) -> bool,
    ) -> v1::GetStatusResponse {
        loop {
            let status = self.client().get_status(v1::GetStatusRequest {}).await;
            let status = status.unwrap().into_inner();
            if condition(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns true while the process runs.
    pub fn runs(&mut self) -> bool {
        self.trainer.0.try_wait().unwrap().is_none()
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        self.trainer.0.wait().unwrap()
    }
}

/// Status code and body of an HTTP page.
pub fn get_page(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.into())
}

/// The trainer's program.
pub fn trainer_program() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| binary("asng-trainer", "asng-trainer"))
}

/// The trainer's command line, on one thread and the real CIFAR-10. `ASNG_TEST_DEVICE` says what computes, the CPU or a
/// GPU such as `cuda:0`.
pub fn trainer_command(controller: &Controller, work_dir: &Path) -> Command {
    let mut command = Command::new(trainer_program());
    command
        .env("ASNG_CONTROLLER", controller.url())
        .args(["--threads", "1", "--device"])
        .arg(std::env::var("ASNG_TEST_DEVICE").unwrap_or_else(|_| "cpu".into()))
        .args(["--data", concat!(env!("CARGO_MANIFEST_DIR"), "/../data/cifar-10-batches-bin")])
        .arg("--work-dir")
        .arg(work_dir);
    command
}

/// Asks a process to end with SIGTERM and waits until it has.
pub fn terminate(child: &mut Child) -> ExitStatus {
    send("TERM", child);
    child.wait().unwrap()
}

fn send(signal: &str, child: &Child) {
    signal_process(signal, child.id());
}

/// Sends a process a signal, given by its name such as "HUP".
pub fn signal_process(signal: &str, process: u32) {
    let process = process.to_string();
    let status = Command::new("kill").args(["-s", signal, &process]).status().unwrap();
    assert!(status.success());
}

/// A space of `variables` categoricals with five choices each.
pub fn categoricals(variables: usize) -> Vec<v1::Variable> {
    let choices: Vec<_> = (0..5).map(|choice| format!("c{choice}")).collect();
    let variable = |i| v1::Variable {
        name: format!("v{i}"),
        kind: Some(v1::variable::Kind::Categorical(v1::Categorical { choices: choices.clone() })),
    };
    (0..variables).map(variable).collect()
}

/// A request for a study of ten categoricals and an integer, of which everything is fixed.
pub fn create_request(name: &str, max_steps: u64) -> v1::CreateStudyRequest {
    let mut variables = categoricals(10);
    variables.push(v1::Variable {
        name: "width".into(),
        kind: Some(v1::variable::Kind::Integer(v1::Integer { low: 8, high: 64 })),
    });
    v1::CreateStudyRequest {
        name: name.into(),
        spec: Some(v1::StudySpec {
            variables,
            algorithm: Some(v1::AlgorithmSettings { seed: Some(1), ..Default::default() }),
            stop: Some(v1::StopRules { max_steps, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A request for a search by the real trainer, as small as it can be.
pub fn tiny_search(name: &str, max_steps: u64) -> v1::CreateStudyRequest {
    let settings = [("nodes", "2"), ("cells", "3"), ("channels", "4"), ("batch_size", "8")];
    v1::CreateStudyRequest {
        name: name.into(),
        spec: Some(v1::StudySpec {
            space: "enas-micro".into(),
            settings: settings.map(|(name, value)| (name.into(), value.into())).into(),
            algorithm: Some(v1::AlgorithmSettings { seed: Some(1), ..Default::default() }),
            stop: Some(v1::StopRules { max_steps, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Describes a study that waits for its variables, as a trainer called "another" would.
pub async fn describe(controller: &Controller, study: &str, variables: Vec<v1::Variable>) {
    let description = v1::SpaceDescription { variables, costs: None };
    let request = v1::DescribeSpaceRequest {
        study: study.into(),
        trainer_id: "another".into(),
        answer: Some(v1::describe_space_request::Answer::Description(description)),
    };
    controller.search().describe_space(request).await.unwrap();
}

/// Waits until the study `name` satisfies `condition`, and returns it.
pub async fn study_when(
    controller: &Controller,
    name: &str,
    condition: impl Fn(&v1::Study) -> bool,
) -> v1::Study {
    let studies = controller.studies();
    loop {
        let request = v1::GetStudyRequest { name: name.into() };
        let answer = retry(|| {
            let (mut studies, request) = (studies.clone(), request.clone());
            async move { studies.get_study(request).await }
        });
        let study = answer.await.into_inner().study.unwrap();
        if condition(&study) {
            return study;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reports of a study that entered an update.
pub fn applied(study: &v1::Study) -> u64 {
    study.progress.map_or(0, |progress| progress.applied)
}

/// The loss of an architecture: smaller the more variables are 0, with a little noise that follows from the values.
pub fn loss(architecture: &v1::Architecture) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut sum = 0.0;
    for value in &architecture.values {
        hash = (hash ^ value.unsigned_abs()).wrapping_mul(0x0100_0000_01b3);
        sum += *value as f64;
    }
    sum + (hash % 1000) as f64 / 1000.0
}

/// Returns the costs of an architecture of [`create_request`]: "parameters", which grow with the number of variables that are 0,
/// so that a small loss is dear, and with the width; and some "macs".
pub fn costs(architecture: &v1::Architecture) -> v1::Costs {
    let (choices, width) = architecture.values.split_at(10.min(architecture.values.len()));
    let parameters: i64 = choices.iter().map(|choice| 10 * (5 - choice)).sum();
    let parameters = (parameters + width.iter().sum::<i64>()) as f64;
    let figures = [("parameters", parameters), ("macs", parameters.sqrt())];
    v1::Costs { figures: figures.map(|(name, cost)| (name.into(), cost)).into() }
}

/// A rule that allows so many parameters.
pub fn limit(parameters: f64) -> v1::CostRule {
    v1::CostRule { cost: "parameters".into(), limit: Some(parameters), weight: None }
}

/// The report of a step by a scripted trainer.
pub fn report(step: &v1::Step, trainer_id: &str) -> v1::ReportStepRequest {
    v1::ReportStepRequest {
        study: step.study.clone(),
        step_id: step.step_id,
        lease_id: step.lease_id.clone(),
        trainer_id: trainer_id.into(),
        losses: step.rank.iter().map(loss).collect(),
        costs: step.rank.iter().map(costs).collect(),
        metrics: [("steps".to_string(), step.step_id as f64)].into(),
        lease_next: true,
        ..Default::default()
    }
}

/// Calls until the answer is not "the connection broke", in any of the words for it, or "the controller is going away".
pub async fn retry<T, F: Future<Output = Result<T, Status>>>(mut call: impl FnMut() -> F) -> T {
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(status)
                if matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
                ) =>
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(status) => panic!("{status}"),
        }
    }
}

/// Runs the study `name` to its end as trainer `trainer_id`, whatever happens to the controller, and calls
/// `acknowledged` with each report's answer.
pub async fn train<C>(
    search: SearchServiceClient<C>,
    name: &str,
    trainer_id: &str,
    acknowledged: impl FnMut(&v1::Step, &v1::ReportStepResponse),
) -> v1::Study
where
    C: GrpcService<Body, ResponseBody = Body> + Clone,
{
    train_ahead(search, name, trainer_id, 1, acknowledged).await
}

/// Does the same with so many steps in hand, of which it reports the one that it has had for longest.
pub async fn train_ahead<C>(
    search: SearchServiceClient<C>,
    name: &str,
    trainer_id: &str,
    in_hand: usize,
    mut acknowledged: impl FnMut(&v1::Step, &v1::ReportStepResponse),
) -> v1::Study
where
    C: GrpcService<Body, ResponseBody = Body> + Clone,
{
    use v1::lease_step_response::Next;
    let mut held = VecDeque::new();
    let mut requests = 0;
    loop {
        let mut next = None;
        while held.len() < in_hand {
            let request = v1::LeaseStepRequest {
                study: name.into(),
                trainer_id: trainer_id.into(),
                request_id: format!("{trainer_id}-{requests}"),
                ..Default::default()
            };
            requests += 1;
            let answer = retry(|| {
                let (mut search, request) = (search.clone(), request.clone());
                async move { search.lease_step(request).await }
            });
            match answer.await.into_inner().next {
                Some(Next::Step(step)) => held.push_back(step),
                other => {
                    next = other;
                    break;
                }
            }
        }
        while let Some(step) = held.pop_front() {
            let request = report(&step, trainer_id);
            let answer = retry(|| {
                let (mut search, request) = (search.clone(), request.clone());
                async move { search.report_step(request).await }
            })
            .await
            .into_inner();
            acknowledged(&step, &answer);
            match answer.next.and_then(|next| next.next) {
                Some(Next::Step(step)) => held.push_back(step),
                other => next = other,
            }
        }
        match next {
            Some(Next::Finished(v1::StudyFinished { study: Some(study) })) => return study,
            Some(Next::NoWork(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            other => panic!("unexpected: {other:?}"),
        }
    }
}

/// The distribution of a study, every bit of it.
pub async fn theta(studies: &mut StudyServiceClient<Channel>, name: &str) -> Vec<u64> {
    use v1::marginal::Kind;
    let request = v1::GetDistributionRequest { name: name.into() };
    let answer = studies.get_distribution(request).await.unwrap().into_inner();
    let mut bits = vec![answer.generation, answer.delta.to_bits()];
    for marginal in answer.marginals {
        match marginal.kind.unwrap() {
            Kind::Categorical(categorical) => {
                bits.extend(categorical.probabilities.iter().map(|p| p.to_bits()));
            }
            Kind::Integer(integer) => {
                bits.extend([integer.mean.to_bits(), integer.deviation.to_bits()]);
            }
        }
    }
    bits
}
