// The border to Rust: no exception leaves C++.

#pragma once

#include <cstring>
#include <exception>

#include <ATen/core/Tensor.h>

// Returns the tensor that `compute` returns, for the caller to own; or null, and why in `error`, cut to its size.
template <class Compute>
at::Tensor* owned(char* error, size_t error_size, Compute compute) noexcept {
  const auto failed = [&](const char* why) {
    std::strncpy(error, why, error_size - 1);
    error[error_size - 1] = '\0';
    return nullptr;
  };
  try {
    return new at::Tensor(compute());
  } catch (const c10::Error& caught) {
    return failed(caught.what_without_backtrace());
  } catch (const std::exception& caught) {
    return failed(caught.what());
  } catch (...) {
    return failed("unknown exception");
  }
}
