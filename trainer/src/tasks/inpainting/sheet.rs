//! A picture of images side by side: what a network reads, what it computes of it, what it should compute.

use std::path::Path;

use anyhow::Context;
use image::{Rgb, RgbImage, imageops};
use tch::{Kind, Tensor};

/// White between two images, in pixels.
const GAP: u32 = 2;

/// Writes a PNG or JPEG file with a row for each image of the batches `columns`, all `[rows, channels, height, width]` from 0 to 1,
/// with 1 or 3 channels. Errors if the file cannot be written, or its name does not end with a known format.
pub fn write(file: &Path, columns: &[Tensor]) -> anyhow::Result<()> {
    let (rows, _, height, width) = columns[0].size4()?;
    let (sheet_width, sheet_height) = (width as u32 + GAP, height as u32 + GAP);
    let mut sheet = RgbImage::from_pixel(
        columns.len() as u32 * sheet_width - GAP,
        rows as u32 * sheet_height - GAP,
        Rgb([255; 3]),
    );
    for (x, column) in (0..).zip(columns) {
        let pixels = (column.clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8);
        let pixels = pixels.expand([rows, 3, height, width], false).permute([0, 2, 3, 1]);
        for y in 0..rows {
            let pixels = Vec::<u8>::try_from(pixels.get(y).contiguous().flatten(0, -1))?;
            let image = RgbImage::from_raw(width as u32, height as u32, pixels);
            let image = image.context("an image for a sheet has other pixels than its size")?;
            let (x, y) = (i64::from(x * sheet_width), y * i64::from(sheet_height));
            imageops::replace(&mut sheet, &image, x, y);
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
