//! A small file system of the test's own, which can be filled.

use std::{
    env,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::postgres::is_root;

/// A file system in memory; gone when dropped.
pub struct Disk {
    directory: TempDir,
}

impl Disk {
    /// Mounts one of `megabytes`. Where the tests may not mount, says so and returns none, so that the test can be skipped.
    ///
    /// # Panics
    ///
    /// If mounting fails as root, or is not allowed although `CI` is set.
    pub fn mount(megabytes: u32) -> Option<Disk> {
        if !is_root() {
            let refused = "only root may mount a file system";
            assert!(env::var_os("CI").is_none(), "{refused}");
            eprintln!("skipped: {refused}");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let options = ["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"];
        let status = Command::new("mount").args(options).arg(directory.path()).status();
        assert!(status.expect("mount").success());
        Some(Disk { directory })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves not a byte free.
    pub fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.filler()).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    /// Gives back `bytes` of those that [`fill`](Disk::fill) has taken.
    pub fn give_back(&self, bytes: u64) {
        let file = File::options().write(true).open(self.filler()).unwrap();
        file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
    }

    /// Gives back all that [`fill`](Disk::fill) has taken.
    pub fn empty(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Also while a program that is about to end has files open.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
