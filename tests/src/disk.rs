//! A disk of the test's own, small enough to be filled.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// A file system in memory; unmounted when dropped.
pub struct Disk(TempDir);

impl Disk {
    /// Mounts one of so many bytes. Where that is not allowed, says so and returns none, so that the test can be skipped.
    ///
    /// # Panics
    ///
    /// If it cannot be mounted although `CI` is set.
    pub fn mount(bytes: u64) -> Option<Disk> {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(directory.path());
        if mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
            return Some(Disk(directory));
        }
        assert!(env::var_os("CI").is_none(), "a tmpfs cannot be mounted");
        eprintln!("skipped: a tmpfs cannot be mounted, which root may do");
        None
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        let mut ballast = fs::File::create(self.ballast()).unwrap();
        let error = io::copy(&mut io::repeat(0), &mut ballast).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    /// Gives the space back.
    pub fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Also when a process still has files open on it.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
