//! Images that no training has seen, on the device, and means over all of them: of what an architecture makes of them.

mod cifar10;
mod photos;

use anyhow::ensure;

pub(crate) use self::{
    cifar10::{BATCH, TestImages},
    photos::{Pictures, TestPhotos, is_fashion},
};
use crate::data::Images;

/// The first `count` images of a test set, or all of them.
fn first(images: &Images, count: Option<i64>) -> anyhow::Result<Images> {
    let count = count.unwrap_or(images.len());
    ensure!(
        (1..=images.len()).contains(&count),
        "there are {} test images; {count} of them cannot be used",
        images.len()
    );
    Ok(images.narrow(0, count)?)
}
