//! Writes libtorch's directory into the binaries, so that they start without LD_LIBRARY_PATH, and keeps its CUDA part.
//! torch-sys says `links = "tch"`; cargo passes its directory on to direct dependents only.

use std::{env, path::Path};

fn main() {
    for variable in ["DEP_TCH_LIBTORCH_LIB", "ASNG_LIBTORCH_RPATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let Ok(directory) = env::var("DEP_TCH_LIBTORCH_LIB") else { return };
    // A wheel finds the libtorch of the Python environment that it is installed in (`cargo xtask dist`).
    let rpath = env::var("ASNG_LIBTORCH_RPATH").unwrap_or_else(|_| directory.clone());
    println!("cargo::rustc-link-arg=-Wl,-rpath,{rpath}");
    if Path::new(&directory).join("libtorch_cuda.so").exists() {
        // It registers itself when it is loaded; no symbol is taken from it, so the linker would drop it.
        for argument in ["-Wl,--no-as-needed", "-ltorch_cuda", "-Wl,--as-needed"] {
            println!("cargo::rustc-link-arg={argument}");
        }
    }
}
