//! The environment of all tests that run Python, target/python, and the Python package's lints and tests in it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    process::{cargo, read, run},
    setup::debian,
};

/// Files of the package that say what is to be installed, and from what its messages are generated.
const SOURCES: [&str; 5] = [
    "clients/python/pyproject.toml",
    "clients/python/hatch_build.py",
    "clients/python/src/asng/_details.proto",
    "proto/asng/v1/study.proto",
    "proto/asng/v1/search.proto",
];

/// Lints, checks the types and runs the tests, against the controller and asngctl of a debug build.
pub(crate) fn test(root: &Path) -> Result<()> {
    run(&mut cargo(root, ["build", "--locked", "-p", "asng-controller", "--bins"]))?;
    let (controller, program) = (target(root).join("debug/asng-controller"), install(root)?);
    let package = root.join("clients/python");
    let python = |module| {
        let mut python = Command::new(&program);
        python
            .current_dir(&package)
            .args(["-m", module])
            .env("ASNG_CONTROLLER_BINARY", &controller);
        python
    };
    run(python("ruff").args(["format", "--check"]))?;
    run(python("ruff").arg("check"))?;
    run(&mut python("mypy"))?;
    run(&mut python("pytest"))
}

fn target(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), |dir| root.join(dir))
}

/// Makes the environment, with the package installed so that it follows its sources, and returns its Python; quiet if it is there
/// already. It is one of Debian's Python where that has PyTorch, for the tests of `asng.torch` and of the trainer's exports.
pub(crate) fn install(root: &Path) -> Result<PathBuf> {
    let environment = target(root).join("python");
    let program = environment.join("bin/python");
    let pytorch = debian::has_pytorch();
    ensure!(
        pytorch || env::var_os("CI").is_none(),
        "the tests of asng.torch need PyTorch: cargo xtask setup pytorch"
    );
    let (python, packages) = match pytorch {
        true => (debian::PYTHON, &["--system-site-packages"][..]),
        false => ("python3", &[][..]),
    };
    let mut made_from = python.to_owned() + &read(Command::new(python).arg("--version"))?;
    for source in SOURCES {
        made_from += &fs::read_to_string(root.join(source)).context(source)?;
    }
    let stamp = environment.join("made-from");
    if fs::read_to_string(&stamp).is_ok_and(|before| before == made_from) {
        return Ok(program);
    }
    // Without pip, which Debian's python3 cannot put there: its own installs from outside.
    let mut venv = Command::new(python);
    run(venv.args(["-m", "venv", "--clear", "--without-pip"]).args(packages).arg(&environment))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--python"]).arg(&environment);
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-input", "--editable"]);
    run(pip.arg("clients/python[test]").current_dir(root).stdin(Stdio::null()))
        .context("on Debian, `apt-get install python3-pip`")?;
    fs::write(&stamp, made_from).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(program)
}
