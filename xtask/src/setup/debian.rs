//! Debian packages that the tests need.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::process::run;

/// Where Debian keeps the versions of PostgreSQL's server.
const POSTGRESQL: &str = "/usr/lib/postgresql";
/// The program that starts Chromium for tests.
const CHROMEDRIVER: &str = "/usr/bin/chromedriver";
/// The interpreter that Debian's PyTorch is for.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// Installs packages.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    run(Command::new("apt-get").arg("update"))?;
    let mut install = Command::new("apt-get");
    run(install.args(["install", "--yes", "--no-install-recommends"]).args(packages)).with_context(
        || format!("install {} yourself; on Debian it takes root", packages.join(", ")),
    )
}

/// Installs PostgreSQL unless a version of the server is there.
pub(super) fn postgresql() -> Result<String> {
    let versions = fs::read_dir(POSTGRESQL).into_iter().flatten().flatten();
    if !versions.into_iter().any(|version| version.path().join("bin/initdb").exists()) {
        install(&["postgresql"])?;
    }
    Ok(format!("PostgreSQL is in {POSTGRESQL}"))
}

/// Installs Chromium unless it is there.
pub(super) fn chromium() -> Result<String> {
    if !Path::new(CHROMEDRIVER).exists() {
        install(&["chromium", "chromium-driver"])?;
    }
    Ok(format!("Chromium is driven by {CHROMEDRIVER}"))
}

/// Installs PyTorch for Debian's Python unless it is there.
pub(super) fn pytorch() -> Result<String> {
    if !has_pytorch() {
        install(&["python3-torch"])?;
    }
    Ok(format!("PyTorch is installed for {PYTHON}"))
}

/// Tells whether Debian's Python has PyTorch.
pub(crate) fn has_pytorch() -> bool {
    let found = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)";
    let output = Command::new(PYTHON).args(["-c", found]).output();
    output.is_ok_and(|output| output.status.success())
}
