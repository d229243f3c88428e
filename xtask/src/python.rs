//! The Python package's lints and tests, in an environment of their own: target/python.

use std::{
    env, fs,
    path::Path,
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
    let target = env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), |dir| root.join(dir));
    let (controller, environment) = (target.join("debug/asng-controller"), target.join("python"));
    install(root, &environment)?;
    let package = root.join("clients/python");
    let python = |module| {
        let mut python = Command::new(environment.join("bin/python"));
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

/// Makes the environment, with the package installed so that it follows its sources; quiet if it is there already. It is one of
/// Debian's Python where that has PyTorch, for the tests of `asng.torch`.
fn install(root: &Path, environment: &Path) -> Result<()> {
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
        return Ok(());
    }
    // Without pip, which Debian's python3 cannot put there: its own installs from outside.
    let mut venv = Command::new(python);
    run(venv.args(["-m", "venv", "--clear", "--without-pip"]).args(packages).arg(environment))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--python"]).arg(environment);
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-input", "--editable"]);
    run(pip.arg("clients/python[test]").current_dir(root).stdin(Stdio::null()))
        .context("on Debian, `apt-get install python3-pip`")?;
    fs::write(&stamp, made_from).with_context(|| format!("cannot write {}", stamp.display()))
}
