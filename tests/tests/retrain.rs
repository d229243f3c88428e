//! The real trainer alone: architectures are retrained, killed, evaluated and exported.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use asng_proto::v1::{DeleteStudyRequest, ListStudiesRequest};
use asng_tests::{Controller, Disk, Process, Trainer, terminate, tiny_search, trainer_program};
use image::{Rgb, RgbImage};
use serde_json::Value;

/// Seconds differ from run to run; all else of the log does not.
fn log_rows(directory: &Path) -> Vec<String> {
    let text = fs::read_to_string(directory.join("log.csv")).unwrap();
    text.lines().map(|line| line.rsplit_once(',').unwrap().0.to_owned()).collect()
}

/// The final weights, as they are exported, and the best ones.
fn weights(directory: &Path) -> [Vec<u8>; 2] {
    let mut command = trainer();
    command.args(["export", "--json", "--retrained"]).arg(directory);
    let files = json(command.arg("--out").arg(directory.join("exported")).output().unwrap());
    for file in ["torchscript", "onnx", "description", "graph"] {
        assert!(fs::metadata(files[file].as_str().unwrap()).unwrap().len() > 100, "{file}");
    }
    let last = fs::read(files["weights"].as_str().unwrap()).unwrap();
    [last, fs::read(directory.join("best.safetensors")).unwrap()]
}

fn trainer() -> Command {
    let mut command = Command::new(trainer_program());
    command.args(["--device", "cpu", "--threads", "1"]);
    command.args(["--work-dir", concat!(env!("CARGO_TARGET_TMPDIR"), "/retrain")]);
    command.args(["--data", concat!(env!("CARGO_MANIFEST_DIR"), "/../data/cifar-10-batches-bin")]);
    command
}

fn classifier(directory: &Path) -> Command {
    let subject = ["--space", "enas-micro", "--set", "nodes=2", "--architecture", "random:1"];
    classifier_of(&subject, directory)
}

fn classifier_of(subject: &[&str], directory: &Path) -> Command {
    let mut command = trainer();
    command.arg("retrain").args(subject).args(["--cells", "3", "--channels", "4"]);
    command.args([
        "--train-images",
        "240",
        "--batch-size",
        "8",
        "--test-images",
        "40",
        "--epochs",
        "3",
    ]);
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

/// Waits until the log of a command has a line with `text`; returns that line and the process, which goes on.
fn line_with(mut command: Command, text: &str) -> (String, Process) {
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let line = lines.find(|line| line.contains(text));
    // Keeps the pipe empty.
    thread::spawn(move || lines.for_each(|line| eprintln!("{line}")));
    (line.unwrap_or_else(|| panic!("{text:?} is not in the log")), Process(child))
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
    assert_eq!(log_rows(&whole), log_rows(&stopped));
    assert_eq!(log_rows(&whole).len(), 1 + 3);

    // Nothing is left to do, and the same is said.
    let again = json(classifier(&whole).output().unwrap());
    assert_eq!(again, results);
    let mut evaluate = trainer();
    evaluate.args(["evaluate", "--json", "--test-images", "40", "--retrained"]).arg(&whole);
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
    assert_eq!(log_rows(&whole), log_rows(&stopped));
    assert_eq!(log_rows(&whole).len(), 1 + 4);

    let sheet = directory.path().join("sheet.png");
    let mut evaluate = trainer();
    evaluate.arg("--photos").arg(&photos).args(["evaluate", "--json", "--retrained"]);
    evaluate.arg(&whole).arg("--sheet").arg(&sheet);
    let evaluation = json(evaluate.output().unwrap());
    assert_eq!(evaluation["psnr"], results["test_psnr"]);
    let better = |name: &str| evaluation[name].as_f64() > evaluation["baseline"][name].as_f64();
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
    let expected =
        "--epochs is unknown; the settings of a retraining of the space inpaint-int are ";
    assert!(complaint(command).contains(expected));
    let mut command = classifier(&out);
    command.args(["--mask", "half"]);
    assert!(
        complaint(command)
            .contains("--mask is unknown; the settings of a retraining of the space enas-micro")
    );
    let mut command = trainer();
    command.args(["retrain", "--architecture", "random:1"]);
    assert!(complaint(command).contains("name the --study or the --space"));
    let mut command = trainer();
    command.args(["evaluate", "--retrained"]).arg(&out);
    assert!(complaint(command).contains("give the --out of a `retrain` that has begun"));
    assert!(!out.exists());

    json(autoencoder(&photos, &out, "400").output().unwrap());
    for (flag, value, recorded) in [("--seed", "1", "0"), ("--mask", "half", "center")] {
        let mut command = autoencoder(&photos, &out, "400");
        command.args([flag, value]);
        let expected = format!(
            "{flag} {value}: the retraining in {} has {recorded}; leave it out to resume, or give another --out",
            out.display()
        );
        let log = complaint(command);
        assert!(log.contains(&expected), "{log}");
    }
}

#[tokio::test]
async fn a_retraining_goes_on_without_its_study_and_without_a_controller() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(&directory.path().join("state"));
    controller.studies().create_study(tiny_search("s", 2)).await.unwrap();
    let mut search = Trainer::start(&controller, "s", &directory.path().join("work"));
    assert!(search.0.wait().unwrap().success());
    let [whole, stopped] = ["whole", "stopped"].map(|name| directory.path().join(name));
    let url = controller.url();
    let retrain = |study: &str, out: &Path| {
        let mut command = classifier_of(&["--study", study], out);
        command.args(["--controller", &url]);
        command
    };
    json(retrain("s", &whole).output().unwrap());

    let mut killed = retrain("s", &stopped).spawn().unwrap();
    while !stopped.join("last.safetensors").exists() {
        assert!(killed.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(5));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let request = DeleteStudyRequest { name: "s".into() };
    controller.studies().delete_study(request).await.unwrap();
    controller.kill();
    let log = complaint(retrain("t", &stopped));
    assert!(log.contains("--study t: the retraining in "), "{log}");
    json(retrain("s", &stopped).output().unwrap());
    assert!(weights(&whole) == weights(&stopped), "weights differ");
    assert_eq!(log_rows(&whole), log_rows(&stopped));

    // Without a flag, too, the directory is all that it takes.
    let again = trainer().args(["retrain", "--json", "--out"]).arg(&whole).output().unwrap();
    let log = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(log.contains("resuming the retraining in ") && log.contains("chosen of study s: "));
    assert_eq!(json(again)["iterations"], 90);
}

#[test]
fn a_controller_that_is_away_is_waited_for_in_plain_sight() {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(&directory.path().join("state"));
    let url = controller.url();
    let out = directory.path().join("out");
    let mut evaluate = trainer();
    evaluate.args(["evaluate", "--study", "s"]);
    for mut command in [classifier_of(&["--study", "s"], &out), evaluate] {
        controller.kill();
        command.args(["--controller", &url]);
        let expected = format!("controller {url} does not answer; trying for 30s");
        let (_, mut waiting) = line_with(command, &expected);
        controller.restart();
        assert!(!waiting.0.wait().unwrap().success(), "there is no such study");
    }
    assert!(!out.exists());
}

#[test]
fn the_first_lines_say_what_is_trained_and_how_long_it_takes() {
    let directory = tempfile::tempdir().unwrap();
    let Output { stdout, stderr, .. } = classifier(&directory.path().join("a")).output().unwrap();
    let log = String::from_utf8(stderr).unwrap();
    let place = |text: &str| log.find(text).unwrap_or_else(|| panic!("no {text:?} in {log}"));
    let first = place("on cpu, preset paper, data set cifar10; architecture random:1: ");
    let length = place("3 epochs of 30 batches of 8 images, ");
    assert!(first < length && length < place("it takes about "), "{log}");
    assert!(!log.contains("--preset quick"), "{log}");
    assert_eq!(String::from_utf8(stdout).unwrap().lines().count(), 1, "results alone");

    let photos = write_photos(directory.path());
    let mut days = trainer();
    days.args(["retrain", "--space", "inpaint-cat", "--architecture", "random:3", "--photos"]);
    days.arg(&photos).args(["--set", "preset=quick", "--set", "image_size=16"]);
    days.args(["--iterations", "1000000000", "--out"]).arg(directory.path().join("b"));
    let (line, _trainer) = line_with(days, "it takes about ");
    assert!(line.contains("interrupted at any time, the same command resumes it"), "{line}");
    assert!(line.contains("--preset quick and another --out"), "{line}");
}

#[test]
fn an_unfinished_network_says_so_and_another_one_does_not_replace_it() {
    let directory = tempfile::tempdir().unwrap();
    let photos = write_photos(directory.path());
    let [one, two, out] = ["one", "two", "out"].map(|name| directory.path().join(name));
    for (name, iterations, seed) in [(&one, "1000000", "0"), (&two, "1000", "1")] {
        let mut command = autoencoder(&photos, name, iterations);
        let mut killed = command.args(["--seed", seed]).spawn().unwrap();
        while !name.join("last.safetensors").exists() {
            assert!(killed.try_wait().unwrap().is_none());
            thread::sleep(Duration::from_millis(5));
        }
        killed.kill().unwrap();
        killed.wait().unwrap();
    }
    let export = |network: &Path| {
        let mut command = trainer();
        command.args(["export", "--retrained"]).arg(network).arg("--out").arg(&out);
        command
    };
    let evaluate = || {
        let mut command = trainer();
        command.arg("--photos").arg(&photos).args(["evaluate", "--retrained"]).arg(&one);
        command
    };
    let text = |mut command: Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let evaluation = json(evaluate().arg("--json").output().unwrap());
    assert_eq!(
        (&evaluation["finished"], &evaluation["which"]),
        (&false.into(), &"random:3".into())
    );
    assert_eq!(evaluation["progress"]["total"], 1_000_000);
    let iterations = evaluation["progress"]["iterations"].as_u64().unwrap();
    let state = format!("{}, not finished: {iterations} of 1000000 batches", one.display());
    let printed = text(evaluate());
    assert!(printed.contains(&format!("retrained in {state}")), "{printed}");
    assert!(printed.starts_with("architecture  random:3: "), "{printed}");

    assert!(text(export(&one)).contains(&state));
    let exported = json(export(&one).arg("--json").output().unwrap());
    assert_eq!(exported["finished"], false, "the same network again");
    let description = fs::read_to_string(out.join("network.json")).unwrap();
    let description: Value = serde_json::from_str(&description).unwrap();
    assert_eq!(description["progress"], evaluation["progress"]);
    let before = fs::read(out.join("weights.safetensors")).unwrap();
    let log = complaint(export(&two));
    assert!(log.contains("has the files of another network"), "{log}");
    assert!(log.contains("give another --out, or replace them with --overwrite"), "{log}");
    fs::remove_file(out.join("network.json")).unwrap();
    assert!(complaint(export(&one)).contains("network.pt without a network.json"));
    assert!(fs::read(out.join("weights.safetensors")).unwrap() == before, "weights differ");
    let mut command = export(&two);
    command.arg("--overwrite");
    assert!(text(command).contains(" of 1000 batches"));
    assert!(fs::read(out.join("weights.safetensors")).unwrap() != before, "they are the other's");
}

#[test]
fn a_full_disk_ends_an_export_with_an_error() {
    let Some(disk) = Disk::mount(1) else { return };
    let directory = tempfile::tempdir().unwrap();
    let photos = write_photos(directory.path());
    json(autoencoder(&photos, &directory.path().join("network"), "4").output().unwrap());
    let mut command = trainer();
    command.args(["export", "--retrained"]).arg(directory.path().join("network"));
    let output = command.arg("--out").arg(disk.path().join("out")).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("network.pt: no space left on device"), "{log}");
    let left = fs::read_dir(disk.path().join("out")).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| name != "network.pt" && !name.ends_with(".tmp")));
}

#[test]
fn images_that_are_named_must_be_there() {
    let directory = tempfile::tempdir().unwrap();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(trainer_program());
        command.args(arguments).current_dir(directory.path());
        command
    };
    for subcommand in [
        &["serve"][..],
        &["evaluate", "--retrained", "r"],
        &["retrain", "--space", "enas-micro"],
        &["compare", "--space", "toy"],
        &["export", "--retrained", "r"],
    ] {
        let log = complaint(command(&[subcommand, &["--data", "nowhere"]].concat()));
        assert!(log.contains("--data nowhere: there is no such directory"), "{log}");
        let mut command = command(subcommand);
        command.env("ASNG_PHOTOS", "elsewhere");
        let log = complaint(command);
        assert!(log.contains("--photos elsewhere: there is no such directory"), "{log}");
    }
    let random = ["retrain", "--architecture", "random:1", "--space"];
    let log = complaint(command(&[&random[..], &["inpaint-cat"]].concat()));
    assert!(
        log.contains("no data set \"photos\" here: this trainer has none; bring it with `asng-trainer data fetch photos`"),
        "{log}"
    );
    let log = complaint(command(&[&random[..], &["enas-micro"]].concat()));
    assert!(
        log.contains("no data set \"cifar10\" here: this trainer has none; bring it with"),
        "{log}"
    );
    let log = complaint(command(&["compare", "--space", "inpaint-int", "--preset", "quick"]));
    let expected = "no data set \"photos\" here";
    assert!(log.contains(expected), "{log}");
    let log = complaint(command(&["evaluate"]));
    assert!(log.contains("`asng-trainer evaluate --study NAME --work-dir DIR`"), "{log}");
}

#[test]
fn a_directory_has_one_retraining_at_a_time() {
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
    assert!(complaint(command).contains("--learning-rate must be a number from 0 to 10"));
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
    let output = compare().output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("6 searches of 10 steps and 8 retrainings, preset quick"), "{log}");
    assert!(log.contains("retraining 8 of 8: "), "{log}");
    let rows = json(output);
    assert_eq!(json(compare().output().unwrap()), rows, "all was there already");
    let origins: Vec<_> = rows.as_array().unwrap().iter().map(|row| &row["origin"]).collect();
    assert_eq!(origins, ["asng", "sng", "random", "drawn"]);
    for row in rows.as_array().unwrap() {
        for metrics in row["metrics"].as_object().unwrap().values() {
            assert_eq!(metrics.as_array().unwrap().len(), 2);
        }
        assert_ne!(row["architectures"][0], row["architectures"][1]);
    }
    let studies = controller.studies().list_studies(ListStudiesRequest::default()).await.unwrap();
    assert_eq!(studies.into_inner().studies.len(), 6);
}
