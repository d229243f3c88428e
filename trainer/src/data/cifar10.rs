//! CIFAR-10 (Krizhevsky, 2009) from the files of its binary version, and its halves for a search.
//!
//! Each of `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin` holds 10,000 records of 3,073
//! bytes: a label, then the red, the green and the blue plane of 32 x 32 pixels, row by row.

use std::fs;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::{Error, Images};

/// Mean of each channel, the range of a byte being 0 to 1; from the ASNG authors'
/// `classification/classification/utils.py`.
pub const MEAN: [f64; 3] = [0.49139968, 0.48215827, 0.44653124];
/// Standard deviation of each channel, from the same place.
pub const STD: [f64; 3] = [0.24703233, 0.24348505, 0.26158768];
/// Width and height of an image in pixels.
pub const SIDE: i64 = 32;
/// Number of classes; labels count from 0.
pub const CLASSES: i64 = 10;

const RECORDS_PER_FILE: usize = 10_000;
const RECORD_BYTES: usize = 1 + 3 * 32 * 32;
const TRAIN_FILES: [&str; 5] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
];
const TEST_FILES: [&str; 1] = ["test_batch.bin"];

/// The whole of CIFAR-10, on the CPU until it is moved.
#[derive(Debug)]
pub struct Cifar10 {
    /// The 50,000 training images, in the order of the files.
    pub train: Images,
    /// The 10,000 test images.
    pub test: Images,
}

impl Cifar10 {
    /// Reads the six files from `directory`, usually `data/cifar-10-batches-bin`.
    pub fn load(directory: &Path) -> Result<Self, Error> {
        Self::load_records(directory, RECORDS_PER_FILE)
    }

    fn load_records(directory: &Path, records_per_file: usize) -> Result<Self, Error> {
        if !directory.is_dir() {
            return Err(Error::MissingDirectory(directory.to_owned()));
        }
        Ok(Self {
            train: read(directory, &TRAIN_FILES, records_per_file)?,
            test: read(directory, &TEST_FILES, records_per_file)?,
        })
    }

    /// Cuts the training set for a search: the first half trains the weights, the last half ranks
    /// the architectures, as the authors do (`n_valid_data = 25000`). Both share the set's memory.
    pub fn search_halves(&self) -> Result<(Images, Images), Error> {
        let half = self.train.len() / 2;
        Ok((self.train.narrow(0, half)?, self.train.narrow(half, half)?))
    }
}

/// Reads files of records, one after the other.
fn read(directory: &Path, files: &[&str], records_per_file: usize) -> Result<Images, Error> {
    // File by file to its place, so that no second copy of the set is ever in memory.
    let total = (files.len() * records_per_file) as i64;
    let bytes = RECORD_BYTES as i64 - 1;
    let pixels = Tensor::f_empty([total, bytes], (Kind::Uint8, Device::Cpu))?;
    let labels = Tensor::f_empty([total], (Kind::Int64, Device::Cpu))?;
    for (number, file) in files.iter().enumerate() {
        let records = read_records(&directory.join(file), records_per_file)?; // [R, 3073]
        let (start, length) = ((number * records_per_file) as i64, records_per_file as i64);
        pixels.f_narrow(0, start, length)?.f_copy_(&records.f_narrow(1, 1, bytes)?)?;
        labels.f_narrow(0, start, length)?.f_copy_(&records.f_select(1, 0)?)?;
    }
    Ok(Images { pixels: pixels.f_view([-1, 3, SIDE, SIDE])?, labels })
}

/// Reads one file as uint8 `[records, 3073]`, all labels checked.
fn read_records(path: &Path, records: usize) -> Result<Tensor, Error> {
    let file = path.to_owned();
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(cause) => return Err(Error::Read { file, cause }),
    };
    let (bytes, expected) = (content.len(), records * RECORD_BYTES);
    if bytes < expected {
        return Err(Error::Truncated { file, record: bytes / RECORD_BYTES, bytes, expected });
    }
    if bytes > expected {
        return Err(Error::TooLong { file, bytes, expected });
    }
    let labels = content.iter().step_by(RECORD_BYTES).copied();
    if let Some((record, label)) =
        labels.enumerate().find(|&(_, label)| i64::from(label) >= CLASSES)
    {
        return Err(Error::Label { file, record, label });
    }
    Ok(Tensor::f_from_data_size(&content, &[records as i64, RECORD_BYTES as i64], Kind::Uint8)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::array;
    use proptest::prelude::*;
    use tch::{Device, IndexOp};
    use tempfile::TempDir;

    const RECORDS: usize = 4;

    /// Byte `offset` of record `record` in file `file` of a small data set; labels cycle.
    fn byte(file: usize, record: usize, offset: usize) -> u8 {
        match offset {
            0 => ((file * RECORDS + record) % 10) as u8,
            _ => ((file * 31 + record * 7 + offset * 3) % 256) as u8,
        }
    }

    fn small_data_set() -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (file, name) in TRAIN_FILES.iter().chain(&TEST_FILES).enumerate() {
            let content: Vec<u8> = (0..RECORDS * RECORD_BYTES)
                .map(|i| byte(file, i / RECORD_BYTES, i % RECORD_BYTES))
                .collect();
            fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    fn load(directory: &TempDir) -> Result<Cifar10, Error> {
        Cifar10::load_records(directory.path(), RECORDS)
    }

    /// Loads after `change` was done to one file, and returns what is said about it.
    fn complaint(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
        let directory = small_data_set();
        let file = directory.path().join(name);
        let mut content = fs::read(&file).unwrap();
        change(&mut content);
        fs::write(&file, content).unwrap();
        load(&directory).unwrap_err().to_string()
    }

    #[test]
    fn pixels_and_labels_arrive_where_they_belong() {
        let data = load(&small_data_set()).unwrap();
        assert_eq!(data.train.pixels.size(), [20, 3, 32, 32]);
        assert_eq!(data.train.pixels.kind(), Kind::Uint8);
        assert_eq!(data.test.len(), 4);
        let labels = Vec::<i64>::try_from(&data.train.labels).unwrap();
        assert_eq!(labels, (0..20).map(|i| i % 10).collect::<Vec<_>>());
        for (image, channel, y, x) in [(0, 0, 0, 0), (6, 1, 2, 3), (19, 2, 31, 31)] {
            let offset = (1 + channel * 1024 + y * 32 + x) as usize;
            assert_eq!(
                data.train.pixels.i((image, channel, y, x)).int64_value(&[]),
                i64::from(byte(image as usize / RECORDS, image as usize % RECORDS, offset)),
            );
        }
    }

    #[test]
    fn halves_are_the_first_and_the_last_of_the_training_set() {
        let data = load(&small_data_set()).unwrap();
        let (weights, ranking) = data.search_halves().unwrap();
        assert_eq!((weights.len(), ranking.len()), (10, 10));
        assert_eq!(weights.pixels, data.train.pixels.i(..10));
        assert_eq!(ranking.pixels, data.train.pixels.i(10..));
        assert_eq!(ranking.labels, data.train.labels.i(10..));
    }

    #[test]
    fn selected_images_keep_their_labels_and_order() {
        let train = load(&small_data_set()).unwrap().train;
        let batch = train.to_device(Device::Cpu).unwrap().select(&[17, 3, 3]).unwrap();
        assert_eq!(Vec::<i64>::try_from(&batch.labels).unwrap(), [7, 3, 3]);
        assert_eq!(batch.pixels.i(0), train.pixels.i(17));
        assert_eq!(batch.pixels.i(2), train.pixels.i(3));
    }

    #[test]
    fn an_index_out_of_range_is_an_error() {
        let train = load(&small_data_set()).unwrap().train;
        for index in [-1, 20] {
            let error = train.select(&[0, index]).unwrap_err().to_string();
            assert_eq!(error, format!("example {index} does not exist: there are 20"));
        }
        assert!(matches!(train.narrow(15, 6), Err(Error::Tensor(_))));
    }

    #[test]
    fn a_truncated_file_names_the_record() {
        let error = complaint("data_batch_3.bin", |content| content.truncate(2 * 3073 + 5));
        assert!(
            error.ends_with(
                "data_batch_3.bin: truncated in record 2 (file has 6151 bytes, expected 12292); \
                 `asng-trainer data fetch cifar10` fetches it again"
            ),
            "{error}"
        );
    }

    #[test]
    fn an_empty_file_is_truncated_in_its_first_record() {
        let error = complaint("test_batch.bin", Vec::clear);
        assert!(error.contains("test_batch.bin: truncated in record 0"), "{error}");
    }

    #[test]
    fn a_file_that_is_too_long_is_refused() {
        let error = complaint("data_batch_5.bin", |content| content.push(0));
        assert!(
            error.contains("too long (file has 12293 bytes, expected 12292); `asng-trainer"),
            "{error}"
        );
    }

    #[test]
    fn a_label_that_is_no_class_names_file_and_record() {
        let error = complaint("data_batch_2.bin", |content| content[3 * 3073] = 37);
        assert!(error.contains("data_batch_2.bin: record 3: label 37 is not in 0..=9"), "{error}");
    }

    proptest! {
        /// Whatever is in a file, it is read whole with all labels below 10, or it is an error.
        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in 0..3 * RECORD_BYTES,
            labels in array::uniform2(0_u8..12),
            fill: u8,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("test_batch.bin");
            for bytes in [bytes, 2 * RECORD_BYTES] {
                let mut content = vec![fill; bytes];
                for (record, label) in content.chunks_mut(RECORD_BYTES).zip(labels) {
                    record[0] = label;
                }
                fs::write(&file, &content).unwrap();
                let good = bytes == 2 * RECORD_BYTES && labels.iter().all(|&label| label < 10);
                prop_assert_eq!(read_records(&file, 2).is_ok(), good);
            }
        }
    }

    #[test]
    fn a_missing_file_and_a_missing_directory_say_what_to_do() {
        let directory = small_data_set();
        fs::remove_file(directory.path().join("data_batch_4.bin")).unwrap();
        let error = load(&directory).unwrap_err().to_string();
        assert!(error.contains("data_batch_4.bin: ") && error.contains("data fetch cifar10"));

        let error = Cifar10::load(&directory.path().join("nowhere")).unwrap_err().to_string();
        assert!(error.contains("nowhere: there is no such directory; fetch it with"), "{error}");
    }
}
