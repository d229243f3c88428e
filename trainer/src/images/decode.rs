//! From an image file to a square of red, green and blue bytes. Files are not trusted: whatever one holds, decoding it gives pixels
//! or the reason why not, in bounded memory.

use std::{
    fs,
    io::Cursor,
    panic::{self, AssertUnwindSafe},
    path::Path,
};

use image::{
    DynamicImage, ImageDecoder, ImageReader, ImageResult, Limits, RgbImage,
    imageops::{self, FilterType},
};

/// Size in bytes of the largest file that is read.
const LARGEST_FILE: u64 = 256 << 20;
/// Bytes that the pixels of a file may take in memory: 178 megapixels of 3 bytes.
const LARGEST_IMAGE: u64 = 512 << 20;

/// Decodes one file to its red, green and blue plane, each `side` by `side` bytes: turned upright as EXIF says, cut to the square
/// in the middle, laid over white where it is transparent, and scaled. Errors with the reason.
pub(super) fn decode(file: &Path, side: u32) -> Result<Vec<u8>, String> {
    // A named pipe would be waited for.
    let metadata = fs::metadata(file).map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.len() > LARGEST_FILE {
        return Err(format!("not a regular file of at most {} MiB", LARGEST_FILE >> 20));
    }
    let content = fs::read(file).map_err(|error| error.to_string())?;
    if content.is_empty() {
        return Err("empty file".into());
    }
    let decoded = panic::catch_unwind(AssertUnwindSafe(|| square(&content, side)));
    let rgb = decoded.map_err(|_| "the decoder panicked")?.map_err(|error| match error {
        image::ImageError::Limits(_) => {
            format!("more than {} MiB when decoded", LARGEST_IMAGE >> 20)
        }
        error => error.to_string().trim_end().replace('\n', " "),
    })?;
    if content.starts_with(&[0xff, 0xd8]) && !has_an_end(&content) {
        return Err("truncated".into());
    }
    let plane = (side * side) as usize;
    let mut planes = vec![0; 3 * plane];
    for (index, pixel) in rgb.pixels().enumerate() {
        for (channel, value) in pixel.0.into_iter().enumerate() {
            planes[channel * plane + index] = value;
        }
    }
    Ok(planes)
}

fn square(content: &[u8], side: u32) -> ImageResult<RgbImage> {
    let mut decoder = ImageReader::new(Cursor::new(content)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(LARGEST_IMAGE);
    decoder.limits(limits.clone());
    let mut decoder = decoder.into_decoder()?;
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    // What is damaged in the metadata says nothing of the pixels.
    let orientation = decoder.orientation().ok();
    let mut image = DynamicImage::from_decoder(decoder)?;
    if let Some(orientation) = orientation {
        image.apply_orientation(orientation);
    }
    // The square first: an image of extreme proportions must not grow beyond all bounds.
    let (width, height) = (image.width(), image.height());
    let shorter = width.min(height);
    let square = image.crop_imm((width - shorter) / 2, (height - shorter) / 2, shorter, shorter);
    let rgb = match square.color().has_alpha() {
        true => over_white(&square),
        false => square.into_rgb8(),
    };
    Ok(imageops::resize(&rgb, side, side, FilterType::Triangle))
}

fn over_white(image: &DynamicImage) -> RgbImage {
    let rgba = image.to_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [red, green, blue, alpha] = rgba.get_pixel(x, y).0.map(u32::from);
        let over = |value: u32| ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        image::Rgb([over(red), over(green), over(blue)])
    })
}

/// Tells whether the pixels of a JPEG file are followed by its end. The decoder makes grey of those that are missing.
fn has_an_end(jpeg: &[u8]) -> bool {
    let mut at = 2; // after the marker of the start
    while let Some(&[0xff, marker, high, low]) = jpeg.get(at..at + 4) {
        match marker {
            0xff => at += 1, // a byte that fills
            // Among coded pixels a byte 0xff is followed by 0.
            0xda => return jpeg[at..].windows(2).any(|marker| marker == [0xff, 0xd9]),
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    false
}
