//! Creates tokens.

use std::io::Write;

use anyhow::ensure;
use asng_controller::study::is_label;
use clap::Args;
use data_encoding::HEXLOWER;
use rand::Rng;
use sha2::{Digest, Sha256};

/// The entry for the token file goes to standard output; the token itself, for the client, goes to standard error:
///
///   asng-controller token --name lab --role trainer >> tokens.toml 2> lab.token
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// Name of the token's holder, for the log; also the default owner of studies that are created with the token.
    #[arg(long, default_value = "anybody")]
    name: String,
    /// Role: viewer may read, trainer may also work on studies, admin may do everything.
    #[arg(long, default_value = "trainer", value_parser = ["viewer", "trainer", "admin"])]
    role: String,
}

/// Prints a new token.
pub(crate) fn make(Options { name, role }: &Options) -> anyhow::Result<()> {
    ensure!(
        is_label(name),
        "--name must have 1 to 200 characters, none of them a control character"
    );
    let mut random = [0; 32];
    rand::rng().fill_bytes(&mut random);
    let token = format!("asng_{}", HEXLOWER.encode(&random));
    let sha256 = HEXLOWER.encode(&Sha256::digest(&token));
    // A string of JSON is one of TOML.
    let name = serde_json::to_string(name)?;
    let mut out = std::io::stdout();
    writeln!(out, "[[token]]\nname = {name}\nrole = \"{role}\"\nsha256 = \"{sha256}\"\n")?;
    eprintln!("{token}");
    Ok(())
}
