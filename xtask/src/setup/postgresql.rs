//! The PostgreSQL server that the tests start, from Debian's package.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use crate::process::run;

/// Where Debian keeps the versions of the server.
const PACKAGES: &str = "/usr/lib/postgresql";

/// Installs the package unless a version of the server is there.
pub(crate) fn ensure() -> Result<String> {
    if !is_there() {
        run(Command::new("apt-get").arg("update"))?;
        run(Command::new("apt-get").args([
            "install",
            "--yes",
            "--no-install-recommends",
            "postgresql",
        ]))
        .context("install the package `postgresql` yourself; on Debian it takes root")?;
    }
    Ok(format!("PostgreSQL is in {PACKAGES}"))
}

fn is_there() -> bool {
    let versions = fs::read_dir(PACKAGES).into_iter().flatten().flatten();
    versions.into_iter().any(|version| version.path().join("bin/initdb").exists())
}
