//! The real trainer alone: architectures are retrained, killed, evaluated and exported.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::Duration,
};

use asng_proto::v1::ListStudiesRequest;
use asng_tests::{Controller, terminate, trainer_program};
use image::{Rgb, RgbImage};
use serde_json::Value;

/// Seconds differ from run to run; all else of the log does not.
fn log(directory: &Path) -> Vec<String> {
    let text = fs::read_to_string(directory.join("log.csv")).unwrap();
    text.lines().map(|line| line.rsplit_once(',').unwrap().0.to_owned()).collect()
}

/// The final weights, as they are exported, and the best ones.
fn weights(directory: &Path) -> [Vec<u8>; 2] {
    let mut command = trainer();
    command.args(["export", "--json", "--retrained"]).arg(directory);
    let files = json(command.arg("--out").arg(directory.join("exported")).output().unwrap());
    for file in ["torchscript", "description", "graph"] {
        assert!(fs::metadata(files[file].as_str().unwrap()).unwrap().len() > 100, "{file}");
    }
    let last = fs::read(files["weights"].as_str().unwrap()).unwrap();
    [last, fs::read(directory.join("best.safetensors")).unwrap()]
}

fn trainer() -> Command {
    let mut command = Command::new(trainer_program());
    command.args(["--device", "cpu", "--threads", "1"]);
    command.args(["--data", concat!(env!("CARGO_MANIFEST_DIR"), "/../data/cifar-10-batches-bin")]);
    command
}

fn classifier(directory: &Path) -> Command {
    let mut command = trainer();
    command.args(["retrain", "--space", "enas-micro", "--set", "nodes=2"]);
    command.args(["--architecture", "random:1", "--cells", "3", "--channels", "4"]);
    command.args(["--images", "240", "--batch-size", "8", "--test-images", "40", "--epochs", "3"]);
    command.args(["--checkpoint-every", "20ms", "--json", "--out"]).arg(directory);
    command
}

fn autoencoder(photos: &Path, directory: &Path, iterations: &str) -> Command {
    let mut command = trainer();
    command.args(["retrain", "--space", "inpaint-int", "--architecture", "random:3"]);
    for setting in ["nodes=3", "channels=2", "image_size=16", "batch_norm=true", "mask=center"] {
        command.args(["--set", setting]);
    }
    command.args(["--preset", "quick", "--iterations", iterations, "--evaluate-every", "100"]);
    command.args(["--checkpoint-every", "20ms", "--json"]).arg("--photos").arg(photos);
    command.arg("--out").arg(directory);
    command
}

fn write_photos(directory: &Path) -> PathBuf {
    let photos = directory.join("photos");
    fs::create_dir(&photos).unwrap();
    for i in 0..24_u32 {
        let shade = |x: u32, speed: u32| (40 * (i % 5) + speed * x) as u8;
        let photo = RgbImage::from_fn(20, 26, |x, y| Rgb([shade(x, 5), shade(y, 3), shade(x, 2)]));
        photo.save(photos.join(format!("{i}.png"))).unwrap();
    }
    photos
}

fn json(output: Output) -> Value {
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn complaint(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Stops a retraining whenever it has written another checkpoint, in turn by SIGKILL and SIGTERM, until it ends; how often
/// it was stopped.
fn stop_again_and_again(mut start: impl FnMut() -> Command, directory: &Path) -> u32 {
    let checkpoint = || fs::metadata(directory.join("last.safetensors")).ok()?.modified().ok();
    let mut stops = 0;
    loop {
        let before = checkpoint();
        let mut child = start().spawn().unwrap();
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if checkpoint() != before && stops < 6 {
                break None;
            }
            thread::sleep(Duration::from_millis(5));
        };
        match ended {
            Some(status) => {
                assert!(status.success());
                return stops;
            }
            None if stops % 2 == 0 => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            // It may have come to its end meanwhile.
            None => assert!([Some(0), Some(1)].contains(&terminate(&mut child).code())),
        }
        stops += 1;
    }
}

#[test]
fn a_classifier_whose_retraining_is_stopped_ends_like_one_that_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let [whole, stopped] = ["whole", "stopped"].map(|name| directory.path().join(name));
    let results = json(classifier(&whole).output().unwrap());
    assert!(stop_again_and_again(|| classifier(&stopped), &stopped) > 1);
    assert!(weights(&whole) == weights(&stopped), "weights differ");
    assert_eq!(log(&whole), log(&stopped));
    assert_eq!(log(&whole).len(), 1 + 3);

    // Nothing is left to do, and the same is said.
    let again = json(classifier(&whole).output().unwrap());
    assert_eq!(again, results);
    let mut evaluate = trainer();
    evaluate.args(["evaluate", "--json", "--images", "40", "--retrained"]).arg(&whole);
    let evaluation = json(evaluate.output().unwrap());
    assert_eq!(evaluation["accuracy"], results["test_accuracy"]);
    assert_eq!(evaluation["loss"], results["test_loss"]);
}

#[test]
fn an_autoencoder_whose_retraining_is_stopped_ends_like_one_that_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let photos = write_photos(directory.path());
    let [whole, stopped] = ["whole", "stopped"].map(|name| directory.path().join(name));
    let results = json(autoencoder(&photos, &whole, "400").output().unwrap());
    assert!(stop_again_and_again(|| autoencoder(&photos, &stopped, "400"), &stopped) > 1);
    assert!(weights(&whole) == weights(&stopped), "weights differ");
    assert_eq!(log(&whole), log(&stopped));
    assert_eq!(log(&whole).len(), 1 + 4);

    let sheet = directory.path().join("sheet.png");
    let mut evaluate = trainer();
    evaluate.arg("--photos").arg(&photos).args(["evaluate", "--json", "--retrained"]);
    evaluate.arg(&whole).arg("--sheet").arg(&sheet);
    let evaluation = json(evaluate.output().unwrap());
    assert_eq!(evaluation["psnr"], results["test_psnr"]);
    let better = |name: &str| evaluation[name].as_f64() > evaluation["masked"][name].as_f64();
    assert!(better("psnr") && !better("loss"), "{evaluation}");
    // Three columns of 16 pixels and as many rows as photos are held out of 24.
    assert_eq!(image::image_dimensions(sheet).unwrap(), (3 * 18 - 2, 3 * 18 - 2));
}

#[test]
fn what_cannot_be_is_said_before_any_training() {
    let directory = tempfile::tempdir().unwrap();
    let photos = write_photos(directory.path());
    let out = directory.path().join("out");
    let mut command = autoencoder(&photos, &out, "400");
    command.args(["--epochs", "3"]);
    let expected = "--epochs means nothing to networks of space inpaint-int; leave it out";
    assert!(complaint(command).contains(expected));
    let mut command = classifier(&out);
    command.args(["--mask", "half"]);
    assert!(complaint(command).contains("--mask means nothing to networks of space enas-micro"));
    let mut command = trainer();
    command.args(["retrain", "--architecture", "random:1"]);
    assert!(complaint(command).contains("name the --study or the --space"));
    let mut command = trainer();
    command.args(["evaluate", "--retrained"]).arg(&out);
    assert!(complaint(command).contains("give the --out of a `retrain` that has begun"));
    assert!(!out.exists());

    json(autoencoder(&photos, &out, "400").output().unwrap());
    let mut command = autoencoder(&photos, &out, "400");
    command.args(["--seed", "1"]);
    assert!(complaint(command).contains("is of another retraining"));
}

#[test]
fn a_directory_has_one_retraining_at_a_time_and_divergence_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    let photos = write_photos(directory.path());
    let out = directory.path().join("out");
    let training = || autoencoder(&photos, &out, "1000000");
    let mut first = training().spawn().unwrap();
    while !out.join("last.safetensors").exists() {
        assert!(first.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(5));
    }
    assert!(complaint(training()).contains("is in use by another retraining"));
    first.kill().unwrap();
    first.wait().unwrap();

    let mut command = autoencoder(&photos, &directory.path().join("diverged"), "400");
    command.args(["--learning-rate", "1e30"]);
    assert!(complaint(command).contains("has diverged before minibatch 100"));
}

#[tokio::test]
async fn a_comparison_searches_and_trains_for_each_seed_and_goes_on_where_it_was_killed() {
    let directory = tempfile::tempdir().unwrap();
    let photos = write_photos(directory.path());
    let controller = Controller::start(&directory.path().join("state"));
    let out = directory.path().join("compared");
    let compare = || {
        let mut command = trainer();
        command.args(["compare", "--space", "inpaint-cat", "--preset", "quick", "--json"]);
        for setting in ["nodes=3", "channels=2", "image_size=16", "batch_size=4"] {
            command.args(["--set", setting]);
        }
        command.args(["--max-steps", "10", "--seeds", "2", "--iterations", "20"]);
        command.arg("--photos").arg(&photos).arg("--out").arg(&out);
        command.arg("--work-dir").arg(directory.path().join("work"));
        command.args(["--controller", &controller.url()]);
        command
    };
    let mut killed = compare().spawn().unwrap();
    while !out.join("asng-1/last.safetensors").exists() {
        assert!(killed.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(5));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let rows = json(compare().output().unwrap());
    assert_eq!(json(compare().output().unwrap()), rows, "all was there already");
    let origins: Vec<_> = rows.as_array().unwrap().iter().map(|row| &row["origin"]).collect();
    assert_eq!(origins, ["asng", "sng", "random", "drawn"]);
    for row in rows.as_array().unwrap() {
        for figures in row["figures"].as_object().unwrap().values() {
            assert_eq!(figures.as_array().unwrap().len(), 2);
        }
        assert_ne!(row["architectures"][0], row["architectures"][1]);
    }
    let studies = controller.studies().list_studies(ListStudiesRequest::default()).await.unwrap();
    assert_eq!(studies.into_inner().studies.len(), 6);
}
