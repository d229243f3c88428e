//! Downloads through the clients of package registries, which know what mirror or proxy the user has
//! set up, and the check of what they brought.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

/// The hint about a full disk.
pub const DISK_FULL: &str =
    "the disk is full: fetching takes 0.1 GB (photos) to 1.1 GB (libtorch) free while it works";

/// A file whose name, size in bytes and SHA-256 never change.
#[derive(Debug)]
pub struct Pinned {
    /// The name.
    pub file: &'static str,
    /// The size.
    pub bytes: u64,
    /// The digest, in hexadecimal.
    pub sha256: &'static str,
}

/// A bar over `total` bytes; draws nothing where there is no terminal.
pub fn bar(label: &str, total: u64) -> ProgressBar {
    let template = "{msg:12} {wide_bar} {decimal_bytes:>10} of {decimal_total_bytes:10} {eta:>4}";
    // Unwrap safety: the template is a constant, and every use of it a test of it.
    let style = ProgressStyle::with_template(template).unwrap();
    ProgressBar::new(total).with_style(style).with_message(label.to_owned())
}

/// Says what is about to be fetched, runs `command` in `folder`, shows what has arrived there, and
/// checks the `files` it should leave in it.
pub fn fetch(
    tool: &str,
    what: &str,
    command: &mut Command,
    folder: &Path,
    files: &[Pinned],
) -> Result<()> {
    let total = files.iter().map(|file| file.bytes).sum();
    eprintln!("fetching {what}: {} MB, through {tool}", total / 1_000_000);
    run(tool, command, folder, total)?;
    for file in files {
        verify(folder, file)?;
    }
    Ok(())
}

/// Runs `command` in `folder`, and shows how much of `total` bytes has arrived there.
pub(crate) fn run(tool: &str, command: &mut Command, folder: &Path, total: u64) -> Result<()> {
    let output = run_watched(command.current_dir(folder), folder, total)
        .map_err(|error| explain_start(tool, error))?;
    if !output.status.success() {
        bail!(explain_failure(tool, &output));
    }
    Ok(())
}

fn run_watched(command: &mut Command, folder: &Path, total: u64) -> io::Result<Output> {
    let bar = bar("fetching", total);
    let output = thread::scope(|scope| {
        let run = scope.spawn(|| command.output());
        while !run.is_finished() {
            bar.set_position(bytes_in(folder).min(total));
            thread::sleep(Duration::from_millis(100));
        }
        run.join().expect("running a command does not panic")
    });
    bar.finish_and_clear();
    output
}

/// The size of all files below `folder`. Files come and go meanwhile; it only feeds a bar.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

fn explain_start(tool: &str, error: io::Error) -> anyhow::Error {
    let advice = match (error.kind(), tool) {
        (ErrorKind::NotFound, "npm") => "npm is not installed: on Debian, `apt-get install npm`",
        (ErrorKind::NotFound, "pip") => {
            "python3 is not installed: on Debian, `apt-get install python3 python3-pip`"
        }
        (ErrorKind::NotFound, "apt-get" | "dpkg-deb") => {
            "this comes as packages of Debian, and apt-get and dpkg-deb are not here: run the same on \
             Debian or Ubuntu, in a container for instance, and copy the directory"
        }
        _ => return anyhow::Error::new(error).context(format!("cannot start {tool}")),
    };
    anyhow::anyhow!(advice)
}

/// Returns the tool's last words as an error, and above them their meaning where it is known.
fn explain_failure(tool: &str, output: &Output) -> String {
    const NO_NETWORK: [&str; 12] = [
        "name resolution",
        "Temporary failure resolving",
        "Could not connect",
        "NameResolutionError",
        "Failed to establish a new connection",
        "Network is unreachable",
        "timed out",
        "ENOTFOUND",
        "EAI_AGAIN",
        "ETIMEDOUT",
        "ECONNREFUSED",
        "ECONNRESET",
    ];
    let said = String::from_utf8_lossy(&output.stderr);
    let has = |needle: &&str| said.contains(*needle);
    let meaning = if ["No space left", "ENOSPC"].iter().any(has) {
        DISK_FULL.to_owned()
    } else if said.contains("No module named pip") {
        "python3 has no pip: on Debian, `apt-get install python3-pip`".to_owned()
    } else if NO_NETWORK.iter().any(has) {
        format!("{tool} cannot reach its package registry: is there a network, or a proxy to set?")
    } else {
        format!("{tool} failed ({})", output.status)
    };
    let lines: Vec<&str> = said.trim_end().lines().collect();
    let tail = lines[lines.len().saturating_sub(8)..].join("\n  ");
    format!("{meaning}\n  {tail}")
}

/// Checks the size and the SHA-256 of a file in `folder`.
pub(crate) fn verify(folder: &Path, pinned: &Pinned) -> Result<()> {
    let path = folder.join(pinned.file);
    let mut file = File::open(&path).with_context(|| format!("{} did not come", pinned.file))?;
    let bytes = file.metadata()?.len();
    if bytes != pinned.bytes {
        bail!(
            "{} is cut short or changed: {bytes} bytes, expected {}; try again",
            pinned.file,
            pinned.bytes
        );
    }
    let bar = bar("checking", bytes);
    let found = sha256(bar.wrap_read(&mut file))?;
    bar.finish_and_clear();
    if found != pinned.sha256 {
        bail!(
            "{} is not what it should be: its SHA-256 is {found}, expected {}; nothing of it was \
             used. Try again; if it says the same, the registry or mirror serves another \
             file: report it",
            pinned.file,
            pinned.sha256
        );
    }
    Ok(())
}

/// The SHA-256 of all that can be read, in hexadecimal.
pub(crate) fn sha256(mut content: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        let read = content.read(&mut chunk)?;
        if read == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&chunk[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    const ABC: Pinned = Pinned {
        file: "abc",
        bytes: 3,
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", // FIPS 180-2
    };

    fn verdict(content: &str) -> Result<()> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("abc"), content)?;
        verify(folder.path(), &ABC)
    }

    fn explain(tool: &str, stderr: &str) -> String {
        let status = ExitStatus::from_raw(256);
        explain_failure(tool, &Output { status, stdout: vec![], stderr: stderr.into() })
    }

    #[test]
    fn only_the_pinned_content_passes() {
        verdict("abc").unwrap();
        assert!(verdict("ab").unwrap_err().to_string().contains("2 bytes, expected 3"));
        let error = verdict("abd").unwrap_err().to_string();
        assert!(error.contains("abc is not what it should be") && error.contains(ABC.sha256));
        assert!(verify(Path::new("nowhere"), &ABC).is_err());
    }

    #[test]
    fn failures_say_what_to_do() {
        let error = explain("npm", "npm error code ENOSPC\nnpm error nospc");
        assert!(error.starts_with(DISK_FULL) && error.ends_with("npm error nospc"), "{error}");
        let error = explain("pip", "/usr/bin/python3: No module named pip");
        assert!(error.contains("apt-get install python3-pip"), "{error}");
        let error = explain("npm", "npm error code EAI_AGAIN");
        assert!(error.starts_with("npm cannot reach its package registry"), "{error}");
        let error = explain("npm", "something new");
        assert!(error.starts_with("npm failed (exit status: 1)"), "{error}");
    }

    #[test]
    fn a_missing_tool_names_its_debian_package() {
        let missing = || io::Error::from(ErrorKind::NotFound);
        assert!(explain_start("npm", missing()).to_string().contains("apt-get install npm"));
        assert!(
            explain_start("pip", missing())
                .to_string()
                .contains("apt-get install python3 python3-pip")
        );
    }

    #[test]
    fn fetched_files_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            fetch("sh", "a test", &mut command, folder.path(), &[ABC])
        };
        shell("printf abc > abc").unwrap();
        assert!(shell("printf abd > abc").is_err());
        assert!(shell("rm abc").unwrap_err().to_string().contains("did not come"));
        assert!(shell("exit 3").unwrap_err().to_string().contains("exit status: 3"));
    }
}
