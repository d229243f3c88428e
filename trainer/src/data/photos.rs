//! Photos from a directory of JPEG and PNG files: all in one place, as CelebA comes, or in a folder
//! for each class. Each is cut to its middle square, which is then scaled to one size: a photo of
//! CelebA, 178 x 218 pixels, loses 20 rows above and below.
//!
//! A tenth is held out for tests, and no search sees it. Which photos these are follows from names
//! alone, so that it is the same on every machine and whatever else is drawn: in ten folders or
//! more, whole folders, since what lies in a folder often shows the same; otherwise single files.
//! Those are taken whose names have the smallest SHA-256.
//!
//! All are kept as bytes: CelebA's 202,599 at 64 x 64 pixels are 2.5 GB.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io::Cursor;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::{fs, io, panic, thread};

use image::imageops::FilterType;
use image::{ImageFormat, ImageReader};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use super::{Error, Images};

/// So many files may be bad, and up to one in a hundred.
const TOLERATED: usize = 10;
/// So many bad files are named in an error.
const NAMED: usize = 3;
/// One photo, or folder, in so many is held out for tests.
const ONE_IN: usize = 10;
/// From so many folders on, whole folders are held out.
const FOLDERS_TO_HOLD_OUT: usize = 10;

/// The photos of a directory, on the CPU: uint8 `[N, 3, side, side]`, in the order of folders and
/// names. A label is a folder's place among the folders, and 0 for files that are in none.
#[derive(Debug)]
pub struct Photos {
    /// Those for searches and for retraining.
    pub train: Images,
    /// Those held out: a tenth of the folders if there are ten or more, else a tenth of the files,
    /// rounded up.
    pub test: Images,
    /// The names of the folders, in the order of labels; none if all files are in none.
    pub folders: Vec<String>,
    /// The files that are left out.
    pub refused: Vec<Refused>,
}

/// A file that is no photo.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct Refused {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// Names the first of many.
pub(super) fn first(refused: &[Refused]) -> String {
    let names: Vec<String> = refused.iter().take(NAMED).map(ToString::to_string).collect();
    names.join(", ")
}

impl Photos {
    /// Reads all .jpg, .jpeg and .png files of `directory` and of its folders, and makes them
    /// `side` pixels high and wide. Files that cannot be used are left out and counted; if they are
    /// more than 10 and more than one in a hundred, or all, it is an error that names the first.
    pub fn load(directory: &Path, side: u16) -> Result<Self, Error> {
        if side == 0 {
            return Err(Error::NoSize);
        }
        let (folders, mut files) = Self::find(directory)?;
        hold_out(directory, &mut files);
        Self::read(folders, files, side)
    }

    /// Lists the folders and files of `directory` without reading them; errors if there is no file that may be a photo.
    pub(crate) fn find(directory: &Path) -> Result<(Vec<String>, Vec<Listed>), Error> {
        if !directory.exists() {
            return Err(Error::MissingPhotos(directory.to_owned()));
        }
        let listed = list(directory)?;
        if listed.1.is_empty() {
            return Err(Error::NoPhotos(directory.to_owned()));
        }
        Ok(listed)
    }

    fn read(folders: Vec<String>, files: Vec<Listed>, side: u16) -> Result<Self, Error> {
        let bytes = 3 * usize::from(side) * usize::from(side);
        let mut pixels = vec![0; files.len() * bytes];
        let reasons = decode_all(&files, side, &mut pixels);

        let mut refused = Vec::new();
        let mut labels = Vec::with_capacity(files.len());
        let mut train = 0;
        let total = files.len();
        for (index, (listed, reason)) in files.into_iter().zip(reasons).enumerate() {
            match reason {
                Some(reason) => refused.push(Refused { file: listed.file, reason }),
                None => {
                    pixels.copy_within(index * bytes..(index + 1) * bytes, labels.len() * bytes);
                    labels.push(listed.label);
                    train += i64::from(!listed.test);
                }
            }
        }
        refused.sort_by(|a: &Refused, b| a.file.cmp(&b.file));
        let too_many = refused.len() > TOLERATED && refused.len() * 100 > total;
        if too_many || labels.is_empty() {
            return Err(Error::BadPhotos { refused, files: total });
        }
        pixels.truncate(labels.len() * bytes);
        let shape = [labels.len() as i64, 3, side.into(), side.into()];
        let pixels = Tensor::f_from_data_size(&pixels, &shape, Kind::Uint8)?;
        let all = Images { pixels, labels: Tensor::f_from_slice(&labels)? };
        let test = all.narrow(train, all.len() - train)?;
        Ok(Self { train: all.narrow(0, train)?, test, folders, refused })
    }

    /// Cuts `train` for a search: every other photo trains the weights, the others rank the
    /// architectures, so that every folder is in both halves. Both share the photos' memory.
    pub fn search_halves(&self) -> Result<(Images, Images), Error> {
        let every_other = |first: i64| {
            Ok::<_, Error>(Images {
                pixels: self.train.pixels.f_slice(0, first, None::<i64>, 2)?,
                labels: self.train.labels.f_slice(0, first, None::<i64>, 2)?,
            })
        };
        Ok((every_other(0)?, every_other(1)?))
    }
}

/// A file that may be a photo.
pub(crate) struct Listed {
    file: PathBuf,
    label: i64,
    test: bool,
}

/// The folders of a directory, and its files, then those of its folders, each in the order of their names.
fn list(directory: &Path) -> Result<(Vec<String>, Vec<Listed>), Error> {
    let (mut folders, files) = entries(directory)?;
    let list = |files: Vec<PathBuf>, label| {
        files.into_iter().map(move |file| Listed { file, label, test: false })
    };
    let mut listed: Vec<Listed> = list(files, 0).collect();
    folders.sort();
    for (folder, label) in folders.iter().zip(0..) {
        let (_, files) = entries(folder)?;
        listed.extend(list(files, label));
    }
    let name = |folder: &PathBuf| folder.file_name().unwrap_or_default().display().to_string();
    Ok((folders.iter().map(name).collect(), listed))
}

/// Marks those of the files of `directory` that are held out, and puts them after all others.
fn hold_out(directory: &Path, files: &mut [Listed]) {
    let parents: HashSet<_> = files.iter().map(|listed| listed.file.parent()).collect();
    let by_folder = parents.len() >= FOLDERS_TO_HOLD_OUT && !parents.contains(&Some(directory));
    let digest = |listed: &Listed| {
        let name = listed.file.strip_prefix(directory).unwrap_or(&listed.file);
        let unit = if by_folder { name.parent().unwrap_or(name) } else { name };
        Sha256::digest(unit.as_os_str().as_encoded_bytes())
    };
    let digests: BTreeSet<_> = files.iter().map(digest).collect();
    let last = digests.iter().nth(digests.len().div_ceil(ONE_IN) - 1);
    for listed in files.iter_mut() {
        listed.test = Some(&digest(listed)) <= last;
    }
    files.sort_by_key(|listed| listed.test);
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
    read().map_err(|cause| Error::Unreadable { path: directory.to_owned(), cause })
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
    use proptest::collection;
    use proptest::prelude::*;
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

    /// Reads all files, none of them held out.
    fn read(directory: &TempDir, side: u16) -> Result<Photos, Error> {
        let (folders, files) = list(directory.path())?;
        Photos::read(folders, files, side)
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
        let photos = read(&directory, 8).unwrap();
        assert_eq!(photos.refused, []);
        assert_eq!(photos.train.pixels.size(), [3, 3, 8, 8]);
        assert_eq!(photos.train.pixels.kind(), Kind::Uint8);
        assert_eq!(colour(&photos.train, 2), [0, 0, 99]);
        let [red, _, _] = colour(&photos.train, 0)[..] else { panic!() };
        let [_, green, _] = colour(&photos.train, 1)[..] else { panic!() };
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
        let photos = read(&directory, 8).unwrap();
        assert_eq!(Vec::<i64>::try_from(&photos.train.labels).unwrap(), [0, 0, 0, 1, 1, 1]);
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
        let photos = read(&directory, 16).unwrap();
        assert_eq!(photos.refused, []);
        let wide = photos.train.pixels.i(0);
        assert_eq!(f64::try_from(wide.i(0).min()).unwrap(), 200.0);
        assert_eq!(Vec::<u8>::try_from(wide.i((1, .., 0))).unwrap(), (0..16).collect::<Vec<_>>());
        let colours = [1, 2, 3, 4].map(|image| colour(&photos.train, image));
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
        let photos = read(&directory, 9).unwrap();
        let refused: Vec<_> = photos.refused.iter().map(|r| r.file.file_name().unwrap()).collect();
        assert_eq!(refused, ["1.jpg", "2.jpg", "4.jpg", "5.png"], "{photos:?}");
        assert!(photos.refused.iter().all(|refused| !refused.reason.is_empty()));
        assert_eq!(photos.train.len(), 2);
        assert!(colour(&photos.train, 1)[0].abs_diff(150) < 4);
    }

    /// The names of the files held out of those named.
    fn held_out(names: impl IntoIterator<Item = String>) -> Vec<String> {
        let directory = Path::new("photos");
        let listed = |name| Listed { file: directory.join::<String>(name), label: 0, test: false };
        let mut files: Vec<Listed> = names.into_iter().map(listed).collect();
        hold_out(directory, &mut files);
        assert!(files.is_sorted_by_key(|listed| listed.test));
        let test = files.iter().filter(|listed| listed.test);
        test.map(|l| l.file.strip_prefix(directory).unwrap().display().to_string()).collect()
    }

    /// The same on every machine, and as long as there are results to compare with.
    #[test]
    fn what_is_held_out_follows_from_the_names() {
        let flat = held_out((1..=40).map(|i| format!("{i:06}.jpg")));
        assert_eq!(flat, ["000005.jpg", "000018.jpg", "000023.jpg", "000034.jpg"]);
        assert_eq!(held_out(["one.png".to_owned()]), ["one.png"]);
    }

    #[test]
    fn whole_folders_are_held_out_where_there_are_ten() {
        let names = |folders: usize| {
            (0..folders).flat_map(|folder| (0..20).map(move |i| format!("f{folder}/{i:02}.png")))
        };
        let two = |name: &String| name.starts_with("f8/") || name.starts_with("f9/");
        assert_eq!(held_out(names(12)), names(12).filter(two).collect::<Vec<_>>());
        assert_eq!(held_out(names(9)).len(), 18);
        let beside = names(12).chain(["beside.png".to_owned()]);
        assert_eq!(held_out(beside).len(), 25);
    }

    #[test]
    fn a_search_sees_no_photo_that_is_held_out() {
        let directory = tempfile::tempdir().unwrap();
        for i in 0..25 {
            save(&directory, &format!("{i:02}.png"), &flat(8, 8, [i; 3]));
        }
        let photos = Photos::load(directory.path(), 8).unwrap();
        let (weights, ranking) = photos.search_halves().unwrap();
        assert_eq!((weights.len(), ranking.len(), photos.test.len()), (11, 11, 3));
        let mut seen: Vec<u8> = [&weights, &ranking, &photos.test]
            .iter()
            .flat_map(|images| (0..images.len()).map(|i| colour(images, i)[0]))
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..25).collect::<Vec<_>>());
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
            error.contains("00.jpg: ") && error.contains("02.jpg: ") && !error.contains("03.jpg")
        );
        fs::remove_file(directory.path().join("10.jpg")).unwrap();
        assert_eq!(Photos::load(directory.path(), 8).unwrap().refused.len(), 10);
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(
            jpeg: bool,
            changes in collection::vec((any::<usize>(), any::<u8>()), 1..8),
            length in 0_usize..2000,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let noisy = RgbImage::from_fn(20, 16, |x, y| Rgb([(x * y * 37 % 251) as u8; 3]));
            save(&directory, if jpeg { "a.jpg" } else { "a.png" }, &noisy);
            let file = directory.path().join(if jpeg { "a.jpg" } else { "a.png" });
            let mut content = fs::read(&file).unwrap();
            for (place, byte) in changes {
                let place = place % content.len();
                content[place] = byte;
            }
            content.truncate(length);
            fs::write(&file, &content).unwrap();
            let mut place = [0; 3 * 8 * 8];
            if let Err(reason) = decode(&file, 8, &mut place) {
                prop_assert!(!reason.is_empty());
            }
        }
    }

    #[test]
    fn a_directory_without_photos_or_that_is_none_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let error = Photos::load(directory.path(), 8).unwrap_err().to_string();
        assert!(error.contains("no .jpg, .jpeg or .png file in it or in its folders"), "{error}");
        let error = Photos::load(&directory.path().join("nowhere"), 8).unwrap_err();
        assert!(matches!(error, Error::MissingPhotos(_)), "{error}");
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(Photos::load(&file, 8).unwrap_err(), Error::Unreadable { .. }));
        assert!(matches!(Photos::load(directory.path(), 0), Err(Error::NoSize)));
    }
}
