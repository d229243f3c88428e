//! People's own networks and images: a space file and a directory of images go the whole way through the real programs, from
//! `space check` to an exported network that classifies as `evaluate` said.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use asng_tests::{Controller, Trainer, asngctl, example, trainer_program};
use image::{Rgb, RgbImage};
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
epochs = 12

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
                    _ => {
                        pixel = pixel
                            .map(|value| value + if (x + shift) / 4 % 2 == 0 { 100 } else { 0 })
                    }
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
    fn trainer(&self, line: &str) -> Output {
        let mut command = Command::new(trainer_program());
        command.args(["--device", "cpu", "--threads", "1", "--controller", &self.controller.url()]);
        command.args(["--images", &self.images, "--work-dir", "work"]);
        command.args(line.split_whitespace()).current_dir(&self.directory).output().unwrap()
    }

    fn asngctl(&self, line: &str) -> String {
        let mut command = Command::new(asngctl());
        command.args(["--controller", &self.controller.url()]).args(line.split_whitespace());
        text(command.current_dir(&self.directory).output().unwrap())
    }

    fn search(&self, study: &str) {
        let mut command = Command::new(trainer_program());
        command.args(["--device", "cpu", "--threads", "1", "--controller", &self.controller.url()]);
        command.args(["--images", &self.images, "--work-dir", "work", "serve", "--study", study]);
        let mut trainer = Trainer(command.current_dir(&self.directory).spawn().unwrap());
        assert!(trainer.0.wait().unwrap().success());
    }

    /// Retrains, evaluates and exports, and has another program classify the test images with the result.
    fn network(&self, study: &str, retrain: &str, test: &Path) -> f64 {
        text(
            self.trainer(&format!(
                "retrain --study {study} --preset quick --out {study} {retrain}"
            )),
        );
        let line = format!("evaluate --retrained {study} --html {study}.html --json");
        let evaluated: Value = serde_json::from_str(&text(self.trainer(&line))).unwrap();
        let report = &evaluated["report"];
        assert_eq!(report["top1"], evaluated["accuracy"]);
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
         --limit parameters=40000",
    );
    user.search("mine");
    assert!(user.asngctl("study show mine").contains("FINISHED"));
    let drawn = user.asngctl("study plot mine --what architecture --out architecture.svg");
    assert!(drawn.contains("architecture.svg"), "{drawn}");
    let shared = text(user.trainer("evaluate --study mine --random 2 --json"));
    let shared: Value = serde_json::from_str(&shared).unwrap();
    assert_eq!((&shared["dataset"], &shared["images"]), (&"colours".into(), &40.into()));
    let accuracy = user.network("mine", "", &images.join("test"));
    assert!(accuracy > 0.8, "{accuracy}");

    // The weights belong to these images.
    write_images(&images.join("train"), 40, 3);
    let output = user.trainer("evaluate --retrained mine");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && log.contains("the images of data set colours have changed"),
        "{log}"
    );
}
