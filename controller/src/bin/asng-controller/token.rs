//! Makes tokens.

use std::io::Write;

use anyhow::ensure;
use asng_controller::study::is_label;
use clap::Args;
use data_encoding::HEXLOWER;
use rand::Rng;
use sha2::{Digest, Sha256};

/// The entry goes to standard output, to be added to the file of tokens, the token to standard error, to be given to
/// whoever is to have it:
///
///   asng-controller token --name lab --role trainer >> tokens.toml 2> lab.token
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// Who will have it, for the log; also the owner of studies that it creates without naming one.
    #[arg(long, default_value = "anybody")]
    name: String,
    /// What it allows: viewer to look, trainer to work on studies as well, admin everything.
    #[arg(long, default_value = "trainer", value_parser = ["viewer", "trainer", "admin"])]
    role: String,
}

/// Prints a fresh token.
pub(crate) fn make(Options { name, role }: &Options) -> anyhow::Result<()> {
    ensure!(is_label(name), "--name has 1 to 200 characters, none of them a control character");
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
