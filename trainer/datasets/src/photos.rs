//! Photos for inpainting: those that two Debian packages carry, cut into patches of 64 x 64 pixels.
//!
//! A photo of many megapixels shows nothing in 64 x 64 of them. So each is scaled down, to a few sizes, and each
//! size is cut into as many patches as fit side by side, around its middle. Patches that are nearly flat, the
//! sky above all, are left out. A photo's patches are in a folder of its name: so a split by folder
//! never has one photo on both sides.
//!
//! `LICENCES` says whose each photo is, `SHA256SUMS` what is in every file (`sha256sum -c` reads it).

use std::fmt::Write;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageReader, RgbImage};

use crate::{Source, debian, fetch};

mod packages;

use packages::{PACKAGES, Photo};

pub(crate) const SOURCES: [Source; 1] =
    [Source { name: "Debian's packages of photos", bring: from_debian }];
const PACKAGE_BYTES: u64 = 62_421_684;
/// The size of all photos in the packages; only for a progress bar.
const PHOTO_BYTES: u64 = 22_842_161;
const SUMS: &str = "SHA256SUMS";

/// Height and width of a patch in pixels.
const SIDE: u32 = 64;
/// The lengths that the shorter side of a photo is scaled to.
const SCALES: [u32; 3] = [192, 320, 512];
/// A patch whose brightness, 0 to 255, has a smaller standard deviation is flat.
const FLAT: f64 = 8.0;

/// Returns true if the folder contains only files that were written here.
pub(crate) fn may_be_written_to(folder: &Path) -> Result<bool> {
    if !folder.exists() {
        return Ok(true);
    }
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()));
    Ok(folder.join(SUMS).is_file() || entries?.next().is_none())
}

/// Checks all files that are listed.
pub(crate) fn check(folder: &Path) -> Result<()> {
    let sums = folder.join(SUMS);
    let list = fs::read_to_string(&sums).with_context(|| format!("cannot read {}", sums.display()));
    let list = list?;
    ensure!(!list.is_empty(), "{} lists nothing", sums.display());
    for line in list.lines() {
        let (sha256, name) =
            line.split_once("  ").with_context(|| format!("{}: {line:?}", sums.display()))?;
        let path = folder.join(name);
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(fetch::sha256(file)? == sha256, "{} is cut short or changed", path.display());
    }
    Ok(())
}

fn from_debian(scratch: &Path, whole: &Path) -> Result<()> {
    let names = PACKAGES.map(|package| package.name);
    let root = debian::unpack(&names, PACKAGE_BYTES, scratch)?;
    let bar = fetch::bar("cutting", PHOTO_BYTES);
    let mut licences = String::from(
        "The patches in each folder are cut out of the photo of that name, scaled down.\n\
         The files copyright.* are those of the Debian packages and hold the licences.\n",
    );
    let mut sums = String::new();
    for package in &PACKAGES {
        let name = format!("copyright.{}", package.name);
        fs::copy(root.join("usr/share/doc").join(package.name).join("copyright"), whole.join(name))
            .with_context(|| format!("the package {} has no copyright file", package.name))?;
        writeln!(licences, "\nFrom Debian's {}:", package.name)?;
        for photo in package.photos {
            let file = root.join(package.folder).join(photo.file);
            let photo_bytes = cut_file(&file, photo, whole, &mut sums)
                .with_context(|| format!("cannot cut {} of {}", photo.file, package.name))?;
            bar.inc(photo_bytes);
            writeln!(licences, "{}: {}; {}", folder(photo), photo.licence, photo.copyright)?;
        }
    }
    bar.finish_and_clear();
    fs::write(whole.join("LICENCES"), licences)?;
    Ok(fs::write(whole.join(SUMS), sums)?)
}

/// The name of the photo's folder.
fn folder(photo: &Photo) -> &str {
    photo.file.trim_end_matches(".jpg")
}

/// Writes the patches of a file and their digests; returns the size of the file.
fn cut_file(file: &Path, photo: &Photo, whole: &Path, sums: &mut String) -> Result<u64> {
    let bytes = fs::read(file)?;
    ensure!(fetch::sha256(&bytes[..])? == photo.sha256, "it is another photo than it was");
    let pixels = ImageReader::new(std::io::Cursor::new(&bytes)).with_guessed_format()?.decode()?;
    let folder = folder(photo);
    fs::create_dir(whole.join(folder))?;
    for (name, patch) in cut(&pixels) {
        let name = format!("{folder}/{name}.png");
        let path = whole.join(&name);
        patch.save(&path)?;
        writeln!(sums, "{}  {name}", fetch::sha256(File::open(&path)?)?)?;
    }
    Ok(bytes.len() as u64)
}

/// The patches of a photo that are not flat, named for their scale, row and column.
fn cut(photo: &DynamicImage) -> Vec<(String, RgbImage)> {
    let mut patches = Vec::new();
    let (width, height) = (photo.width(), photo.height());
    let shorter = f64::from(width.min(height));
    for scale in SCALES {
        let scaled = |length: u32| (f64::from(length) * f64::from(scale) / shorter).round() as u32;
        let (width, height) = (scaled(width), scaled(height));
        let photo = photo.resize_exact(width, height, FilterType::Triangle).into_rgb8();
        let (left, top) = (width % SIDE / 2, height % SIDE / 2);
        for row in 0..height / SIDE {
            for column in 0..width / SIDE {
                let (x, y) = (left + column * SIDE, top + row * SIDE);
                let patch = imageops::crop_imm(&photo, x, y, SIDE, SIDE).to_image();
                if deviation(&patch) >= FLAT {
                    patches.push((format!("{scale}-{row:02}-{column:02}"), patch));
                }
            }
        }
    }
    patches
}

/// The standard deviation of the brightness.
fn deviation(patch: &RgbImage) -> f64 {
    let brightness: Vec<f64> =
        imageops::grayscale(patch).pixels().map(|pixel| f64::from(pixel.0[0])).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let centre = mean(&brightness);
    let squares: Vec<f64> = brightness.iter().map(|value| (value - centre).powi(2)).collect();
    mean(&squares).sqrt()
}

#[cfg(test)]
mod tests {
    use image::{Rgb, imageops};

    use super::*;

    #[test]
    fn a_photo_gives_as_many_patches_as_fit_around_its_middle() {
        // Stripes that are 2 pixels wide in the largest scale.
        let photo = RgbImage::from_fn(2200, 1024, |x, _| Rgb([(x / 4 % 2 * 255) as u8; 3]));
        let patches = cut(&photo.clone().into());
        let of = |scale: &str| patches.iter().filter(|(name, _)| name.starts_with(scale)).count();
        assert_eq!(of("512-"), 8 * (1100 / 64));
        assert_eq!(patches.last().unwrap().0, "512-07-16");
        assert!(patches.iter().all(|(_, patch)| patch.dimensions() == (64, 64)));
        // The first one starts 6 pixels from the left: 1100 - 17 * 64 = 12.
        let (_, first) = patches.iter().find(|(name, _)| name == "512-00-00").unwrap();
        let scaled = imageops::resize(&photo, 1100, 512, FilterType::Triangle);
        assert_eq!(first.get_pixel(0, 0), scaled.get_pixel(6, 0));
    }

    #[test]
    fn flat_patches_are_left_out() {
        // A sky with a faint gradient above a checked ground.
        let photo = RgbImage::from_fn(512, 512, |x, y| match y < 256 {
            true => Rgb([100 + (y / 64) as u8, 150, 200]),
            false => Rgb([((x / 8 + y / 8) % 2 * 200) as u8; 3]),
        });
        let names: Vec<String> = cut(&photo.into()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.iter().filter(|name| name.starts_with("512-")).count(), 32);
        assert!(!names.contains(&"512-03-00".to_owned()));
        assert!(names.contains(&"512-04-00".to_owned()));
    }

    #[test]
    fn a_lost_or_changed_patch_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let complaint = || check(folder.path()).unwrap_err().to_string();
        assert!(complaint().starts_with("cannot read "));
        fs::write(folder.path().join(SUMS), "").unwrap();
        assert!(complaint().ends_with("lists nothing"));
        let sha256 = fetch::sha256(&b"patch"[..]).unwrap();
        fs::write(folder.path().join(SUMS), format!("{sha256}  a.png\n")).unwrap();
        assert!(complaint().ends_with("a.png"));
        fs::write(folder.path().join("a.png"), "patch").unwrap();
        check(folder.path()).unwrap();
        fs::write(folder.path().join("a.png"), "pat").unwrap();
        assert!(complaint().ends_with("a.png is cut short or changed"));
    }

    #[test]
    fn there_are_27_photos_each_with_a_folder_and_a_licence() {
        let photos: Vec<&Photo> = PACKAGES.iter().flat_map(|package| package.photos).collect();
        let mut folders: Vec<&str> = photos.iter().map(|photo| folder(photo)).collect();
        folders.sort_unstable();
        folders.dedup();
        assert_eq!(folders.len(), 27);
        assert!(photos.iter().all(|photo| photo.sha256.len() == 64));
        assert!(photos.iter().all(|photo| {
            ["CC-BY", "CC0", "GPL"].iter().any(|kind| photo.licence.starts_with(kind))
        }));
    }
}
