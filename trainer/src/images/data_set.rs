//! Labelled images and what is known of them.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::error::Refused;

/// The number of images that are copied or hashed together, which bounds the memory for it.
const TOGETHER: i64 = 1024;

/// Facts about a data set without its images; kept with weights, exported with networks.
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

    /// Returns every `step`-th image from `first` (below `step`) on, without copying: an equal part of each class where images lie
    /// in the order of classes.
    pub fn every(&self, first: i64, step: i64) -> Images {
        self.map(|tensor| tensor.slice(0, first, None::<i64>, step))
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
    pub(super) fn scale(self, side: i64) -> Images {
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
    /// Facts about it without its images.
    pub info: Info,
    /// The images for searches and for retraining.
    pub train: Images,
    /// The images for tests, which no search sees.
    pub test: Images,
    /// The image files that are left out.
    pub refused: Vec<Refused>,
    /// True if images lie in the order of their files, and so of their classes, rather than in a random one.
    pub sorted: bool,
}

impl DataSet {
    /// Returns the half of the training images that trains the weights of a search, and the half that ranks architectures. Of
    /// images in a random order they are the first and the last half, as the authors' (`n_valid_data = 25000`); of sorted ones
    /// every other image, so that each class is in both halves.
    pub fn search_halves(&self) -> [Images; 2] {
        let half = self.train.len() / 2;
        match self.sorted {
            true => [0, 1].map(|first| self.train.every(first, 2)),
            false => [0, half].map(|start| self.train.narrow(start, half)),
        }
    }

    /// Returns a data set without images, for a task that needs none.
    pub fn empty() -> DataSet {
        let none = || {
            let of = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
            Images { pixels: of(&[0, 0, 0, 0], Kind::Uint8), labels: of(&[0], Kind::Int64) }
        };
        let (info, refused, sorted) = (Info::default(), Vec::new(), false);
        DataSet { info, train: none(), test: none(), refused, sorted }
    }

    /// Puts together a data set whose images are all in memory. `mean` and `std` are taken from the training images where
    /// `normalisation` is none.
    pub(super) fn of(
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
        DataSet { info, train, test, refused: Vec::new(), sorted: false }
    }
}

/// Gathers what [`Info`] has from one training image after another.
pub(super) struct Statistics {
    shape: [i64; 3],
    /// Sum of the bytes, and of their squares, for each channel.
    sums: Vec<(u64, u64)>,
    images: u64,
    hasher: Sha256,
}

impl Statistics {
    pub(super) fn new(shape: [i64; 3]) -> Statistics {
        let sums = vec![(0, 0); shape[0] as usize];
        Statistics { shape, sums, images: 0, hasher: Sha256::new() }
    }

    pub(super) fn add(&mut self, image: &[u8]) {
        self.hasher.update(image);
        self.images += 1;
        let plane = image.len() / self.sums.len();
        for ((sum, squares), plane) in self.sums.iter_mut().zip(image.chunks_exact(plane)) {
            *sum += plane.iter().map(|&byte| u64::from(byte)).sum::<u64>();
            *squares += plane.iter().map(|&byte| u64::from(byte).pow(2)).sum::<u64>();
        }
    }

    pub(super) fn info(mut self, name: &str, classes: Vec<String>, labels: &[i64]) -> Info {
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

/// Copies a tensor of the CPU to `device`, if that is another, without waiting for what a GPU still has to compute.
pub(crate) fn to_device(tensor: &Tensor, device: Device) -> Tensor {
    let (non_blocking, copy) = (true, false);
    tensor.to_device_(device, tensor.kind(), non_blocking, copy)
}

#[cfg(test)]
mod tests {
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
        assert_eq!(labels(&images.narrow(0, 5).every(0, 2)), [0, 2, 4]);
        assert_eq!(labels(&images.narrow(0, 5).every(1, 2)), [1, 3]);
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
}
