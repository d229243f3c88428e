//! Files that appear whole or not at all.

use std::{
    fmt,
    fs::{self, File},
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
}
