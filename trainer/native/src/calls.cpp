// Counts the operations that libtorch is asked for, by name, and not those that they are made of, which differ from device to
// device. Each costs the host time, and most are a kernel on a GPU.

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include <ATen/record_function.h>
#include <c10/util/ThreadLocalDebugInfo.h>

namespace {

// Debug information of a thread: libtorch passes it on to the threads on which it computes a backward pass.
struct Calls : c10::DebugInfoBase {
  std::mutex mutex;
  std::map<std::string, uint64_t> by_name;
};

// Operations that this thread is in.
thread_local int depth = 0;

bool is_operation(const at::RecordFunction& function) {
  // Nodes of autograd have other names.
  return std::strncmp(function.name(), "aten::", 6) == 0;
}

std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction& function) {
  if (is_operation(function) && depth++ == 0) {
    auto* calls = static_cast<Calls*>(c10::ThreadLocalDebugInfo::get(c10::DebugInfoKind::TEST_INFO));
    const std::lock_guard<std::mutex> lock(calls->mutex);
    calls->by_name[function.name() + 6]++;
  }
  return nullptr;
}

void leave(const at::RecordFunction& function, at::ObserverContext*) {
  if (is_operation(function)) depth--;
}

struct Counting {
  std::shared_ptr<Calls> calls = std::make_shared<Calls>();
  c10::DebugInfoGuard guard{c10::DebugInfoKind::TEST_INFO, calls};
  at::CallbackHandle handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback(enter, leave).scopes({at::RecordScope::FUNCTION}));

  ~Counting() { at::removeCallback(handle); }
};

}  // namespace

// Counts on this thread until the result is given to `asng_native_count_end`.
extern "C" void* asng_native_count_begin() noexcept { return new Counting; }

// Gives every name with its number to `each`.
extern "C" void asng_native_count_end(
    void* counting, void (*each)(void*, const char*, uint64_t), void* to) noexcept {
  const std::unique_ptr<Counting> ended(static_cast<Counting*>(counting));
  const std::lock_guard<std::mutex> lock(ended->calls->mutex);
  for (const auto& [name, number] : ended->calls->by_name) each(to, name.c_str(), number);
}
