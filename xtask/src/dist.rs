//! `cargo xtask dist`: the wheels of a release, each with its licences and the list of what it is made of (a CycloneDX SBOM).

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use tempfile::TempDir;

use crate::{
    process::{read, run},
    setup,
};

/// The packages that build wheels. The linker of Zig links to the symbols of an old glibc, whichever this machine has.
const TOOLS: [&str; 4] =
    ["build==1.6.1", "maturin==1.16.0", "ziglang==0.17.1", "cyclonedx-bom==7.5.0"];
/// The oldest Linux that the controller runs on: that of 2014, with glibc 2.17.
const CONTROLLER_PLATFORM: &str = "manylinux2014";
/// That of the trainer, whose libtorch is linked with GCC's C++ library: what a build on Debian 12 needs.
const TRAINER_PLATFORM: &str = "manylinux_2_34";
/// The Pythons beside whose programs the trainer looks for PyTorch.
const PYTHONS: std::ops::RangeInclusive<u8> = 10..=14;

/// The default directory of the wheels.
const OUT: &str = "target/dist";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The wheels to build [default: all]
    wheels: Vec<Wheel>,
    /// Directory for the wheels and their SHA256SUMS, made if it is not there.
    #[arg(long, value_name = "DIR", default_value = OUT)]
    out: PathBuf,
}

impl Default for Arguments {
    fn default() -> Arguments {
        Arguments { wheels: Vec::new(), out: OUT.into() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wheel {
    /// The Python package, and its source distribution
    Asng,
    /// The controller and asngctl
    AsngController,
    /// The trainer, for the release of PyTorch that the wheel then depends on
    AsngTrainer,
}

/// Builds wheels, and writes their checksums.
pub(crate) fn dist(root: &Path, arguments: &Arguments) -> Result<()> {
    let out = root.join(&arguments.out);
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let tools = Tools::install(root)?;
    let wanted = |wheel| arguments.wheels.is_empty() || arguments.wheels.contains(&wheel);
    if wanted(Wheel::Asng) {
        run(tools.python("build").arg("clients/python").arg("--outdir").arg(&out))?;
        tools.list_parts(root, &out)?;
    }
    if wanted(Wheel::AsngController) {
        let mut maturin = tools.maturin("controller", &out);
        run(maturin.args(["--zig", "--compatibility", CONTROLLER_PLATFORM]))?;
        let environment = tools.install_alone("asng-controller", &out)?;
        run(Command::new(environment.path().join("bin/asng-controller")).arg("--version"))?;
    }
    if wanted(Wheel::AsngTrainer) {
        setup::setup(root)?;
        let mut maturin = tools.maturin("trainer", &out);
        // libtorch is PyTorch's to bring: it is not to be copied into the wheel.
        maturin.args(["--auditwheel", "skip", "--compatibility", TRAINER_PLATFORM]);
        run(maturin.env("ASNG_LIBTORCH_RPATH", libtorch_of_pythons()))?;
        // The program has to find libtorch where PyTorch has it.
        let environment = tools.install_alone("asng-trainer", &out)?;
        let pytorch = packages(environment.path())?.join("torch");
        fs::create_dir(&pytorch)?;
        #[cfg(unix)]
        std::os::unix::fs::symlink(root.join("libtorch/lib").canonicalize()?, pytorch.join("lib"))?;
        run(Command::new(environment.path().join("bin/asng-trainer")).arg("--version"))?;
    }
    let sums = checksums(&out)?;
    fs::write(out.join("SHA256SUMS"), &sums).context("cannot write SHA256SUMS")?;
    print!("{sums}");
    Ok(())
}

/// Where PyTorch's libraries lie as seen from a program of the same environment, or of Debian's Python.
fn libtorch_of_pythons() -> String {
    let directories = PYTHONS.flat_map(|minor| {
        ["site-packages", "dist-packages"]
            .map(|packages| format!("$ORIGIN/../lib/python3.{minor}/{packages}/torch/lib"))
    });
    directories.collect::<Vec<_>>().join(":")
}

/// An environment of Python with the programs that build wheels.
struct Tools(PathBuf);

impl Tools {
    fn install(root: &Path) -> Result<Tools> {
        let environment = root.join("target/dist-tools");
        let stamp = environment.join("installed");
        let tools = TOOLS.join("\n");
        if fs::read_to_string(&stamp).ok().as_ref() != Some(&tools) {
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
            let mut pip = Command::new(environment.join("bin/python"));
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
            run(pip.args(TOOLS).stdin(Stdio::null()))?;
            fs::write(&stamp, tools)?;
        }
        Ok(Tools(environment))
    }

    fn program(&self, name: &str) -> Command {
        let programs = self.0.join("bin");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(programs.clone()).chain(std::env::split_paths(&path));
        let mut command = Command::new(programs.join(name));
        // maturin looks for Zig there.
        command.env("PATH", std::env::join_paths(all).expect("a PATH"));
        command
    }

    fn python(&self, module: &str) -> Command {
        let mut command = self.program("python");
        command.args(["-m", module]);
        command
    }

    /// Builds the wheel of a crate.
    fn maturin(&self, package: &str, out: &Path) -> Command {
        let mut command = self.program("maturin");
        command.args(["build", "--release", "--locked", "--manifest-path"]);
        command.arg(format!("{package}/Cargo.toml")).arg("--out").arg(out);
        command
    }

    /// Makes an environment in which a wheel is installed without what it depends on.
    fn install_alone(&self, wheel: &str, from: &Path) -> Result<TempDir> {
        let environment = self.environment()?;
        let mut pip = self.pip(environment.path());
        run(pip.args(["--no-deps", "--no-index", "--find-links"]).arg(from).arg(wheel))?;
        Ok(environment)
    }

    /// Makes an empty environment.
    fn environment(&self) -> Result<TempDir> {
        let environment = tempfile::tempdir()?;
        run(self.python("venv").arg("--without-pip").arg(environment.path()))?;
        Ok(environment)
    }

    /// A command that installs into an environment.
    fn pip(&self, environment: &Path) -> Command {
        let mut pip = self.python("pip");
        pip.arg("--python").arg(environment).args(["install", "--quiet"]);
        pip.arg("--disable-pip-version-check");
        pip
    }

    /// Writes the SBOM of the Python package, of an environment in which its wheel is installed; maturin puts the others into
    /// their wheels.
    fn list_parts(&self, root: &Path, out: &Path) -> Result<()> {
        let environment = self.environment()?;
        run(self.pip(environment.path()).arg("--find-links").arg(out).arg("asng"))?;
        let mut parts = self.program("cyclonedx-py");
        parts.arg("environment").arg(environment.path().join("bin/python"));
        parts.args(["--output-reproducible", "--pyproject"]);
        parts.arg(root.join("clients/python/pyproject.toml"));
        fs::write(out.join("asng.cdx.json"), read(&mut parts)?)?;
        Ok(())
    }
}

/// Where an environment has its packages.
fn packages(environment: &Path) -> Result<PathBuf> {
    let mut pythons = fs::read_dir(environment.join("lib"))?;
    let python = pythons.next().context("an environment without a Python")??;
    Ok(python.path().join("site-packages"))
}

/// Lines of `sha256sum` for all files there but the list of them.
fn checksums(directory: &Path) -> Result<String> {
    let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.retain(|name| name != "SHA256SUMS");
    names.sort();
    read(Command::new("sha256sum").current_dir(directory).arg("--").args(names))
}
