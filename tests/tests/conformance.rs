//! `asngctl conformance` finds nothing wrong with the real trainer, and with others exactly what is wrong with them.

use std::{
    fs,
    future::pending,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    time::Duration,
};

use asng_proto::v1::{
    self, ReportOutcome, lease_step_response::Next, search_service_client::SearchServiceClient,
};
use asng_tests::{Trainer, asngctl, report, trainer_program};
use serde_json::Value;
use tokio::{
    task::{LocalSet, spawn_blocking},
    time::{Instant, sleep, sleep_until},
};
use tonic::{Code, Response, Status, transport::Channel};
use tonic_types::StatusExt;

/// Longer than the short lease.
const LONG_STEP: Duration = Duration::from_millis(1300);

/// A check that waits for its trainer.
struct Check {
    child: Child,
    stderr: BufReader<ChildStderr>,
    url: String,
}

impl Check {
    fn start(arguments: &[&str]) -> Check {
        let mut command = Command::new(asngctl());
        command.args(["conformance", "--listen", "127.0.0.1:0", "--output", "json"]);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        let url = url.unwrap_or_else(|| panic!("{line}")).trim_end_matches(':').into();
        Check { child, stderr, url }
    }

    /// How it ends: what it prints to stdout, and to stderr.
    fn end(mut self) -> (ExitStatus, Value, String) {
        let mut errors = String::new();
        self.stderr.read_to_string(&mut errors).unwrap();
        let output = self.child.wait_with_output().unwrap();
        (output.status, serde_json::from_slice(&output.stdout).unwrap_or_default(), errors)
    }
}

/// The rules with this verdict.
fn rules<'a>(found: &'a Value, verdict: &str) -> Vec<&'a str> {
    let findings = found["findings"].as_array().unwrap_or_else(|| panic!("{found}"));
    let findings = findings.iter().filter(|finding| finding["verdict"] == verdict);
    findings.map(|finding| finding["rule"].as_str().unwrap()).collect()
}

/// Checks the real trainer, which finds no fault but these rules without an occasion.
fn check_trainer(options: &[&str], prefetch: &str, not_seen: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let check = Check::start(&[&["--set", "preset=quick"], options].concat());
    let mut command = Command::new(trainer_program());
    command.args(["--threads", "1", "--device", "cpu", "--controller", &check.url]);
    command.arg("--work-dir").arg(directory.path());
    command.args(["serve", "--listen", "off", "--http", "off", "--prefetch", prefetch]);
    let _trainer = Trainer(command.spawn().unwrap());
    let (status, found, errors) = check.end();
    assert_eq!(rules(&found, "failed"), [""; 0], "{found:#} {errors}");
    assert_eq!(rules(&found, "not seen"), not_seen, "{found:#}");
    assert!(status.success());
}

#[test]
fn the_real_trainer_keeps_every_rule() {
    // Its steps are too short, and its losses finite.
    check_trainer(&[], "0", &["ordered", "extension", "diverged"]);
}

#[test]
fn the_real_trainer_keeps_every_rule_with_several_steps_in_hand() {
    check_trainer(&["--in-hand", "4"], "3", &["extension", "diverged"]);
}

#[test]
fn the_real_trainer_gives_back_the_steps_that_wait() {
    let scenarios = ["--in-hand", "4", "ordered", "extension", "queue-released"];
    let steps = ["--set", "step_ms=1300"];
    check_trainer(&[&steps[..], &scenarios].concat(), "3", &["diverged", "endurance"]);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    FewerLosses,
    RanksInTheWarmUp,
    NewRequestIds,
    Hammers,
    OtherLosses,
    NeverExtends,
    FearsDuplicates,
    IgnoresNext,
    NeverEnds,
    /// None: it asks for work of any study.
    ServesAny,
    ReportsWhatItCannotServe,
}

#[tokio::test]
async fn a_flaw_is_found_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("variables.json");
    fs::write(
        &file,
        r#"[{"name": "a", "choices": ["x", "y"]}, {"name": "b", "low": 1, "high": 9}]"#,
    )
    .unwrap();
    let cases: [(Flaw, &[&str], &[&str]); 12] = [
        (Flaw::None, &["lost-lease", "warm-up", "restart", "overtaken", "extension"], &[]),
        (Flaw::RanksInTheWarmUp, &["warm-up", "stale"], &["warm-up", "losses"]),
        (Flaw::FewerLosses, &["stale"], &["losses"]),
        (Flaw::NewRequestIds, &["lost-lease"], &["lost-lease"]),
        (
            Flaw::Hammers,
            &["retry-info", "back-off", "no-work"],
            &["retry-info", "back-off", "no-work"],
        ),
        (Flaw::OtherLosses, &["lost-report"], &["lost-report"]),
        (Flaw::NeverExtends, &["extension"], &["extension"]),
        (Flaw::FearsDuplicates, &["overtaken", "stale"], &["overtaken"]),
        (Flaw::IgnoresNext, &["pending"], &["every-step"]),
        (Flaw::NeverEnds, &["stale"], &["finished"]),
        (Flaw::ServesAny, &["unserved", "stale"], &[]),
        (Flaw::ReportsWhatItCannotServe, &["unserved", "stale"], &["unserved"]),
    ];
    let together = LocalSet::new();
    let checks = cases.map(|(flaw, scenarios, failed)| {
        together.spawn_local(find(file.clone(), flaw, scenarios, failed))
    });
    together.await;
    for check in checks {
        check.await.unwrap();
    }
}

async fn find(variables: impl AsRef<Path>, flaw: Flaw, scenarios: &[&str], failed: &[&str]) {
    let variables = variables.as_ref().to_str().unwrap();
    let offer = ["--timeout", "10s", "--space", "mine", "--variables", variables];
    let check = Check::start(&[&offer, scenarios].concat());
    let url = check.url.clone();
    let end = spawn_blocking(|| check.end());
    let trainer = async {
        train(url, flaw).await;
        pending().await
    };
    let (status, found, errors) = tokio::select! {
        ended = end => ended.unwrap(),
        never = trainer => never,
    };
    assert_eq!(rules(&found, "failed"), failed, "{flaw:?}: {found:#} {errors}");
    assert_eq!(status.success(), failed.is_empty());
    if flaw == Flaw::None {
        assert_eq!(rules(&found, "not seen"), ["diverged"], "{found:#}");
    }
}

/// A trainer of a few lines.
async fn train(url: String, flaw: Flaw) {
    let channel = Channel::from_shared(url).unwrap().connect_lazy();
    let search = SearchServiceClient::new(channel);
    let mut next = None;
    let mut requests = 0;
    let mut steps = 0;
    let serves_any = [Flaw::ServesAny, Flaw::ReportsWhatItCannotServe].contains(&flaw);
    loop {
        let step = match next.take() {
            Some(Next::Step(step)) => step,
            Some(Next::NoWork(v1::NoWork { retry_after })) => {
                let wait = retry_after.unwrap().try_into().unwrap();
                sleep(if flaw == Flaw::Hammers { Duration::from_millis(1) } else { wait }).await;
                continue;
            }
            Some(Next::Finished(_)) if flaw != Flaw::NeverEnds => return,
            _ => {
                let answer = retry(flaw, async |tries| {
                    if tries == 0 || flaw == Flaw::NewRequestIds {
                        requests += 1;
                    }
                    let request = v1::LeaseStepRequest {
                        study: if serves_any { "" } else { "conformance" }.into(),
                        trainer_id: "t".into(),
                        spaces: vec!["mine".into()],
                        request_id: requests.to_string(),
                        ..Default::default()
                    };
                    search.clone().lease_step(request).await
                });
                next = answer.await.and_then(|answer| answer.next);
                continue;
            }
        };
        // The offered study has two variables.
        if flaw == Flaw::ServesAny && step.train[0].values.len() != 2 {
            let v1::Step { study, step_id, lease_id, .. } = step;
            let request =
                v1::ReleaseStepRequest { study, step_id, lease_id, reason: "not mine".into() };
            search.clone().release_step(request).await.unwrap();
            continue;
        }
        compute(&search, &step, flaw).await;
        steps += 1;
        let answer = retry(flaw, async |tries| {
            let mut request = report(&step, "t");
            if flaw == Flaw::FewerLosses && steps == 1 {
                request.losses.pop();
            }
            if flaw == Flaw::RanksInTheWarmUp && step.rank.is_empty() {
                request.losses = vec![0.5; 2];
            }
            if flaw == Flaw::OtherLosses {
                request.losses[0] += f64::from(tries);
            }
            search.clone().report_step(request).await
        });
        let Some(answer) = answer.await else { continue };
        if flaw == Flaw::FearsDuplicates && answer.outcome() == ReportOutcome::Duplicate {
            return;
        }
        next = answer.next.and_then(|next| next.next).filter(|_| flaw != Flaw::IgnoresNext);
    }
}

/// Takes time where that matters, and keeps the lease meanwhile.
async fn compute(search: &SearchServiceClient<Channel>, step: &v1::Step, flaw: Flaw) {
    if !matches!(flaw, Flaw::None | Flaw::NeverExtends) {
        return;
    }
    let end = Instant::now() + LONG_STEP;
    while flaw != Flaw::NeverExtends && Instant::now() + LONG_STEP / 4 < end {
        sleep(LONG_STEP / 4).await;
        let request = v1::ExtendLeaseRequest {
            study: step.study.clone(),
            step_id: step.step_id,
            lease_id: step.lease_id.clone(),
        };
        // A lease that is lost changes nothing for the report.
        let _ = search.clone().extend_lease(request).await;
    }
    sleep_until(end).await;
}

/// Calls, with the number of tries before, until there is an answer; none if there will not be any.
async fn retry<A>(
    flaw: Flaw,
    mut call: impl AsyncFnMut(u32) -> Result<Response<A>, Status>,
) -> Option<A> {
    let mut pause = Duration::from_millis(50);
    for tries in 0.. {
        match call(tries).await {
            Ok(answer) => return Some(answer.into_inner()),
            Err(status) if status.code() == Code::InvalidArgument => return None,
            Err(status) => {
                let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
                sleep(match asked {
                    _ if flaw == Flaw::Hammers => Duration::from_millis(5),
                    Some(asked) => asked,
                    None => pause,
                })
                .await;
                pause = Duration::from_secs(1).min(2 * pause);
            }
        }
    }
    None
}
