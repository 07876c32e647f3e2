#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "emulator.hpp"

namespace cuda_emulator {
namespace {

constexpr std::size_t kReserved = std::size_t{1} << 36;
constexpr std::size_t kAlignment = 256;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

/// What the emulated board says it has.
std::size_t board_bytes() {
  const char* text = std::getenv("LONGSPAN_CUDA_EMULATOR_BYTES");
  const std::size_t bytes = text != nullptr ? std::strtoull(text, nullptr, 10) : 0;
  return bytes > 0 ? std::min(bytes, kReserved) : std::size_t{4} << 30;
}

struct Arena {
  std::mutex mutex;
  char* begin = nullptr;
  std::size_t in_use = 0;
  std::size_t top = 0;  ///< pages below are opened and closed
  int users = 0;
  bool protect = true;
  std::map<std::size_t, std::size_t> live;  ///< offset -> bytes
  struct sigaction before = {};

  void open_or_close(std::size_t from, std::size_t to, bool open) {
    if (to > from) mprotect(begin + from, to - from, open ? PROT_READ | PROT_WRITE : PROT_NONE);
  }
  bool opened() const { return users > 0 || !protect; }
};

Arena& arena();

void on_fault(int signal, siginfo_t* info, void*) {
  Arena& a = arena();
  const char* address = static_cast<const char*>(info->si_addr);
  if (a.begin != nullptr && address >= a.begin && address < a.begin + kReserved) {
    char text[320];
    const int length = std::snprintf(
        text, sizeof text,
        a.users > 0 ? "cuda emulator: a kernel or a copy touches %p, outside of device memory\n"
                    : "cuda emulator: host code touches device memory at %p: only kernels and "
                      "Device::copy may (LONGSPAN_CUDA_EMULATOR_PROTECT=off allows it)\n",
        static_cast<const void*>(address));
    if (write(STDERR_FILENO, text, static_cast<std::size_t>(length)) < 0) _exit(134);
  }
  sigaction(signal, &a.before, nullptr);  // the access is tried again and ends the process
}

Arena& arena() {
  static Arena& made = *[] {
    auto* a = new Arena;
    void* raw = mmap(nullptr, kReserved + kHugePage, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) {
      std::perror("cuda emulator: no address space for device memory");
      std::abort();
    }
    // In huge pages: opening and closing goes by the page, twice a launch.
    a->begin = reinterpret_cast<char*>(round_up(reinterpret_cast<std::uintptr_t>(raw), kHugePage));
    madvise(a->begin, kReserved, MADV_HUGEPAGE);
    const char* protect = std::getenv("LONGSPAN_CUDA_EMULATOR_PROTECT");
    a->protect = protect == nullptr || std::strcmp(protect, "off") != 0;
    return a;
  }();
  return made;
}

void watch_faults(Arena& a) {
  static bool done = false;
  if (done) return;
  done = true;
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &a.before);
}

}  // namespace

DeviceAccess::DeviceAccess() {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  if (a.users++ == 0 && a.protect) a.open_or_close(0, a.top, true);
}

DeviceAccess::~DeviceAccess() {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  if (--a.users == 0 && a.protect) a.open_or_close(0, a.top, false);
}

void* device_allocate(std::size_t bytes) {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  watch_faults(a);
  const std::size_t size = round_up(std::max<std::size_t>(bytes, 1), kAlignment);
  if (a.in_use + size > board_bytes()) return nullptr;
  std::size_t offset = 0;  // first gap that is wide enough
  for (const auto& [begin, length] : a.live) {
    if (begin - offset >= size) break;
    offset = begin + length;
  }
  if (offset + size > kReserved) return nullptr;
  const std::size_t top = round_up(offset + size, kHugePage);
  if (top > a.top) {
    if (a.opened()) a.open_or_close(a.top, top, true);
    a.top = top;
  }
  if (!a.opened()) a.open_or_close(0, a.top, true);
  std::memset(a.begin + offset, 0xff, size);
  if (!a.opened()) a.open_or_close(0, a.top, false);
  a.live.emplace(offset, size);
  a.in_use += size;
  return a.begin + offset;
}

bool device_release(void* memory) {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  if (!(memory >= a.begin && memory < a.begin + kReserved)) return false;
  const auto entry = a.live.find(static_cast<std::size_t>(static_cast<char*>(memory) - a.begin));
  if (entry == a.live.end()) return false;
  a.in_use -= entry->second;
  a.live.erase(entry);
  const std::size_t top =
      a.live.empty() ? 0 : round_up(a.live.rbegin()->first + a.live.rbegin()->second, kHugePage);
  if (top < a.top) {
    madvise(a.begin + top, a.top - top, MADV_DONTNEED);
    a.open_or_close(top, a.top, false);
    a.top = top;
  }
  return true;
}

bool is_device_memory(const void* memory) {
  const Arena& a = arena();
  return memory >= a.begin && memory < a.begin + kReserved;
}

std::size_t device_bytes_total() {
  return board_bytes();
}

std::size_t device_bytes_free() {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  return board_bytes() - a.in_use;
}

}  // namespace cuda_emulator
