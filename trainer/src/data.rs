//! Where minibatches come from: images that stay on the device, the order they are visited in, and
//! what is done to their pixels.
//!
//! * [`cifar10`] reads the files of CIFAR-10 and cuts the training set in the halves of a search;
//!   [`fashion_mnist`] reads Fashion-MNIST, [`photos`] folders of JPEG and PNG files; all of them
//!   give [`images`];
//! * [`batches`] says which examples batch number i holds;
//! * [`augment`] draws the crop, flip and cutout of every image of batch number i;
//! * [`preprocess`] applies these draws to a whole batch and normalises it;
//! * [`mask`] draws what an autoencoder does not see of batch number i.
//!
//! There are no loader processes: CIFAR-10 is 184 MB as bytes, which any GPU can keep. All
//! randomness is drawn on the CPU from (seed, number), so a batch is the same on every device and a
//! run continues exactly from one saved number. Nothing here knows architectures or networks.

use std::path::PathBuf;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, TchError, Tensor};

pub mod augment;
pub mod batches;
pub mod cifar10;
pub mod fashion_mnist;
pub mod images;
pub mod mask;
pub mod photos;
pub mod preprocess;

pub use augment::Augment;
pub use batches::Batches;
pub use cifar10::Cifar10;
pub use fashion_mnist::FashionMnist;
pub use images::Images;
pub use photos::Photos;
pub use preprocess::Preprocess;

/// Says why data could not be read or prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data set's directory is not there.
    #[error("no CIFAR-10 in {}: there is no such directory; fetch it with `asng-trainer data fetch cifar10`, or name \
        yours with --data", .0.display())]
    MissingDirectory(PathBuf),
    /// The directory of photos is not there.
    #[error("no photos in {}: there is no such directory; fetch some with `asng-trainer data fetch photos`, or name \
        yours with --photos", .0.display())]
    MissingPhotos(PathBuf),
    /// A file could not be read; one that is missing counts as such.
    #[error("{}: {cause}; `asng-trainer data fetch cifar10` fetches what is missing", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// A file ends too early.
    #[error("{}: truncated in record {record} (file has {bytes} bytes, expected {expected}); \
        `asng-trainer data fetch cifar10` fetches it again", file.display())]
    Truncated {
        /// The file.
        file: PathBuf,
        /// The first record that is not whole, counted from 0.
        record: usize,
        /// The size of the file.
        bytes: usize,
        /// The size it should have.
        expected: usize,
    },
    /// A file holds more than it should.
    #[error("{}: too long (file has {bytes} bytes, expected {expected}); \
        `asng-trainer data fetch cifar10` fetches it again", file.display())]
    TooLong {
        /// The file.
        file: PathBuf,
        /// The size of the file.
        bytes: usize,
        /// The size it should have.
        expected: usize,
    },
    /// A label names no class.
    #[error("{}: record {record}: label {label} is not in 0..=9; \
        `asng-trainer data fetch` brings good files", file.display())]
    Label {
        /// The file.
        file: PathBuf,
        /// The record, counted from 0.
        record: usize,
        /// The label found.
        label: u8,
    },
    /// A file or directory that a person named cannot be read.
    #[error("{}: {cause}", path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system or the decompressor said.
        cause: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{}: {reason}; `asng-trainer data fetch fashion-mnist` brings a good one", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Photos are asked for at a size of 0.
    #[error("photos cannot be 0 pixels high and wide")]
    NoSize,
    /// A directory of photos has none.
    #[error("{}: no .jpg, .jpeg or .png file in it or in its folders; `asng-trainer data fetch photos` \
        brings some", .0.display())]
    NoPhotos(PathBuf),
    /// Too many photos cannot be used.
    #[error("{} of {files} photos cannot be used; the first: {}", refused.len(), photos::first(refused))]
    BadPhotos {
        /// Which of them, and why.
        refused: Vec<photos::Refused>,
        /// How many there are.
        files: usize,
    },
    /// Nothing in a directory is known.
    #[error(
        "{}: neither data_batch_1.bin (CIFAR-10, binary version), nor train-images-idx3-ubyte.gz (Fashion-MNIST, \
         packed or not), nor a .jpg, .jpeg or .png file in it or in its folders", .0.display()
    )]
    NoDataSet(PathBuf),
    /// A batch cannot be filled.
    #[error("batch size {batch_size} is not in 1..={examples}, the number of examples")]
    BatchSize {
        /// The batch size asked for.
        batch_size: usize,
        /// The number of examples there are.
        examples: usize,
    },
    /// An index names no example.
    #[error("example {index} does not exist: there are {examples}")]
    Index {
        /// The index, counted from 0.
        index: i64,
        /// The number of examples there are.
        examples: i64,
    },
    /// libtorch refused, for want of memory for instance.
    #[error(transparent)]
    Tensor(#[from] tch::TchError),
}

/// Copies a tensor of the CPU to `device`, if that is another, without waiting for what a GPU still
/// has to compute.
fn to_device(tensor: &Tensor, device: Device) -> Result<Tensor, TchError> {
    let (non_blocking, copy) = (true, false);
    tensor.f_to_device_(device, tensor.kind(), non_blocking, copy)
}

/// Starts the generator for number `index` of one purpose. The ChaCha key is the seed, the name of
/// the purpose and the index side by side, so no two generators share a stream.
pub(crate) fn generator(seed: u64, purpose: &[u8; 8], index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(purpose);
    key[16..24].copy_from_slice(&index.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}
