//! A trainer far away, as docs/remote-gpu.md sets it up: TLS and a token over a line of 80 ms that loses packets, then loses all of them.
//! After that the search ends, and every report has counted exactly once.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use asng_client::{Connection, Options};
use asng_proto::v1::{
    self, GetStudyRequest, ListReportsRequest, ReportOutcome, Study, StudyState,
    study_service_client::StudyServiceClient,
};
use asng_tests::{
    Distance, Machine, Process, applied, asng_controller, controller_command, ports,
    trainer_program,
};
use tokio::time::sleep;

const STUDY: &str = "far";
const STEPS: u64 = 100;
const ROUND_TRIP: Duration = Duration::from_millis(80);
const LOSS: f64 = 0.02;
/// Shorter than the cut, so that the step in hand is put back meanwhile.
const LEASE_SECONDS: i64 = 3;

type Studies = StudyServiceClient<Connection>;

/// Returns the output of `asng-controller` when it makes certificates or a token.
fn make(arguments: &[&str], directory: &Path) -> (String, String) {
    let mut command = Command::new(asng_controller());
    let output = command.args(arguments).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Makes certificates and tokens in `directory`, and starts a controller with them at home. Returns where it listens.
fn start_controller(distance: &Distance, directory: &Path) -> (Process, SocketAddr) {
    let (home, line) = (Distance::HOME.to_string(), Distance::LINE.to_string());
    make(&["certs", "--host", &line, "--host", &home], directory);
    let mut entries = String::new();
    for role in ["trainer", "admin"] {
        let (entry, token) = make(&["token", "--name", role, "--role", role], directory);
        entries += &entry;
        fs::write(directory.join(role), token).unwrap();
    }
    fs::write(directory.join("tokens.toml"), entries).unwrap();
    let listen = (Ipv4Addr::UNSPECIFIED, 0).into();
    let there = controller_command(&directory.join("state"), listen);
    let mut child = distance
        .command(Machine::Home, &asng_controller())
        .args(there.get_args())
        .args(["--http", "127.0.0.1:0", "--token-file", "tokens.toml"])
        .args(["--tls-cert", "certs/server.pem", "--tls-key", "certs/server-key.pem"])
        .current_dir(directory)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let (address, _) = ports(&mut || lines.next());
    // Keeps the pipe empty.
    thread::spawn(move || lines.for_each(|line| eprintln!("{line}")));
    (Process(child), (Distance::HOME, address.port()).into())
}

async fn get(studies: &mut Studies) -> Study {
    let request = GetStudyRequest { name: STUDY.into() };
    studies.get_study(request).await.unwrap().into_inner().study.unwrap()
}

/// Waits until the study satisfies `condition`, and returns it.
async fn when(studies: &mut Studies, condition: impl Fn(&Study) -> bool) -> Study {
    loop {
        let study = get(studies).await;
        if condition(&study) {
            return study;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_is_long_lossy_and_cut_loses_and_doubles_no_report() {
    let cut = std::env::var("ASNG_CUT_SECONDS").map_or(10, |seconds| seconds.parse().unwrap());
    let Some(mut distance) = Distance::start(LOSS) else { return };
    let program = trainer_program();
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (_controller, server) = start_controller(&distance, directory);
    let admin = Options {
        controller: vec![format!("https://{server}")],
        tls_ca: Some(directory.join("certs/ca.pem")),
        token_file: Some(directory.join("admin")),
        ..Options::default()
    };
    let mut studies = StudyServiceClient::new(admin.connect().unwrap());
    let spec = v1::StudySpec {
        space: "toy".into(),
        algorithm: Some(v1::AlgorithmSettings { seed: Some(1), ..Default::default() }),
        stop: Some(v1::StopRules { max_steps: STEPS, ..Default::default() }),
        lease: Some(prost_types::Duration { seconds: LEASE_SECONDS, nanos: 0 }),
        ..Default::default()
    };
    let request =
        v1::CreateStudyRequest { name: STUDY.into(), spec: Some(spec), ..Default::default() };
    studies.create_study(request).await.unwrap();

    let line = distance.lay(server, ROUND_TRIP).await;
    let mut trainer = Process(
        distance
            .command(Machine::Away, program)
            .args(["serve", "--study", STUDY, "--device", "cpu", "--threads", "1"])
            .args(["--controller", &format!("https://{line}"), "--tls-ca", "certs/ca.pem"])
            .args(["--token-file", "trainer", "--work-dir", "work"])
            .current_dir(directory)
            .spawn()
            .unwrap(),
    );

    when(&mut studies, |study| applied(study) >= 5).await;
    let (start, before) = (Instant::now(), applied(&get(&mut studies).await));
    let study = when(&mut studies, |study| applied(study) >= STEPS / 2).await;
    let each = start.elapsed().div_f64((applied(&study) - before) as f64);
    eprintln!("{each:?} for a step, with a round trip of {ROUND_TRIP:?}");
    // One round trip for each: the next step comes with the answer to a report.
    assert!(each >= ROUND_TRIP, "{each:?}");

    distance.cut();
    sleep(Duration::from_secs(cut)).await;
    let waiting = get(&mut studies).await;
    let progress = waiting.progress.unwrap();
    assert!(progress.applied < STEPS, "the cut came too late");
    assert!(progress.expired > 0, "{progress:?}");
    distance.mend();

    let start = Instant::now();
    let study = when(&mut studies, |study| study.state() == StudyState::Finished).await;
    eprintln!("the search has ended {:?} after a cut of {cut} s", start.elapsed());
    assert!(trainer.0.wait().unwrap().success());
    let progress = study.progress.unwrap();
    assert_eq!((progress.applied, progress.generation), (STEPS, STEPS));
    assert_eq!((progress.pending, progress.outstanding, progress.stale), (0, 0, 0));
    let request = ListReportsRequest { study: STUDY.into(), page_size: 1000, ..Default::default() };
    let reports = studies.list_reports(request).await.unwrap().into_inner().reports;
    assert!(reports.iter().map(|report| report.step_id).eq(1..=STEPS));
    assert!(reports.iter().all(|report| report.outcome() == ReportOutcome::Applied));
}
