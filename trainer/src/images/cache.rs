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
    DataSet, Error, Images, Info, Refused, Statistics, content,
    decode::decode,
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
            super::first(&refused)
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
