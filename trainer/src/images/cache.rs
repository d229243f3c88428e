//! The pixels of image files, decoded once into a file that is mapped into memory: the next start is quick, and a data set can be
//! larger than memory. Beside the pixels (`.bytes`) lies an index (`.json`): labels, names, and a digest of the names, sizes and
//! modification times of the image files, by which the cache is known to be still right.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufWriter, Write},
    num::NonZero,
    path::{Path, PathBuf},
    thread,
    time::SystemTime,
};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use tracing::{info, warn};

use super::{
    data_set::{DataSet, Images, Info, Statistics},
    decode::decode,
    error::{Error, Refused, content, first},
    folders::{Listed, Listing},
};
use crate::{files, progress::Progress};

/// Version of both files, and of how images are decoded.
const VERSION: u32 = 1;
/// So many files may be broken, and up to one in a hundred.
const TOLERATED: usize = 10;
/// The number of images that a thread decodes before they are written.
const DECODED_TOGETHER: usize = 32;

#[derive(Serialize, Deserialize)]
struct Index {
    /// Digest of what the pixels were made of.
    manifest: String,
    info: Info,
    /// The number of training images, which come first.
    train: usize,
    labels: Vec<i64>,
    /// Names of the image files, relative to the directory of the data set.
    files: Vec<String>,
    refused: Vec<Refused>,
}

/// Reads the images of `listing` from the cache, or decodes them into it. Two processes do not write at once: the second waits, and
/// reads what the first has written. Also returns the names of the files, in the order of images.
pub(super) fn open(
    directory: &Path,
    name: &str,
    listing: Listing,
    side: i64,
    cache: &Path,
) -> Result<(DataSet, Vec<String>), Error> {
    let place = fs::canonicalize(directory).unwrap_or_else(|_| directory.into());
    let place = Sha256::digest(place.as_os_str().as_encoded_bytes());
    let classes = if listing.classes.is_empty() { "photos" } else { "classes" };
    let stem = cache.join(format!("{name}-{classes}-{side}-{}", HEXLOWER.encode(&place[..4])));
    let [lock, bytes, index] = ["lock", "bytes", "json"].map(|extension| {
        let mut path = stem.clone().into_os_string();
        path.push(format!(".{extension}"));
        PathBuf::from(path)
    });
    let locked = fs::create_dir_all(cache).and_then(|()| File::create(&lock)).and_then(|lock| {
        if lock.try_lock().is_err() {
            info!(
                data_set = name,
                "waiting for another process that uses the cache of this data set"
            );
            lock.lock()?;
        }
        Ok(lock)
    });
    let _locked = locked.map_err(files::Error::cannot("lock image cache", &lock))?;

    let manifest = manifest(&listing, side);
    let found = match stored(&bytes, &index, &manifest) {
        Some(found) => found,
        None => {
            // Should this process end between the two files, the old index must not stand beside new pixels.
            let _ = fs::remove_file(&index);
            let decoded =
                build(directory, name, listing, manifest, side, &bytes).inspect_err(|_| {
                    let _ = fs::remove_file(&bytes);
                })?;
            let write = |path: &Path| {
                Ok(serde_json::to_writer(BufWriter::new(File::create(path)?), &decoded)?)
            };
            files::replace(&index, write)
                .map_err(files::Error::cannot("write image cache", &index))?;
            decoded
        }
    };
    let (count, train) = (found.labels.len() as i64, found.train as i64);
    let [channels, height, width] = found.info.shape;
    let path =
        bytes.to_str().ok_or_else(|| content(&bytes, "the path of the cache must be UTF-8"))?;
    // Shared: a private mapping that could be written to must fit the memory of the machine.
    let shared = true;
    let size = count * channels * height * width;
    let pixels = Tensor::f_from_file(path, shared, size, (Kind::Uint8, Device::Cpu))
        .map_err(|cause| content(&bytes, format!("cannot be mapped into memory: {cause}")))?;
    let images = Images {
        pixels: pixels.view([count, channels, height, width]),
        labels: Tensor::from_slice(&found.labels),
    };
    let data_set = DataSet {
        info: Info { name: name.into(), ..found.info },
        train: images.narrow(0, train),
        test: images.narrow(train, count - train),
        refused: found.refused,
        sorted: true,
    };
    Ok((data_set, found.files))
}

/// Digests everything that the pixels depend on, without reading a file.
fn manifest(listing: &Listing, side: i64) -> String {
    let mut hasher = Sha256::new();
    hasher.update(serde_json::json!([VERSION, side, listing.classes, listing.beside]).to_string());
    for Listed { path, name, label, test } in &listing.files {
        let metadata = fs::metadata(path).ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        let modified = modified.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let length = metadata.map(|metadata| metadata.len());
        hasher.update(format!("{name:?} {label} {test} {length:?} {modified:?}\n"));
    }
    HEXLOWER.encode(&hasher.finalize())
}

/// Reads the index of a cache that is whole and was made of the same files.
fn stored(bytes: &Path, index: &Path, manifest: &str) -> Option<Index> {
    let damaged = |reason: String| {
        warn!(cache = %bytes.display(), reason, "image cache is damaged; decoding the images again");
        None
    };
    let file = File::open(index).ok()?;
    let found: Index = match serde_json::from_reader(io::BufReader::new(file)) {
        Ok(found) => found,
        Err(error) => return damaged(error.to_string()),
    };
    if found.manifest != manifest {
        info!(cache = %bytes.display(), "image files have changed; decoding them again");
        return None;
    }
    let expected = found.labels.len() as i64 * found.info.shape.iter().product::<i64>();
    let length = fs::metadata(bytes).map_or(0, |metadata| metadata.len());
    match length == expected as u64 && (1..found.labels.len()).contains(&found.train) {
        true => Some(found),
        false => damaged(format!("{length} bytes, not {expected}")),
    }
}

/// Decodes all files of `listing`, on all processors, into the file `bytes`.
fn build(
    directory: &Path,
    name: &str,
    listing: Listing,
    manifest: String,
    side: i64,
    bytes: &Path,
) -> Result<Index, Error> {
    let Listing { classes, files, beside } = listing;
    let mut statistics = Statistics::new([3, side, side]);
    let (mut labels, mut names, mut refused, mut train) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let together = threads * DECODED_TOGETHER;
    let progress = Progress::new(0, files.len().div_ceil(together) as u64)
        .expect("the bar's template is valid");
    let write = |path: &Path| -> io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        for some in files.chunks(together) {
            for (file, decoded) in some.iter().zip(decode_all(some, side as u32)) {
                match decoded {
                    Ok(pixels) => {
                        out.write_all(&pixels)?;
                        if !file.test {
                            statistics.add(&pixels);
                            train += 1;
                        }
                        labels.push(file.label);
                        names.push(file.name.clone());
                    }
                    Err(reason) => refused.push(Refused { file: file.name.clone(), reason }),
                }
            }
            progress.advance(|| format!("decoding {name}: {} images", labels.len()));
        }
        progress.finish();
        out.flush()
    };
    files::replace(bytes, write).map_err(|cause| {
        let needed = files.len() as i64 * 3 * side * side / 1_000_000;
        files::Error::cannot(&format!("write image cache of {needed} MB"), bytes)(cause)
    })?;

    let total = files.len();
    if labels.is_empty() || refused.len() > TOLERATED && refused.len() * 100 > total {
        return Err(Error::BadFiles { directory: directory.into(), refused, files: total });
    }
    let trained: HashSet<i64> = labels[..train].iter().copied().collect();
    if let Some(class) = (0..classes.len()).find(|class| !trained.contains(&(*class as i64))) {
        let reason = format!(
            "class {:?} has no usable image for training; {}",
            classes[class],
            first(&refused)
        );
        return Err(content(directory, reason));
    }
    if train == 0 || train == labels.len() {
        let part = if train == 0 { "training" } else { "tests" };
        let reason = format!("{} usable images, none of them for {part}; add more", labels.len());
        return Err(content(directory, reason));
    }
    if let Some(first) = refused.first() {
        warn!(data_set = name, files = refused.len(), %first, "image files that cannot be used are left out");
    }
    refused.extend(beside);
    let info = statistics.info(name, classes, &labels[..train]);
    Ok(Index { manifest, info, train, labels, files: names, refused })
}

fn decode_all(files: &[Listed], side: u32) -> Vec<Result<Vec<u8>, String>> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let decode_share = move |files: &[Listed]| {
        files.iter().map(|file| decode(&file.path, side)).collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let shares = files.chunks(files.len().div_ceil(threads));
        let running: Vec<_> =
            shares.map(|share| scope.spawn(move || decode_share(share))).collect();
        let joined = running.into_iter().map(thread::ScopedJoinHandle::join);
        joined.flat_map(|share| share.expect("decoding catches panics")).collect()
    })
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};
    use tch::IndexOp;
    use tempfile::TempDir;

    use super::*;
    use crate::images::{Request, read};

    const SIDE: i64 = 16;

    /// A directory of class folders, and one for the cache.
    struct Fixture {
        directory: TempDir,
        cache: TempDir,
    }

    impl Fixture {
        fn new() -> Fixture {
            let fixture = Fixture {
                directory: tempfile::tempdir().unwrap(),
                cache: tempfile::tempdir().unwrap(),
            };
            for (class, count) in [("cats", 4), ("dogs", 3)] {
                for i in 0..count {
                    fixture.save(&format!("{class}/{i}.png"), [count, i, 7]);
                }
            }
            fixture
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn save(&self, name: &str, colour: [u8; 3]) {
            let file = self.path(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            RgbImage::from_pixel(20, 20, Rgb(colour)).save(file).unwrap();
        }

        fn open_as(&self, labels: bool, image_size: i64) -> Result<(DataSet, Vec<String>), Error> {
            let request = Request { name: "pets".into(), image_size: Some(image_size), labels };
            read(self.directory.path(), &request, self.cache.path())
        }

        fn open(&self) -> Result<(DataSet, Vec<String>), Error> {
            self.open_as(true, SIDE)
        }

        fn digest(&self) -> String {
            self.open().unwrap().0.info.digest
        }

        fn cached(&self, extension: &str) -> PathBuf {
            let mut files =
                fs::read_dir(self.cache.path()).unwrap().map(|entry| entry.unwrap().path());
            files.find(|file| file.extension().is_some_and(|found| found == extension)).unwrap()
        }

        /// Makes the cached pixels recognisable: decoded again, they would be others.
        fn mark(&self) {
            let file = self.cached("bytes");
            fs::write(&file, vec![99; fs::metadata(&file).unwrap().len() as usize]).unwrap();
        }

        fn is_marked(&self) -> bool {
            let (data, _) = self.open().unwrap();
            data.train.pixels.eq(99).all().int64_value(&[]) == 1
        }
    }

    fn colours(images: &Images) -> Vec<[u8; 3]> {
        let colour =
            |i| Vec::<u8>::try_from(images.pixels.i((i, .., 3, 3))).unwrap().try_into().unwrap();
        (0..images.len()).map(colour).collect()
    }

    #[test]
    fn images_arrive_with_their_labels_and_the_tests_come_last() {
        let fixture = Fixture::new();
        let (data, files) = fixture.open().unwrap();
        assert_eq!((data.train.len(), data.test.len()), (5, 2));
        assert_eq!(data.train.pixels.size(), [5, 3, SIDE, SIDE]);
        assert_eq!(
            (&data.info.name[..], &data.info.classes[..]),
            ("pets", &["cats".into(), "dogs".into()][..])
        );
        assert_eq!(Vec::<i64>::try_from(&data.train.labels).unwrap(), [0, 0, 0, 1, 1]);
        assert_eq!(Vec::<i64>::try_from(&data.test.labels).unwrap(), [0, 1]);
        let all = colours(&data.train).into_iter().chain(colours(&data.test));
        for ([count, i, blue], file) in all.zip(files) {
            let class = if count == 4 { "cats" } else { "dogs" };
            assert_eq!((format!("{class}/{i}.png"), blue), (file, 7));
        }
        // cats 4 4 4, dogs 3 3
        assert!((data.info.mean[0] - 18.0 / 5.0 / 255.0).abs() < 1e-12, "{:?}", data.info);
        assert_eq!(data.info.std[2], 1.0);
    }

    #[test]
    fn the_second_time_nothing_is_decoded() {
        let fixture = Fixture::new();
        let (first, files) = fixture.open().unwrap();
        // Were it decoded, a file of zeros with the size and time of the old one would be an error.
        for name in &files {
            let file = fixture.path(name);
            let metadata = fs::metadata(&file).unwrap();
            fs::write(&file, vec![0; metadata.len() as usize]).unwrap();
            File::options()
                .write(true)
                .open(&file)
                .unwrap()
                .set_modified(metadata.modified().unwrap())
                .unwrap();
        }
        let (second, files_again) = fixture.open().unwrap();
        assert_eq!((second.info, files_again), (first.info, files));
        assert_eq!(second.train.pixels, first.train.pixels);
        assert_eq!(second.test.labels, first.test.labels);
    }

    #[test]
    fn a_file_that_was_changed_added_or_removed_is_noticed() {
        let fixture = Fixture::new();
        let first = fixture.digest();
        fixture.mark();
        assert!(fixture.is_marked());
        let file = File::options().write(true).open(fixture.path("cats/0.png")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(!fixture.is_marked());
        assert_eq!(fixture.digest(), first, "the images are the same");
        let changes: [&dyn Fn(); 4] = [
            &|| fixture.save("dogs/1.png", [200; 3]),
            &|| fixture.save("dogs/9.png", [100; 3]),
            &|| fs::remove_file(fixture.path("cats/3.png")).unwrap(),
            &|| fs::rename(fixture.path("cats"), fixture.path("lions")).unwrap(),
        ];
        for change in changes {
            let before = fixture.digest();
            change();
            assert_ne!(fixture.digest(), before);
        }
    }

    #[test]
    fn a_damaged_cache_is_made_anew() {
        let fixture = Fixture::new();
        let digest = fixture.digest();
        for extension in ["bytes", "json"] {
            let file = fixture.cached(extension);
            let length = fs::metadata(&file).unwrap().len();
            for length in [0, length - 1, length + 1] {
                fixture.mark();
                File::options().write(true).open(&file).unwrap().set_len(length).unwrap();
                assert!(!fixture.is_marked(), "{extension} {length}");
            }
            fs::remove_file(&file).unwrap();
            assert_eq!(fixture.digest(), digest);
        }
    }

    #[test]
    fn sizes_and_classes_have_caches_of_their_own() {
        let fixture = Fixture::new();
        fixture.open().unwrap();
        fixture.mark();
        assert_eq!(fixture.open_as(true, 24).unwrap().0.info.shape, [3, 24, 24]);
        let (photos, _) = fixture.open_as(false, SIDE).unwrap();
        assert_eq!(
            (photos.train.len(), photos.test.len(), &photos.info.classes[..]),
            (6, 1, &[][..])
        );
        assert!(fixture.is_marked());
    }

    #[test]
    fn two_processes_do_not_write_at_once() {
        let fixture = Fixture::new();
        std::thread::scope(|scope| {
            let open = || fixture.open().unwrap().0.info;
            let both = [scope.spawn(open), scope.spawn(open)].map(|thread| thread.join().unwrap());
            assert_eq!(both[0], both[1]);
        });
    }

    #[test]
    fn a_few_broken_files_are_left_out_and_named_also_the_second_time() {
        let fixture = Fixture::new();
        fs::write(fixture.path("dogs/5.jpg"), "").unwrap();
        fs::write(fixture.path("dogs/6.jpg"), "no image").unwrap();
        fixture.save("loose.png", [1; 3]);
        let refused = fixture.open().unwrap().0.refused;
        let files: Vec<_> = refused.iter().map(|refused| &refused.file[..]).collect();
        assert_eq!(files, ["dogs/5.jpg", "dogs/6.jpg", "loose.png"]);
        assert_eq!(refused[0].reason, "empty file");
        assert_eq!(fixture.open().unwrap().0.refused, refused);
    }

    #[test]
    fn too_many_broken_files_are_an_error_that_names_the_first() {
        let fixture = Fixture::new();
        for i in 10..21 {
            fs::write(fixture.path(&format!("cats/{i}.jpg")), "no image").unwrap();
        }
        for _ in 0..2 {
            let error = fixture.open().unwrap_err().to_string();
            assert!(
                error.contains(": 11 of 18 image files cannot be used; the first: cats/1"),
                "{error}"
            );
            assert_eq!(error.matches("cats/").count(), 3);
        }
        fs::remove_file(fixture.path("cats/20.jpg")).unwrap();
        assert_eq!(fixture.open().unwrap().0.refused.len(), 10);
    }

    #[test]
    fn a_class_or_a_part_without_usable_images_is_an_error() {
        let fixture = Fixture::new();
        fs::create_dir(fixture.path("emus")).unwrap();
        fs::write(fixture.path("emus/1.jpg"), "").unwrap();
        let error = fixture.open().unwrap_err().to_string();
        let expected = "class \"emus\" has no usable image for training; emus/1.jpg: empty file";
        assert!(error.ends_with(expected), "{error}");
        for name in
            ["cats/0.png", "cats/1.png", "cats/2.png", "dogs/0.png", "dogs/1.png", "emus/1.jpg"]
        {
            fs::remove_file(fixture.path(name)).unwrap();
        }
        fixture.save("emus/1.png", [0; 3]);
        let error = fixture.open().unwrap_err().to_string();
        assert!(error.ends_with("3 usable images, none of them for tests; add more"), "{error}");
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_an_error_with_its_place() {
        let fixture = Fixture::new();
        let request = Request { name: "pets".into(), image_size: None, labels: true };
        let file = fixture.path("cats/0.png");
        let error = read(fixture.directory.path(), &request, &file).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot lock image cache ") && error.contains("cats/0.png"),
            "{error}"
        );
    }
}
