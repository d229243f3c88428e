//! libtorch for the CPU, cut out of the wheels of PyTorch, where the user has not brought their own.
//!
//! The wheel of `torch` is built for CUDA: its `libtorch_cpu.so` wants the two small NVIDIA libraries
//! that come with it here, but no driver and no GPU. A GPU needs the whole of PyTorch instead, which
//! pip installs in a folder of its own; `libtorch` is then a link into it.
//!
//! Each release of torch-sys fits one release of PyTorch; the one in Cargo.lock decides which is fetched.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use asng_datasets::fetch::{self, Pinned};
use asng_datasets::part_folder;
use indicatif::ProgressBar;
use zip::ZipArchive;

use crate::process::{cargo, read};

/// The releases of PyTorch that the trainer compiles with, the oldest first.
pub(super) static RELEASES: [Release; 2] = [
    Release {
        version: "2.11.0",
        tch: "0.24.0",
        wheels: [
            Pinned {
                file: "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
                bytes: 530_604_548,
                sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
            },
            CUDA_RUNTIME,
            CUPTI,
        ],
        libraries: [
            ("libtorch_cpu.so", 451_209_129),
            ("libc10.so", 1_498_969),
            ("libgomp.so.1", 254_009),
            ("libcudart.so.13", 704_288),
            ("libcupti.so.13", 4_152_208),
        ],
        unpacked_bytes: 496_572_975,
    },
    Release {
        version: "2.13.0",
        tch: "0.26.0",
        wheels: [
            Pinned {
                file: "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl",
                bytes: 526_574_961,
                sha256: "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
            },
            CUDA_RUNTIME,
            CUPTI,
        ],
        libraries: [
            ("libtorch_cpu.so", 438_418_417),
            ("libc10.so", 1_623_185),
            ("libgomp.so.1", 254_009),
            ("libcudart.so.13", 704_288),
            ("libcupti.so.13", 4_152_208),
        ],
        unpacked_bytes: 483_929_421,
    },
];

const CUDA_RUNTIME: Pinned = Pinned {
    file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    bytes: 2_243_632,
    sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
};
const CUPTI: Pinned = Pinned {
    file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
    bytes: 10_715_597,
    sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
};

/// A release of PyTorch, and the files that its libtorch for the CPU is made of.
pub(super) struct Release {
    version: &'static str,
    /// The version of tch and torch-sys that binds to it.
    pub(super) tch: &'static str,
    wheels: [Pinned; 3],
    /// The libraries taken from the wheels, with their sizes in bytes.
    libraries: [(&'static str, u64); 5],
    /// The size of these and of all headers; only for a progress bar.
    unpacked_bytes: u64,
}

impl Release {
    /// Returns the content of the stamp. The number after the hyphen counts changes of what we make of the wheels.
    fn stamp(&self) -> String {
        format!("{}-1", self.version)
    }
}

/// Written last.
const STAMP_FILE: &str = ".complete";
const HEADER: &str = "include/torch/csrc/api/include/torch/torch.h";

/// A library that only a PyTorch with CUDA has, in the folder that pip installs it in.
const CUDA_LIBRARY: &str = "torch/lib/libtorch_cuda.so";

/// Where the libtorch in use comes from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// The PyTorch of the user's Python; torch-sys asks for this first.
    PyTorch,
    /// A directory the user named in LIBTORCH.
    Directory(PathBuf),
    /// Our own `libtorch` folder.
    Setup,
}

/// Makes sure that there is a libtorch to build with; returns a line that says which.
pub(super) fn ensure(root: &Path) -> Result<String> {
    let destination = root.join("libtorch");
    let release = locked_release(root)?;
    let use_pytorch = env::var_os("LIBTORCH_USE_PYTORCH");
    match source(use_pytorch.as_deref(), env::var_os("LIBTORCH").as_deref(), &destination) {
        Source::PyTorch => {
            let version = pytorch_version(release)?;
            Ok(format!(
                "libtorch: PyTorch {version}, as LIBTORCH_USE_PYTORCH is set; nothing fetched"
            ))
        }
        Source::Directory(directory) => {
            check_own(&directory, release).with_context(|| {
                format!(
                    "LIBTORCH is set to {}; correct it, or unset it to have libtorch fetched",
                    directory.display()
                )
            })?;
            Ok(format!("libtorch: {}, as LIBTORCH is set; nothing fetched", directory.display()))
        }
        Source::Setup => ensure_ours(&destination, release),
    }
}

/// Returns the release of PyTorch that the torch-sys in Cargo.lock binds to.
fn locked_release(root: &Path) -> Result<&'static Release> {
    // A line like registry+https://github.com/rust-lang/crates.io-index#torch-sys@0.26.0.
    let package = read(&mut cargo(root, ["pkgid", "--locked", "torch-sys"]))?;
    let (_, locked) = package.trim().rsplit_once('@').context("cargo pkgid printed no version")?;
    RELEASES.iter().find(|release| release.tch == locked).with_context(|| {
        let known = RELEASES.each_ref().map(|release| release.tch).join(" and ");
        format!(
            "Cargo.lock has torch-sys {locked}, but setup knows only {known}: \
             `cargo update -p tch --precise VERSION` changes it"
        )
    })
}

/// Makes sure that there is a PyTorch with CUDA, and that builds take it.
pub(super) fn ensure_cuda(root: &Path) -> Result<()> {
    let (destination, whole) = (root.join("libtorch"), root.join("libtorch-cuda"));
    let use_pytorch = env::var_os("LIBTORCH_USE_PYTORCH");
    let libtorch = env::var_os("LIBTORCH");
    if source(use_pytorch.as_deref(), libtorch.as_deref(), &destination) != Source::Setup {
        bail!("LIBTORCH or LIBTORCH_USE_PYTORCH is set, and builds take that: unset it first");
    }
    let release = locked_release(root)?;
    let version = release.version;
    if !whole.join(CUDA_LIBRARY).exists() || check_own(&whole.join("torch"), release).is_err() {
        let part = part_folder(&whole)?;
        eprintln!("PyTorch {version} with CUDA: pip fetches 5 GB");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input"])
            .args(["--no-cache-dir", "--only-binary=:all:", "--target"])
            .arg(part.path().join("whole"))
            .arg(format!("torch=={version}"))
            .env("TMPDIR", part.path());
        let status = pip.status().context("cannot run python3")?;
        if !status.success() {
            bail!("pip could not install torch=={version}: {status}");
        }
        let fetched = part.path().join("whole");
        if !fetched.join(CUDA_LIBRARY).exists() {
            bail!("the torch=={version} that pip found has no CUDA");
        }
        if whole.exists() {
            fs::remove_dir_all(&whole)?;
        }
        fs::rename(fetched, &whole)?;
    }
    link(&destination, Path::new("libtorch-cuda/torch"))
}

/// Puts a link in the place of our `libtorch` folder, and of nobody else's.
fn link(destination: &Path, target: &Path) -> Result<()> {
    if fs::read_link(destination).is_ok_and(|linked| linked == target) {
        return Ok(());
    }
    if destination.is_dir() && !destination.is_symlink() && destination.join(STAMP_FILE).exists() {
        fs::remove_dir_all(destination)?;
    }
    if destination.exists() || destination.is_symlink() {
        bail!("{} is not from setup: move it elsewhere", destination.display());
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(target, destination)?;
    Ok(())
}

/// cargo sets LIBTORCH to `destination` for all it runs (.cargo/config.toml), unless it was set.
fn source(use_pytorch: Option<&OsStr>, libtorch: Option<&OsStr>, destination: &Path) -> Source {
    let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match (use_pytorch, libtorch.map(Path::new)) {
        (Some(_), _) => Source::PyTorch,
        (None, Some(own)) if canonical(own) != canonical(destination) => {
            Source::Directory(own.to_owned())
        }
        (None, _) => Source::Setup,
    }
}

fn pytorch_version(release: &Release) -> Result<String> {
    // The choice of torch-sys.
    let python = if env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let output =
        Command::new(python).args(["-c", "import torch; print(torch.__version__)"]).output();
    let version = match &output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout),
        _ => bail!(
            "LIBTORCH_USE_PYTORCH is set, but {python} has no torch: `pip install torch=={}`, \
             or unset it to have libtorch fetched",
            release.version
        ),
    };
    check_version(version.trim(), release)?;
    Ok(version.trim().to_owned())
}

/// Checks a libtorch that is not from us by what torch-sys will look for in it.
fn check_own(directory: &Path, release: &Release) -> Result<()> {
    // torch-sys lets these two stand in for the directory.
    let place = |variable| env::var_os(variable).map_or(directory.to_owned(), PathBuf::from);
    let header = place("LIBTORCH_INCLUDE").join(HEADER);
    if !header.is_file() {
        bail!("{} is missing", header.display());
    }
    let libraries = place("LIBTORCH_LIB").join("lib");
    let names = ["libtorch.so", "libtorch.dylib", "torch.lib", "libtorch.a"];
    if !names.iter().any(|name| libraries.join(name).exists()) {
        bail!("{} holds no libtorch", libraries.display());
    }
    match version_of(directory) {
        Some(version) => check_version(&version, release),
        None => Ok(()), // Not every build has it, and torch-sys does not ask for it.
    }
}

/// Returns the version that the files of a libtorch, or of a PyTorch that pip installed, give.
fn version_of(directory: &Path) -> Option<String> {
    if let Ok(version) = fs::read_to_string(directory.join("build-version")) {
        return Some(version.trim().to_owned());
    }
    let python = fs::read_to_string(directory.join("version.py")).ok()?;
    let (version, _) = python.split_once("__version__ = '")?.1.split_once('\'')?;
    Some(version.to_owned())
}

fn check_version(version: &str, release: &Release) -> Result<()> {
    let Release { version: needed, tch, .. } = release;
    let bypass = env::var_os("LIBTORCH_BYPASS_VERSION_CHECK").is_some();
    if version.split('+').next() == Some(needed) || bypass {
        return Ok(());
    }
    match RELEASES.iter().find(|known| version.split('+').next() == Some(known.version)) {
        Some(other) => bail!(
            "it is version {version}, but the tch {tch} of Cargo.lock needs {needed}: \
             `cargo update -p tch --precise {}` changes that",
            other.tch
        ),
        None => bail!("it is version {version}, but the tch {tch} of Cargo.lock needs {needed}"),
    }
}

/// Makes sure that the libtorch in `destination` is that of `release`, or one that the user put there.
pub(super) fn ensure_ours(destination: &Path, release: &Release) -> Result<String> {
    let (shown, version) = (destination.display(), release.version);
    if destination.exists() {
        if !destination.join(STAMP_FILE).exists() {
            // Not from us, so nothing that we may replace.
            check_own(destination, release).with_context(|| {
                format!("{shown} is not from setup and does not serve: move it elsewhere")
            })?;
            return Ok(format!("libtorch: your own in {shown}; nothing fetched"));
        }
        match check_ours(destination, release) {
            Ok(()) => return Ok(format!("libtorch {version}: already there, in {shown}")),
            Err(fault) => eprintln!("{fault:#}; fetching libtorch again"),
        }
    }
    install(destination, release)?;
    Ok(format!("libtorch {version}: now in {shown}"))
}

/// Checks the stamp and the files that a build would miss.
fn check_ours(folder: &Path, release: &Release) -> Result<()> {
    let stamp = fs::read_to_string(folder.join(STAMP_FILE)).context("no stamp")?;
    if stamp.trim() != release.stamp() {
        bail!("{} is {}, not {}", folder.display(), stamp.trim(), release.stamp());
    }
    check_files(folder, &release.libraries)
}

fn check_files(folder: &Path, libraries: &[(&str, u64)]) -> Result<()> {
    for file in [HEADER, "lib/libtorch.so", "lib/libgomp.so"] {
        let file = folder.join(file);
        if !file.exists() {
            bail!("{} is missing", file.display());
        }
    }
    for (name, expected) in libraries {
        let file = folder.join("lib").join(name);
        let bytes = fs::metadata(&file).map_or(0, |metadata| metadata.len());
        if bytes != *expected {
            bail!("{} has {bytes} bytes, expected {expected}", file.display());
        }
    }
    Ok(())
}

fn install(destination: &Path, release: &Release) -> Result<()> {
    let version = release.version;
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            "setup knows a libtorch for Linux on x86-64 only; elsewhere, `pip install \
             torch=={version}` and set LIBTORCH_USE_PYTORCH=1, or set LIBTORCH to a directory that \
             holds libtorch {version}"
        );
    }
    let part = part_folder(destination)?;
    let (wheels, whole) = (part.path().join("wheels"), part.path().join("whole"));
    fs::create_dir(&wheels)?;
    fs::create_dir(&whole)?;
    download(&wheels, release)?;

    let bar = fetch::bar("unpacking", release.unpacked_bytes);
    for wheel in &release.wheels {
        unpack(&wheels.join(wheel.file), &whole, release, &bar)
            .with_context(|| format!("cannot unpack {}", wheel.file))?;
    }
    bar.finish_and_clear();
    complete(&whole, release)?;
    check_ours(&whole, release)?;

    if destination.exists() {
        fs::remove_dir_all(destination)?;
    }
    fs::rename(&whole, destination)
        .with_context(|| format!("cannot create {}", destination.display()))
}

fn download(folder: &Path, release: &Release) -> Result<()> {
    let mut pip = Command::new("python3");
    // The platform and Python options choose one wheel whatever Python runs this; the C++ libraries do
    // not depend on it.
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"])
        .args(["--no-cache-dir", "--no-deps", "--only-binary=:all:"])
        .args(["--python-version", "311", "--implementation", "cp", "--abi", "cp311"])
        .args(["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_25_x86_64"])
        .args(["--platform", "manylinux2014_x86_64", "--dest", "."])
        .arg(format!("torch=={}", release.version))
        .args(["nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"])
        // On the disk that is large enough, and where the bar sees it.
        .env("TMPDIR", folder);
    let what = format!("libtorch {} for the CPU, out of three wheels of PyTorch", release.version);
    fetch::fetch("pip", &what, &mut pip, folder, &release.wheels)
}

/// Unpacks the headers and libraries that a wheel holds, and leaves the rest.
fn unpack(wheel: &Path, folder: &Path, release: &Release, bar: &ProgressBar) -> Result<()> {
    let mut archive = ZipArchive::new(io::BufReader::new(File::open(wheel)?))?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let Some(target) = entry.enclosed_name().and_then(|name| target(&name, release)) else {
            continue;
        };
        if entry.is_dir() {
            continue;
        }
        let target = folder.join(target);
        fs::create_dir_all(target.parent().context("a file in no folder")?)?;
        io::copy(&mut entry, &mut bar.wrap_write(File::create(&target)?))?;
    }
    Ok(())
}

/// Where a file of a wheel goes in a libtorch folder, if it goes there.
fn target(name: &Path, release: &Release) -> Option<PathBuf> {
    if name.starts_with("torch/include") {
        return name.strip_prefix("torch").ok().map(Path::to_owned);
    }
    let file = name.file_name()?.to_str()?;
    let wanted = release.libraries.iter().any(|(library, _)| *library == file);
    let in_lib = name.parent()?.ends_with("lib");
    (wanted && in_lib).then(|| Path::new("lib").join(file))
}

/// Adds what makes the unpacked files a libtorch for torch-sys, the stamp last.
fn complete(folder: &Path, release: &Release) -> Result<()> {
    // torch-sys asks for -ltorch. The wheel's own libtorch.so wants libtorch_cuda.so, so a linker
    // script stands in for it; GNU ld, gold, lld and mold all read it.
    fs::write(folder.join("lib/libtorch.so"), "INPUT(-ltorch_cpu -lc10)\n")?;
    // It asks for -lgomp as well.
    #[cfg(unix)]
    std::os::unix::fs::symlink("libgomp.so.1", folder.join("lib/libgomp.so"))?;
    fs::write(folder.join("build-version"), format!("{}\n", release.version))?;
    fs::write(folder.join(STAMP_FILE), format!("{}\n", release.stamp()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWEST: &Release = &RELEASES[1];
    const SMALL: [(&str, u64); 2] = [("libtorch_cpu.so", 10), ("libc10.so", 4)];

    /// A folder as `unpack` and `complete` leave it, with libraries of a few bytes.
    fn small_libtorch() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let header = folder.path().join(HEADER);
        fs::create_dir_all(header.parent().unwrap()).unwrap();
        fs::write(header, "").unwrap();
        fs::create_dir(folder.path().join("lib")).unwrap();
        fs::write(folder.path().join("lib/libgomp.so.1"), "").unwrap();
        for (name, bytes) in SMALL {
            fs::write(folder.path().join("lib").join(name), vec![0; bytes as usize]).unwrap();
        }
        complete(folder.path(), NEWEST).unwrap();
        folder
    }

    #[test]
    fn a_complete_folder_passes_and_a_truncated_library_does_not() {
        let folder = small_libtorch();
        check_files(folder.path(), &SMALL).unwrap();
        fs::write(folder.path().join("lib/libc10.so"), "abc").unwrap();
        let error = check_files(folder.path(), &SMALL).unwrap_err().to_string();
        assert!(error.ends_with("libc10.so has 3 bytes, expected 4"), "{error}");
        fs::remove_file(folder.path().join("lib/libgomp.so.1")).unwrap();
        let error = check_files(folder.path(), &SMALL).unwrap_err().to_string();
        assert!(error.ends_with("libgomp.so is missing"), "{error}");
    }

    #[test]
    fn the_stamp_must_be_the_present_one() {
        let folder = small_libtorch();
        let complaint = || check_ours(folder.path(), NEWEST).unwrap_err().to_string();
        assert!(complaint().contains("bytes, expected"), "the stamp itself passes");
        fs::write(folder.path().join(STAMP_FILE), "2.12.0-1\n").unwrap();
        assert!(complaint().ends_with("is 2.12.0-1, not 2.13.0-1"));
        fs::remove_file(folder.path().join(STAMP_FILE)).unwrap();
        assert_eq!(complaint(), "no stamp");
    }

    #[test]
    fn a_folder_without_our_stamp_is_never_replaced() {
        let own = small_libtorch();
        fs::remove_file(own.path().join(STAMP_FILE)).unwrap();
        assert!(ensure_ours(own.path(), NEWEST).unwrap().contains("your own"));

        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("thesis.tex"), "").unwrap();
        let error = ensure_ours(other.path(), NEWEST).unwrap_err().to_string();
        assert!(error.contains("move it elsewhere"), "{error}");
        assert!(other.path().join("thesis.tex").exists());
    }

    #[test]
    fn a_link_takes_the_place_of_our_folder_and_of_nobody_else_s() {
        let root = tempfile::tempdir().unwrap();
        let destination = root.path().join("libtorch");
        let target = Path::new("libtorch-cuda/torch");
        fs::create_dir_all(root.path().join(target)).unwrap();
        link(&destination, target).unwrap();
        assert_eq!(
            destination.canonicalize().unwrap(),
            root.path().join(target).canonicalize().unwrap()
        );
        link(&destination, target).unwrap();
        fs::remove_file(&destination).unwrap();

        fs::create_dir(&destination).unwrap();
        fs::write(destination.join("thesis.tex"), "").unwrap();
        let error = link(&destination, target).unwrap_err().to_string();
        assert!(error.contains("move it elsewhere"), "{error}");
        assert!(destination.join("thesis.tex").exists());
        fs::write(destination.join(STAMP_FILE), "").unwrap();
        link(&destination, target).unwrap();
        assert!(destination.is_symlink());
    }

    #[test]
    fn a_libtorch_of_another_version_is_refused() {
        let own = small_libtorch();
        check_own(own.path(), NEWEST).unwrap();
        fs::write(own.path().join("build-version"), "2.13.0+cpu\n").unwrap();
        check_own(own.path(), NEWEST).unwrap();
        fs::write(own.path().join("build-version"), "2.12.1\n").unwrap();
        let error = check_own(own.path(), NEWEST).unwrap_err().to_string();
        assert_eq!(error, "it is version 2.12.1, but the tch 0.26.0 of Cargo.lock needs 2.13.0");
    }

    #[test]
    fn a_pytorch_for_another_tch_is_refused_with_the_command_for_it() {
        let own = small_libtorch();
        fs::remove_file(own.path().join("build-version")).unwrap(); // pip installs none
        let python = "from typing import Optional\n__version__ = '2.11.0+cu130'\ndebug = False\n";
        fs::write(own.path().join("version.py"), python).unwrap();
        check_own(own.path(), &RELEASES[0]).unwrap();
        let error = check_own(own.path(), NEWEST).unwrap_err().to_string();
        assert!(error.contains("`cargo update -p tch --precise 0.24.0`"), "{error}");
    }

    #[test]
    fn cargo_lock_names_a_release_that_setup_knows() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        locked_release(root).unwrap();
    }

    #[test]
    fn the_default_of_cargo_is_not_the_users_own() {
        let ours = Path::new("/checkout/libtorch");
        let set = |value| Some(OsStr::new(value));
        assert_eq!(source(None, None, ours), Source::Setup);
        assert_eq!(source(None, set("/checkout/libtorch"), ours), Source::Setup);
        assert_eq!(source(None, set("/checkout/libtorch/"), ours), Source::Setup);
        assert_eq!(
            source(None, set("/opt/libtorch"), ours),
            Source::Directory("/opt/libtorch".into())
        );
        assert_eq!(source(set("1"), set("/checkout/libtorch"), ours), Source::PyTorch);
    }

    #[test]
    fn wheels_give_headers_and_libraries_only() {
        let to = |name| target(Path::new(name), NEWEST).map(|path| path.display().to_string());
        assert_eq!(to("torch/include/ATen/ATen.h").as_deref(), Some("include/ATen/ATen.h"));
        assert_eq!(to("torch/lib/libc10.so").as_deref(), Some("lib/libc10.so"));
        assert_eq!(to("nvidia/cu13/lib/libcupti.so.13").as_deref(), Some("lib/libcupti.so.13"));
        assert_eq!(to("torch/lib/libtorch_cuda.so"), None);
        assert_eq!(to("torch/nn/functional.py"), None);
    }
}
