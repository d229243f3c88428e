//! TorchScript with parameters and buffers.

use std::{
    any::Any,
    ffi::{CStr, CString, c_char, c_void},
    os::unix::ffi::OsStrExt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn asng_native_trace(
        names: *const *const c_char,
        tensors: *const *const C_tensor,
        parameters: usize,
        count: usize,
        images: *const C_tensor,
        forward: unsafe extern "C" fn(*mut c_void, *mut C_tensor) -> *mut C_tensor,
        function: *mut c_void,
        file: *const c_char,
        write: unsafe extern "C" fn(*mut c_void, *const c_char),
        text: *mut c_void,
    ) -> bool;
}

struct Function<'a> {
    forward: &'a dyn Fn(&Tensor) -> Tensor,
    panic: Option<Box<dyn Any + Send>>,
}

/// Traces `forward` on example `images` and writes it to `file` as a TorchScript module, whose parameters and buffers are the
/// tensors of those names; a dot in a name stands between a submodule and what is in it. `forward` must read these very tensors.
///
/// Returns the graph as JSON: the number of the `input`, the `nodes`, each with the `op` of libtorch, its `inputs`, the number of
/// its `output` and the `shape` that this has for the example, and the number of the `output`. Inputs that are strings are tensors:
/// names, or numbers of values; all others are constants. Errors if a tensor is read that is neither parameter nor buffer, or
/// the file cannot be written.
pub fn trace(
    images: &Tensor,
    [parameters, buffers]: [&[(String, Tensor)]; 2],
    forward: &dyn Fn(&Tensor) -> Tensor,
    file: &Path,
) -> Result<String, TchError> {
    let named = || parameters.iter().chain(buffers);
    let names = named().map(|(name, _)| CString::new(&**name)).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let tensors: Vec<_> = named().map(|(_, tensor)| tensor.as_ptr()).collect();
    let file = CString::new(file.as_os_str().as_bytes())?;
    let mut function = Function { forward, panic: None };
    let mut text = String::new();
    // SAFETY: all pointers are to values that outlive the call; `call` and `write` get the two that are theirs, and let no panic
    // out. The C++ lets no exception out.
    let written = unsafe {
        asng_native_trace(
            names.as_ptr(),
            tensors.as_ptr(),
            parameters.len(),
            names.len(),
            images.as_ptr(),
            call,
            (&raw mut function).cast(),
            file.as_ptr(),
            write,
            (&raw mut text).cast(),
        )
    };
    if let Some(panic) = function.panic {
        resume_unwind(panic);
    }
    if written { Ok(text) } else { Err(TchError::Torch(text)) }
}

/// # Safety
/// `function` is a [`Function`], `images` a tensor to own.
unsafe extern "C" fn call(function: *mut c_void, images: *mut C_tensor) -> *mut C_tensor {
    // SAFETY: see above.
    let (function, images) =
        unsafe { (&mut *function.cast::<Function>(), Tensor::from_ptr(images)) };
    match catch_unwind(AssertUnwindSafe(|| (function.forward)(&images))) {
        Ok(output) => std::mem::ManuallyDrop::new(output).as_mut_ptr(),
        Err(panic) => {
            function.panic = Some(panic);
            std::ptr::null_mut()
        }
    }
}

/// # Safety
/// `to` is a [`String`], `text` a text with its end.
unsafe extern "C" fn write(to: *mut c_void, text: *const c_char) {
    // SAFETY: see above.
    let (to, text) = unsafe { (&mut *to.cast::<String>(), CStr::from_ptr(text)) };
    *to = text.to_string_lossy().into_owned();
}
