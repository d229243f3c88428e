//! A picture of what an autoencoder makes of photos.

use std::path::Path;

use anyhow::Context;
use image::{Rgb, RgbImage, imageops};
use tch::{Kind, Tensor};

/// White between two images, in pixels.
const GAP: u32 = 2;

/// Writes a row for each image of the batches `columns`, all `[N, channels, height, width]` from 0 to 1, as a PNG or JPEG
/// file.
pub(super) fn write(file: &Path, columns: &[Tensor]) -> anyhow::Result<()> {
    let (rows, channels, height, width) = columns[0].size4()?;
    let (height, width) = (height as u32, width as u32);
    let mut sheet = RgbImage::from_pixel(
        columns.len() as u32 * (width + GAP) - GAP,
        rows as u32 * (height + GAP) - GAP,
        Rgb([255; 3]),
    );
    for (x, column) in (0..).zip(columns) {
        let pixels = column
            .f_clamp(0.0, 1.0)?
            .f_mul_scalar(255.0)?
            .f_round()?
            .f_expand([rows, 3.max(channels), height.into(), width.into()], false)?
            .f_permute([0, 2, 3, 1])?
            .f_to_kind(Kind::Uint8)?
            .f_contiguous()?
            .f_flatten(0, -1)?;
        let pixels = Vec::<u8>::try_from(pixels)?;
        for (y, pixels) in (0..).zip(pixels.chunks_exact(3 * (height * width) as usize)) {
            let image = RgbImage::from_raw(width, height, pixels.to_vec());
            let image = image.context("an image for a sheet has other pixels than its size")?;
            let (x, y) = (x * (width + GAP), y * (height + GAP));
            imageops::replace(&mut sheet, &image, x.into(), y.into());
        }
    }
    sheet.save(file).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_images_and_grey_is_grey() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sheet.png");
        let ramp = Tensor::from_slice(&[0.0_f32, 1.0, 2.0, 0.5, -1.0, 0.0]).view([3, 1, 1, 2]);
        let other = 1.0 - &ramp;
        write(&file, &[ramp, other]).unwrap();
        let sheet = image::open(file).unwrap().into_rgb8();
        assert_eq!(sheet.dimensions(), (6, 7));
        let row = |y| [0, 1, 4, 5].map(|x| sheet.get_pixel(x, y).0[0]);
        assert_eq!([row(0), row(3)], [[0, 255, 255, 0], [255, 128, 0, 128]]);
        assert_eq!(sheet.get_pixel(1, 3).0, [128; 3]);
        assert_eq!(sheet.get_pixel(2, 0).0, [255; 3]);
    }
}
