//! `data fetch` and `data check`: brings data sets, and says what a directory of images holds and
//! whether it can be used.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use asng_datasets::DataSet;
use clap::{Args, Subcommand};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::data::{self, Cifar10, FashionMnist, Images, Photos, photos::Refused};

/// So many files that cannot be used are named.
const NAMED: usize = 20;
/// So many images are looked at together, which bounds the memory for a copy of them.
const TOGETHER: i64 = 1024;

/// What can be done with data sets.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch a data set; what is there already stays, and nothing is left half done
    Fetch(Fetch),
    /// Say what a directory of images holds, and whether it can be used
    Check(Check),
}

/// The arguments of `data fetch`.
#[derive(Debug, Args)]
pub struct Fetch {
    /// Which data set
    #[arg(value_name = "SET")]
    set: DataSet,
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
    /// CIFAR-10's binary files, Fashion-MNIST's, or photos, flat or in a folder for each class
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Height and width in pixels that photos are brought to
    #[arg(long, default_value = "64", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    image_size: u16,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Does it. What a check finds wrong is an error.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Fetch(Fetch { set, out, force }) => {
            let directory = out.unwrap_or_else(|| set.directory());
            let found = set.ensure(&directory, force)?;
            let directory = directory.display();
            println!(
                "{found}; {}",
                match set {
                    DataSet::Cifar10 => format!("use it with --data {directory} or ASNG_DATA"),
                    DataSet::Photos => format!("use it with --photos {directory} or ASNG_PHOTOS"),
                    DataSet::FashionMnist => format!("look at it with data check {directory}"),
                }
            );
            Ok(())
        }
        Command::Check(Check { directory, image_size, json }) => {
            let report = match check(&directory, image_size) {
                Err(data::Error::BadPhotos { refused, files }) => {
                    for refused in refused.iter().take(NAMED) {
                        eprintln!("{}: {}", refused.file.display(), refused.reason);
                    }
                    return Err(data::Error::BadPhotos { refused, files }.into());
                }
                // The message says all that its sources say.
                report => report.map_err(anyhow::Error::msg)?,
            };
            match json {
                true => println!("{}", serde_json::to_string_pretty(&report)?),
                false => report.print(),
            }
            Ok(())
        }
    }
}

/// What a directory holds.
#[derive(Debug, PartialEq, Serialize)]
pub struct Report {
    /// What it is, in words.
    pub kind: &'static str,
    /// How many images there are to train with.
    pub train: i64,
    /// How many there are for tests.
    pub test: i64,
    /// Channels, height and width as they are read.
    pub size: [i64; 3],
    /// How many images each class has, in the order of labels.
    pub classes: Vec<Class>,
    /// Mean of each channel, the range of a byte being 0 to 1.
    pub means: Vec<f64>,
    /// Standard deviation of each channel, likewise.
    pub deviations: Vec<f64>,
    /// How many images equal an earlier one in every pixel.
    pub duplicates: usize,
    /// How many files cannot be used.
    pub refused: usize,
    /// The first of them, with the reasons.
    pub refused_files: Vec<String>,
}

/// A class of images.
#[derive(Debug, PartialEq, Serialize)]
pub struct Class {
    /// The name of its folder, or its label.
    pub name: String,
    /// The number of its images.
    pub images: i64,
}

/// Reads all of `directory`, by the reader that is meant for what lies in it, photos at `side` by
/// `side` pixels.
pub fn check(directory: &Path, side: u16) -> Result<Report, data::Error> {
    let unreadable = |cause| data::Error::Unreadable { path: directory.to_owned(), cause };
    fs::metadata(directory).map_err(unreadable)?;
    let has = |name: &str| directory.join(name).exists();
    let labels = || (0..10).map(|label| label.to_string()).collect();
    if has("data_batch_1.bin") || has("test_batch.bin") {
        let Cifar10 { train, test } = Cifar10::load(directory)?;
        return report("CIFAR-10, binary version", &train, &test, labels(), &[]);
    }
    let idx = |part| has(&format!("{part}.gz")) || has(part);
    if idx("train-images-idx3-ubyte") || idx("t10k-images-idx3-ubyte") {
        let FashionMnist { train, test } = FashionMnist::load(directory)?;
        return report("Fashion-MNIST, IDX files", &train, &test, labels(), &[]);
    }
    let Photos { train, test, folders, refused } = match Photos::load(directory, side) {
        Err(data::Error::NoPhotos(directory)) => return Err(data::Error::NoDataSet(directory)),
        photos => photos?,
    };
    match folders.is_empty() {
        true => report("photos", &train, &test, vec!["all".to_owned()], &refused),
        false => report("photos in folders", &train, &test, folders, &refused),
    }
}

fn report(
    kind: &'static str,
    train: &Images,
    test: &Images,
    classes: Vec<String>,
    refused: &[Refused],
) -> Result<Report, data::Error> {
    let (_, channels, height, width) = train.pixels.size4()?;
    let plane = (height * width) as usize;
    let mut sums = vec![(0_u64, 0_u64); channels as usize];
    let mut counts = vec![0; classes.len()];
    let (mut seen, mut duplicates) = (HashSet::new(), 0);
    for images in [train, test] {
        for label in Vec::<i64>::try_from(&images.labels)? {
            counts[label as usize] += 1; // All readers check their labels or make them up.
        }
        for start in (0..images.len()).step_by(TOGETHER as usize) {
            let some = images.narrow(start, TOGETHER.min(images.len() - start))?;
            let bytes = Vec::<u8>::try_from(&some.pixels.f_reshape([-1])?)?;
            for image in bytes.chunks_exact(plane * channels as usize) {
                duplicates += usize::from(!seen.insert(Sha256::digest(image)));
                for ((sum, squares), plane) in sums.iter_mut().zip(image.chunks_exact(plane)) {
                    *sum += plane.iter().map(|&byte| u64::from(byte)).sum::<u64>();
                    *squares += plane.iter().map(|&byte| u64::from(byte).pow(2)).sum::<u64>();
                }
            }
        }
    }
    let pixels = ((train.len() + test.len()) * height * width) as f64;
    let mean = |&(sum, _): &(u64, u64)| sum as f64 / pixels / 255.0;
    let deviation = |of: &(u64, u64)| {
        let square = of.1 as f64 / pixels / (255.0 * 255.0);
        (square - mean(of).powi(2)).max(0.0).sqrt()
    };
    let named = refused.iter().take(NAMED);
    Ok(Report {
        kind,
        train: train.len(),
        test: test.len(),
        size: [channels, height, width],
        classes: classes
            .into_iter()
            .zip(counts)
            .map(|(name, images)| Class { name, images })
            .collect(),
        means: sums.iter().map(mean).collect(),
        deviations: sums.iter().map(deviation).collect(),
        duplicates,
        refused: refused.len(),
        refused_files: named.map(ToString::to_string).collect(),
    })
}

impl Report {
    fn print(&self) {
        let [channels, height, width] = self.size;
        let (train, test) = (self.train, self.test);
        println!("{}: {} images of {channels} x {height} x {width}", self.kind, train + test);
        println!("{train} to train with, {test} for tests");
        println!("{} classes", self.classes.len());
        for class in &self.classes {
            println!("  {:6} {}", class.images, class.name);
        }
        let round = |values: &[f64]| -> Vec<String> {
            values.iter().map(|value| format!("{value:.5}")).collect()
        };
        println!("means {}", round(&self.means).join(" "));
        println!("deviations {}", round(&self.deviations).join(" "));
        println!("{} equal an earlier one in every pixel", self.duplicates);
        println!("{} files cannot be used", self.refused);
        for file in &self.refused_files {
            println!("  {file}");
        }
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    #[test]
    fn a_directory_of_photos_is_counted_and_measured() {
        let directory = tempfile::tempdir().unwrap();
        for (folder, count) in [("cats", 3), ("dogs", 2)] {
            fs::create_dir(directory.path().join(folder)).unwrap();
            for i in 0..count {
                let photo = RgbImage::from_pixel(8, 8, Rgb([0, 51, 255 * (i % 2)]));
                photo.save(directory.path().join(folder).join(format!("{i}.png"))).unwrap();
            }
        }
        fs::write(directory.path().join("dogs/bad.jpg"), "").unwrap();
        let report = check(directory.path(), 4).unwrap();
        assert_eq!((report.kind, report.size), ("photos in folders", [3, 4, 4]));
        assert_eq!(report.train + report.test, 5);
        let classes: Vec<_> = report.classes.iter().map(|c| (&c.name[..], c.images)).collect();
        assert_eq!(classes, [("cats", 3), ("dogs", 2)]);
        assert_eq!(report.duplicates, 3);
        assert_eq!(
            report.means.iter().map(|m| (m * 10.0).round()).collect::<Vec<_>>(),
            [0., 2., 4.]
        );
        let deviation = (0.4_f64 * 0.6).sqrt();
        assert!((report.deviations[2] - deviation).abs() < 1e-9, "{report:?}");
        assert!(report.deviations[1] < 1e-6);
        assert_eq!(report.refused, 1);
        assert!(report.refused_files[0].contains("bad.jpg: "), "{report:?}");
    }

    #[test]
    fn what_is_no_data_set_is_told_what_was_looked_for() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("notes.txt"), "").unwrap();
        let error = check(directory.path(), 8).unwrap_err().to_string();
        for part in ["data_batch_1.bin", "train-images-idx3-ubyte.gz", ".png"] {
            assert!(error.contains(part), "{error}");
        }
        fs::write(directory.path().join("test_batch.bin"), "").unwrap();
        let error = check(directory.path(), 8).unwrap_err().to_string();
        assert!(error.contains("data_batch_1.bin: "), "{error}");
    }
}
