//! Fashion-MNIST as its authors publish it: four files of the IDX format, packed by gzip.
//!
//! What is pinned is what they unpack to: Debian has packed them anew.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;

use crate::{Source, debian, fetch, fetch::Pinned, https};

pub(crate) const SOURCES: [Source; 3] = [
    Source { name: "github.com/zalandoresearch/fashion-mnist", bring: from_github },
    Source { name: "the authors' bucket at Amazon", bring: from_amazon },
    Source { name: "Debian's package dataset-fashion-mnist", bring: from_debian },
];
const GITHUB: &str =
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion";
const AMAZON: &str = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com";
const PACKAGE_BYTES: u64 = 30_900_652;

/// The files, with the sizes and digests of what they unpack to.
const FILES: [Pinned; 4] = [
    Pinned {
        file: "train-images-idx3-ubyte.gz",
        bytes: 47_040_016,
        sha256: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    },
    Pinned {
        file: "train-labels-idx1-ubyte.gz",
        bytes: 60_008,
        sha256: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    },
    Pinned {
        file: "t10k-images-idx3-ubyte.gz",
        bytes: 7_840_016,
        sha256: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    },
    Pinned {
        file: "t10k-labels-idx1-ubyte.gz",
        bytes: 10_008,
        sha256: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
];

/// Checks all four files, whole.
pub(crate) fn check(folder: &Path) -> Result<()> {
    FILES.iter().try_for_each(|file| check_file(folder, file))
}

fn check_file(folder: &Path, pinned: &Pinned) -> Result<()> {
    let path = folder.join(pinned.file);
    let packed = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // No more than one byte too many, however much the file unpacks to.
    let content = GzDecoder::new(packed).take(pinned.bytes + 1);
    let found =
        fetch::sha256(content).with_context(|| format!("cannot unpack {}", path.display()))?;
    ensure!(found == pinned.sha256, "{} is cut short or changed", path.display());
    Ok(())
}

fn from_github(_: &Path, whole: &Path) -> Result<()> {
    from_address(GITHUB, whole)
}

fn from_amazon(_: &Path, whole: &Path) -> Result<()> {
    from_address(AMAZON, whole)
}

fn from_address(address: &str, whole: &Path) -> Result<()> {
    for file in &FILES {
        let url = format!("{address}/{}", file.file);
        https::download(&url, file.bytes, &whole.join(file.file))?;
    }
    check(whole)
}

fn from_debian(scratch: &Path, whole: &Path) -> Result<()> {
    let root = debian::unpack(&["dataset-fashion-mnist"], PACKAGE_BYTES, scratch)?;
    for file in &FILES {
        let path = root.join("usr/share/datasets/fashion-mnist").join(file.file);
        fs::rename(&path, whole.join(file.file))
            .with_context(|| format!("the package has no {}", path.display()))?;
    }
    check(whole)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    const ABC: Pinned = Pinned {
        file: "abc.gz",
        bytes: 3,
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", // FIPS 180-2
    };

    #[test]
    fn only_what_unpacks_to_the_pinned_content_passes() {
        let folder = tempfile::tempdir().unwrap();
        let verdict = |content: &str| {
            let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
            packed.write_all(content.as_bytes()).unwrap();
            fs::write(folder.path().join(ABC.file), packed.finish().unwrap()).unwrap();
            check_file(folder.path(), &ABC)
        };
        verdict("abc").unwrap();
        for changed in ["ab", "abd", "abcd"] {
            let error = verdict(changed).unwrap_err().to_string();
            assert!(error.ends_with("abc.gz is cut short or changed"), "{error}");
        }
        fs::write(folder.path().join(ABC.file), "abc").unwrap();
        let error = check_file(folder.path(), &ABC).unwrap_err().to_string();
        assert!(error.starts_with("cannot unpack "), "{error}");
    }
}
