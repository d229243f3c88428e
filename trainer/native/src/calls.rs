//! Counts of libtorch's operations.

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_void},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

unsafe extern "C" {
    fn asng_native_count_begin() -> *mut c_void;
    fn asng_native_count_end(
        counting: *mut c_void,
        each: unsafe extern "C" fn(*mut c_void, *const c_char, u64),
        to: *mut c_void,
    );
}

/// Returns how many operations of libtorch `compute` asks for, by their names; those that backward passes ask for are included, those
/// that operations are made of are not. On a GPU, most are one kernel.
pub fn count_calls(compute: impl FnOnce()) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    // SAFETY: what begins ends once, on the same thread; `add` gets the map that is its own. The C++ lets no exception out.
    let computed = unsafe {
        let counting = asng_native_count_begin();
        let computed = catch_unwind(AssertUnwindSafe(compute));
        asng_native_count_end(counting, add, (&raw mut counts).cast());
        computed
    };
    computed.unwrap_or_else(|panic| resume_unwind(panic));
    counts
}

/// # Safety
/// `to` is the map, `name` a text with its end.
unsafe extern "C" fn add(to: *mut c_void, name: *const c_char, number: u64) {
    // SAFETY: see above.
    let (to, name) = unsafe { (&mut *to.cast::<BTreeMap<String, u64>>(), CStr::from_ptr(name)) };
    to.insert(name.to_string_lossy().into_owned(), number);
}
