//! The trainer's work directory: one running trainer for each, with an id that stays.

use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use tracing::warn;

use crate::files;

const TRAINER_ID: &str = "trainer-id";

/// A work directory, locked until this value is dropped.
pub(super) struct WorkDir {
    path: PathBuf,
    lock: File,
    trainer_id: String,
}

impl WorkDir {
    /// Locks the directory, which is made if it is missing. Errors if another trainer has it.
    pub(super) fn open(path: &Path) -> anyhow::Result<WorkDir> {
        let lock = match files::lock(path) {
            Err(TryLockError::WouldBlock) => bail!(
                "{} is in use by another trainer; stop that one, or give --work-dir",
                path.display()
            ),
            lock => lock.with_context(|| format!("cannot use {}", path.display()))?,
        };
        Ok(WorkDir { path: path.into(), lock, trainer_id: trainer_id(path)? })
    }

    /// Returns the id of this trainer in the controller, which stays the same after a restart.
    pub(super) fn trainer_id(&self) -> &str {
        &self.trainer_id
    }

    /// Makes and locks the directory again, with the same id, if it was deleted. Errors if another trainer has done so meanwhile.
    pub(super) fn keep(&mut self) -> anyhow::Result<()> {
        let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let (ours, found) = (self.lock.metadata(), fs::metadata(self.path.join(files::LOCK)));
        if ours.map(place).is_ok_and(|ours| found.map(place).is_ok_and(|found| found == ours)) {
            return Ok(());
        }
        match files::lock(&self.path) {
            Ok(lock) => {
                let work_dir = self.path.display();
                warn!(%work_dir, "work directory was deleted, and is made again");
                self.lock = lock;
                // The disk may be full; the id is then another one after a restart.
                let _ = files::write(&self.path.join(TRAINER_ID), &self.trainer_id);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => bail!(
                "{} was deleted, and another trainer has made it anew; give one of them another --work-dir",
                self.path.display()
            ),
            // Tried again the next time.
            Err(TryLockError::Error(_)) => Ok(()),
        }
    }
}

/// Reads the id from the directory, or makes one.
fn trainer_id(path: &Path) -> anyhow::Result<String> {
    let file = path.join(TRAINER_ID);
    if let Ok(id) = fs::read_to_string(&file)
        && !id.trim().is_empty()
    {
        return Ok(id.trim().into());
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "trainer" } else { host };
    let id = format!("{host}-{:08x}", rand::random::<u32>());
    files::write(&file, &id)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_deleted_is_taken_again_unless_another_trainer_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("work");
        let mut first = WorkDir::open(&path).unwrap();
        first.keep().unwrap();
        assert!(WorkDir::open(&path).is_err());
        fs::remove_dir_all(&path).unwrap();
        first.keep().unwrap();
        let error = WorkDir::open(&path).err().unwrap().to_string();
        assert!(error.contains("in use by another trainer"), "{error}");
        fs::remove_dir_all(&path).unwrap();
        let second = WorkDir::open(&path).unwrap();
        assert_ne!(second.trainer_id(), first.trainer_id());
        let error = first.keep().unwrap_err().to_string();
        assert!(error.contains("another trainer has made it anew"), "{error}");
        drop((first, second));
        WorkDir::open(&path).unwrap();
    }
}
