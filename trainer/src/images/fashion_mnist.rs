//! Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017) from its four files in the IDX format, packed by gzip:
//! `train-images-idx3-ubyte.gz`, `train-labels-idx1-ubyte.gz` and the same of `t10k`. Where one is missing, its unpacked twin without
//! `.gz` is read.
//!
//! An IDX file is a magic number (the type of the entries and the number of dimensions), the size of each dimension, all as
//! big-endian 32-bit numbers, and the entries.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use flate2::read::GzDecoder;
use tch::{Kind, Tensor};

use super::{
    data_set::{DataSet, Images},
    error::{Error, content},
};

const SIDE: i64 = 28;
const CLASSES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];
const TRAIN_RECORDS: usize = 60_000;
const TEST_RECORDS: usize = 10_000;
/// Unsigned bytes, in three dimensions and in one.
const IMAGES_MAGIC: u32 = 0x0803;
const LABELS_MAGIC: u32 = 0x0801;

/// Reads 60,000 training images and 10,000 for tests, grey on black.
pub(super) fn read(name: &str, directory: &Path, side: Option<i64>) -> Result<DataSet, Error> {
    read_records(name, directory, side, TRAIN_RECORDS, TEST_RECORDS)
}

fn read_records(
    name: &str,
    directory: &Path,
    side: Option<i64>,
    train: usize,
    test: usize,
) -> Result<DataSet, Error> {
    let side = side.unwrap_or(SIDE);
    let train = images(directory, "train", train)?.scale(side);
    let test = images(directory, "t10k", test)?.scale(side);
    Ok(DataSet::of(name, CLASSES.map(str::to_owned).to_vec(), train, test, None))
}

fn images(directory: &Path, part: &str, records: usize) -> Result<Images, Error> {
    let side = SIDE as usize;
    let file = directory.join(format!("{part}-images-idx3-ubyte.gz"));
    let pixels = read_idx(&file, IMAGES_MAGIC, &[records, side, side])?;
    let file = directory.join(format!("{part}-labels-idx1-ubyte.gz"));
    let labels = read_idx(&file, LABELS_MAGIC, &[records])?;
    if let Some(record) = labels.iter().position(|label| usize::from(*label) >= CLASSES.len()) {
        return Err(malformed(
            &file,
            format!("record {record}: label {} must be between 0 and 9", labels[record]),
        ));
    }
    let count = records as i64;
    Ok(Images {
        pixels: Tensor::from_data_size(&pixels, &[count, 1, SIDE, SIDE], Kind::Uint8),
        labels: Tensor::from_data_size(&labels, &[count], Kind::Uint8).to_kind(Kind::Int64),
    })
}

fn malformed(file: &Path, reason: impl std::fmt::Display) -> Error {
    content(file, format!("{reason}; `asng-trainer data fetch fashion-mnist` brings a good one"))
}

/// Reads the entries of a file that must have that magic number and those dimensions.
fn read_idx(path: &Path, magic: u32, dimensions: &[usize]) -> Result<Vec<u8>, Error> {
    let numbers = [magic].into_iter().chain(dimensions.iter().map(|size| *size as u32));
    let header: Vec<u8> = numbers.flat_map(u32::to_be_bytes).collect();
    let expected = header.len() + dimensions.iter().product::<usize>();
    let mut content = Vec::with_capacity(expected + 1);
    // One byte more than there should be, however much a file unpacks to.
    open(path)
        .and_then(|file| file.take(expected as u64 + 1).read_to_end(&mut content))
        .map_err(|cause| malformed(path, cause))?;
    if !content.starts_with(&header) {
        return Err(malformed(path, format!("its header is not that of bytes of {dimensions:?}")));
    }
    match content.len() {
        bytes if bytes < expected => {
            Err(malformed(path, format!("unpacks to {bytes} bytes, not {expected}")))
        }
        bytes if bytes > expected => {
            Err(malformed(path, format!("unpacks to more than {expected} bytes")))
        }
        _ => Ok(content.split_off(header.len())),
    }
}

/// Opens the packed file at `path`, or its unpacked twin.
fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    let plain = path.with_extension("");
    if !path.exists() && plain.exists() {
        return Ok(Box::new(File::open(plain)?));
    }
    Ok(Box::new(GzDecoder::new(File::open(path)?)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::collection;
    use proptest::prelude::*;
    use tch::IndexOp;
    use tempfile::TempDir;

    use super::*;

    const TRAIN: usize = 12;
    const TEST: usize = 3;

    fn pixel(record: usize, offset: usize) -> u8 {
        ((record * 31 + offset * 7) % 256) as u8
    }

    fn idx(magic: u32, dimensions: &[u32], entries: impl Iterator<Item = u8>) -> Vec<u8> {
        let header = [magic].into_iter().chain(dimensions.iter().copied());
        header.flat_map(u32::to_be_bytes).chain(entries).collect()
    }

    fn write(directory: &TempDir, name: &str, content: &[u8]) {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).unwrap();
        fs::write(directory.path().join(name), encoder.finish().unwrap()).unwrap();
    }

    fn small_data_set() -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (part, records) in [("train", TRAIN), ("t10k", TEST)] {
            let pixels = (0..records).flat_map(|r| (0..784).map(move |offset| pixel(r, offset)));
            let images = idx(IMAGES_MAGIC, &[records as u32, 28, 28], pixels);
            write(&directory, &format!("{part}-images-idx3-ubyte.gz"), &images);
            let labels = (0..records).map(|record| (record % 10) as u8);
            let labels = idx(LABELS_MAGIC, &[records as u32], labels);
            write(&directory, &format!("{part}-labels-idx1-ubyte.gz"), &labels);
        }
        directory
    }

    fn load(directory: &TempDir) -> Result<DataSet, Error> {
        read_records("x", directory.path(), None, TRAIN, TEST)
    }

    fn complaint(name: &str, content: &[u8]) -> String {
        let directory = small_data_set();
        write(&directory, name, content);
        load(&directory).unwrap_err().to_string()
    }

    #[test]
    fn pixels_and_labels_arrive_where_they_belong() {
        let data = load(&small_data_set()).unwrap();
        assert_eq!(data.train.pixels.size(), [12, 1, 28, 28]);
        assert_eq!(data.train.pixels.kind(), Kind::Uint8);
        assert_eq!(data.test.len(), 3);
        let labels = Vec::<i64>::try_from(&data.train.labels).unwrap();
        assert_eq!(labels, (0..12).map(|i| i % 10).collect::<Vec<_>>());
        for (image, y, x) in [(0, 0, 0), (7, 2, 3), (11, 27, 27)] {
            let value = data.train.pixels.i((image, 0, y, x)).int64_value(&[]);
            assert_eq!(value, i64::from(pixel(image as usize, (y * 28 + x) as usize)));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_and_never_a_panic(
            content in collection::vec(any::<u8>(), 0..40),
            honest in 0_usize..12,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let labels = directory.path().join("t10k-labels-idx1-ubyte.gz");
            // Up to all of a header as it must be, and then anything.
            let start = &idx(LABELS_MAGIC, &[3], 0..3)[..honest.min(7)];
            let content = [start, &content].concat();
            write(&directory, "t10k-labels-idx1-ubyte.gz", &content);
            let unpacked = read_idx(&labels, LABELS_MAGIC, &[3]);
            prop_assert!(unpacked.is_err() || content.len() == 11, "{content:?}");
            fs::write(&labels, &content).unwrap();
            prop_assert!(read_idx(&labels, LABELS_MAGIC, &[3]).is_err());
        }
    }

    #[test]
    fn a_file_may_be_unpacked() {
        let directory = small_data_set();
        fs::remove_file(directory.path().join("t10k-labels-idx1-ubyte.gz")).unwrap();
        let plain = directory.path().join("t10k-labels-idx1-ubyte");
        fs::write(&plain, idx(LABELS_MAGIC, &[3], 7..10)).unwrap();
        let labels = load(&directory).unwrap().test.labels;
        assert_eq!(Vec::<i64>::try_from(labels).unwrap(), [7, 8, 9]);
        fs::write(&plain, idx(LABELS_MAGIC, &[3], 7..9)).unwrap();
        let error = load(&directory).unwrap_err().to_string();
        assert!(error.contains("10 bytes, not 11"), "{error}");
    }

    #[test]
    fn another_header_is_named() {
        let labels = idx(LABELS_MAGIC, &[12], 0..12);
        let error = complaint("train-images-idx3-ubyte.gz", &labels);
        assert!(
            error.contains(
                "train-images-idx3-ubyte.gz: its header is not that of bytes of [12, 28, 28]"
            ),
            "{error}"
        );
        let error = complaint("t10k-labels-idx1-ubyte.gz", &[]);
        assert!(error.contains("its header is not that of bytes of [3]"), "{error}");
    }

    #[test]
    fn a_file_that_is_too_short_or_too_long_is_refused() {
        let error = complaint("t10k-labels-idx1-ubyte.gz", &idx(LABELS_MAGIC, &[3], 0..2));
        assert!(error.contains("unpacks to 10 bytes, not 11"), "{error}");
        let long = idx(LABELS_MAGIC, &[3], (0..3).chain([0; 100_000]));
        let error = complaint("t10k-labels-idx1-ubyte.gz", &long);
        assert!(error.contains("unpacks to more than 11 bytes"), "{error}");
    }

    #[test]
    fn a_label_that_is_no_class_names_file_and_record() {
        let labels = idx(LABELS_MAGIC, &[3], [4, 10, 0].into_iter());
        let error = complaint("t10k-labels-idx1-ubyte.gz", &labels);
        assert!(error.contains("ubyte.gz: record 1: label 10 must be between 0 and 9"), "{error}");
    }

    #[test]
    fn what_is_not_there_or_no_gzip_is_an_error() {
        let directory = small_data_set();
        let file = directory.path().join("train-labels-idx1-ubyte.gz");
        let packed = fs::read(&file).unwrap();
        fs::write(&file, &packed[..packed.len() - 6]).unwrap();
        let refused = || {
            let error = load(&directory).unwrap_err().to_string();
            error.contains("train-labels-idx1-ubyte.gz: ")
                && error.contains("data fetch fashion-mnist")
        };
        assert!(refused());
        let mut damaged = packed.clone();
        *damaged.last_mut().unwrap() ^= 1;
        fs::write(&file, damaged).unwrap();
        assert!(refused());
        fs::write(&file, b"labels").unwrap();
        assert!(refused());
        fs::remove_file(&file).unwrap();
        assert!(refused());
    }

    #[test]
    fn grey_images_stay_grey_when_they_are_scaled() {
        let data = read_records("x", small_data_set().path(), Some(32), TRAIN, TEST).unwrap();
        assert_eq!(data.train.pixels.size(), [12, 1, 32, 32]);
        assert_eq!((data.info.shape, data.info.mean.len()), ([1, 32, 32], 1));
        assert_eq!(data.info.classes[9], "Ankle boot");
    }
}
