#include "launcher/gpu.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <string_view>
#include <system_error>

#include "parallel/error.hpp"
#include "parallel/random.hpp"

namespace longspan::launcher {
namespace {

constexpr const char* kFile = "liblongspan_cuda.so";
constexpr const char* kVariable = "LONGSPAN_CUDA_PLUGIN";

struct Opened {
  model::GpuPlugin* plugin = nullptr;
  std::string path;
};
Opened opened;
std::mutex opening;

std::string named_file() {
  const char* text = std::getenv(kVariable);
  return text == nullptr ? "" : text;
}

/// What to open; a name without a folder is looked for on the library path.
std::string file_to_open() {
  if (const std::string named = named_file(); !named.empty()) {
    if (!std::filesystem::is_regular_file(named))
      fail_usage("there is no GPU plug-in {}: correct or unset {}", named, kVariable);
    // A name without a folder would be looked for elsewhere.
    return std::filesystem::absolute(named).string();
  }
  std::error_code unknown;
  const auto beside =
      std::filesystem::read_symlink("/proc/self/exe", unknown).parent_path() / kFile;
  return std::filesystem::exists(beside, unknown) ? beside.string() : kFile;
}

std::string last_loader_error() {
  const char* text = ::dlerror();
  return text == nullptr ? "unknown error" : text;
}

Opened open_file(const std::string& path) {
  // Never closed: threads and memory of CUDA outlive what the program does with it.
  void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const std::string why = last_loader_error();
    if (path == kFile && why.starts_with(std::string(kFile) + ": cannot open shared object file"))
      fail_usage(
          "there is no GPU plug-in: {} is neither beside the program nor on the library path: "
          "build it where the CUDA toolkit is, name it in {}, or set run.device=cpu",
          kFile, kVariable);
    fail(
        "the GPU plug-in {} cannot be loaded: {}: a library of CUDA that is not found belongs into "
        "LD_LIBRARY_PATH",
        path, why);
  }
  auto* const open =
      reinterpret_cast<model::OpenGpuPlugin*>(::dlsym(library, model::kOpenGpuPlugin));
  if (open == nullptr)
    fail("{} is not a GPU plug-in: it has no {}: name another file in {}", path,
         model::kOpenGpuPlugin, kVariable);
  const char* theirs = "";
  model::GpuPlugin* const plugin = open(LONGSPAN_GPU_INTERFACE, &theirs);
  if (plugin == nullptr)
    fail(
        "the GPU plug-in {} belongs to another build (its interface is {}, this program's is {}): "
        "build both from the same sources",
        path, theirs, LONGSPAN_GPU_INTERFACE);
  return {plugin, path};
}

}  // namespace

model::GpuPlugin& open_gpu_plugin() {
  const std::lock_guard lock(opening);
  if (opened.plugin == nullptr) opened = open_file(file_to_open());
  return *opened.plugin;
}

std::string gpu_plugin_path() {
  const std::lock_guard lock(opening);
  return opened.path;
}

bool gpu_may_be_here() {
  if (!named_file().empty()) return true;
  void* const driver = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver == nullptr) return false;
  ::dlclose(driver);
  return true;
}

int gpu_of(int local_rank, int gpu_count) {
  return local_rank % gpu_count;
}

void check_gpu_is_own(const std::vector<std::int64_t>& pci_buses, int gpu_count, bool share_gpu) {
  if (share_gpu) return;
  std::vector<std::int64_t> sorted = pci_buses;
  std::sort(sorted.begin(), sorted.end());
  const auto used = std::unique(sorted.begin(), sorted.end()) - sorted.begin();
  if (used == static_cast<std::ptrdiff_t>(pci_buses.size())) return;
  fail_usage(
      "{} ranks on this node but {} GPU{} for them: start at most {} here, or set "
      "run.share-gpu=on (ranks compute on one GPU in turns: for tests)",
      pci_buses.size(), std::max<std::ptrdiff_t>(used, gpu_count),
      std::max<std::ptrdiff_t>(used, gpu_count) == 1 ? "" : "s",
      std::max<std::ptrdiff_t>(used, gpu_count));
}

std::int64_t gpu_identity(const model::GpuDescription& gpu) {
  return static_cast<std::int64_t>(hash_name(gpu.pci_bus) >> 1);
}

std::string to_string(const model::GpuDescription& gpu) {
  return fmt::format("{}, {:.1f} GiB, compute capability {}.{}", gpu.name,
                     static_cast<double>(gpu.bytes) / 1073741824.0, gpu.major, gpu.minor);
}

}  // namespace longspan::launcher
