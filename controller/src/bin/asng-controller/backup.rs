//! Copies the database of a state directory, and brings a copy back.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use asng_controller::store;
use clap::Args;

/// What to copy, and where to.
#[derive(Args)]
pub(crate) struct BackupOptions {
    /// State directory of the controller, which may be running.
    #[arg(long, env = "ASNG_STATE_DIR", value_name = "DIR", default_value = "asng-state")]
    state_dir: PathBuf,
    /// File of the copy.
    #[arg(value_name = "FILE")]
    out: PathBuf,
}

/// What to bring back, and where to.
#[derive(Args)]
pub(crate) struct RestoreOptions {
    /// State directory that is to have the studies; it must have no database.
    #[arg(long, env = "ASNG_STATE_DIR", value_name = "DIR", default_value = "asng-state")]
    state_dir: PathBuf,
    /// File that `backup` made.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Copies the database, and reads the whole copy again.
pub(crate) fn back_up(BackupOptions { state_dir, out }: &BackupOptions) -> anyhow::Result<()> {
    ensure_file(out)?;
    ensure!(!out.exists(), "{} exists; name another file", out.display());
    let studies = store::back_up(state_dir, out)?;
    println!("{studies} studies in {}, read again and found whole", out.display());
    Ok(())
}

/// Brings a copy back.
pub(crate) fn restore(RestoreOptions { state_dir, file }: &RestoreOptions) -> anyhow::Result<()> {
    ensure_file(file)?;
    let studies = store::restore(file, state_dir)?;
    println!("{studies} studies in {}", state_dir.display());
    Ok(())
}

/// A database is written and read in any order, which streams are not.
fn ensure_file(path: &Path) -> anyhow::Result<()> {
    ensure!(
        path.as_os_str() != "-",
        "a backup is a database and not a stream: name a file in place of -"
    );
    Ok(())
}
