//! libtorch's library for GPUs.

use std::{mem, sync::OnceLock};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Loads libtorch's CUDA library if there is one where the program finds libtorch, also into a program that was linked to a libtorch
/// for CPUs and is started beside a PyTorch with CUDA.
///
/// The library registers itself with libtorch, which looks for it once: call this before anything that asks for GPUs.
///
/// # Errors
///
/// If there is none, or it cannot be loaded: the reason, as the loader gives it.
pub fn load_cuda() -> Result<(), &'static str> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let load = || {
        // SAFETY: the initialisers that run are libtorch's own, and it is never unloaded.
        let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
        library.map(mem::forget).map_err(|error| error.to_string())
    };
    LOADED.get_or_init(load).as_ref().copied().map_err(String::as_str)
}
