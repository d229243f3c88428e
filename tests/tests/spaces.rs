//! People's own networks and images: a space file and a directory of images go the whole way through the real programs, from
//! `space check` to an exported network that classifies as `evaluate` said.

use std::{
    env, fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Instant,
};

use asng_proto::v1;
use asng_tests::{Controller, Trainer, asngctl, example, study_when, terminate, trainer_program};
use flate2::read::GzDecoder;
use image::{GrayImage, Rgb, RgbImage};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// A chain that ships nowhere.
const CHAIN: &str = r#"
name = "stairs"
description = "Three stages of inverted residual blocks"

[presets.quick]
batch_size = 16
cutout = 0

[retraining.quick]
epochs = 20
batch_size = 16

[chain]
stem = { channels = 8, kernel = 3, stride = 2 }
head = { channels = 32 }
activation = "relu6"
rows = [
  "ds_r1_k3_s1_c8",
  "ir_r[1-2]_k[3,5]_s2_e[2,3]_c16",
  "ir_r1_k[3,5]_s1_e2_c[16,24]_se0.25",
]
"#;

const CLASSES: [&str; 4] = ["blue sky", "green", "red", "stripes"];
const SIDE: u32 = 32;

/// Writes `count` JPEGs of each class into `directory`: colours with noise, and stripes.
fn write_images(directory: &Path, count: u32, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for (class, name) in CLASSES.iter().enumerate() {
        let folder = directory.join(name);
        fs::create_dir_all(&folder).unwrap();
        for i in 0..count {
            let shift = random.random_range(0..8);
            let image = RgbImage::from_fn(SIDE, SIDE, |x, _| {
                let mut pixel = [0; 3].map(|_: u8| random.random_range(40..110));
                match class {
                    0 => pixel[2] += 100,
                    1 => pixel[1] += 100,
                    2 => pixel[0] += 100,
                    _ if (x + shift) / 4 % 2 == 0 => pixel = pixel.map(|value| value + 100),
                    _ => {}
                }
                Rgb(pixel)
            });
            image.save(folder.join(format!("{i}.jpg"))).unwrap();
        }
    }
}

/// The programs of one user.
struct User {
    directory: PathBuf,
    controller: Controller,
    images: String,
}

impl User {
    fn command(&self) -> Command {
        let mut command = Command::new(trainer_program());
        command.args(["--device", "cpu", "--threads", "1", "--controller", &self.controller.url()]);
        command.args(["--images", &self.images, "--work-dir", "work"]);
        command.current_dir(&self.directory);
        command
    }

    fn trainer(&self, line: &str) -> Output {
        self.command().args(line.split_whitespace()).output().unwrap()
    }

    fn asngctl(&self, line: &str) -> String {
        let mut command = Command::new(asngctl());
        command.args(["--controller", &self.controller.url()]).args(line.split_whitespace());
        text(command.current_dir(&self.directory).output().unwrap())
    }

    fn search(&self, study: &str) {
        assert!(self.command().args(["serve", "--study", study]).status().unwrap().success());
    }

    /// Retrains, evaluates and exports, and has another program classify the test images with the result. Returns the accuracy.
    fn network(&self, study: &str, retrain: &str, test: &Path, images: usize) -> f64 {
        text(
            self.trainer(&format!(
                "retrain --study {study} --preset quick --out {study} {retrain}"
            )),
        );
        let line = format!(
            "evaluate --retrained {study} --test-images {images} --html {study}.html --json"
        );
        let evaluated: Value = serde_json::from_str(&text(self.trainer(&line))).unwrap();
        let report = &evaluated["report"];
        let same = report["top1"].as_f64().unwrap() - evaluated["accuracy"].as_f64().unwrap();
        assert!(same.abs() < 1e-9, "{report}");
        let page = fs::read_to_string(self.directory.join(format!("{study}.html"))).unwrap();
        for class in report["classes"].as_array().unwrap() {
            assert!(page.contains(class["name"].as_str().unwrap()), "{class}");
        }
        text(self.trainer(&format!("export --retrained {study} --out exported-{study}")));
        let mut command = Command::new(example("asng-trainer", "classify"));
        command.arg(self.directory.join(format!("exported-{study}"))).arg(test);
        let found: f64 = text(command.output().unwrap()).trim().parse().unwrap();
        let accuracy = evaluated["accuracy"].as_f64().unwrap();
        assert!(
            (found - accuracy).abs() < 1e-9,
            "evaluate says {accuracy}, the exported network {found}"
        );
        accuracy
    }
}

fn text(output: Output) -> String {
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_space_file_and_a_folder_of_images_become_a_network() {
    let directory = tempfile::tempdir().unwrap();
    let images = directory.path().join("images");
    write_images(&images.join("train"), 40, 1);
    write_images(&images.join("test"), 10, 2);
    fs::write(directory.path().join("stairs.toml"), CHAIN).unwrap();
    let user = User {
        controller: Controller::start(&directory.path().join("state")),
        images: format!("colours={}", images.display()),
        directory: directory.path().into(),
    };
    let checked = text(user.trainer("space check stairs.toml"));
    assert!(checked.contains("stairs") && checked.contains("stage1.block1"), "{checked}");
    let checked = text(user.trainer("data check images"));
    assert!(checked.contains("blue sky"), "{checked}");
    user.asngctl(
        "study create mine --space-file stairs.toml --preset quick --set dataset=colours --set image_size=32 --max-steps 40 \
         --seed 1 --limit parameters=40000",
    );
    user.search("mine");
    assert!(user.asngctl("study show mine").contains("FINISHED"));
    let drawn = user.asngctl("study plot mine --what architecture --out architecture.svg");
    assert!(drawn.contains("architecture.svg"), "{drawn}");
    let shared = text(user.trainer("evaluate --study mine --random 2 --json"));
    let shared: Value = serde_json::from_str(&shared).unwrap();
    assert_eq!((&shared["dataset"], &shared["images"]), (&"colours".into(), &40.into()));
    let selected = text(user.trainer("select --study mine --candidates 8 --json"));
    let selected: Value = serde_json::from_str(&selected).unwrap();
    assert_eq!(selected["images"], 80, "half of the training images");
    let over = |candidate: &Value| candidate["costs"]["parameters"].as_f64().unwrap() > 40000.0;
    assert!(!over(&selected["candidates"][0]), "{selected}");
    assert!(selected["candidates"].as_array().unwrap().is_sorted_by_key(over), "{selected}");
    let accuracy = user.network("mine", "--architecture selected", &images.join("test"), 40);
    assert!(accuracy > 0.8, "{accuracy}");

    // Another space file is another retraining.
    fs::write(directory.path().join("other.toml"), CHAIN.replace("c[16,24]", "c[16,32]")).unwrap();
    let random =
        "--architecture random:1 --preset quick --epochs 1 --set dataset=colours --out resumed";
    text(user.trainer(&format!("retrain --space-file stairs.toml {random}")));
    let output = user.trainer(&format!("retrain --space-file other.toml {random}"));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        log.contains("--space-file other.toml: the retraining in resumed has another"),
        "{log}"
    );

    // The weights belong to these images.
    write_images(&images.join("train"), 40, 3);
    let output = user.trainer("evaluate --retrained mine");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && log.contains("the images of data set colours have changed"),
        "{log}"
    );
}

#[tokio::test]
async fn the_latency_of_networks_is_a_cost_where_a_trainer_measures_it() {
    let directory = tempfile::tempdir().unwrap();
    let images = directory.path().join("images");
    write_images(&images, 20, 1);
    fs::write(directory.path().join("stairs.toml"), CHAIN).unwrap();
    let user = User {
        controller: Controller::start(&directory.path().join("state")),
        images: format!("colours={}", images.display()),
        directory: directory.path().into(),
    };
    let create = "--space-file stairs.toml --preset quick --warmup-steps 0 --set dataset=colours --max-steps 4 --limit latency_ms=1000";
    user.asngctl(&format!("study create quick {create}"));
    let mut command = user.command();
    command.args(["serve", "--study", "quick", "--measure-latency"]);
    assert!(command.status().unwrap().success());
    let request = v1::ListReportsRequest { study: "quick".into(), ..Default::default() };
    let reports =
        user.controller.studies().list_reports(request).await.unwrap().into_inner().reports;
    let costs: Vec<_> = reports.iter().flat_map(|report| &report.costs).collect();
    assert_eq!(costs.len(), 2 * 4);
    for cost in costs {
        let latency = cost.figures["latency_ms"];
        assert!(
            latency > 0.0 && latency.is_finite() && cost.figures["parameters"] > 0.0,
            "{cost:?}"
        );
    }

    user.asngctl(&format!("study create unmeasured {create}"));
    let failed = user.command().args(["serve", "--study", "unmeasured"]).output().unwrap();
    let shown = user.asngctl("study show unmeasured");
    let log = String::from_utf8_lossy(&failed.stderr);
    assert!(shown.contains("FAILED") && shown.contains("latency_ms"), "{shown}\n{log}");
}

const FASHION_MNIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/fashion-mnist");

/// Reads the first `count` entries of `size` bytes of a packed IDX file.
fn idx(name: &str, header: usize, size: usize, count: usize) -> Vec<Vec<u8>> {
    let file = fs::File::open(Path::new(FASHION_MNIST).join(name)).unwrap();
    let mut bytes = vec![0; header + size * count];
    GzDecoder::new(file).read_exact(&mut bytes).unwrap();
    bytes[header..].chunks(size).map(<[u8]>::to_vec).collect()
}

#[test]
fn fashion_mnist_is_searched_in_the_space_of_nas_bench_201() {
    const TEST: usize = 300;
    let directory = tempfile::tempdir().unwrap();
    let user = User {
        controller: Controller::start(&directory.path().join("state")),
        images: format!("fashion-mnist={FASHION_MNIST}"),
        directory: directory.path().into(),
    };
    user.asngctl(
        "study create clothes --space nasbench201 --preset quick --set channels=4 --set batch_size=16 --set dataset=fashion-mnist \
         --set flip=false --max-steps 20 --seed 1",
    );
    user.search("clothes");
    let classes = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot";
    let classes: Vec<&str> = classes.split(',').collect();
    let test = directory.path().join("test");
    classes.iter().for_each(|class| fs::create_dir_all(test.join(class)).unwrap());
    let images = idx("t10k-images-idx3-ubyte.gz", 16, 28 * 28, TEST);
    let labels = idx("t10k-labels-idx1-ubyte.gz", 8, 1, TEST);
    for (i, (image, label)) in images.into_iter().zip(labels).enumerate() {
        let image = GrayImage::from_raw(28, 28, image).unwrap();
        image.save(test.join(classes[usize::from(label[0])]).join(format!("{i}.png"))).unwrap();
    }
    let retrain = format!(
        "--cells 5 --channels 4 --train-images 3000 --test-images {TEST} --epochs 3 --batch-size 32"
    );
    let accuracy = user.network("clothes", &retrain, &test, TEST);
    assert!(accuracy > 0.4, "{accuracy}");
}

/// Images of the large data set: `cargo xtask test --full` makes a cache of 2 GB of them.
fn large_images() -> u32 {
    env::var("ASNG_LARGE_IMAGES").map_or(400, |count| count.parse().unwrap())
}

#[tokio::test]
async fn a_data_set_larger_than_memory_should_hold_is_mapped() {
    const SIDE: u32 = 256;
    let directory = tempfile::tempdir().unwrap();
    let images = directory.path().join("images");
    for class in ["a", "b"] {
        fs::create_dir_all(images.join(class)).unwrap();
        let noise =
            |x: u32, y: u32| Rgb([(x * y % 251) as u8, (x + y) as u8, u8::from(class == "a")]);
        let first = images.join(class).join("0.jpg");
        RgbImage::from_fn(SIDE, SIDE, noise).save(&first).unwrap();
        for i in 1..large_images() / 2 {
            fs::hard_link(&first, images.join(class).join(format!("{i}.jpg"))).unwrap();
        }
    }
    fs::write(directory.path().join("stairs.toml"), CHAIN).unwrap();
    let user = User {
        controller: Controller::start(&directory.path().join("state")),
        images: format!("large={}", images.display()),
        directory: directory.path().into(),
    };
    user.asngctl(
        "study create large --space-file stairs.toml --preset quick --set dataset=large --set image_size=256 --max-steps 100000 \
         --lease 1s",
    );
    let mut applied = 0;
    for start in ["first", "second"] {
        let started = Instant::now();
        let mut command = user.command();
        let mut trainer = Trainer(command.args(["serve", "--study", "large"]).spawn().unwrap());
        let more = applied + 3;
        let study =
            study_when(&user.controller, "large", |study| asng_tests::applied(study) >= more).await;
        applied = asng_tests::applied(&study);
        let seconds = started.elapsed().as_secs_f64();
        let status = fs::read_to_string(format!("/proc/{}/status", trainer.0.id())).unwrap();
        let anonymous = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
        let anonymous: u64 = anonymous.split_whitespace().nth(1).unwrap().parse().unwrap();
        println!(
            "{start} start: {seconds:.1} s to three steps, {} MB of anonymous memory",
            anonymous / 1000
        );
        assert!(anonymous < 900_000, "{anonymous} kB");
        if large_images() > 1000 && start == "second" {
            assert!(seconds < 5.0, "{seconds} s");
        }
        terminate(&mut trainer.0);
    }
}
