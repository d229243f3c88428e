//! From an image file to a square of red, green and blue bytes. Files are not trusted: whatever one holds, decoding it gives pixels
//! or the reason why not, in bounded memory.

use std::{
    fs,
    io::Cursor,
    panic::{self, AssertUnwindSafe},
    path::Path,
};

use image::{
    DynamicImage, ImageDecoder, ImageReader, ImageResult, Limits, RgbImage, imageops::FilterType,
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
    // Damaged metadata does not make the pixels unusable.
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
    // As a `DynamicImage`: this is compiled within the optimised crate also in a debug build.
    Ok(DynamicImage::from(rgb).resize_exact(side, side, FilterType::Triangle).into_rgb8())
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

#[cfg(test)]
mod tests {
    use std::io;

    use image::{
        Delay, Frame, ImageBuffer, Luma, LumaA, Rgb, Rgba, RgbaImage, codecs::gif::GifEncoder,
    };
    use jpeg_encoder::{ColorType, Encoder};
    use proptest::{collection, prelude::*};

    use super::*;

    const SIDE: u32 = 16;
    const TRANSPARENT: Rgba<u8> = Rgba([9, 8, 7, 0]);

    fn flat(width: u32, height: u32, colour: [u8; 3]) -> RgbImage {
        ImageBuffer::from_pixel(width, height, Rgb(colour))
    }

    /// Writes a file with `write` and decodes it.
    fn decoded(name: &str, write: impl FnOnce(&Path)) -> Result<RgbImage, String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(name);
        write(&file);
        let planes = decode(&file, SIDE)?;
        let plane = (SIDE * SIDE) as usize;
        assert_eq!(planes.len(), 3 * plane);
        let pixel =
            |x, y| [0, 1, 2].map(|channel| planes[channel * plane + (y * SIDE + x) as usize]);
        Ok(RgbImage::from_fn(SIDE, SIDE, |x, y| Rgb(pixel(x, y))))
    }

    fn bytes(name: &str, image: &RgbImage) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(name);
        image.save(&file).unwrap();
        fs::read(file).unwrap()
    }

    fn assert_close(pixel: &Rgb<u8>, expected: [u8; 3]) {
        let close = pixel.0.iter().zip(expected).all(|(found, wanted)| found.abs_diff(wanted) < 12);
        assert!(close, "{pixel:?} is not {expected:?}");
    }

    #[test]
    fn the_middle_square_is_taken() {
        let third = |x: u32| if (16..32).contains(&x) { 200 } else { 0 };
        let wide = RgbImage::from_fn(48, 16, |x, y| Rgb([third(x), y as u8, 7]));
        let found = decoded("wide.png", |file| wide.save(file).unwrap()).unwrap();
        assert_eq!(found, RgbImage::from_fn(16, 16, |_, y| Rgb([200, y as u8, 7])));
    }

    #[test]
    fn a_single_pixel_and_a_thin_strip_are_scaled_as_any_other() {
        let found = decoded("1x1.png", |file| flat(1, 1, [1, 2, 3]).save(file).unwrap()).unwrap();
        assert_eq!(found, flat(16, 16, [1, 2, 3]));
        let middle = |x: u32| if (1490..1510).contains(&x) { 90 } else { 0 };
        let strip = RgbImage::from_fn(3000, 20, |x, _| Rgb([middle(x); 3]));
        let found = decoded("strip.png", |file| strip.save(file).unwrap()).unwrap();
        assert_eq!(found, flat(16, 16, [90; 3]));
    }

    #[test]
    fn every_kind_of_png_pixel_becomes_rgb() {
        let save =
            |image: DynamicImage| decoded("x.png", |file| image.save(file).unwrap()).unwrap();
        let grey = save(ImageBuffer::from_pixel(9, 16, Luma([5_u8])).into());
        assert_eq!(grey, flat(16, 16, [5; 3]));
        let deep = save(ImageBuffer::from_pixel(16, 16, Rgb([0x0300_u16, 0, 0xffff])).into());
        assert_eq!(deep, flat(16, 16, [3, 0, 255]));
        let deep_grey = save(ImageBuffer::from_pixel(16, 16, Luma([0x8000_u16])).into());
        assert_eq!(deep_grey, flat(16, 16, [128; 3]));
        // Transparent pixels lie over white.
        let clear = save(ImageBuffer::from_pixel(16, 16, TRANSPARENT).into());
        assert_eq!(clear, flat(16, 16, [255; 3]));
        let half = save(ImageBuffer::from_pixel(16, 16, Rgba([200_u8, 0, 100, 128])).into());
        assert_eq!(half, flat(16, 16, [227, 127, 177]));
        let grey_alpha = save(ImageBuffer::from_pixel(16, 16, LumaA([40_u8, 255])).into());
        assert_eq!(grey_alpha, flat(16, 16, [40; 3]));
    }

    #[test]
    fn a_palette_becomes_rgb() {
        // PNG specification, section 11.2: a 2 x 2 image of colour type 3 and depth 1 with the palette (orange, blue).
        let chunk = |kind: &[u8; 4], data: &[u8]| {
            let body = [kind, data].concat();
            let mut crc = flate2::Crc::new();
            crc.update(&body);
            [&(data.len() as u32).to_be_bytes(), &body[..], &crc.sum().to_be_bytes()].concat()
        };
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut packed, &[0, 0b0100_0000, 0, 0b0100_0000]).unwrap();
        let png = [
            b"\x89PNG\r\n\x1a\n".to_vec(),
            chunk(b"IHDR", &[0, 0, 0, 2, 0, 0, 0, 2, 1, 3, 0, 0, 0]),
            chunk(b"PLTE", &[250, 120, 0, 0, 0, 200]),
            chunk(b"IDAT", &packed.finish().unwrap()),
            chunk(b"IEND", &[]),
        ];
        let found = decoded("palette.png", |file| fs::write(file, png.concat()).unwrap()).unwrap();
        assert_eq!(
            (found.get_pixel(0, 8).0, found.get_pixel(15, 8).0),
            ([250, 120, 0], [0, 0, 200])
        );
    }

    #[test]
    fn cmyk_and_ycck_jpeg_become_rgb() {
        // Full magenta and yellow without cyan and black are red; the encoder stores them inverted, as Adobe's programs do.
        let ink: Vec<u8> = [0, 255, 255, 0].repeat(16 * 16);
        for colour in [ColorType::Cmyk, ColorType::CmykAsYcck] {
            let found = decoded("ink.jpg", |file| {
                Encoder::new_file(file, 100).unwrap().encode(&ink, 16, 16, colour).unwrap();
            });
            assert_close(found.unwrap().get_pixel(8, 8), [255, 0, 0]);
        }
    }

    #[test]
    fn an_image_is_turned_upright_as_exif_says() {
        let quadrant = |x: u32, y: u32| match (x < 8, y < 8) {
            (true, true) => [200, 0, 0],
            (false, true) => [0, 200, 0],
            (true, false) => [0, 0, 200],
            (false, false) => [200, 200, 200],
        };
        let jpeg = bytes("x.jpg", &RgbImage::from_fn(16, 16, |x, y| Rgb(quadrant(x, y))));
        let upright = decoded("x.jpg", |file| fs::write(file, &jpeg).unwrap()).unwrap();
        assert_close(upright.get_pixel(2, 2), [200, 0, 0]);
        // EXIF 2.3, section 4.6.4 A: at 6, the first row is the right side and the first column the top.
        let entry = [0x12, 1, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0];
        let tiff = [b"Exif\0\0II*\0\x08\0\0\0\x01\0".to_vec(), entry.to_vec(), vec![0; 4]].concat();
        let segment = [&[0xff, 0xe1], &(tiff.len() as u16 + 2).to_be_bytes()[..], &tiff].concat();
        let turned = [&jpeg[..2], &segment, &jpeg[2..]].concat();
        let turned = decoded("x.jpg", |file| fs::write(file, turned).unwrap()).unwrap();
        assert_close(turned.get_pixel(13, 2), [200, 0, 0]);
        assert_close(turned.get_pixel(13, 13), [0, 200, 0]);
        assert_close(turned.get_pixel(2, 2), [0, 0, 200]);
    }

    #[test]
    fn of_a_gif_the_first_frame_is_taken_and_webp_is_read() {
        let found = decoded("x.gif", |file| {
            let mut encoder = GifEncoder::new(fs::File::create(file).unwrap());
            for colour in [[0, 100, 200, 255], [255; 4]] {
                let frame = RgbaImage::from_pixel(20, 16, Rgba(colour));
                let delay = Delay::from_numer_denom_ms(10, 1);
                encoder.encode_frame(Frame::from_parts(frame, 0, 0, delay)).unwrap();
            }
        });
        assert_close(found.unwrap().get_pixel(8, 8), [0, 100, 200]);
        let found = decoded("x.webp", |file| flat(20, 16, [1, 2, 3]).save(file).unwrap());
        assert_eq!(found.unwrap(), flat(16, 16, [1, 2, 3]));
    }

    #[test]
    fn what_is_in_a_file_counts_and_not_its_extension() {
        let png = bytes("x.png", &flat(16, 16, [1, 2, 3]));
        let found = decoded("x.jpg", |file| fs::write(file, png).unwrap());
        assert_eq!(found.unwrap(), flat(16, 16, [1, 2, 3]));
    }

    #[test]
    fn a_truncated_or_empty_file_or_no_image_has_a_reason() {
        let noisy = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * y * 37 % 251) as u8; 3]));
        for name in ["x.jpg", "x.png", "x.gif", "x.webp"] {
            let whole = bytes(name, &noisy);
            for length in [20, whole.len() / 2, whole.len() * 9 / 10] {
                let found = decoded(name, |file| fs::write(file, &whole[..length]).unwrap());
                assert!(found.as_ref().is_err_and(|reason| !reason.is_empty()), "{name} {length}");
            }
        }
        let reason = |content: &[u8]| {
            decoded("x.jpg", |file| fs::write(file, content).unwrap()).unwrap_err()
        };
        assert_eq!(reason(b""), "empty file");
        assert!(reason(b"no image").contains("format could not be determined"));
        assert!(decoded("x.jpg", |_| ()).unwrap_err().contains("No such file"));
    }

    #[test]
    fn what_takes_too_much_memory_is_refused_before_it_is_decoded() {
        // The header of a PNG of 60,000 x 60,000 pixels
        let mut png = bytes("x.png", &flat(16, 16, [0; 3]));
        png[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
        let mut crc = flate2::Crc::new();
        crc.update(&png[12..29]);
        png[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        let reason = decoded("x.png", |file| fs::write(file, png).unwrap()).unwrap_err();
        assert_eq!(reason, "more than 512 MiB when decoded");
        let huge = decoded("x.jpg", |file| {
            fs::File::create(file).unwrap().set_len(LARGEST_FILE + 1).unwrap();
        });
        assert_eq!(huge.unwrap_err(), "not a regular file of at most 256 MiB");
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(
            format in 0_usize..4,
            changes in collection::vec((any::<usize>(), any::<u8>()), 1..8),
            length in 0_usize..2000,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let noisy = RgbImage::from_fn(20, 16, |x, y| Rgb([(x * y * 37 % 251) as u8; 3]));
            let mut content = bytes(["x.jpg", "x.png", "x.gif", "x.webp"][format], &noisy);
            for (place, byte) in changes {
                let place = place % content.len();
                content[place] = byte;
            }
            content.truncate(length);
            let file = directory.path().join("x.jpg");
            fs::write(&file, &content).unwrap();
            if let Err(reason) = decode(&file, 8) {
                prop_assert!(!reason.is_empty());
            }
        }
    }
}
