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
    /// Run the demo as well, in its full size
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
    run(&mut cargo(root, ["test", "--locked", "--workspace"]))?;
    run(cargo(root, ["doc", "--locked", "--workspace", "--no-deps", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    if arguments.full {
        demo::demo(root, &demo::Arguments::default())?;
    }
    Ok(())
}
