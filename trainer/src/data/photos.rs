//! Photos from a directory of JPEG and PNG files: all in one place, as CelebA comes, or in a folder
//! for each class. Each is cut to its middle square and brought to one size.
//!
//! All are kept as bytes: CelebA's 202,599 at 64 x 64 pixels are 2.5 GB.

use std::ffi::OsStr;
use std::io::Cursor;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::{fs, io, panic, thread};

use image::imageops::FilterType;
use image::{ImageFormat, ImageReader};
use tch::{Kind, Tensor};

use super::{Error, Images};

/// So many files may be bad, and up to one in a hundred.
const TOLERATED: usize = 10;
/// So many bad files are named in an error.
const NAMED: usize = 3;

/// The photos of a directory, on the CPU.
#[derive(Debug)]
pub struct Photos {
    /// uint8 `[N, 3, side, side]`, in the order of folders and names. The label is the folder's
    /// place among the folders, and 0 for files that are in none.
    pub images: Images,
    /// The files that are left out.
    pub refused: Vec<Refused>,
}

/// A file that is no photo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl Photos {
    /// Reads all .jpg, .jpeg and .png files of `directory` and of its folders, and makes them
    /// `side` pixels high and wide. Files that cannot be used are left out and counted; if they are
    /// more than 10 and more than one in a hundred, or all, it is an error that names the first.
    ///
    /// # Panics
    ///
    /// If `side` is 0.
    pub fn load(directory: &Path, side: u16) -> Result<Self, Error> {
        assert!(side > 0, "photos of no size");
        let files = list(directory)?;
        if files.is_empty() {
            return Err(Error::NoPhotos(directory.to_owned()));
        }
        let bytes = 3 * usize::from(side) * usize::from(side);
        let mut pixels = vec![0; files.len() * bytes];
        let reasons = decode_all(&files, side, &mut pixels);

        let mut refused = Vec::new();
        let mut labels = Vec::with_capacity(files.len());
        let total = files.len();
        for (index, (listed, reason)) in files.into_iter().zip(reasons).enumerate() {
            match reason {
                Some(reason) => refused.push(Refused { file: listed.file, reason }),
                None => {
                    pixels.copy_within(index * bytes..(index + 1) * bytes, labels.len() * bytes);
                    labels.push(listed.label);
                }
            }
        }
        let too_many = refused.len() > TOLERATED && refused.len() * 100 > total;
        if too_many || labels.is_empty() {
            let name =
                |refused: &Refused| format!("{} ({})", refused.file.display(), refused.reason);
            let first: Vec<String> = refused.iter().take(NAMED).map(name).collect();
            let (refused, files, first) = (refused.len(), total, first.join(", "));
            return Err(Error::BadPhotos { refused, files, first });
        }
        pixels.truncate(labels.len() * bytes);
        let shape = [labels.len() as i64, 3, side.into(), side.into()];
        let pixels = Tensor::f_from_data_size(&pixels, &shape, Kind::Uint8)?;
        Ok(Self { images: Images { pixels, labels: Tensor::f_from_slice(&labels)? }, refused })
    }

    /// Cuts the photos for a search: every other one trains the weights, the others rank the
    /// architectures, so that every folder is in both halves. Both share the photos' memory.
    pub fn search_halves(&self) -> Result<(Images, Images), Error> {
        let every_other = |first: i64| {
            Ok::<_, Error>(Images {
                pixels: self.images.pixels.f_slice(0, first, None::<i64>, 2)?,
                labels: self.images.labels.f_slice(0, first, None::<i64>, 2)?,
            })
        };
        Ok((every_other(0)?, every_other(1)?))
    }
}

/// A file that may be a photo.
struct Listed {
    file: PathBuf,
    label: i64,
}

/// The files of a directory, then those of its folders, each in the order of their names.
fn list(directory: &Path) -> Result<Vec<Listed>, Error> {
    let (mut folders, files) = entries(directory)?;
    let mut listed: Vec<Listed> = files.into_iter().map(|file| Listed { file, label: 0 }).collect();
    folders.sort();
    for (folder, label) in folders.iter().zip(0..) {
        let (_, files) = entries(folder)?;
        listed.extend(files.into_iter().map(|file| Listed { file, label }));
    }
    Ok(listed)
}

/// The folders of a directory and, in order, its files with the extension of a photo.
fn entries(directory: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), Error> {
    let read = || -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
        let (mut folders, mut files) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let extension = path.extension().map(OsStr::to_ascii_lowercase);
            if path.is_dir() {
                folders.push(path);
            } else if extension.is_some_and(|e| e == "jpg" || e == "jpeg" || e == "png") {
                files.push(path);
            }
        }
        files.sort();
        Ok((folders, files))
    };
    read().map_err(|source| Error::Unreadable { path: directory.to_owned(), source })
}

/// Decodes all files into their places in `pixels`, on all processors; for each, why it failed.
fn decode_all(files: &[Listed], side: u16, pixels: &mut [u8]) -> Vec<Option<String>> {
    let bytes = pixels.len() / files.len();
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = files.len().div_ceil(threads);
    let decode_share = |files: &[Listed], pixels: &mut [u8]| -> Vec<Option<String>> {
        let places = files.iter().zip(pixels.chunks_exact_mut(bytes));
        places.map(|(listed, place)| decode(&listed.file, side, place).err()).collect()
    };
    thread::scope(|scope| {
        let shares = files.chunks(share).zip(pixels.chunks_mut(share * bytes));
        let running: Vec<_> = shares
            .map(|(files, pixels)| scope.spawn(move || decode_share(files, pixels)))
            .collect();
        let joined = running.into_iter().map(thread::ScopedJoinHandle::join);
        joined
            .flat_map(|reasons| reasons.unwrap_or_else(|fault| panic::resume_unwind(fault)))
            .collect()
    })
}

/// Decodes one file to the red, the green and the blue plane.
fn decode(file: &Path, side: u16, place: &mut [u8]) -> Result<(), String> {
    let content = fs::read(file).map_err(|error| error.to_string())?;
    let reader = ImageReader::new(Cursor::new(&content)).with_guessed_format();
    let reader = reader.map_err(|error| error.to_string())?;
    let is_jpeg = reader.format() == Some(ImageFormat::Jpeg);
    let photo = reader.decode().map_err(|error| error.to_string().trim_end().to_owned())?;
    if is_jpeg && !has_an_end(&content) {
        return Err("it is cut short".to_owned());
    }
    // The square first: a photo of extreme proportions must not grow beyond all bounds.
    let (width, height) = (photo.width(), photo.height());
    let shorter = width.min(height);
    let square = photo.crop_imm((width - shorter) / 2, (height - shorter) / 2, shorter, shorter);
    let side = side.into();
    let rgb = square.resize_exact(side, side, FilterType::Triangle).into_rgb8();
    let plane = place.len() / 3;
    for (index, pixel) in rgb.pixels().enumerate() {
        for (channel, &value) in pixel.0.iter().enumerate() {
            place[channel * plane + index] = value;
        }
    }
    Ok(())
}

/// Whether the pixels of a JPEG file are followed by its end. The decoder makes grey of those that
/// are missing.
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
    use image::{ImageBuffer, Luma, Rgb, RgbImage, Rgba};
    use tch::IndexOp;
    use tempfile::TempDir;

    use super::*;

    fn flat(width: u32, height: u32, colour: [u8; 3]) -> RgbImage {
        ImageBuffer::from_pixel(width, height, Rgb(colour))
    }

    fn save(directory: &TempDir, name: &str, photo: &RgbImage) {
        let file = directory.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        photo.save(file).unwrap();
    }

    fn colour(images: &Images, image: i64) -> Vec<u8> {
        Vec::try_from(images.pixels.i((image, .., 4, 4))).unwrap()
    }

    #[test]
    fn a_flat_directory_is_read_in_the_order_of_names() {
        let directory = tempfile::tempdir().unwrap();
        save(&directory, "000002.jpg", &flat(178, 218, [0, 200, 0]));
        save(&directory, "000010.PNG", &flat(8, 8, [0, 0, 99]));
        save(&directory, "000001.jpeg", &flat(20, 9, [250, 0, 0]));
        fs::write(directory.path().join("list.txt"), "000001.jpeg 1").unwrap();
        let photos = Photos::load(directory.path(), 8).unwrap();
        assert_eq!(photos.refused, []);
        assert_eq!(photos.images.pixels.size(), [3, 3, 8, 8]);
        assert_eq!(photos.images.pixels.kind(), Kind::Uint8);
        assert_eq!(colour(&photos.images, 2), [0, 0, 99]);
        let [red, _, _] = colour(&photos.images, 0)[..] else { panic!() };
        let [_, green, _] = colour(&photos.images, 1)[..] else { panic!() };
        assert!(red.abs_diff(250) < 4 && green.abs_diff(200) < 4, "{red} {green}");
    }

    #[test]
    fn folders_are_classes_and_both_halves_of_a_search_have_some_of_each() {
        let directory = tempfile::tempdir().unwrap();
        for (number, folder) in ["cats", "dogs"].into_iter().enumerate() {
            for i in 0..3 {
                let photo = flat(8, 8, [number as u8, i, 0]);
                save(&directory, &format!("{folder}/{i}.png"), &photo);
            }
        }
        let photos = Photos::load(directory.path(), 8).unwrap();
        assert_eq!(Vec::<i64>::try_from(&photos.images.labels).unwrap(), [0, 0, 0, 1, 1, 1]);
        let (weights, ranking) = photos.search_halves().unwrap();
        assert_eq!(Vec::<i64>::try_from(&weights.labels).unwrap(), [0, 0, 1]);
        assert_eq!(Vec::<i64>::try_from(&ranking.labels).unwrap(), [0, 1, 1]);
        let batch = ranking.select(&[2, 0]).unwrap();
        assert_eq!([colour(&batch, 0), colour(&batch, 1)], [[1, 2, 0], [0, 1, 0]]);
    }

    #[test]
    fn the_middle_square_is_taken_also_of_other_kinds_of_pixels() {
        let directory = tempfile::tempdir().unwrap();
        let third = |x: u32| if (16..32).contains(&x) { 200 } else { 0 };
        let wide = RgbImage::from_fn(48, 16, |x, y| Rgb([third(x), y as u8, 7]));
        save(&directory, "a.png", &wide);
        ImageBuffer::from_pixel(9, 16, Luma([5_u8])).save(directory.path().join("b.png")).unwrap();
        let clear = ImageBuffer::from_pixel(16, 16, Rgba([9_u8, 8, 7, 0]));
        clear.save(directory.path().join("c.png")).unwrap();
        let deep = ImageBuffer::from_pixel(16, 16, Rgb([0x0300_u16, 0, 0xffff]));
        deep.save(directory.path().join("d.png")).unwrap();
        // What counts is what is in a file.
        fs::copy(directory.path().join("c.png"), directory.path().join("e.jpg")).unwrap();
        let photos = Photos::load(directory.path(), 16).unwrap();
        assert_eq!(photos.refused, []);
        let wide = photos.images.pixels.i(0);
        assert_eq!(f64::try_from(wide.i(0).min()).unwrap(), 200.0);
        assert_eq!(Vec::<u8>::try_from(wide.i((1, .., 0))).unwrap(), (0..16).collect::<Vec<_>>());
        let colours = [1, 2, 3, 4].map(|image| colour(&photos.images, image));
        assert_eq!(colours, [[5; 3], [9, 8, 7], [3, 0, 255], [9, 8, 7]]);
    }

    #[test]
    fn a_few_bad_files_are_left_out_and_named() {
        let directory = tempfile::tempdir().unwrap();
        for i in 0..4 {
            save(&directory, &format!("{i}.jpg"), &flat(9, 9, [50 * i, 0, 0]));
        }
        let whole = fs::read(directory.path().join("1.jpg")).unwrap();
        fs::write(directory.path().join("1.jpg"), &whole[..20]).unwrap();
        fs::write(directory.path().join("2.jpg"), b"").unwrap();
        let noisy = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * y * 37 % 251) as u8; 3]));
        for name in ["4.jpg", "5.png"] {
            save(&directory, name, &noisy);
            let file = directory.path().join(name);
            let whole = fs::read(&file).unwrap();
            fs::write(file, &whole[..whole.len() / 2]).unwrap();
        }
        let photos = Photos::load(directory.path(), 9).unwrap();
        let refused: Vec<_> = photos.refused.iter().map(|r| r.file.file_name().unwrap()).collect();
        assert_eq!(refused, ["1.jpg", "2.jpg", "4.jpg", "5.png"], "{photos:?}");
        assert!(photos.refused.iter().all(|refused| !refused.reason.is_empty()));
        assert_eq!(photos.images.len(), 2);
        assert!(colour(&photos.images, 1)[0].abs_diff(150) < 4);
    }

    #[test]
    fn too_many_bad_files_or_only_bad_ones_stop_it() {
        let directory = tempfile::tempdir().unwrap();
        for i in 0..11 {
            fs::write(directory.path().join(format!("{i:02}.jpg")), b"no photo").unwrap();
        }
        let error = Photos::load(directory.path(), 8).unwrap_err().to_string();
        assert!(error.starts_with("11 of 11 photos cannot be used; the first: "), "{error}");
        save(&directory, "good.png", &flat(8, 8, [0; 3]));
        let error = Photos::load(directory.path(), 8).unwrap_err().to_string();
        assert!(error.starts_with("11 of 12 photos cannot be used; the first: "), "{error}");
        assert!(
            error.contains("00.jpg (") && error.contains("02.jpg (") && !error.contains("03.jpg")
        );
        fs::remove_file(directory.path().join("10.jpg")).unwrap();
        assert_eq!(Photos::load(directory.path(), 8).unwrap().refused.len(), 10);
    }

    #[test]
    fn a_directory_without_photos_or_that_is_none_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let error = Photos::load(directory.path(), 8).unwrap_err().to_string();
        assert!(error.ends_with("no .jpg, .jpeg or .png file in it or in its folders"), "{error}");
        let error = Photos::load(&directory.path().join("nowhere"), 8).unwrap_err();
        assert!(matches!(error, Error::Unreadable { .. }), "{error}");
    }
}
