//! The browser that the tests of the page drive, from Debian's packages.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use crate::process::run;

/// What the tests start; it starts Chromium.
const DRIVER: &str = "/usr/bin/chromedriver";

/// Installs the packages unless they are there.
pub(crate) fn ensure() -> Result<String> {
    if !Path::new(DRIVER).exists() {
        run(Command::new("apt-get").arg("update"))?;
        run(Command::new("apt-get").args([
            "install",
            "--yes",
            "--no-install-recommends",
            "chromium",
            "chromium-driver",
        ]))
        .context(
            "install the packages `chromium` and `chromium-driver` yourself; on Debian it takes root",
        )?;
    }
    Ok(format!("Chromium is driven by {DRIVER}"))
}
