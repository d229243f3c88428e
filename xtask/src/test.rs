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
    /// Try 10,000 random lists of operations instead of 256, and run the demo as well
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
    if arguments.full {
        tests.env("PROPTEST_CASES", "10000");
    }
    run(&mut tests)?;
    run(cargo(root, ["doc", "--locked", "--workspace", "--no-deps", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    if arguments.full {
        demo::demo(root, &demo::Arguments::default())?;
    }
    Ok(())
}
