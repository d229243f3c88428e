//! Writes libtorch's directory into the binaries, so that they start without LD_LIBRARY_PATH.
//! torch-sys says `links = "tch"`; cargo passes its directory on to direct dependents only.

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(directory) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{directory}");
    }
}
