//! Copies the database of a state directory, and restores it from a copy.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use asng_controller::store;
use clap::Args;

/// Options of `backup`.
#[derive(Args)]
pub(crate) struct BackupOptions {
    /// State directory of the controller, which may be running.
    #[arg(long, env = "ASNG_STATE_DIR", value_name = "DIR", default_value = "asng-state")]
    state_dir: PathBuf,
    /// File to write; it must not exist.
    #[arg(value_name = "FILE")]
    out: PathBuf,
}

/// Options of `restore`.
#[derive(Args)]
pub(crate) struct RestoreOptions {
    /// State directory to restore to; it must not contain a database.
    #[arg(long, env = "ASNG_STATE_DIR", value_name = "DIR", default_value = "asng-state")]
    state_dir: PathBuf,
    /// File that `backup` wrote.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Copies the database, and verifies the copy by reading all of it.
pub(crate) fn back_up(BackupOptions { state_dir, out }: &BackupOptions) -> anyhow::Result<()> {
    ensure_file(out)?;
    ensure!(!out.exists(), "{} exists; name another file", out.display());
    let studies = store::back_up(state_dir, out)?;
    println!("wrote {studies} studies to {} and verified them", out.display());
    Ok(())
}

/// Restores a copy.
pub(crate) fn restore(RestoreOptions { state_dir, file }: &RestoreOptions) -> anyhow::Result<()> {
    ensure_file(file)?;
    let studies = store::restore(file, state_dir)?;
    println!("restored {studies} studies to {}", state_dir.display());
    Ok(())
}

/// A database is written and read in any order, which streams are not.
fn ensure_file(path: &Path) -> anyhow::Result<()> {
    ensure!(
        path.as_os_str() != "-",
        "a backup is a database, which cannot be streamed: name a file in place of -"
    );
    Ok(())
}
