//! The real trainer and the real controller on real images: small searches, with the trainer or the controller killed.

use std::{collections::BTreeSet, env, fs, path::Path, process::Output, time::Duration};

use asng_proto::v1::{self, StudyState};
use asng_tests::{
    Controller, Trainer, applied, asngctl, study_when, terminate, theta, tiny_search,
    trainer_command, trainer_program,
};
use image::{Rgb, RgbImage};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tokio::time::sleep;

/// The newest checkpoint of a trainer's only study, if it has written any.
fn checkpoint(work_dir: &Path) -> Option<Vec<u8>> {
    let study = fs::read_dir(work_dir.join("studies")).unwrap().next().unwrap().unwrap().path();
    let list: Value =
        serde_json::from_slice(&fs::read(study.join("checkpoints.json")).ok()?).unwrap();
    Some(fs::read(study.join(list[0]["file"].as_str().unwrap())).unwrap())
}

fn json(output: Output) -> Value {
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn a_search_ends_and_its_architecture_is_evaluated_and_retrained() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let work_dir = directory.path().join("work");
    controller.studies().create_study(tiny_search("tiny", 5)).await.unwrap();
    let mut trainer = Trainer::start(&controller, "tiny", &work_dir);
    assert!(trainer.0.wait().unwrap().success());
    let study = study_when(&controller, "tiny", |_| true).await;
    assert_eq!((study.state(), applied(&study)), (StudyState::Finished, 5));
    let incumbent = study.incumbent.as_ref().unwrap();
    assert_eq!(incumbent.costs.keys().collect::<Vec<_>>(), ["macs", "parameters"]);
    assert!(incumbent.costs.values().all(|cost| *cost > 1000.0), "{:?}", incumbent.costs);

    let arguments =
        ["evaluate", "--study", "tiny", "--test-images", "250", "--random", "2", "--json"];
    let output = trainer_command(&controller, &work_dir).args(arguments).output().unwrap();
    let evaluation = json(output);
    let drawn = evaluation["random"]["architectures"].as_array().unwrap();
    assert_eq!((&evaluation["random"]["count"], drawn.len()), (&2.into(), 2));
    assert!(drawn.iter().all(|one| one["loss"].as_f64().unwrap() > 0.0), "{drawn:?}");
    assert!((0.0..=1.0).contains(&evaluation["accuracy"].as_f64().unwrap()));
    let mode = study.mode.unwrap().values;
    assert_eq!(evaluation["architecture"], serde_json::to_value(&mode).unwrap());
    assert_eq!(drawn[0]["architecture"].as_array().unwrap().len(), mode.len());
    assert_eq!((&evaluation["which"], &evaluation["study"]), (&"chosen".into(), &"tiny".into()));
    assert_eq!((&evaluation["step"], &evaluation["study_id"]), (&5.into(), &study.study_id.into()));
    assert_eq!(evaluation["work_dir"], work_dir.to_str().unwrap());
    let evaluate =
        ["evaluate", "--study", "tiny", "--test-images", "250", "--architecture", "mode"];
    let output = trainer_command(&controller, &work_dir).args(evaluate).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let values: Vec<_> = mode.iter().map(ToString::to_string).collect();
    let expected = format!(
        "architecture  mode of study tiny: {}\n\
         weights       the shared weights of study tiny after step 5, of the trainer in {}\n",
        values.join(","),
        work_dir.display()
    );
    assert!(text.starts_with(&expected), "{text}");
    let other = directory.path().join("other");
    let output = trainer_command(&controller, &other).args(evaluate).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("there are no weights of study \"tiny\" in"), "{log}");
    assert!(log.contains("`asng-trainer evaluate --study tiny --work-dir DIR`"), "{log}");

    let out = directory.path().join("retrained");
    let retrain = |epochs: &str| {
        let mut command = trainer_command(&controller, &work_dir);
        command.args(["retrain", "--study", "tiny", "--json", "--cells", "3", "--channels", "4"]);
        command.args(["--train-images", "240", "--epochs", epochs, "--out"]).arg(&out);
        command.output().unwrap()
    };
    let retrained = json(retrain("1"));
    assert!(retrained["test_accuracy"].as_f64().unwrap() > 0.0);
    assert_eq!(json(retrain("1")), retrained, "nothing is left to do");
    let other = retrain("2");
    let log = String::from_utf8_lossy(&other.stderr);
    assert!(!other.status.success() && log.contains("--epochs 2: the retraining in"), "{log}");
    let architecture = fs::read_to_string(out.join("architecture.json")).unwrap();
    let architecture: Value = serde_json::from_str(&architecture).unwrap();
    assert_eq!(architecture["values"], serde_json::to_value(&mode).unwrap());
    assert!(fs::read_to_string(out.join("architecture.dot")).unwrap().starts_with("digraph"));
    assert!(fs::metadata(out.join("last.safetensors")).unwrap().len() > 1000);

    // The mode and others are compared, and the best is retrained.
    let run = |line: &str, work_dir: &Path| {
        let mut command = trainer_command(&controller, work_dir);
        command.args(line.split_whitespace()).current_dir(directory.path());
        command.output().unwrap()
    };
    let complaint = |output: Output| {
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let retrain = "retrain --study tiny --architecture selected --preset quick --cells 3 --channels 4 --train-images 80 --test-images 40 \
                   --json --out selected";
    let log = complaint(run(retrain, &work_dir));
    assert!(log.contains("run `asng-trainer select --study tiny` first"), "{log}");
    let log = complaint(run("select --study tiny", &directory.path().join("other")));
    assert!(log.contains("`asng-trainer select --study tiny --work-dir DIR`"), "{log}");
    let select = "select --study tiny --candidates 5 --ranking-images 300 --json";
    let selected = json(run(select, &work_dir));
    assert_eq!((&selected["images"], &selected["step"]), (&300.into(), &5.into()));
    let candidates = selected["candidates"].as_array().unwrap();
    let architectures: BTreeSet<_> =
        candidates.iter().map(|candidate| candidate["values"].to_string()).collect();
    assert_eq!((candidates.len(), architectures.len()), (5, 5));
    let losses = candidates.iter().map(|candidate| candidate["loss"].as_f64().unwrap());
    assert!(losses.is_sorted(), "{selected}");
    let modes: Vec<_> = candidates.iter().filter(|candidate| candidate["mode"] == true).collect();
    assert_eq!(modes.len(), 1);
    assert_eq!(modes[0]["values"], serde_json::to_value(&mode).unwrap());
    assert!((0.0..=1.0).contains(&modes[0]["metrics"]["accuracy"].as_f64().unwrap()));
    assert!(modes[0]["costs"]["parameters"].as_f64().unwrap() > 1000.0);
    let first = &candidates[0];
    let choice = fs::read_to_string(selected["selected"].as_str().unwrap()).unwrap();
    let choice: Value = serde_json::from_str(&choice).unwrap();
    assert_eq!((&choice["values"], &choice["loss"]), (&first["values"], &first["loss"]));

    json(run(retrain, &work_dir));
    let record = fs::read_to_string(directory.path().join("selected/retraining.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["values"], first["values"]);
    assert_eq!(record["source"]["architecture"], "selected");
    assert_eq!(record["source"]["study_id"], selected["study_id"]);
    // The seed decides.
    let output = run("select --study tiny --candidates 5 --ranking-images 300 --top 2", &work_dir);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("candidates    5, seed 0"), "{table}");
    let loss = format!("    1 {:>10.4}", first["loss"].as_f64().unwrap());
    assert!(table.contains(&loss) && !table.contains("\n    3 "), "{table}");
    assert!(table.contains("retrain --study tiny --architecture selected"), "{table}");
}

/// Gives a study a warm-up of this many steps.
fn with_warm_up(mut request: v1::CreateStudyRequest, steps: u64) -> v1::CreateStudyRequest {
    let algorithm = request.spec.as_mut().unwrap().algorithm.as_mut().unwrap();
    algorithm.warmup_steps = Some(steps);
    request
}

#[tokio::test]
async fn a_killed_trainer_starts_again_and_the_study_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let work_dir = directory.path().join("work");
    controller.studies().create_study(with_warm_up(tiny_search("s", 8), 5)).await.unwrap();
    let mut trainer = Trainer::start(&controller, "s", &work_dir);
    study_when(&controller, "s", |study| applied(study) >= 2).await;
    trainer.0.kill().unwrap();
    trainer.0.wait().unwrap();
    let mut trainer = Trainer::start(&controller, "s", &work_dir);
    assert!(trainer.0.wait().unwrap().success());
    let study = study_when(&controller, "s", |_| true).await;
    assert_eq!((study.state(), applied(&study)), (StudyState::Finished, 8));
    let progress = study.progress.unwrap();
    assert_eq!((progress.stale, progress.expired), (0, 0), "nobody waited for the lost lease");
    let request = v1::ListReportsRequest { study: "s".into(), ..Default::default() };
    let reports = controller.studies().list_reports(request).await.unwrap().into_inner().reports;
    for (report, ranked) in reports.iter().zip([0, 0, 0, 0, 0, 2, 2, 2]) {
        assert_eq!((report.rank.len(), report.losses.len()), (ranked, ranked));
        assert_eq!(report.metrics.contains_key("rank_accuracy"), ranked > 0);
        assert!(report.metrics.values().all(|metric| metric.is_finite()), "{:?}", report.metrics);
    }
}

#[tokio::test]
async fn a_trainer_goes_on_when_the_controller_was_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(&directory.path().join("state"));
    controller.studies().create_study(with_warm_up(tiny_search("s", 8), 3)).await.unwrap();
    let mut trainer = Trainer::start(&controller, "s", &directory.path().join("work"));
    for reports in [2, 4] {
        study_when(&controller, "s", |study| applied(study) >= reports).await;
        controller.kill();
        controller.restart();
    }
    assert!(trainer.0.wait().unwrap().success());
    let study = study_when(&controller, "s", |_| true).await;
    assert_eq!((study.state(), applied(&study)), (StudyState::Finished, 8));
}

#[tokio::test]
async fn sigterm_reports_the_step_and_saves_the_weights() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let work_dir = directory.path().join("work");
    controller.studies().create_study(tiny_search("s", 100_000)).await.unwrap();
    let mut trainer = Trainer::start(&controller, "s", &work_dir);
    study_when(&controller, "s", |study| applied(study) >= 2).await;
    assert!(terminate(&mut trainer.0).success());
    assert!(checkpoint(&work_dir).is_some());
    // It holds no step: another trainer gets one without waiting for a lease of a minute.
    let before = applied(&study_when(&controller, "s", |_| true).await);
    let _other = Trainer::start(&controller, "s", &directory.path().join("other"));
    let study = study_when(&controller, "s", |study| applied(study) > before).await;
    let progress = study.progress.unwrap();
    assert_eq!((progress.expired, progress.stale), (0, 0));
    assert!(progress.outstanding <= 1);
}

#[tokio::test]
async fn a_search_that_was_stopped_ends_bit_for_bit_like_one_that_was_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut results = Vec::new();
    for stops in [0, 3] {
        let directory = directory.path().join(format!("{stops}"));
        let (state, work_dir) = (directory.join("state"), directory.join("work"));
        let controller = Controller::start(&state);
        controller.studies().create_study(with_warm_up(tiny_search("s", 12), 5)).await.unwrap();
        for stop in 1..=stops {
            let mut trainer = Trainer::start(&controller, "s", &work_dir);
            study_when(&controller, "s", |study| applied(study) >= 2 * stop).await;
            assert!(terminate(&mut trainer.0).success());
        }
        assert!(Trainer::start(&controller, "s", &work_dir).0.wait().unwrap().success());
        let study = study_when(&controller, "s", |_| true).await;
        assert_eq!((study.state(), applied(&study)), (StudyState::Finished, 12));
        let theta = theta(&mut controller.studies(), "s").await;
        results.push((theta, study.incumbent, checkpoint(&work_dir).unwrap()));
    }
    assert!(results[0] == results[1], "weights, theta or incumbent differ");
}

#[tokio::test]
async fn a_search_whose_services_are_killed_at_random_counts_every_step_once() {
    const STEPS: u64 = 40;
    let kills: u64 = env::var("ASNG_SEARCH_KILLS").map_or(4, |kills| kills.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let work_dir = directory.path().join("work");
    let mut controller = Controller::start(&directory.path().join("state"));
    controller.studies().create_study(tiny_search("s", STEPS * kills / 4)).await.unwrap();
    let start = |controller: &Controller| {
        let mut command = trainer_command(controller, &work_dir);
        command.args(["serve", "--study", "s", "--checkpoint-every", "200ms"]);
        Trainer(command.spawn().unwrap())
    };
    let mut trainer = start(&controller);
    let mut random = ChaCha8Rng::seed_from_u64(4);
    for kill in 0..kills {
        // At any moment of a step, after some progress.
        let progress = kill * STEPS / 4 * 9 / 10;
        study_when(&controller, "s", |study| applied(study) >= progress).await;
        sleep(Duration::from_millis(random.random_range(0..100))).await;
        if random.random() {
            controller.kill();
            controller.restart();
        } else {
            trainer.0.kill().unwrap();
            trainer.0.wait().unwrap();
            trainer = start(&controller);
        }
    }
    assert!(trainer.0.wait().unwrap().success());
    let study = study_when(&controller, "s", |_| true).await;
    let progress = study.progress.unwrap();
    assert_eq!((study.state(), progress.applied), (StudyState::Finished, STEPS * kills / 4));
    assert_eq!((progress.expired, progress.stale), (0, 0), "every step was done under its lease");
    assert!(checkpoint(&work_dir).is_some());
}

#[tokio::test]
async fn autoencoders_are_searched_on_a_directory_of_photos() {
    let directory = tempfile::tempdir().unwrap();
    let photos = directory.path().join("photos");
    fs::create_dir(&photos).unwrap();
    for i in 0..24_u32 {
        let shade = |x: u32, speed: u32| (40 * (i % 5) + speed * x) as u8;
        let photo = RgbImage::from_fn(20, 26, |x, y| Rgb([shade(x, 5), shade(y, 3), shade(x, 2)]));
        photo.save(photos.join(format!("{i}.png"))).unwrap();
    }
    let controller = Controller::start(&directory.path().join("state"));
    for space in ["inpaint-cat", "inpaint-int"] {
        let mut request = tiny_search(space, 6);
        let spec = request.spec.as_mut().unwrap();
        spec.space = space.into();
        spec.settings = [
            ("preset", "quick"),
            ("nodes", "3"),
            ("channels", "2"),
            ("image_size", "16"),
            ("batch_norm", "true"),
            ("batch_size", "4"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into();
        controller.studies().create_study(request).await.unwrap();
        let mut command = trainer_command(&controller, &directory.path().join(space));
        command.args(["serve", "--study", space]).arg("--photos").arg(&photos);
        assert!(command.status().unwrap().success());
        let study = study_when(&controller, space, |_| true).await;
        assert_eq!((study.state(), applied(&study)), (StudyState::Finished, 6));
        let request = v1::ListReportsRequest { study: space.into(), ..Default::default() };
        let reports = controller.studies().list_reports(request).await.unwrap().into_inner();
        let report = &reports.reports[5];
        assert!(report.metrics["rank_psnr"] > 0.0 && report.losses.iter().all(|l| l.is_finite()));

        let mut command = trainer_command(&controller, &directory.path().join(space));
        command.arg("--photos").arg(&photos).args(["evaluate", "--json", "--random", "2"]);
        let evaluation = json(command.args(["--study", space]).output().unwrap());
        assert_eq!(evaluation["settings"]["mask"], "pixel");
        assert_eq!(evaluation["images"], 3, "a tenth of the photos");
        let psnr = |part: &Value| part["psnr"].as_f64().unwrap();
        assert!(psnr(&evaluation) > 0.0 && psnr(&evaluation["baseline"]) > 0.0, "{evaluation}");
        assert_eq!(evaluation["random"]["metric"], "psnr");

        let mut command = trainer_command(&controller, &directory.path().join(space));
        command.arg("--photos").arg(&photos).args(["select", "--json", "--candidates", "3"]);
        let selected = json(command.args(["--study", space]).output().unwrap());
        assert_eq!(selected["images"], 10, "half of the other photos");
        let best = &selected["candidates"][0];
        assert!(psnr(&best["metrics"]) > 0.0 && best["loss"].as_f64().unwrap() > 0.0, "{best}");

        // The study's space and settings are those of the retraining.
        let mut command = trainer_command(&controller, directory.path());
        command.arg("--photos").arg(&photos).args(["retrain", "--json", "--study", space]);
        command.args(["--iterations", "4", "--batch-size", "4"]);
        let out = directory.path().join(format!("retrained-{space}"));
        let retrained = json(command.arg("--out").arg(&out).output().unwrap());
        assert!(retrained["test_psnr"].as_f64().unwrap() > 0.0);
        let record = fs::read_to_string(out.join("retraining.json")).unwrap();
        let record: Value = serde_json::from_str(&record).unwrap();
        assert_eq!(record["data"]["shape"], serde_json::json!([3, 16, 16]));
        assert_eq!(record["retraining"]["batch_norm"], "true");
        assert_eq!(record["retraining"]["learning_rate"], "0.001");
    }
}

#[tokio::test]
async fn two_trainers_work_on_one_study() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    controller.studies().create_study(tiny_search("s", 40)).await.unwrap();
    let start = |name: &str| Trainer::start(&controller, "s", &directory.path().join(name));
    let mut trainers = [start("a"), start("b")];
    study_when(&controller, "s", |study| applied(study) >= 2).await;
    let mut command = trainer_command(&controller, &directory.path().join("a"));
    let third = command.args(["serve", "--study", "s"]).output().unwrap();
    let log = String::from_utf8_lossy(&third.stderr);
    assert!(!third.status.success() && log.contains("in use by another trainer"), "{log}");
    for trainer in &mut trainers {
        assert!(trainer.0.wait().unwrap().success());
    }
    let study = study_when(&controller, "s", |_| true).await;
    assert_eq!((study.state(), applied(&study)), (StudyState::Finished, 40));
}

#[tokio::test]
async fn settings_that_cannot_be_fail_the_study_and_the_command_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let mut command = trainer_command(&controller, &directory.path().join("work"));
    let _trainer = Trainer(command.arg("serve").spawn().unwrap());
    let output = std::process::Command::new(asngctl())
        .args(["--controller", &controller.url(), "study", "create", "bad"])
        .args(["--space", "enas-micro", "--max-steps", "10", "--wait"])
        .args(["--set", "cells=2", "--set", "colour=red"])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("settings.cells: must be a whole number from 3 to 50"), "{log}");
    assert!(log.contains("settings.colour: is unknown"), "{log}");
    let study = study_when(&controller, "bad", |_| true).await;
    assert_eq!((study.state(), study.failure.len()), (StudyState::Failed, 2));
}

#[tokio::test]
async fn a_trainer_without_images_says_so_once_and_serves_the_toy() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let mut request = tiny_search("s", 3);
    let spec = request.spec.as_mut().unwrap();
    (spec.space, spec.settings) = ("toy".into(), Default::default());
    controller.studies().create_study(request).await.unwrap();
    let output = std::process::Command::new(trainer_program())
        .args(["serve", "--study", "s", "--device", "cpu", "--controller", &controller.url()])
        .current_dir(directory.path())
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let line = "only the space toy is served: this trainer has no images: `asng-trainer data fetch cifar10`";
    assert_eq!(log.matches(line).count(), 1, "{log}");
}

#[tokio::test]
async fn a_damaged_data_file_is_named_with_its_record() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    controller.studies().create_study(tiny_search("s", 3)).await.unwrap();
    let data = directory.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("data_batch_1.bin"), vec![0; 3073 * 7 + 5]).unwrap();
    let output = trainer_command(&controller, &directory.path().join("work"))
        .args(["serve", "--study", "s", "--data"])
        .arg(&data)
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(log.contains("data_batch_1.bin: truncated in record 7"), "{log}");
}

#[tokio::test]
async fn the_reason_why_a_file_cannot_be_read_is_told_once() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    controller.studies().create_study(tiny_search("s", 3)).await.unwrap();
    let data = directory.path().join("data");
    fs::create_dir_all(data.join("data_batch_1.bin")).unwrap();
    fs::write(data.join("test_batch.bin"), "").unwrap();
    let mut command = trainer_command(&controller, &directory.path().join("work"));
    let output = command.args(["serve", "--study", "s", "--data"]).arg(&data).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert_eq!(log.matches("Is a directory").count(), 1, "{log}");
}
