//! Files that appear when they are complete; `-` stands for standard output and standard input.

use std::{
    fs::{self, File, Permissions},
    io::{self, BufWriter, IntoInnerError, IsTerminal, Read, Stdout, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use tempfile::NamedTempFile;

/// Returns whether a path stands for standard output or standard input.
pub(crate) fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Reads all of a text file. Errors name the file.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    let text = match is_standard(path) {
        true => io::read_to_string(io::stdin()),
        false => fs::read_to_string(path),
    };
    text.with_context(|| format!("cannot read {}", name(path)))
}

/// Opens a file. Returns its content and its size, if that is known. Errors name the file.
pub(crate) fn open(path: &Path) -> anyhow::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if is_standard(path) {
        return Ok((Box::new(io::stdin()), None));
    }
    let file = File::open(path).with_context(|| format!("cannot read {}", name(path)))?;
    let size = file.metadata().ok().map(|metadata| metadata.len());
    Ok((Box::new(file), size))
}

/// Returns the name of an input file for errors.
pub(crate) fn name(path: &Path) -> String {
    if is_standard(path) { "standard input".into() } else { path.display().to_string() }
}

/// A file that takes its name, in place of any other file of that name, when it is [finished](Draft::finish). It is gone if
/// it never is. Standard output, and what is no file, such as `/dev/stdout` or a named pipe, are written as it comes.
pub(crate) enum Draft {
    File { file: BufWriter<NamedTempFile>, path: PathBuf },
    Stream { output: BufWriter<File>, path: PathBuf },
    Standard(BufWriter<Stdout>),
}

impl Draft {
    /// Starts a file beside where it is to be.
    pub(crate) fn new(path: &Path) -> anyhow::Result<Draft> {
        if is_standard(path) {
            return Ok(Draft::Standard(BufWriter::new(io::stdout())));
        }
        let failed = || format!("cannot write {}", path.display());
        // A rename would put a file in the place of a device.
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            let output = File::options().write(true).open(path).with_context(failed)?;
            return Ok(Draft::Stream { output: BufWriter::new(output), path: path.into() });
        }
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let file = tempfile::Builder::new()
            // As the umask allows, and not for the owner alone as other temporary files.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory.unwrap_or(Path::new(".")))
            .with_context(failed)?;
        Ok(Draft::File { file: BufWriter::new(file), path: path.into() })
    }

    /// Starts a file that is not text. A terminal does not get it.
    pub(crate) fn binary(path: &Path) -> anyhow::Result<Draft> {
        ensure!(
            !is_standard(path) || !io::stdout().is_terminal(),
            "this file is not text, and standard output is a terminal: name a file with --out, or redirect the output"
        );
        Draft::new(path)
    }

    /// Puts the file on the disk, under its name.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let (file, path) = match self {
            Draft::File { file, path } => (file, path),
            Draft::Stream { mut output, path } => {
                return output.flush().with_context(|| format!("cannot write {}", path.display()));
            }
            Draft::Standard(mut output) => return Ok(output.flush()?),
        };
        let failed = || format!("cannot write {}", path.display());
        let file = file.into_inner().map_err(IntoInnerError::into_error);
        let file = file.with_context(failed)?;
        file.as_file().sync_all().with_context(failed)?;
        file.persist(&path).with_context(failed)?;
        Ok(())
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Draft::File { file, .. } => file.write(bytes),
            Draft::Stream { output, .. } => output.write(bytes),
            Draft::Standard(output) => output.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Draft::File { file, .. } => file.flush(),
            Draft::Stream { output, .. } => output.flush(),
            Draft::Standard(output) => output.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let mut draft = Draft::new(&path).unwrap();
        draft.write_all(b"half").unwrap();
        drop(draft);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        fs::write(&path, "old").unwrap();
        let mut draft = Draft::new(&path).unwrap();
        draft.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        draft.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }
    #[test]
    fn what_is_no_file_is_written_and_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("full");
        // Of a link only the link would be replaced, so that the test harms no device.
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let mut draft = Draft::new(&path).unwrap();
        draft.write_all(b"new").unwrap();
        let error = format!("{:#}", draft.finish().unwrap_err());
        assert!(
            error.starts_with(&format!("cannot write {}: No space", path.display())),
            "{error}"
        );
        assert!(!fs::metadata(&path).unwrap().is_file());
        let Err(error) = Draft::new(directory.path()) else { panic!("a directory is no file") };
        assert!(format!("{error:#}").contains("Is a directory"), "{error:#}");
    }
}
