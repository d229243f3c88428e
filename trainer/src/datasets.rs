//! `data fetch` and `data check`: brings data sets, and reports what a directory of images holds and whether it can be used.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use asng_datasets::DataSet as Fetched;
use clap::{Args, Subcommand};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::images::{self, DataSet, Layout, Request};

/// The number of unusable files, and of pairs of duplicates, that are named.
const NAMED: usize = 20;

/// The subcommands of `data`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch a data set; what is there already stays, and nothing is left half done
    Fetch(Fetch),
    /// Report what a directory of images holds, and whether it can be used
    Check(Check),
}

/// The arguments of `data fetch`.
#[derive(Debug, Args)]
pub struct Fetch {
    /// The data set
    #[arg(value_name = "SET")]
    set: Fetched,
    /// Directory to fetch it to [default: where the trainer looks for it, below ./data]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Fetch it again where it is there and whole
    #[arg(long)]
    force: bool,
}

/// The arguments of `data check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The binary files of CIFAR-10 or CIFAR-100, Fashion-MNIST's, or image files, in a folder for each class or in none
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Height and width in pixels that images are scaled to [default: as they are; image files: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(images::IMAGE_SIZES))]
    image_size: Option<i64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command. What a check finds wrong is an error.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Fetch(Fetch { set, out, force }) => {
            let directory = out.unwrap_or_else(|| set.directory());
            let found = set.ensure(&directory, force)?;
            let name = match set {
                Fetched::Cifar10 => "cifar10",
                Fetched::FashionMnist => "fashion-mnist",
                Fetched::Photos => "photos",
            };
            match directory == set.directory() {
                true => println!("{found}; studies know it as {name}"),
                false => println!("{found}; use it with --images {name}={}", directory.display()),
            }
        }
        Command::Check(Check { directory, image_size, json }) => {
            let report = check(&directory, image_size).inspect_err(|error| {
                if let images::Error::BadFiles { refused, .. } = error {
                    refused.iter().take(NAMED).for_each(|refused| eprintln!("{refused}"));
                }
            })?;
            match json {
                true => println!("{}", serde_json::to_string_pretty(&report)?),
                false => report.print(),
            }
        }
    }
    Ok(())
}

/// The content of a directory.
#[derive(Debug, PartialEq, Serialize)]
pub struct Report {
    /// The way in which the images are stored, in words.
    pub kind: String,
    /// The number of training images.
    pub train: i64,
    /// The number of images for tests.
    pub test: i64,
    /// The classes, in the order of labels.
    pub classes: Vec<Class>,
    /// The size of the largest class divided by that of the smallest; none without classes.
    pub imbalance: Option<f64>,
    /// Channels, height and width of an image.
    pub shape: [i64; 3],
    /// Mean of each channel over the training images, the range of a byte being 0 to 1.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, likewise.
    pub std: Vec<f64>,
    /// SHA-256 over the training images, their labels and the names of the classes.
    pub digest: String,
    /// The number of images that equal an earlier one in every pixel.
    pub duplicates: usize,
    /// The number of these that are images for tests and equal a training image.
    pub duplicates_across: usize,
    /// The first duplicates.
    pub duplicate_pairs: Vec<Duplicate>,
    /// The number of image files that are left out.
    pub refused: usize,
    /// The first of them, with the reasons.
    pub refused_files: Vec<String>,
}

/// A class of images.
#[derive(Debug, PartialEq, Serialize)]
pub struct Class {
    /// The name of the class.
    pub name: String,
    /// The number of its training images.
    pub train: usize,
    /// The number of its images for tests.
    pub test: usize,
}

/// Two equal images.
#[derive(Debug, PartialEq, Serialize)]
pub struct Duplicate {
    /// The first one: its file, or its place among the images.
    pub first: String,
    /// The other one.
    pub second: String,
    /// True if the first is a training image and the other is for tests.
    pub across: bool,
}

/// Reads all images of `directory`. Folders are classes; images that lie in none have no classes.
pub fn check(directory: &Path, image_size: Option<i64>) -> Result<Report, images::Error> {
    let layout = Layout::of(directory)?;
    let request = Request { name: "check".into(), image_size, labels: layout != Layout::Flat };
    let scratch = tempfile::tempdir()
        .map_err(crate::files::Error::cannot("make a directory in", &std::env::temp_dir()))?;
    let (DataSet { info, train, test, refused, .. }, files) =
        images::read(directory, &request, scratch.path())?;

    let mut classes: Vec<Class> =
        info.classes.iter().map(|name| Class { name: name.clone(), train: 0, test: 0 }).collect();
    let mut seen = HashMap::new();
    let (mut duplicates, mut duplicates_across, mut duplicate_pairs, mut place) =
        (0, 0, Vec::new(), 0);
    let name = |place: usize| match files.get(place) {
        Some(file) => file.clone(),
        None if place < train.len() as usize => format!("training image {place}"),
        None => format!("test image {}", place - train.len() as usize),
    };
    for (images, is_test) in [(&train, false), (&test, true)] {
        if !classes.is_empty() {
            for label in Vec::<i64>::try_from(&images.labels).expect("labels are int64") {
                let class = &mut classes[label as usize]; // All readers check their labels.
                *(if is_test { &mut class.test } else { &mut class.train }) += 1;
            }
        }
        images.for_each(|image| {
            let &mut (first, first_in_test) =
                seen.entry(Sha256::digest(image)).or_insert((place, is_test));
            if first != place {
                let across = is_test && !first_in_test;
                duplicates += 1;
                duplicates_across += usize::from(across);
                if duplicate_pairs.len() < NAMED {
                    duplicate_pairs.push(Duplicate {
                        first: name(first),
                        second: name(place),
                        across,
                    });
                }
            }
            place += 1;
        });
    }
    let sizes = || classes.iter().map(|class| class.train + class.test);
    let imbalance = sizes()
        .max()
        .zip(sizes().min())
        .map(|(largest, smallest)| largest as f64 / smallest as f64);
    Ok(Report {
        kind: layout.to_string(),
        train: train.len(),
        test: test.len(),
        classes,
        imbalance,
        shape: info.shape,
        mean: info.mean,
        std: info.std,
        digest: info.digest,
        duplicates,
        duplicates_across,
        duplicate_pairs,
        refused: refused.len(),
        refused_files: refused.iter().take(NAMED).map(ToString::to_string).collect(),
    })
}

impl Report {
    fn print(&self) {
        let [channels, height, width] = self.shape;
        println!(
            "{}: {} images of {channels} x {height} x {width}",
            self.kind,
            self.train + self.test
        );
        println!("{} for training, {} for tests", self.train, self.test);
        if let Some(imbalance) = self.imbalance {
            println!(
                "{} classes; the largest has {imbalance:.1} times the images of the smallest",
                self.classes.len()
            );
            println!("{:>8} {:>8}  class", "training", "tests");
        }
        for Class { name, train, test } in &self.classes {
            println!("{train:8} {test:8}  {}", name.escape_debug());
        }
        let round = |values: &[f64]| {
            values.iter().map(|value| format!("{value:.5}")).collect::<Vec<_>>().join(" ")
        };
        println!("mean {}", round(&self.mean));
        println!("standard deviation {}", round(&self.std));
        println!("digest {}", self.digest);
        println!(
            "{} duplicates, {} of them a test image that equals a training image",
            self.duplicates, self.duplicates_across
        );
        for Duplicate { first, second, across } in &self.duplicate_pairs {
            println!("  {first} = {second}{}", if *across { " (training and test)" } else { "" });
        }
        println!("{} image files left out", self.refused);
        self.refused_files.iter().for_each(|file| println!("  {file}"));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::{Rgb, RgbImage};

    use super::*;

    fn save(directory: &Path, name: &str, colour: [u8; 3]) {
        let file = directory.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        RgbImage::from_pixel(20, 20, Rgb(colour)).save(file).unwrap();
    }

    #[test]
    fn a_directory_of_class_folders_is_counted_and_measured() {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path();
        for (name, value) in
            [("train/a/1", 0), ("train/a/2", 255), ("train/a/3", 0), ("train/b/1", 255)]
        {
            save(here, &format!("{name}.png"), [value, 51, 0]);
        }
        save(here, "test/a/1.png", [0, 51, 0]);
        save(here, "test/b/1.png", [9, 9, 9]);
        fs::write(here.join("train/b/bad.jpg"), "").unwrap();
        let report = check(here, Some(16)).unwrap();
        assert_eq!((&report.kind[..], report.shape), ("a folder for each class", [3, 16, 16]));
        assert_eq!((report.train, report.test, report.imbalance), (4, 2, Some(2.0)));
        let classes: Vec<_> =
            report.classes.iter().map(|c| (&c.name[..], c.train, c.test)).collect();
        assert_eq!(classes, [("a", 3, 1), ("b", 1, 1)]);
        assert_eq!(
            (&report.mean[..], &report.std[..]),
            (&[0.5, 0.2, 0.0][..], &[0.5, 1.0, 1.0][..])
        );
        assert_eq!((report.duplicates, report.duplicates_across), (3, 1));
        let pairs: Vec<_> = report
            .duplicate_pairs
            .iter()
            .map(|d| (&d.first[..], &d.second[..], d.across))
            .collect();
        assert_eq!(
            pairs,
            [
                ("train/a/1.png", "train/a/3.png", false),
                ("train/a/2.png", "train/b/1.png", false),
                ("train/a/1.png", "test/a/1.png", true),
            ]
        );
        assert_eq!(
            (report.refused, &report.refused_files[0][..]),
            (1, "train/b/bad.jpg: empty file")
        );
        report.print();
    }

    #[test]
    fn images_in_no_folder_have_no_classes() {
        let directory = tempfile::tempdir().unwrap();
        (0..3).for_each(|i| save(directory.path(), &format!("{i}.png"), [i; 3]));
        let report = check(directory.path(), None).unwrap();
        assert_eq!((&report.kind[..], report.imbalance), ("image files without classes", None));
        assert_eq!((report.train, report.test, report.shape), (2, 1, [3, 64, 64]));
        assert_eq!(report.duplicates, 0);
    }

    #[test]
    fn what_is_no_data_set_is_told_what_was_looked_for() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("notes.txt"), "").unwrap();
        let error = check(directory.path(), None).unwrap_err().to_string();
        for part in ["data_batch_1.bin", "train-images-idx3-ubyte.gz", ".png"] {
            assert!(error.contains(part), "{error}");
        }
        fs::write(directory.path().join("test_batch.bin"), "").unwrap();
        let error = check(directory.path(), None).unwrap_err().to_string();
        assert!(error.contains("data_batch_1.bin: "), "{error}");
    }
}
