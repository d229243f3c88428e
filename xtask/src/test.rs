//! `cargo xtask test`: everything that must hold, from lints to searches by the real binaries.

use std::path::Path;

use clap::Args;

use crate::{
    demo,
    process::{cargo, run},
    setup,
};

/// How much to test.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Many more random lists of operations, kills and hostile requests; and run the demo as well
    #[arg(long)]
    full: bool,
}

/// Sets up first when needed.
pub(crate) fn test(root: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    setup::setup(root)?;
    run(&mut cargo(
        root,
        ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"],
    ))?;
    let mut tests = cargo(root, ["test", "--locked", "--workspace"]);
    let [lists, kills, requests] =
        if arguments.full { ["10000", "200", "1000000"] } else { ["500", "20", "30000"] };
    tests.env("ASNG_LISTS", lists);
    tests.env("ASNG_KILLS", kills).env("ASNG_HOSTILE_REQUESTS", requests);
    // libtorch's threads spin while they wait, and take the time from those that they wait for.
    tests.env("GOMP_SPINCOUNT", "10000");
    run(&mut tests)?;
    run(cargo(root, ["doc", "--locked", "--workspace", "--no-deps", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    if arguments.full {
        demo::demo(root, &demo::Arguments::default())?;
    }
    Ok(())
}
