#include <algorithm>
#include <charconv>

#include "io/checkpoint_index.hpp"
#include "io/file.hpp"
#include "parallel/error.hpp"
#include "parallel/log.hpp"

namespace longspan::io {

std::string step_folder_name(std::int64_t step) {
  return fmt::format("step-{:010}", step);
}

std::vector<StoredCheckpoint> list_checkpoints(const std::string& directory) {
  std::vector<StoredCheckpoint> found;
  for (const std::string& name : list_directory(directory)) {
    std::int64_t step = -1;
    if (!name.starts_with("step-")) continue;
    const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), step);
    if (error == std::errc() && end == name.data() + name.size() && step >= 0 &&
        is_directory(directory + "/" + name))
      found.push_back({step, directory + "/" + name});
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.step < b.step; });
  return found;
}

std::vector<StoredCheckpoint> restart_order(const std::string& directory) {
  auto stored = list_checkpoints(directory);
  std::reverse(stored.begin(), stored.end());
  const std::string latest = base_name(symlink_target(directory + "/latest"));
  std::stable_partition(stored.begin(), stored.end(), [&](const StoredCheckpoint& checkpoint) {
    return base_name(checkpoint.path) == latest;
  });
  return stored;
}

std::string lost_tensors(const CheckpointIndex& index, int shard, std::int64_t size) {
  std::string first;
  int more = -1;
  for (const TensorEntry& tensor : index.tensors) {
    const bool lost = std::any_of(
        tensor.blocks.begin(), tensor.blocks.end(), [&](const TensorEntry::Block& block) {
          const std::int64_t bytes = bytes_of(tensor, block);
          return block.shard == shard && bytes > 0 &&
                 static_cast<std::int64_t>(block.file_offset) + bytes > size;
        });
    if (lost && ++more == 0) first = tensor.name;
  }
  if (more < 0) return "";
  if (more == 0) return fmt::format("'{}' is lost", first);
  return fmt::format("'{}' and {} more tensor{} are lost", first, more, more == 1 ? "" : "s");
}

std::string why_incomplete(const std::string& folder, const CheckpointIndex& index) {
  for (std::size_t i = 0; i < index.shard_files.size(); ++i) {
    const std::int64_t size = file_size(folder + "/" + index.shard_files[i]);
    if (size == index.shard_bytes[i]) continue;
    const std::string lost = lost_tensors(index, static_cast<int>(i), size);
    const std::string what = size < 0 ? "the shard is missing"
                                      : fmt::format("the shard has {} bytes, {} were written", size,
                                                    index.shard_bytes[i]);
    return fmt::format("{}/{}: {}{}{}", folder, index.shard_files[i], what,
                       lost.empty() ? "" : ": ", lost);
  }
  return "";
}

std::string why_incomplete(const std::string& folder) {
  try {
    return why_incomplete(folder, read_index(folder));
  } catch (const Error& error) {
    return error.what();
  }
}

namespace {

/// Under a temporary name first: a half-removed folder must never look like a checkpoint, and the
/// rename is what a fence can refuse.
void discard(const std::string& directory, const std::string& name, const std::string& doomed) {
  if (doomed != directory + "/" + name) {
    remove_path(doomed);
    rename_path(directory + "/" + name, doomed);
  }
  remove_path(doomed);
}

}  // namespace

void remove_temporary(const std::string& directory, const Fence* fence) {
  for (const std::string& name : list_directory(directory))
    if (name == ".latest.tmp" || (name.starts_with(".step-") && name.ends_with(".tmp")))
      discard(directory, name,
              fence == nullptr ? directory + "/" + name
                               : temporary_path(directory, name.substr(1), fence));
  if (fence == nullptr) return;
  // One save at a time: what is here is left from one that failed.
  for (const std::string& name : list_directory(fence->folder()))
    if (name.starts_with("step-") && name.ends_with(".tmp"))
      remove_path(fence->folder() + "/" + name);
}

void prune_checkpoints(const std::string& directory, std::int64_t keep, const Fence* fence) {
  remove_temporary(directory, fence);
  if (keep <= 0) return;
  const std::string latest = symlink_target(directory + "/latest");
  auto stored = list_checkpoints(directory);
  std::reverse(stored.begin(), stored.end());
  // Only complete checkpoints count: a damaged newest one must not push out the last good one.
  std::int64_t kept = 0;
  for (const StoredCheckpoint& checkpoint : stored) {
    if (kept < keep) {
      if (why_incomplete(checkpoint.path).empty()) ++kept;
      continue;
    }
    const std::string name = base_name(checkpoint.path);
    if (name == base_name(latest)) continue;
    discard(directory, name, temporary_path(directory, name, fence));
  }
}

std::string newest_checkpoint(const std::string& directory) {
  const std::string latest = symlink_target(directory + "/latest");
  std::string skipped;
  if (!latest.empty()) {
    const std::string path = directory + "/" + base_name(latest);
    const std::string why = why_incomplete(path);
    if (why.empty()) return path;
    log::warn("{} (skipped; 'latest' points to it)", why);
    skipped = path;
  }
  auto stored = list_checkpoints(directory);
  std::reverse(stored.begin(), stored.end());
  for (const StoredCheckpoint& checkpoint : stored) {
    if (checkpoint.path == skipped) continue;
    const std::string why = why_incomplete(checkpoint.path);
    if (why.empty()) return checkpoint.path;
    log::warn("{} (skipped)", why);
  }
  return "";
}

}  // namespace longspan::io
