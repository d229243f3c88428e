//! Errors of data sets.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::files;

/// Heights and widths that images can be scaled to, in pixels.
pub const IMAGE_SIZES: std::ops::RangeInclusive<i64> = 16..=256;
/// The number of broken files named in an error.
const NAMED: usize = 3;

/// Data cannot be read or prepared. Causes are part of the text and not a `source()`, so that nobody prints them twice.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This trainer does not have the data set; another one may.
    #[error("no data set {name:?} here: {reason}")]
    Missing {
        /// The name asked for.
        name: String,
        /// The data sets that are there instead, and what to do.
        reason: String,
    },
    /// A name or directory of `--images` is refused.
    #[error("--images {name}={}: {reason}", directory.display())]
    Argument {
        /// The name given.
        name: String,
        /// The directory given.
        directory: PathBuf,
        /// The mistake, and what is allowed.
        reason: String,
    },
    /// A file or directory holds something else than it should.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file or directory.
        path: PathBuf,
        /// The mistake, and what to do.
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
    #[error("image size {0} must be between {min} and {max}", min = IMAGE_SIZES.start(), max = IMAGE_SIZES.end())]
    ImageSize(i64),
    /// A batch cannot be filled.
    #[error("batch size {batch_size} must be between 1 and {examples}, the number of examples")]
    BatchSize {
        /// The batch size asked for.
        batch_size: usize,
        /// The number of examples there are.
        examples: usize,
    },
}

/// Makes an error of what is wrong with a file or directory.
pub(super) fn content(path: &Path, reason: impl Into<String>) -> Error {
    Error::Content { path: path.into(), reason: reason.into() }
}

/// Makes an error of a file or directory that cannot be read.
pub(super) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let cannot = files::Error::cannot("read", path);
    |cause| Error::File(cannot(cause))
}

pub(super) fn first(refused: &[Refused]) -> String {
    let named: Vec<String> = refused.iter().take(NAMED).map(ToString::to_string).collect();
    named.join("; ")
}

/// An image file that is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct Refused {
    /// The file, relative to the directory of the data set.
    pub file: String,
    /// The reason why it is left out.
    pub reason: String,
}
