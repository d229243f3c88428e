//! CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from the files of their binary versions.
//!
//! A file holds records of one label (CIFAR-10) or a coarse and a fine label (CIFAR-100, of which the fine one is used), then the
//! red, the green and the blue plane of 32 x 32 pixels, row by row.

use std::{fs, path::Path};

use tch::{Device, Kind, Tensor};

use super::{
    data_set::{DataSet, Images},
    error::{Error, content, unreadable},
};

/// Mean of each channel of CIFAR-10, the range of a byte being 0 to 1; from the ASNG authors'
/// `classification/classification/utils.py`.
pub const MEAN: [f64; 3] = [0.49139968, 0.48215827, 0.44653124];
/// Standard deviation of each channel, from the same place.
pub const STD: [f64; 3] = [0.24703233, 0.24348505, 0.26158768];

const SIDE: i64 = 32;
const PIXEL_BYTES: usize = 3 * 32 * 32;
const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The files of one of the two data sets.
pub(super) struct Files {
    train: &'static [&'static str],
    test: &'static [&'static str],
    train_records: usize,
    test_records: usize,
    /// The number of labels in front of the pixels; the last one is used.
    label_bytes: usize,
    classes: u8,
    source: &'static str,
}

/// 50,000 training images, in the order of the files, and 10,000 for tests.
pub(super) const CIFAR_10: Files = Files {
    train: &[
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
    ],
    test: &["test_batch.bin"],
    train_records: 10_000,
    test_records: 10_000,
    label_bytes: 1,
    classes: 10,
    source: "`asng-trainer data fetch cifar10` brings good files",
};

/// 50,000 training images and 10,000 for tests.
pub(super) const CIFAR_100: Files = Files {
    train: &["train.bin"],
    test: &["test.bin"],
    train_records: 50_000,
    test_records: 10_000,
    label_bytes: 2,
    classes: 100,
    source: "cifar-100-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html has good files",
};

impl Files {
    /// Reads the data set, scaled to `side` by `side` pixels.
    pub(super) fn read(
        &self,
        name: &str,
        directory: &Path,
        side: Option<i64>,
    ) -> Result<DataSet, Error> {
        let side = side.unwrap_or(SIDE);
        let train = self.images(directory, self.train, self.train_records)?.scale(side);
        let test = self.images(directory, self.test, self.test_records)?.scale(side);
        let (classes, normalisation) = match self.classes {
            10 => (CLASSES.map(str::to_owned).to_vec(), Some((&MEAN[..], &STD[..]))),
            _ => (self.fine_label_names(directory)?, None),
        };
        Ok(DataSet::of(name, classes, train, test, normalisation))
    }

    /// Reads files of records, one after the other to its place, so that no second copy of the set is ever in memory.
    fn images(&self, directory: &Path, files: &[&str], records: usize) -> Result<Images, Error> {
        let total = (files.len() * records) as i64;
        let pixels = Tensor::empty([total, PIXEL_BYTES as i64], (Kind::Uint8, Device::Cpu));
        let labels = Tensor::empty([total], (Kind::Int64, Device::Cpu));
        for (number, file) in files.iter().enumerate() {
            let content = self.records(&directory.join(file), records)?; // [R, labels + 3072]
            let (start, length) = ((number * records) as i64, records as i64);
            let label_bytes = self.label_bytes as i64;
            pixels.narrow(0, start, length).copy_(&content.narrow(
                1,
                label_bytes,
                PIXEL_BYTES as i64,
            ));
            labels.narrow(0, start, length).copy_(&content.select(1, label_bytes - 1));
        }
        Ok(Images { pixels: pixels.view([-1, 3, SIDE, SIDE]), labels })
    }

    /// Reads one file as uint8 `[records, labels + 3072]`, all labels checked.
    fn records(&self, file: &Path, records: usize) -> Result<Tensor, Error> {
        let refuse = |reason: String| Err(content(file, format!("{reason}; {}", self.source)));
        let bytes = match fs::read(file) {
            Ok(bytes) => bytes,
            Err(cause) => return refuse(cause.to_string()),
        };
        let record_bytes = self.label_bytes + PIXEL_BYTES;
        let (found, expected) = (bytes.len(), records * record_bytes);
        if found < expected {
            let record = found / record_bytes;
            return refuse(format!("truncated in record {record} ({found} bytes, not {expected})"));
        }
        if found > expected {
            return refuse(format!("too long ({found} bytes, not {expected})"));
        }
        let labels = bytes.iter().skip(self.label_bytes - 1).step_by(record_bytes);
        if let Some((record, label)) = labels.enumerate().find(|(_, label)| **label >= self.classes)
        {
            let last = self.classes - 1;
            return refuse(format!("record {record}: label {label} must be between 0 and {last}"));
        }
        let shape = [records as i64, record_bytes as i64];
        Ok(Tensor::from_data_size(&bytes, &shape, Kind::Uint8))
    }

    /// Reads the names of CIFAR-100's classes; where the file is missing, they are the labels.
    fn fine_label_names(&self, directory: &Path) -> Result<Vec<String>, Error> {
        let file = directory.join("fine_label_names.txt");
        if !file.exists() {
            return Ok((0..self.classes).map(|label| label.to_string()).collect());
        }
        let text = fs::read_to_string(&file).map_err(unreadable(&file))?;
        let names: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        match names.len() == usize::from(self.classes) {
            true => Ok(names),
            false => Err(content(
                &file,
                format!("{} names, not {}; {}", names.len(), self.classes, self.source),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::array;
    use proptest::prelude::*;
    use tch::IndexOp;
    use tempfile::TempDir;

    const RECORDS: usize = 4;
    const SMALL_10: Files = Files { train_records: RECORDS, test_records: RECORDS, ..CIFAR_10 };
    const SMALL_100: Files = Files { train_records: RECORDS, test_records: RECORDS, ..CIFAR_100 };

    /// Byte `offset` of record `record` in file `file` of a small data set; labels cycle.
    fn byte(file: usize, record: usize, offset: usize) -> u8 {
        match offset {
            0 => ((file * RECORDS + record) % 10) as u8,
            _ => ((file * 31 + record * 7 + offset * 3) % 256) as u8,
        }
    }

    fn small_data_set(set: &Files) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        let record_bytes = set.label_bytes + PIXEL_BYTES;
        for (file, name) in set.train.iter().chain(set.test).enumerate() {
            let place = |i: usize| (i / record_bytes, i % record_bytes);
            let content: Vec<u8> = (0..RECORDS * record_bytes)
                .map(|i| match place(i) {
                    (_, 0) if set.label_bytes == 2 => 19, // the coarse label
                    (record, offset) => byte(file, record, offset + 1 - set.label_bytes),
                })
                .collect();
            fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    /// Reads after `change` was done to one file, and returns the error.
    fn complaint(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
        let directory = small_data_set(&SMALL_10);
        let file = directory.path().join(name);
        let mut content = fs::read(&file).unwrap();
        change(&mut content);
        fs::write(&file, content).unwrap();
        SMALL_10.read("x", directory.path(), None).unwrap_err().to_string()
    }

    #[test]
    fn pixels_and_labels_arrive_where_they_belong() {
        for (set, files) in [(SMALL_10, 5), (SMALL_100, 1)] {
            let data = set.read("x", small_data_set(&set).path(), None).unwrap();
            let count = (files * RECORDS) as i64;
            assert_eq!(data.train.pixels.size(), [count, 3, 32, 32]);
            assert_eq!(data.train.pixels.kind(), Kind::Uint8);
            assert_eq!((data.test.len(), data.info.shape), (4, [3, 32, 32]));
            let labels = Vec::<i64>::try_from(&data.train.labels).unwrap();
            assert_eq!(labels, (0..count).map(|i| i % 10).collect::<Vec<_>>());
            for (image, channel, y, x) in [(0, 0, 0, 0), (2, 1, 2, 3), (count - 1, 2, 31, 31)] {
                let offset = (1 + channel * 1024 + y * 32 + x) as usize;
                assert_eq!(
                    data.train.pixels.i((image, channel, y, x)).int64_value(&[]),
                    i64::from(byte(image as usize / RECORDS, image as usize % RECORDS, offset)),
                );
            }
        }
    }

    #[test]
    fn cifar_10_has_the_authors_constants_at_every_size_and_cifar_100_its_own() {
        let directory = small_data_set(&SMALL_10);
        for (side, shape) in [(None, [3, 32, 32]), (Some(48), [3, 48, 48])] {
            let info = SMALL_10.read("x", directory.path(), side).unwrap().info;
            assert_eq!((&info.mean[..], &info.std[..], info.shape), (&MEAN[..], &STD[..], shape));
            assert_eq!(info.classes[..2], ["airplane", "automobile"]);
        }
        let data = SMALL_100.read("x", small_data_set(&SMALL_100).path(), None).unwrap();
        let red = data.train.pixels.i((.., 0)).to_kind(Kind::Double) / 255.0;
        assert!((data.info.mean[0] - red.mean(Kind::Double).double_value(&[])).abs() < 1e-12);
        assert!((data.info.std[0] - red.std(false).double_value(&[])).abs() < 1e-9);
    }

    #[test]
    fn the_classes_of_cifar_100_are_named_where_the_names_are_there() {
        let directory = small_data_set(&SMALL_100);
        let classes = || SMALL_100.read("x", directory.path(), None).map(|data| data.info.classes);
        assert_eq!(classes().unwrap()[99], "99");
        let file = directory.path().join("fine_label_names.txt");
        let names: Vec<String> = (0..100).map(|i| format!("name_{i}\n")).collect();
        fs::write(&file, names.concat()).unwrap();
        assert_eq!(classes().unwrap()[99], "name_99");
        fs::write(&file, "apple\n").unwrap();
        let error = classes().unwrap_err().to_string();
        assert!(
            error.contains("fine_label_names.txt: 1 names, not 100; cifar-100-binary"),
            "{error}"
        );
    }

    #[test]
    fn files_of_another_length_name_the_record_and_the_command() {
        let error = complaint("data_batch_3.bin", |content| content.truncate(2 * 3073 + 5));
        let expected = "data_batch_3.bin: truncated in record 2 (6151 bytes, not 12292); \
            `asng-trainer data fetch cifar10` brings good files";
        assert!(error.ends_with(expected), "{error}");
        let error = complaint("test_batch.bin", Vec::clear);
        assert!(error.contains("test_batch.bin: truncated in record 0"), "{error}");
        let error = complaint("data_batch_5.bin", |content| content.push(0));
        assert!(error.contains("too long (12293 bytes, not 12292)"), "{error}");
    }

    #[test]
    fn a_label_that_is_no_class_names_file_and_record() {
        let error = complaint("data_batch_2.bin", |content| content[3 * 3073] = 37);
        assert!(
            error.contains("data_batch_2.bin: record 3: label 37 must be between 0 and 9"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let directory = small_data_set(&SMALL_10);
        fs::remove_file(directory.path().join("data_batch_4.bin")).unwrap();
        let error = SMALL_10.read("x", directory.path(), None).unwrap_err().to_string();
        assert!(
            error.contains("data_batch_4.bin: ") && error.contains("data fetch cifar10"),
            "{error}"
        );
    }

    proptest! {
        /// Whatever is in a file, it is read whole with all labels below 10, or it is an error.
        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in 0..3 * (PIXEL_BYTES + 1),
            labels in array::uniform2(0_u8..12),
            fill: u8,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("test_batch.bin");
            let whole = 2 * (PIXEL_BYTES + 1);
            for bytes in [bytes, whole] {
                let mut content = vec![fill; bytes];
                for (record, label) in content.chunks_mut(PIXEL_BYTES + 1).zip(labels) {
                    record[0] = label;
                }
                fs::write(&file, &content).unwrap();
                let good = bytes == whole && labels.iter().all(|&label| label < 10);
                prop_assert_eq!(CIFAR_10.records(&file, 2).is_ok(), good);
            }
        }
    }
}
