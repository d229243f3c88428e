//! Compiles the `.proto` files with protox, so that no protoc has to be installed.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["asng/v1/study.proto", "asng/v1/search.proto", "asng/v1/trainer.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("asng.v1.bin"), prost::Message::encode_to_vec(&descriptors))?;
    // Ordered maps: the same message always has the same bytes.
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
