//! Packages of Debian, unpacked without installing them. It takes no root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::fetch;

/// Downloads packages of about `bytes` together into `folder` and unpacks them below `folder/root`;
/// returns that path.
pub(crate) fn unpack(packages: &[&str], bytes: u64, folder: &Path) -> Result<PathBuf> {
    let names = packages.join(", ");
    eprintln!("fetching Debian's {names}: {} MB, through apt-get", bytes / 1_000_000);
    let mut download = apt_get(folder);
    download.arg("download").args(packages);
    if let Err(fault) = fetch::run("apt-get", &mut download, folder, bytes) {
        // A fresh system or container has no lists of packages; only root may fetch the system's.
        let (lists, cache) = (folder.join("lists"), folder.join("cache"));
        fs::create_dir_all(lists.join("partial"))?;
        fs::create_dir_all(cache.join("archives/partial"))?;
        let with_own_lists = || {
            let mut command = apt_get(folder);
            command.arg("-o").arg(format!("Dir::State::Lists={}", lists.display()));
            command.arg("-o").arg(format!("Dir::Cache={}", cache.display()));
            command
        };
        let updated = fetch::run("apt-get", with_own_lists().arg("update"), folder, bytes);
        updated.map_err(|_| fault)?;
        let mut download = with_own_lists();
        download.arg("download").args(packages);
        fetch::run("apt-get", &mut download, folder, bytes)?;
    }
    let root = folder.join("root");
    for entry in fs::read_dir(folder)? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("--extract").arg(&package).arg(&root);
            fetch::run("dpkg-deb", &mut unpack, folder, bytes)
                .with_context(|| format!("cannot unpack {}", package.display()))?;
        }
    }
    Ok(root)
}

/// As whoever runs this: by default root's apt-get downloads as a user who may not write here.
fn apt_get(folder: &Path) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "-o", "APT::Sandbox::User=root"]);
    command.env("TMPDIR", folder);
    command
}
