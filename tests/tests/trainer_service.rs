//! A trainer that works can be asked what it does, and nothing that it is asked changes the search.

use std::{
    collections::HashMap, fs, net::SocketAddr, path::Path, process::Command, time::Duration,
};

use asng_proto::v1::{self, StudyState, TrainerState};
use asng_tests::{
    Controller, ServedTrainer, applied, asng_controller, asngctl, get_page, study_when, theta,
    tiny_search, trainer_command,
};
use image::{Rgb, RgbImage};
use prometheus_parse::Scrape;
use serde_json::Value;
use tokio::time::sleep;
use tonic::{Code, Request, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

const PAUSE: Duration = Duration::from_millis(5);

/// Every sample of a scrape, by its name and labels as they are written.
fn scrape(address: SocketAddr) -> HashMap<String, f64> {
    let (status, text) = get_page(address, "/metrics");
    assert_eq!(status, 200);
    Scrape::parse(text.lines().map(|line| Ok(line.into()))).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.map(|sample| sample.rsplit_once(' ').unwrap());
    samples.map(|(name, value)| (name.into(), value.parse().unwrap())).collect()
}

fn toy(name: &str, max_steps: u64) -> v1::CreateStudyRequest {
    let mut request = tiny_search(name, max_steps);
    let spec = request.spec.as_mut().unwrap();
    (spec.space, spec.settings) = ("toy".into(), Default::default());
    request
}

fn evaluation(study: &str, values: Vec<i64>, images: u32) -> v1::EvaluateArchitectureRequest {
    let architecture = Some(v1::Architecture { values });
    v1::EvaluateArchitectureRequest { study: study.into(), architecture, images }
}

/// Returns the JSON that `asngctl` prints.
fn asngctl_json(arguments: &[&str]) -> Value {
    let output = Command::new(asngctl()).args(["--output", "json"]).args(arguments).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn a_trainer_says_what_it_does_saves_and_drains() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let mut served = ServedTrainer::start(&controller, &directory.path().join("work"), &[]);
    let idle = served.status_when(|_| true).await;
    assert_eq!((idle.state(), idle.study.as_str()), (TrainerState::Idle, ""));
    assert_eq!((idle.device.as_str(), idle.controller), ("cpu", controller.url()));
    assert!(idle.spaces.contains(&"toy".to_string()) && idle.checkpoint.is_none());
    let none = served.client().evaluate_architecture(evaluation("", vec![0; 30], 0)).await;
    let none = none.unwrap_err();
    assert_eq!(none.code(), Code::FailedPrecondition);
    let details = none.get_details_precondition_failure().unwrap();
    assert_eq!(details.violations[0].r#type, "NO_STUDY");
    let advice = "`asng-trainer evaluate --study NAME --work-dir DIR`";
    assert!(none.message().contains(advice), "{none}");
    let url = format!("http://{}", served.address);
    for architecture in ["mode", "0,1"] {
        let arguments = ["trainer", "evaluate", "--architecture", architecture, "--trainer", &url];
        let output = Command::new(asngctl()).args(arguments).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && log.contains(advice), "{log}");
    }

    controller.studies().create_study(toy("s", 1_000_000_000)).await.unwrap();
    let working = served.status_when(|status| status.steps >= 3 && status.step_id > 0).await;
    assert_eq!((working.state(), working.study.as_str()), (TrainerState::Working, "s"));
    assert!(working.step_time.is_some() && working.step_id >= 4, "{working:?}");
    assert!(working.losses.len() == 2 && working.metrics.contains_key("learning_rate"));

    let mut client = served.client();
    let evaluated = client.evaluate_architecture(evaluation("s", vec![0; 30], 0)).await.unwrap();
    let evaluated = evaluated.into_inner();
    assert_eq!((evaluated.study_id, evaluated.trainer_id), (working.study_id, working.trainer_id));
    assert!(evaluated.loss >= 0.0 && evaluated.step_id >= 3);
    let refused = client.evaluate_architecture(evaluation("s", vec![7; 30], 0)).await.unwrap_err();
    let details = refused.get_details_bad_request().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(details.field_violations[0].field, "architecture.values");
    let other = client.evaluate_architecture(evaluation("t", vec![0; 30], 0)).await.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition);

    let saved = client.save_checkpoint(v1::SaveCheckpointRequest {}).await.unwrap().into_inner();
    let saved = saved.checkpoint.unwrap();
    assert!(saved.step_id >= 3 && fs::metadata(&saved.path).unwrap().len() > 0);
    assert_eq!(served.status_when(|_| true).await.checkpoint, Some(saved.clone()));

    let metrics = scrape(served.http);
    for phase in ["train", "rank", "report"] {
        let count = format!("asng_trainer_step_seconds_count{{phase=\"{phase}\"}}");
        assert!(metrics[&count] >= 3.0, "{count}");
    }
    assert!(metrics[r#"asng_trainer_steps_total{outcome="applied"}"#] >= 3.0);
    assert_eq!(metrics["asng_trainer_checkpoint_seconds_count"], 1.0);
    assert!(metrics.contains_key(r#"asng_trainer_best_loss{study="s"}"#));
    assert_eq!(
        (get_page(served.http, "/healthz").0, get_page(served.http, "/readyz").0),
        (200, 200)
    );
    let mut health = HealthClient::new(served.channel());
    let request = HealthCheckRequest { service: "asng.v1.TrainerService".into() };
    let answer = health.check(request).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);

    client.drain(v1::DrainRequest {}).await.unwrap();
    assert!(served.wait().success());
    // Every step that is in the weights was reported.
    let reported = applied(&study_when(&controller, "s", |_| true).await);
    let file = Path::new(&saved.path).with_file_name(format!("step-{reported}.safetensors"));
    assert!(file.exists(), "{}", file.display());
}

#[tokio::test]
async fn while_it_drains_it_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(&directory.path().join("state"));
    controller.studies().create_study(toy("s", 1_000_000_000)).await.unwrap();
    let served = ServedTrainer::start(&controller, &directory.path().join("work"), &[]);
    served.status_when(|status| status.steps > 0).await;
    // Its report finds nobody, and it insists for some seconds.
    controller.kill();
    served.client().drain(v1::DrainRequest {}).await.unwrap();
    served.status_when(|status| status.state() == TrainerState::Draining).await;
    let (code, why) = get_page(served.http, "/readyz");
    assert_eq!((code, why.as_str()), (503, "the trainer is draining\n"));
    assert_eq!(get_page(served.http, "/healthz").0, 200);
    let mut health = HealthClient::new(served.channel());
    let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);
    let failed = scrape(served.http).into_iter().filter(|(_, count)| *count > 0.0);
    let failed: Vec<_> = failed.map(|(name, _)| name).collect();
    assert!(failed.iter().any(|name| name.starts_with("asng_trainer_controller_errors_total")));
}

#[tokio::test]
async fn evaluations_leave_no_trace_in_a_search() {
    let directory = tempfile::tempdir().unwrap();
    let mut results = Vec::new();
    for asked in [false, true] {
        let directory = directory.path().join(format!("{asked}"));
        let controller = Controller::start(&directory.join("state"));
        controller.studies().create_study(tiny_search("s", 12)).await.unwrap();
        let work_dir = directory.join("work");
        let mut served = ServedTrainer::start(&controller, &work_dir, &["--study", "s"]);
        let mut client = served.client();
        let mut evaluations = 0;
        let values = vec![0, 1, 3, 0, 2, 0, 4, 1, 1, 1, 2, 2, 0, 1, 0, 3];
        let mut going = asked;
        while going {
            match client.evaluate_architecture(evaluation("s", values.clone(), 250)).await {
                Ok(evaluated) => {
                    let evaluated = evaluated.into_inner();
                    assert!((0.0..=1.0).contains(&evaluated.figures["accuracy"]));
                    assert_eq!(evaluated.images, 250);
                    evaluations += 1;
                }
                Err(status) if status.code() == Code::FailedPrecondition => sleep(PAUSE).await,
                // It has ended.
                Err(_) => going = false,
            }
        }
        assert!(served.wait().success());
        assert!(!asked || evaluations >= 3, "{evaluations} evaluations");
        let study = study_when(&controller, "s", |_| true).await;
        assert_eq!((study.state(), applied(&study)), (StudyState::Finished, 12));
        let theta = theta(&mut controller.studies(), "s").await;
        let weights = work_dir.join("studies").join(format!("s-{}", study.study_id));
        let weights = fs::read(weights.join("step-12.safetensors")).unwrap();
        results.push((theta, study.incumbent, weights));
    }
    assert!(results[0] == results[1], "weights, theta or incumbent differ");
}

#[tokio::test]
async fn an_evaluation_says_what_the_command_says_of_the_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let work_dir = directory.path().join("work");
    controller.studies().create_study(tiny_search("s", 1000)).await.unwrap();
    let served = ServedTrainer::start(&controller, &work_dir, &[]);
    study_when(&controller, "s", |study| applied(study) >= 2).await;
    controller.studies().pause_study(v1::PauseStudyRequest { name: "s".into() }).await.unwrap();
    let still = |progress: &v1::Progress| progress.outstanding == 0;
    let study = study_when(&controller, "s", |s| s.progress.as_ref().is_some_and(still)).await;

    let url = format!("http://{}", served.address);
    let asked = ["--controller", &controller.url(), "trainer", "--trainer", &url];
    let evaluate = [&asked[..], &["evaluate", "--images", "250"]].concat();
    let evaluated = asngctl_json(&evaluate);
    let saved = asngctl_json(&[&asked[..], &["checkpoint"]].concat());
    assert_eq!(saved["step_id"], applied(&study));
    assert_eq!(evaluated["step_id"], saved["step_id"]);
    let command = ["evaluate", "--study", "s", "--test-images", "250", "--json"];
    let output = trainer_command(&controller, &work_dir).args(command).output().unwrap();
    let expected: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(evaluated["architecture"], expected["architecture"]);
    assert_eq!(evaluated["loss"], expected["loss"]);
    assert_eq!(evaluated["figures"]["accuracy"], expected["accuracy"]);

    let too_many = evaluation("", study.mode.clone().unwrap().values, 10_001);
    let refused = served.client().evaluate_architecture(too_many).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        refused.message(),
        "images: there are 10000 test images; 10001 of them cannot be used"
    );
    let metrics = scrape(served.http);
    assert!(metrics[r#"asng_trainer_step_seconds_count{phase="data"}"#] >= 2.0);
    assert_eq!(metrics["asng_trainer_images_total"], (4 * 8 * applied(&study)) as f64);
    let text = Command::new(asngctl()).args(asked).arg("status").output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("IDLE") && text.contains("images/s"), "{text}");
}

#[tokio::test]
async fn autoencoders_are_evaluated_on_photos_held_out() {
    let directory = tempfile::tempdir().unwrap();
    let photos = directory.path().join("photos");
    fs::create_dir(&photos).unwrap();
    for i in 0..40_u32 {
        let photo = RgbImage::from_fn(16, 16, |x, y| Rgb([x, y, i].map(|v| (6 * v) as u8)));
        photo.save(photos.join(format!("{i}.png"))).unwrap();
    }
    let controller = Controller::start(&directory.path().join("state"));
    let mut request = tiny_search("s", 1_000_000);
    let spec = request.spec.as_mut().unwrap();
    spec.space = "inpaint-cat".into();
    spec.settings = [("nodes", "3"), ("channels", "2"), ("image_size", "16"), ("batch_size", "4")]
        .map(|(name, value)| (name.into(), value.into()))
        .into();
    controller.studies().create_study(request).await.unwrap();
    let photos = photos.to_str().unwrap();
    let served =
        ServedTrainer::start(&controller, &directory.path().join("w"), &["--photos", photos]);
    let study = study_when(&controller, "s", |study| applied(study) >= 1).await;
    let request = evaluation("s", study.mode.unwrap().values, 0);
    let evaluated = served.client().evaluate_architecture(request).await.unwrap().into_inner();
    assert!(evaluated.images > 0 && evaluated.loss > 0.0, "{evaluated:?}");
    assert!(evaluated.figures["psnr"] > 0.0 && evaluated.figures["ssim"] <= 1.0, "{evaluated:?}");
}

/// The token of an entry that `asng-controller token` makes, and the entry.
fn token(role: &str) -> (String, String) {
    let mut command = Command::new(asng_controller());
    let output = command.args(["token", "--name", role, "--role", role]).output().unwrap();
    let token = String::from_utf8(output.stderr).unwrap().trim().into();
    (token, String::from_utf8(output.stdout).unwrap())
}

fn bearing<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

#[tokio::test]
async fn who_may_not_ask_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let [viewer, trainer, scoped] = ["viewer", "trainer", "admin"].map(token);
    let entries = [viewer.1, trainer.1, scoped.1.trim_end().into()].concat();
    fs::write(path("tokens.toml"), entries + "\nowner = \"lab\"\n").unwrap();
    let arguments = ["--serve-token-file", &path("tokens.toml")];
    let served = ServedTrainer::start(&controller, &directory.path().join("work"), &arguments);

    let mut client = served.client();
    let told = |status: Status| {
        let reason = status.get_details_error_info().unwrap().reason;
        (status.code(), reason, status.message().to_owned())
    };
    let nobody = told(client.get_status(v1::GetStatusRequest {}).await.unwrap_err());
    let wants = "the trainer needs a token: send it as `authorization: Bearer TOKEN`";
    assert_eq!(nobody, (Code::Unauthenticated, "TOKEN_MISSING".into(), wants.into()));
    client.get_status(bearing(&viewer.0, v1::GetStatusRequest {})).await.unwrap();
    let evaluation = bearing(&viewer.0, evaluation("", vec![0; 30], 0));
    for (refused, code, reason) in [
        (client.evaluate_architecture(evaluation).await.map(drop), Code::PermissionDenied, "ROLE"),
        (
            client.drain(bearing(&trainer.0, v1::DrainRequest {})).await.map(drop),
            Code::PermissionDenied,
            "ROLE",
        ),
        (
            client.drain(bearing(&scoped.0, v1::DrainRequest {})).await.map(drop),
            Code::PermissionDenied,
            "SCOPE",
        ),
        (
            client.get_status(bearing("unknown", v1::GetStatusRequest {})).await.map(drop),
            Code::Unauthenticated,
            "TOKEN_UNKNOWN",
        ),
    ] {
        let (told_code, told_reason, message) = told(refused.unwrap_err());
        assert_eq!((told_code, told_reason.as_str()), (code, reason), "{message}");
    }
}

#[tokio::test]
async fn a_trainer_serves_under_tls_and_not_in_plain_text_to_others() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let certs = directory.path().join("certs");
    let made = Command::new(asng_controller()).args(["certs", "--out"]).arg(&certs).output();
    assert!(made.unwrap().status.success());
    let file = |name: &str| certs.join(name).to_str().unwrap().to_string();
    let (cert, key, ca) = (file("server.pem"), file("server-key.pem"), file("ca.pem"));
    let (client, client_key) = (file("client.pem"), file("client-key.pem"));
    let tls = ["--serve-tls-cert", &cert, "--serve-tls-key", &key, "--serve-tls-client-ca", &ca];
    let served = ServedTrainer::start(&controller, &directory.path().join("work"), &tls);
    let url = format!("https://{}", served.address);
    let asked = ["trainer", "status", "--trainer", &url, "--tls-ca", &ca];
    let known = [&asked[..], &["--tls-cert", &client, "--tls-key", &client_key]].concat();
    assert_eq!(asngctl_json(&known)["state"], "IDLE");
    let unknown = Command::new(asngctl()).args(asked).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));

    let mut command = trainer_command(&controller, &directory.path().join("other"));
    let output = command.args(["serve", "--listen", "0.0.0.0:0", "--http", "off"]).output();
    let output = output.unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("would be in plain text"), "{log}");
    assert!(log.contains("--serve-tls-cert") && log.contains("--serve-insecure"), "{log}");
}

#[tokio::test]
async fn two_trainers_share_a_machine_and_an_address_that_was_named_must_be_free() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let start = |name: &str| {
        let mut command = trainer_command(&controller, &directory.path().join(name));
        command.arg("serve");
        ServedTrainer::spawn(command)
    };
    let (one, two) = (start("one"), start("two"));
    let mut ids = Vec::new();
    for served in [&one, &two] {
        let status = served.client().get_status(v1::GetStatusRequest {}).await.unwrap();
        ids.push(status.into_inner().trainer_id);
        assert!(served.address.ip().is_loopback() && served.http.ip().is_loopback());
    }
    assert_ne!(ids[0], ids[1]);
    let mut command = trainer_command(&controller, &directory.path().join("three"));
    let output = command.args(["serve", "--listen", &one.address.to_string()]).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{log}");
    assert!(log.contains("cannot listen on") && log.contains("--listen, or off"), "{log}");
}
