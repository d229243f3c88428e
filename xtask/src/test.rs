//! `cargo xtask test`: everything that must hold, from lints to searches by the real binaries.

use std::path::Path;

use clap::Args;

use crate::{
    demo,
    process::{cargo, run},
    python, setup,
};

/// How much to test.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Many more random lists of operations, kills of either service, hostile requests, seeds of the artificial problem
    /// and searches within limits; longer disturbances of trainers; and run the demo as well
    #[arg(long)]
    full: bool,
}

/// How much of what is random, or takes its time: the variable that a test reads, without and with `--full`.
const COUNTS: [(&str, &str, &str); 8] = [
    ("ASNG_LISTS", "500", "10000"),
    ("ASNG_KILLS", "20", "200"),
    ("ASNG_HOSTILE_REQUESTS", "30000", "1000000"),
    ("ASNG_SEARCH_KILLS", "4", "20"),
    ("ASNG_TOY_SEEDS", "1", "50"),
    ("ASNG_LIMITED_SEARCHES", "10", "100"),
    ("ASNG_CUT_SECONDS", "10", "120"),
    ("ASNG_CHAOS_SECONDS", "60", "600"),
];

/// Sets up first when needed.
pub(crate) fn test(root: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    setup::setup(root)?;
    setup::nasbench201(root)?;
    run(&mut cargo(
        root,
        ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"],
    ))?;
    let mut tests = cargo(root, ["test", "--locked", "--workspace", "--no-fail-fast"]);
    for (variable, short, full) in COUNTS {
        tests.env(variable, if arguments.full { full } else { short });
    }
    // libtorch's threads spin while they wait, and take the time from those that they wait for.
    tests.env("GOMP_SPINCOUNT", "10000");
    run(&mut tests)?;
    python::test(root)?;
    run(cargo(root, ["doc", "--locked", "--workspace", "--no-deps", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    if arguments.full {
        demo::demo(root, &demo::Arguments::default())?;
    }
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
