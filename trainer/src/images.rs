//! The trainer's data sets: images as bytes, the order they are visited in, and the augmentation of whole batches.
//!
//! * [`catalogue`] has the data sets of a trainer by their names; [`data_set`] is what they are read into;
//! * [`cifar`] and `fashion_mnist` read the files that these data sets are published as; `folders` lists a user's own image
//!   files, `decode` turns one of them into pixels, and `cache` keeps the pixels of all in one file mapped into memory;
//! * [`batches`] decides which examples batch number i holds, [`augment`] draws the crop, flip and cutout of its images, and
//!   [`preprocess`] applies these draws to a whole batch and normalises it.
//!
//! All randomness is drawn on the CPU from (seed, number): a batch is the same on every device, and a run continues exactly from
//! one saved number. Nothing here knows architectures or networks.

pub mod augment;
pub mod batches;
mod cache;
pub mod catalogue;
pub mod cifar;
pub mod data_set;
mod decode;
mod error;
mod fashion_mnist;
mod folders;
pub mod preprocess;

pub use self::{
    augment::Augment,
    batches::Batches,
    catalogue::{Catalogue, Request},
    data_set::{DataSet, Images, Info},
    error::{Error, IMAGE_SIZES, Refused},
    preprocess::Preprocess,
};
pub(crate) use self::{
    batches::generator,
    catalogue::{Layout, read},
    data_set::to_device,
};
