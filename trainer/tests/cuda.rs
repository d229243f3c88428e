//! A libtorch with CUDA is linked with its CUDA part. It registers itself when it is loaded, and the linker drops it unless
//! build.rs insists.

use std::{fs, path::Path};

#[test]
fn the_cuda_library_is_loaded_if_there_is_one() {
    tch::manual_seed(0);
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let loaded = |name: &str| maps.lines().find(|line| line.ends_with(name));
    let line = loaded("/libtorch_cpu.so").expect("libtorch is loaded");
    let path = Path::new(line.split_whitespace().last().unwrap());
    let there = path.with_file_name("libtorch_cuda.so").exists();
    assert_eq!(loaded("/libtorch_cuda.so").is_some(), there);
}
