//! Compiles the C++ against the headers of the libtorch that torch-sys found. torch-sys says `links = "tch"`; cargo passes
//! its directory on to direct dependents only.

use std::{
    env,
    path::{Path, PathBuf},
};

fn main() {
    const FILES: [&str; 9] = [
        "src/autocast.cpp",
        "src/batch_norm.cpp",
        "src/calls.cpp",
        "src/depthwise.cpp",
        "src/memory.cpp",
        "src/optim.cpp",
        "src/pool.cpp",
        "src/precision.cpp",
        "src/trace.cpp",
    ];
    for file in FILES.into_iter().chain(["src/border.h", "src/vectors.h"]) {
        println!("cargo::rerun-if-changed={file}");
    }
    for variable in ["DEP_TCH_LIBTORCH_LIB", "LIBTORCH_INCLUDE", "LIBTORCH_CXX11_ABI"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let Ok(library) = env::var("DEP_TCH_LIBTORCH_LIB") else {
        println!(
            "cargo::error=torch-sys does not say where libtorch is: `cargo xtask setup` fetches it"
        );
        return;
    };
    let include = match env::var_os("LIBTORCH_INCLUDE") {
        Some(directory) => PathBuf::from(directory).join("include"),
        None => Path::new(&library).with_file_name("include"),
    };
    // As torch-sys compiles its own part.
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(3) // in debug builds too: nobody debugs this loop by loop, and tests run networks
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        // The header of at::parallel_for is serial without it.
        .flag_if_supported("-fopenmp")
        // Vectors wider than the oldest processor's pass between functions that are always inlined.
        .flag_if_supported("-Wno-psabi")
        // libtorch's headers are not ours to correct.
        .flag(format!("-isystem{}", include.display()))
        .flag(format!("-isystem{}", include.join("torch/csrc/api/include").display()))
        .files(FILES)
        .compile("asng_native");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{library}");
}
