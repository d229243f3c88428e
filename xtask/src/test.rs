//! `cargo xtask test`: everything that must hold, from lints to searches by the real binaries.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context;
use clap::Args;

use crate::{
    comments, demo, dist, docs,
    process::{cargo, run},
    python, setup,
};

/// Options of `cargo xtask test`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Run many more random sequences of operations, kills of either service, hostile requests, seeds of the artificial
    /// problem and searches within limits; longer disturbances of trainers; the book, the wheels and crates of a release; the
    /// demo; and the trainer's own tests against PyTorch 2.11, the oldest that it compiles with (10 minutes on two cores)
    #[arg(long)]
    full: bool,
}

/// How much of what is random, or takes its time: the variable that a test reads, without and with `--full`.
const COUNTS: [(&str, &str, &str); 9] = [
    ("ASNG_LISTS", "500", "10000"),
    ("ASNG_KILLS", "20", "200"),
    ("ASNG_HOSTILE_REQUESTS", "30000", "1000000"),
    ("ASNG_SEARCH_KILLS", "4", "20"),
    ("ASNG_TOY_SEEDS", "1", "50"),
    ("ASNG_LIMITED_SEARCHES", "10", "100"),
    ("ASNG_CUT_SECONDS", "10", "120"),
    ("ASNG_CHAOS_SECONDS", "60", "600"),
    ("ASNG_LARGE_IMAGES", "400", "11000"),
];

/// The compiler of .proto files that compares two versions, as an npm package.
const BUF: &str = "@bufbuild/buf@1.75.0";

/// Sets up first when needed.
pub(crate) fn test(root: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    comments::lint(root)?;
    setup::setup(root)?;
    setup::test_data(root)?;
    let python = python::install(root)?;
    run(&mut cargo(
        root,
        ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"],
    ))?;
    contract(root)?;
    docs::check_links(root)?;
    let mut tests = cargo(root, ["test", "--locked", "--workspace", "--no-fail-fast"]);
    for (variable, short, full) in COUNTS {
        tests.env(variable, if arguments.full { full } else { short });
    }
    // libtorch's threads spin while they wait, and take the time from those that they wait for.
    tests.env("GOMP_SPINCOUNT", "10000");
    run(tests.env("ASNG_PYTHON", &python))?;
    python::test(root)?;
    run(cargo(root, ["doc", "--locked", "--workspace", "--no-deps", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    if arguments.full {
        run(&mut cargo(root, ["package", "--locked", "-p", "asng-proto", "-p", "asng-client"]))?;
        docs::build(root)?;
        dist::dist(root, &dist::Arguments::default())?;
        demo::demo(root, &demo::Arguments::default())?;
        oldest_pytorch(root, &python)?;
    }
    Ok(())
}

/// Lints the contract, and checks that it breaks nothing of the last release's.
fn contract(root: &Path) -> anyhow::Result<()> {
    for arguments in [&["lint"][..], &["breaking", "--against", "released.binpb"]] {
        let mut buf = Command::new("npm");
        buf.args(["exec", "--yes", "--package", BUF, "--", "buf"]).args(arguments);
        run(buf.current_dir(root.join("proto")).stdin(Stdio::null()))?;
    }
    Ok(())
}

/// Builds the trainer against the oldest PyTorch that it compiles with, and runs its tests and the program on the CPU.
///
/// That takes another Cargo.lock, and cargo reads the one beside Cargo.toml. So the build runs in a directory of links to
/// all that lies in the checkout, with a copy of Cargo.lock alone; the checkout stays as it is.
fn oldest_pytorch(root: &Path, python: &Path) -> anyhow::Result<()> {
    let directory = root.join("target/oldest-pytorch");
    let (libtorch, checkout) = (directory.join("libtorch"), directory.join("checkout"));
    let tch = setup::oldest_libtorch(root, &libtorch)?;
    link_checkout(root, &checkout)
        .with_context(|| format!("cannot make {}", checkout.display()))?;
    run(&mut cargo(&checkout, ["update", "--package", "tch", "--precise", tch]))?;

    let trainer = |arguments: &[&str]| {
        let mut command = cargo(&checkout, arguments);
        command.env("LIBTORCH", &libtorch).env("CARGO_TARGET_DIR", directory.join("target"));
        command.env("ASNG_PYTHON", python);
        // torch-sys would look there instead.
        for variable in ["LIBTORCH_USE_PYTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_LIB"] {
            command.env_remove(variable);
        }
        run(command.env("GOMP_SPINCOUNT", "10000"))
    };
    trainer(&["test", "--locked", "-p", "asng-native", "-p", "asng-trainer", "--no-fail-fast"])?;
    trainer(&["run", "--locked", "--quiet", "-p", "asng-trainer", "--", "--version"])
}

/// Fills `directory` anew with links to what lies in `root`, except for hidden files and the target directory, and with a
/// copy of Cargo.lock.
fn link_checkout(root: &Path, directory: &Path) -> anyhow::Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?; // of links, only the links
    }
    fs::create_dir_all(directory)?;
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if !hidden && name != "target" && name != "Cargo.lock" {
            #[cfg(unix)]
            std::os::unix::fs::symlink(root.join(&name), directory.join(&name))?;
        }
    }
    fs::copy(root.join("Cargo.lock"), directory.join("Cargo.lock"))?;
    Ok(())
}

/// Has the test that opens the page write what it sees into docs.
pub(crate) fn screenshots(root: &Path) -> anyhow::Result<()> {
    setup::setup(root)?;
    let page = ["test", "--locked", "-p", "asng-tests", "--test", "page"];
    run(cargo(root, page)
        .args(["--", "--ignored", "--exact", "screenshots"])
        .env("GOMP_SPINCOUNT", "10000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linked_checkout_has_a_cargo_lock_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        for directory in [".git", "target", "trainer"] {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        for file in ["Cargo.toml", "Cargo.lock", "trainer/Cargo.toml"] {
            fs::write(root.path().join(file), "as it was").unwrap();
        }
        let linked = root.path().join("target/linked");
        for _ in 0..2 {
            link_checkout(root.path(), &linked).unwrap();
            fs::write(linked.join("Cargo.lock"), "changed").unwrap();
        }
        assert_eq!(fs::read_to_string(root.path().join("Cargo.lock")).unwrap(), "as it was");
        assert!(linked.join("trainer/Cargo.toml").is_file());
        assert!(!linked.join(".git").exists() && !linked.join("target").exists());
    }
}
