//! libtorch's errors as values.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use tch::TchError;

use crate::files;

/// The reason why something could not be computed, saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// libtorch cannot compute this on any device: shapes that do not fit, an operation that it lacks.
    #[error("libtorch: {0}")]
    Torch(String),
    /// The device has not enough memory.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The device computes nothing any more: the process must be started again, or the device be replaced.
    #[error("the device has failed: {0}")]
    Device(String),
    /// A file is damaged, or belongs to another network: another space, or other settings.
    #[error("{file} is damaged, or of another network: {reason}")]
    OtherNetwork {
        /// The file.
        file: String,
        /// The first tensor that does not fit, and how.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] files::Error),
}

/// Texts of libtorch, CUDA and their libraries when an allocation fails.
const OUT_OF_MEMORY: [&str; 5] = [
    "out of memory",
    "can't allocate memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
];
/// Their texts when a device can no longer be used. After an error of CUDA every later call of the process fails.
const DEVICE_FAILURES: [&str; 8] = [
    "CUDA error",
    "CUDA driver error",
    "device-side assert",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
];

impl From<TchError> for Error {
    fn from(error: TchError) -> Error {
        Error::of(&error.to_string())
    }
}

impl Error {
    /// Sorts libtorch's errors by their text, since they have no kinds. Keeps the first line: a C++ backtrace follows.
    fn of(text: &str) -> Error {
        let first_line = text.lines().next().unwrap_or_default().to_owned();
        let contains_one_of = |texts: &[&str]| texts.iter().any(|part| first_line.contains(part));
        if contains_one_of(&OUT_OF_MEMORY) {
            Error::OutOfMemory(first_line)
        } else if contains_one_of(&DEVICE_FAILURES) {
            Error::Device(first_line)
        } else {
            Error::Torch(first_line)
        }
    }
}

/// Runs a computation with tch's plain calls. Errors if libtorch refuses one of them; any other panic goes on.
///
/// After an error, tensors that the computation changes in place may have been changed in part.
pub fn attempt<T>(compute: impl FnOnce() -> T) -> Result<T, Error> {
    static SILENCE: Once = Once::new();
    // A panic that becomes an error needs no message and no backtrace on standard error.
    SILENCE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !ATTEMPTING.get() || libtorch_error(info.payload()).is_none() {
                report(info);
            }
        }));
    });
    let outer = ATTEMPTING.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(compute));
    ATTEMPTING.set(outer);
    result.map_err(|panic| match libtorch_error(&*panic) {
        Some(error) => error,
        None => panic::resume_unwind(panic),
    })
}

thread_local! {
    static ATTEMPTING: Cell<bool> = const { Cell::new(false) };
}

/// The error of libtorch in a panic of tch, which unwraps a `TchError` and so prints it with `Debug`.
fn libtorch_error(panic: &(dyn Any + Send)) -> Option<Error> {
    let text = panic.downcast_ref::<String>()?;
    let (_, text) = text.split_once("called `Result::unwrap()` on an `Err` value: Torch(\"")?;
    Some(Error::of(&text.strip_suffix("\")").unwrap_or(text).replace("\\n", "\n")))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    fn tensor(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn what_libtorch_refuses_is_an_error_of_one_line() {
        let sum = attempt(|| tensor(&[2, 3]) + tensor(&[4]));
        let error = sum.unwrap_err();
        assert!(matches!(error, Error::Torch(_)), "{error}");
        let expected = "libtorch: The size of tensor a (3) must match the size of tensor b (4)";
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
        let huge = attempt(|| tensor(&[1]).expand([1 << 46], false).contiguous());
        assert!(matches!(huge, Err(Error::OutOfMemory(_))));
        assert_eq!(f64::try_from(attempt(|| tensor(&[2]).sum(Kind::Float)).unwrap()).unwrap(), 2.0);
    }

    #[test]
    fn gradients_are_on_again_after_an_error() {
        let refused = attempt(|| {
            let _guard = tch::no_grad_guard();
            tensor(&[2]) + tensor(&[3])
        });
        assert!(refused.is_err());
        let weight = tensor(&[2]).set_requires_grad(true);
        assert!((weight * 2.0).requires_grad());
    }

    #[test]
    #[should_panic(expected = "a fault of our own")]
    fn other_panics_go_on() {
        let _ = attempt(|| panic!("a fault of our own"));
    }

    #[test]
    fn errors_are_sorted_by_their_texts() {
        assert!(matches!(Error::of("CUDA out of memory. Tried"), Error::OutOfMemory(_)));
        assert!(matches!(Error::of("CUDA error: unspecified"), Error::Device(_)));
        assert!(matches!(Error::of("shape '[2]' is invalid"), Error::Torch(_)));
    }
}
