//! Files that appear whole or not at all, and directories that one process has to itself.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// A file or directory that cannot be used, and why. The cause is part of the text and not a `source()`, so that nobody prints it
/// twice.
#[derive(Debug)]
pub struct Error {
    action: String,
    path: PathBuf,
    /// The operating system's error.
    pub cause: io::Error,
}

impl Error {
    /// Makes an error of `cause`; `action` is a verb with its object, such as "write checkpoint".
    pub fn cannot(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let (action, path) = (action.into(), path.into());
        |cause| Error { action, path, cause }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = self.cause.to_string();
        // "No space left on device (os error 28)"
        let cause = cause.split(" (os error").next().unwrap_or_default();
        let (first, rest) = cause.split_at(cause.chars().next().map_or(0, char::len_utf8));
        let (action, path) = (&self.action, self.path.display());
        write!(f, "cannot {action} {path}: {}{rest}", first.to_lowercase())
    }
}

impl std::error::Error for Error {}

/// Replaces `path` by what `write` puts into the temporary file that it is given. The old file stays until the new one is safely
/// on the disk; after an error no temporary file is left.
pub fn replace(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let replaced = write(&temporary)
        .and_then(|()| File::open(&temporary)?.sync_all())
        .and_then(|()| fs::rename(&temporary, path));
    if replaced.is_err() {
        // The temporary file may never have been made.
        let _ = fs::remove_file(&temporary);
        return replaced;
    }
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// Replaces the content of `path`; the old one stays until the new one is safely on the disk.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<(), Error> {
    replace(path, |temporary| fs::write(temporary, content)).map_err(Error::cannot("write", path))
}

/// Name of the file that [`lock`] locks.
pub const LOCK: &str = "lock";

/// Makes `directory` if it is missing and locks it for as long as the returned file is open. Errors with
/// [`TryLockError::WouldBlock`] if it is locked already.
pub fn lock(directory: &Path) -> Result<File, TryLockError> {
    fs::create_dir_all(directory).map_err(TryLockError::Error)?;
    let lock = File::create(directory.join(LOCK)).map_err(TryLockError::Error)?;
    lock.try_lock()?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file.json");
        replace(&file, |path| fs::write(path, "old")).unwrap();
        let full = |path: &Path| {
            fs::write(path, "half of the n")?;
            Err(io::Error::from_raw_os_error(28))
        };
        let error = Error::cannot("write checkpoint", &file)(replace(&file, full).unwrap_err());
        let text = format!("cannot write checkpoint {}: no space left on device", file.display());
        assert_eq!(format!("{:#}", anyhow::Error::from(error)), text);
        assert_eq!(fs::read_to_string(&file).unwrap(), "old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_is_locked_until_its_file_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let first = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(TryLockError::WouldBlock)));
        drop(first);
        lock(&path).unwrap();
        let Err(TryLockError::Error(error)) = lock(&path.join("lock")) else { panic!() };
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
}
