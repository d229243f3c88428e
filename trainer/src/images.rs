//! The trainer's data sets: images as bytes, the order they are visited in, and the augmentation of whole batches.
//!
//! * [`cifar`] and `fashion_mnist` read the files that these data sets are published as; `folders` lists a user's own image
//!   files, `decode` turns one of them into pixels, and `cache` keeps the pixels of all in one file mapped into memory;
//! * [`batches`] decides which examples batch number i holds, [`augment`] draws the crop, flip and cutout of its images, and
//!   [`preprocess`] applies these draws to a whole batch and normalises it.
//!
//! All randomness is drawn on the CPU from (seed, number): a batch is the same on every device, and a run continues exactly from
//! one saved number. Nothing here knows architectures or networks.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use asng_datasets::DataSet as Fetched;
use data_encoding::HEXLOWER;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::files;

pub mod augment;
pub mod batches;
mod cache;
pub mod cifar;
mod decode;
mod fashion_mnist;
mod folders;
pub mod preprocess;

pub use augment::Augment;
pub use batches::Batches;
pub use preprocess::Preprocess;

/// Heights and widths that images can be scaled to, in pixels.
pub const IMAGE_SIZES: std::ops::RangeInclusive<i64> = 16..=256;
/// Height and width of the images of folders where the request names none.
const FOLDERS_IMAGE_SIZE: i64 = 64;
/// The number of broken files named in an error.
const NAMED: usize = 3;
/// The number of images that are copied or hashed together, which bounds the memory for it.
const TOGETHER: i64 = 1024;

/// Data cannot be read or prepared. Causes are part of the text and not a `source()`, so that nobody prints them twice.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This trainer does not have the data set; another one may.
    #[error("no data set {name:?} here: {reason}")]
    Missing {
        /// The name asked for.
        name: String,
        /// What is there instead, and what to do.
        reason: String,
    },
    /// A name or directory of `--images` is refused.
    #[error("--images {name}={}: {reason}", directory.display())]
    Argument {
        /// The name given.
        name: String,
        /// The directory given.
        directory: PathBuf,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// A file or directory holds something else than it should.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Too many image files are broken.
    #[error("{}: {} of {files} image files cannot be used; the first: {}", directory.display(), refused.len(), first(refused))]
    BadFiles {
        /// The directory of the data set.
        directory: PathBuf,
        /// The broken files.
        refused: Vec<Refused>,
        /// The number of image files.
        files: usize,
    },
    /// A file or directory cannot be read or written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The image size is out of range.
    #[error("image size {0} is not in {min}..={max}", min = IMAGE_SIZES.start(), max = IMAGE_SIZES.end())]
    ImageSize(i64),
    /// A batch cannot be filled.
    #[error("batch size {batch_size} is not in 1..={examples}, the number of examples")]
    BatchSize {
        /// The batch size asked for.
        batch_size: usize,
        /// The number of examples there are.
        examples: usize,
    },
}

/// Makes an error of what is wrong with a file or directory.
fn content(path: &Path, reason: impl Into<String>) -> Error {
    Error::Content { path: path.into(), reason: reason.into() }
}

/// Makes an error of a file or directory that cannot be read.
fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let cannot = files::Error::cannot("read", path);
    |cause| Error::File(cannot(cause))
}

fn first(refused: &[Refused]) -> String {
    let named: Vec<String> = refused.iter().take(NAMED).map(ToString::to_string).collect();
    named.join("; ")
}

/// An image file that is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct Refused {
    /// The file, relative to the directory of the data set.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What is known of a data set without its images; kept with weights, exported with networks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// The name that studies know the data set by.
    pub name: String,
    /// Names of the classes, in the order of labels; empty where images have no classes.
    pub classes: Vec<String>,
    /// Channels, height and width of an image.
    pub shape: [i64; 3],
    /// Mean of each channel over the training images, the range of a byte being 0 to 1.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, likewise; 1 for a channel of a single value.
    pub std: Vec<f64>,
    /// SHA-256, in hexadecimal, over the training images as they are after decoding, their labels and the names of the classes.
    pub digest: String,
}

/// Labelled images on one device.
#[derive(Debug)]
pub struct Images {
    /// Raw pixels: uint8 `[N, channels, height, width]`, channels red, green, blue or only grey. Never written to: they may be a
    /// file that is mapped into memory.
    pub pixels: Tensor,
    /// Class of each image: int64 `[N]`.
    pub labels: Tensor,
}

impl Images {
    /// Returns the number of images.
    pub fn len(&self) -> i64 {
        self.pixels.size()[0]
    }

    /// Tells whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the images to `device`; on the CPU already, they are shared.
    pub fn to_device(&self, device: Device) -> Images {
        self.map(|tensor| tensor.to_device(device))
    }

    /// Returns `length` images from `start` on, in their order and without copying.
    pub fn narrow(&self, start: i64, length: i64) -> Images {
        self.map(|tensor| tensor.narrow(0, start, length))
    }

    /// Returns every second image from `first` (0 or 1) on, without copying: one half of each class where images lie in the order
    /// of classes.
    pub fn every_other(&self, first: i64) -> Images {
        self.map(|tensor| tensor.slice(0, first, None::<i64>, 2))
    }

    /// Copies the images at `indices`, in that order. Panics if an index is not below the number of images: a GPU would abort,
    /// and lose every later call with it.
    pub fn select(&self, indices: &[i64]) -> Images {
        let examples = self.len();
        let outside = indices.iter().find(|index| !(0..examples).contains(*index));
        assert!(outside.is_none(), "image {outside:?} does not exist: there are {examples}");
        let indices = to_device(&Tensor::from_slice(indices), self.labels.device());
        self.map(|tensor| tensor.index_select(0, &indices))
    }

    fn map(&self, change: impl Fn(&Tensor) -> Tensor) -> Images {
        Images { pixels: change(&self.pixels), labels: change(&self.labels) }
    }

    /// Calls `visit` with the bytes of each image, in their order.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&[u8])) {
        let image: i64 = self.pixels.size()[1..].iter().product();
        for start in (0..self.len()).step_by(TOGETHER as usize) {
            let some = self.pixels.narrow(0, start, TOGETHER.min(self.len() - start));
            let bytes = Vec::<u8>::try_from(some.reshape([-1])).expect("pixels are bytes");
            bytes.chunks_exact(image as usize).for_each(&mut visit);
        }
    }

    /// Scales to `side` by `side` pixels, bilinearly and with antialiasing.
    fn scale(self, side: i64) -> Images {
        let (count, channels, height, width) = self.pixels.size4().expect("[N, C, H, W]");
        if (height, width) == (side, side) {
            return self;
        }
        let pixels = Tensor::empty([count, channels, side, side], (Kind::Uint8, Device::Cpu));
        for start in (0..count).step_by(TOGETHER as usize) {
            let length = TOGETHER.min(count - start);
            let some = self.pixels.narrow(0, start, length).to_kind(Kind::Float);
            let some = some.internal_upsample_bilinear2d_aa([side, side], false, None, None);
            pixels.narrow(0, start, length).copy_(&some.round().clamp(0., 255.));
        }
        Images { pixels, labels: self.labels }
    }
}

/// A data set, on the CPU until it is moved.
#[derive(Debug)]
pub struct DataSet {
    /// What is known of it without its images.
    pub info: Info,
    /// The images for searches and for retraining.
    pub train: Images,
    /// The images for tests, which no search sees.
    pub test: Images,
    /// The image files that are left out.
    pub refused: Vec<Refused>,
}

impl DataSet {
    /// Returns a data set without images, for a task that needs none.
    pub fn empty() -> DataSet {
        let none = || {
            let of = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
            Images { pixels: of(&[0, 0, 0, 0], Kind::Uint8), labels: of(&[0], Kind::Int64) }
        };
        DataSet { info: Info::default(), train: none(), test: none(), refused: Vec::new() }
    }

    /// Puts together a data set whose images are all in memory. `mean` and `std` are taken from the training images where
    /// `normalisation` is none.
    fn of(
        name: &str,
        classes: Vec<String>,
        train: Images,
        test: Images,
        normalisation: Option<(&[f64], &[f64])>,
    ) -> DataSet {
        let size = train.pixels.size();
        let mut statistics = Statistics::new([size[1], size[2], size[3]]);
        train.for_each(|image| statistics.add(image));
        let labels = Vec::<i64>::try_from(&train.labels).expect("labels are int64");
        let mut info = statistics.info(name, classes, &labels);
        if let Some((mean, std)) = normalisation {
            (info.mean, info.std) = (mean.to_vec(), std.to_vec());
        }
        DataSet { info, train, test, refused: Vec::new() }
    }
}

/// Gathers what [`Info`] has from one training image after another.
struct Statistics {
    shape: [i64; 3],
    /// Sum of the bytes, and of their squares, for each channel.
    sums: Vec<(u64, u64)>,
    images: u64,
    hasher: Sha256,
}

impl Statistics {
    fn new(shape: [i64; 3]) -> Statistics {
        let sums = vec![(0, 0); shape[0] as usize];
        Statistics { shape, sums, images: 0, hasher: Sha256::new() }
    }

    fn add(&mut self, image: &[u8]) {
        self.hasher.update(image);
        self.images += 1;
        let plane = image.len() / self.sums.len();
        for ((sum, squares), plane) in self.sums.iter_mut().zip(image.chunks_exact(plane)) {
            *sum += plane.iter().map(|&byte| u64::from(byte)).sum::<u64>();
            *squares += plane.iter().map(|&byte| u64::from(byte).pow(2)).sum::<u64>();
        }
    }

    fn info(mut self, name: &str, classes: Vec<String>, labels: &[i64]) -> Info {
        labels.iter().for_each(|label| self.hasher.update(label.to_le_bytes()));
        self.hasher.update(serde_json::json!([self.shape, classes]).to_string());
        let pixels = (self.images * (self.shape[1] * self.shape[2]) as u64) as f64;
        let mean = |sum: u64| sum as f64 / pixels / 255.0;
        let std = |&(sum, squares): &(u64, u64)| {
            let variance = squares as f64 / pixels / (255.0 * 255.0) - mean(sum).powi(2);
            // A channel of one value would otherwise be divided by 0; rounding leaves about 1e-16 of it.
            if variance < 1e-12 { 1.0 } else { variance.sqrt() }
        };
        Info {
            name: name.into(),
            classes,
            shape: self.shape,
            mean: self.sums.iter().map(|&(sum, _)| mean(sum)).collect(),
            std: self.sums.iter().map(std).collect(),
            digest: HEXLOWER.encode(&self.hasher.finalize()),
        }
    }
}

/// Which data set a task wants, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The name of the data set.
    pub name: String,
    /// Height and width in pixels; none for the native size, which is 64 for image files in folders.
    pub image_size: Option<i64>,
    /// Whether the classes matter. If not, image files may also lie in no folder, and where there are ten folders or more, whole
    /// folders are held out for tests.
    pub labels: bool,
}

/// How the images of a directory are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Cifar10,
    Cifar100,
    FashionMnist,
    /// Image files in folders.
    Folders,
    /// Image files in no folder.
    Flat,
}

impl Layout {
    /// Finds out by the names in `directory`, without reading a file.
    pub(crate) fn of(directory: &Path) -> Result<Layout, Error> {
        let (folders, images) = folders::entries(directory)?;
        let has = |name: &str| directory.join(name).is_file();
        let idx = |part: &str| has(&format!("{part}.gz")) || has(part);
        if has("data_batch_1.bin") || has("test_batch.bin") {
            Ok(Layout::Cifar10)
        } else if has("train.bin") || has("test.bin") {
            Ok(Layout::Cifar100)
        } else if idx("train-images-idx3-ubyte") || idx("t10k-images-idx3-ubyte") {
            Ok(Layout::FashionMnist)
        } else if has("data_batch_1") || has("batches.meta") {
            let fetch = "this is the Python version of CIFAR-10, and the binary version is needed: \
                `asng-trainer data fetch cifar10`";
            Err(content(directory, fetch))
        } else if has("train") && has("test") && has("meta") {
            let fetch = "this is the Python version of CIFAR-100, and the binary version is needed: \
                cifar-100-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html";
            Err(content(directory, fetch))
        } else if !folders.is_empty() {
            Ok(Layout::Folders)
        } else if !images.is_empty() {
            Ok(Layout::Flat)
        } else {
            let wanted = "neither data_batch_1.bin (CIFAR-10, binary version), nor train.bin (CIFAR-100, binary version), nor \
                train-images-idx3-ubyte.gz (Fashion-MNIST, packed or not), nor a folder or a .jpg, .jpeg, .png, .webp or .gif file";
            Err(content(directory, wanted))
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Cifar10 => "CIFAR-10, binary version",
            Layout::Cifar100 => "CIFAR-100, binary version",
            Layout::FashionMnist => "Fashion-MNIST, IDX files",
            Layout::Folders => "a folder for each class",
            Layout::Flat => "image files without classes",
        })
    }
}

/// Reads the data set in `directory`. For image files, also returns their names, those of the training images first; `cache` is
/// the directory that their pixels are kept in.
pub(crate) fn read(
    directory: &Path,
    request: &Request,
    cache: &Path,
) -> Result<(DataSet, Vec<String>), Error> {
    let side = request.image_size;
    if let Some(size) = side.filter(|size| !IMAGE_SIZES.contains(size)) {
        return Err(Error::ImageSize(size));
    }
    let name = &request.name;
    let in_memory = match Layout::of(directory)? {
        Layout::Cifar10 => cifar::CIFAR_10.read(name, directory, side)?,
        Layout::Cifar100 => cifar::CIFAR_100.read(name, directory, side)?,
        Layout::FashionMnist => fashion_mnist::read(name, directory, side)?,
        Layout::Folders | Layout::Flat => {
            let listing = match request.labels {
                true => folders::with_classes(directory)?,
                false => folders::without_classes(directory)?,
            };
            let side = side.unwrap_or(FOLDERS_IMAGE_SIZE);
            return cache::open(directory, name, listing, side, cache);
        }
    };
    Ok((in_memory, Vec::new()))
}

/// The data sets that this trainer has.
#[derive(Clone, Debug)]
pub struct Catalogue {
    directories: BTreeMap<String, PathBuf>,
    cache: PathBuf,
}

/// The data sets that are looked for without being named, with the command that brings them.
fn built_in() -> [(&'static str, PathBuf, &'static str); 4] {
    let cifar10 = Fetched::Cifar10.directory();
    let cifar100 = cifar10.with_file_name("cifar-100-binary");
    [
        ("cifar10", cifar10, "`asng-trainer data fetch cifar10`"),
        (
            "cifar100",
            cifar100,
            "cifar-100-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
        ),
        (
            "fashion-mnist",
            Fetched::FashionMnist.directory(),
            "`asng-trainer data fetch fashion-mnist`",
        ),
        ("photos", Fetched::Photos.directory(), "`asng-trainer data fetch photos`"),
    ]
}

impl Catalogue {
    /// Lists `cifar10`, `cifar100`, `fashion-mnist` and `photos` in their default directories, and `given` names with theirs, which
    /// come first. Decoded images are kept in the directory `cache`, made when it is needed. Errors if a name is given twice or is
    /// not `[a-z0-9._-]{1,64}`, or a given directory does not exist.
    pub fn new(given: &[(String, PathBuf)], cache: &Path) -> Result<Catalogue, Error> {
        let mut directories = BTreeMap::new();
        for (name, directory) in given {
            let refuse = |reason: &str| {
                let (name, directory) = (name.clone(), directory.clone());
                Err(Error::Argument { name, directory, reason: reason.into() })
            };
            let allowed =
                |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c);
            if !(1..=64).contains(&name.len()) || !name.bytes().all(allowed) {
                return refuse(
                    "a name has 1 to 64 of the characters a-z, 0-9, dot, underscore and hyphen",
                );
            }
            if !directory.is_dir() {
                return refuse("there is no such directory");
            }
            if directories.insert(name.clone(), directory.clone()).is_some() {
                return refuse("the name is given twice");
            }
        }
        for (name, directory, _) in built_in() {
            directories.entry(name.into()).or_insert(directory);
        }
        Ok(Catalogue { directories, cache: cache.into() })
    }

    /// Returns the names whose directory exists and looks like a data set. Nothing is decoded.
    pub fn available(&self) -> Vec<String> {
        let usable = self.directories.iter().filter(|(_, directory)| Layout::of(directory).is_ok());
        usable.map(|(name, _)| name.clone()).collect()
    }

    /// Reads a data set. Where it is not there, the error is that of [`Catalogue::find`].
    pub fn open(&self, request: &Request) -> Result<DataSet, Error> {
        Ok(read(self.find(&request.name)?, request, &self.cache)?.0)
    }

    /// Returns the directory of a data set. Where it is not there, the error names those that are, and the command that brings it.
    pub fn find(&self, name: &str) -> Result<&Path, Error> {
        if let Some(directory) = self.directories.get(name).filter(|directory| directory.is_dir()) {
            return Ok(directory);
        }
        let mut reason = match &self.available()[..] {
            [] => "this trainer has none".to_owned(),
            names => format!("this trainer has {}", names.join(", ")),
        };
        if let Some((.., source)) = built_in().iter().find(|(built_in, ..)| *built_in == name) {
            reason += &format!("; bring it with {source}");
        }
        let reason = format!("{reason}; name a directory with --images {name}=DIR");
        Err(Error::Missing { name: name.into(), reason })
    }
}

/// Copies a tensor of the CPU to `device`, if that is another, without waiting for what a GPU still has to compute.
pub(crate) fn to_device(tensor: &Tensor, device: Device) -> Tensor {
    let (non_blocking, copy) = (true, false);
    tensor.to_device_(device, tensor.kind(), non_blocking, copy)
}

/// Starts the generator for number `index` of one purpose. The ChaCha key is the seed, the name of the purpose and the index side
/// by side, so no two generators share a stream.
pub(crate) fn generator(seed: u64, purpose: &[u8; 8], index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(purpose);
    key[16..24].copy_from_slice(&index.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tch::IndexOp;

    use super::*;

    fn numbered(count: i64) -> Images {
        let labels = Tensor::arange(count, (Kind::Int64, Device::Cpu));
        Images { pixels: labels.view([-1, 1, 1, 1]).to_kind(Kind::Uint8), labels }
    }

    fn labels(images: &Images) -> Vec<i64> {
        assert_eq!(images.pixels.view(-1).to_kind(Kind::Int64), images.labels);
        Vec::try_from(&images.labels).unwrap()
    }

    #[test]
    fn parts_of_images_keep_their_labels_and_order() {
        let images = numbered(20);
        assert_eq!(labels(&images.to_device(Device::Cpu).select(&[17, 3, 3])), [17, 3, 3]);
        assert_eq!(labels(&images.narrow(4, 3)), [4, 5, 6]);
        assert_eq!(labels(&images.narrow(0, 5).every_other(0)), [0, 2, 4]);
        assert_eq!(labels(&images.narrow(0, 5).every_other(1)), [1, 3]);
        assert!(images.narrow(0, 0).is_empty() && !images.is_empty());
    }

    #[test]
    #[should_panic(expected = "image Some(20) does not exist: there are 20")]
    fn an_index_out_of_range_panics_before_a_gpu_sees_it() {
        numbered(20).select(&[0, 20]);
    }

    #[test]
    fn scaling_keeps_flat_images_flat_and_leaves_the_native_size_alone() {
        let bytes: Vec<u8> = (0..2 * 3 * 16).map(|i| (i / 16) as u8 * 40).collect();
        let pixels = Tensor::from_slice(&bytes).view([2, 3, 4, 4]);
        let images = Images { pixels: pixels.copy(), labels: Tensor::from_slice(&[0_i64, 1]) };
        let large = images.scale(9).pixels;
        assert_eq!(large.size(), [2, 3, 9, 9]);
        assert_eq!(large.i((.., .., 8, 3)), pixels.i((.., .., 0, 0)));
        let same = Images { pixels: pixels.copy(), labels: Tensor::from_slice(&[0_i64, 1]) };
        assert_eq!(same.scale(4).pixels, pixels);
    }

    #[test]
    fn mean_and_deviation_are_those_of_the_bytes_and_a_flat_channel_has_deviation_1() {
        let mut statistics = Statistics::new([2, 1, 2]);
        statistics.add(&[0, 255, 51, 51]);
        statistics.add(&[0, 255, 51, 51]);
        let info = statistics.info("x", vec!["a".into()], &[0, 0]);
        assert_eq!(info.mean, [0.5, 0.2]);
        assert_eq!(info.std, [0.5, 1.0]);
    }

    #[test]
    fn the_digest_covers_pixels_labels_classes_and_shape_and_not_the_name() {
        let digest = |shape, pixels: &[u8], labels: &[i64], class: &str| {
            let mut statistics = Statistics::new(shape);
            pixels.chunks(2).for_each(|image| statistics.add(image));
            let name = if class == "a" { "one" } else { "two" };
            statistics.info(name, vec![class.into()], labels).digest
        };
        let base = digest([1, 1, 2], &[1, 2, 3, 4], &[0, 1], "a");
        // sha256sum of the bytes 1 to 4, both labels as 8 bytes each and `[[1,1,2],["a"]]`
        assert_eq!(base, "1cd899367c3a1c605239d3c4ff9b1dd9a1914c6f53b35dd4cb1c8faefeaace5e");
        assert_eq!(digest([1, 1, 2], &[1, 2, 3, 4], &[0, 1], "a"), base);
        for other in [
            digest([1, 1, 2], &[1, 2, 3, 5], &[0, 1], "a"),
            digest([1, 1, 2], &[1, 2, 3, 4], &[1, 0], "a"),
            digest([1, 1, 2], &[1, 2, 3, 4], &[0, 1], "b"),
            digest([1, 2, 1], &[1, 2, 3, 4], &[0, 1], "a"),
        ] {
            assert_ne!(other, base);
        }
    }

    #[test]
    fn a_catalogue_refuses_bad_names_and_directories() {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path().to_owned();
        let refuse = |given: &[(&str, &Path)]| {
            let given: Vec<_> =
                given.iter().map(|(name, path)| (name.to_string(), path.to_path_buf())).collect();
            Catalogue::new(&given, &here).unwrap_err().to_string()
        };
        for name in ["", "Cats", "a b", "a/b", "katzenhäuser", &"x".repeat(65)] {
            let error = refuse(&[(name, &here)]);
            assert!(
                error.starts_with(&format!("--images {name}=")) && error.contains("1 to 64 of"),
                "{error}"
            );
        }
        assert!(refuse(&[("cats", &here), ("cats", &here)]).ends_with("the name is given twice"));
        assert!(refuse(&[("cats", &here.join("no"))]).ends_with("no: there is no such directory"));
    }

    #[test]
    fn what_is_not_there_names_what_is_and_how_to_bring_it() {
        let directory = tempfile::tempdir().unwrap();
        let images = directory.path().join("images");
        fs::create_dir_all(images.join("cats")).unwrap();
        let given = |name: &str, path: &Path| (name.to_owned(), path.to_owned());
        let given = ["cats", "cifar100", "fashion-mnist"].map(|name| given(name, &images));
        let mut catalogue = Catalogue::new(&given, directory.path()).unwrap();
        assert!(catalogue.available().starts_with(&["cats".into()]));
        catalogue.directories.retain(|name, _| name == "cats" || name == "fashion-mnist");
        let open = |catalogue: &Catalogue, name: &str, image_size| {
            let request = Request { name: name.into(), image_size, labels: true };
            catalogue.open(&request).unwrap_err()
        };
        let error = open(&catalogue, "flowers", None);
        assert!(matches!(error, Error::Missing { .. }));
        assert_eq!(
            error.to_string(),
            "no data set \"flowers\" here: this trainer has cats, fashion-mnist; name a directory with --images flowers=DIR"
        );
        catalogue.directories.insert("fashion-mnist".into(), directory.path().join("nowhere"));
        let error = open(&catalogue, "fashion-mnist", None).to_string();
        assert!(
            error.contains(
                "this trainer has cats; bring it with `asng-trainer data fetch fashion-mnist`;"
            ),
            "{error}"
        );
        for size in [15, 257, -1] {
            let error = open(&catalogue, "cats", Some(size)).to_string();
            assert_eq!(error, format!("image size {size} is not in 16..=256"));
        }
    }

    #[test]
    fn a_directory_is_known_by_the_names_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let of = |files: &[&str]| {
            let directory = tempfile::tempdir_in(&directory).unwrap();
            files.iter().for_each(|file| fs::write(directory.path().join(file), "").unwrap());
            Layout::of(directory.path()).map_err(|error| error.to_string())
        };
        assert_eq!(of(&["test_batch.bin"]), Ok(Layout::Cifar10));
        assert_eq!(of(&["train.bin", "test.bin"]), Ok(Layout::Cifar100));
        assert_eq!(of(&["train-images-idx3-ubyte"]), Ok(Layout::FashionMnist));
        assert_eq!(of(&["a.webp"]), Ok(Layout::Flat));
        let error = of(&["data_batch_1", "batches.meta"]).unwrap_err();
        assert!(
            error.ends_with("the binary version is needed: `asng-trainer data fetch cifar10`"),
            "{error}"
        );
        let error = of(&["train", "test", "meta"]).unwrap_err();
        assert!(
            error.contains("Python version of CIFAR-100") && error.contains("cifar-100-binary"),
            "{error}"
        );
        let error = of(&["notes.txt", ".a.png"]).unwrap_err();
        assert!(error.contains("data_batch_1.bin") && error.contains(".webp"), "{error}");
    }
}
