/// `longspan convert` between forms of our own checkpoints: other shards, or one HDF5 file.
#include "io/checkpoint_convert.hpp"
#include "io/file.hpp"
#include "launcher/convert.hpp"
#include "launcher/progress.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

/// Opened, and every byte of it hashed.
io::CheckpointReader open_intact(const std::string& path, Progress& progress) {
  io::CheckpointReader reader(path);
  io::require_intact(reader, path, [&](std::int64_t done, std::int64_t all) {
    progress.update("checking", "B", done, all);
  });
  return reader;
}

io::ConvertProgress writing(Progress& progress) {
  return [&](std::int64_t done, std::int64_t all) { progress.update("writing", "B", done, all); };
}

std::int64_t bytes_of(const io::CheckpointReader& reader) {
  std::int64_t bytes = 0;
  for (const io::TensorEntry& tensor : reader.tensors())
    bytes += element_count(tensor.global_shape) * static_cast<std::int64_t>(size_of(tensor.dtype));
  return bytes;
}

}  // namespace

void reshard_checkpoint(const std::string& from, const std::string& to, std::int64_t shards) {
  Progress progress;
  io::CheckpointReader reader = open_intact(from, progress);
  const auto before = static_cast<std::int64_t>(reader.shard_files().size());
  const std::int64_t after = shards > 0 ? shards : before;
  io::write_checkpoint_from(to, io::tensors_of(reader), reader.facts(), static_cast<int>(after),
                            writing(progress));
  log::info(
      "{}: step {}, {} of tensors in {} (it was {}); continue from it with "
      "--checkpoint.resume {}",
      to, reader.facts().step, io::format_bytes(bytes_of(reader)), counted(after, "shard"), before,
      to);
}

void merge_checkpoint(const std::string& from, const std::string& to) {
  Progress progress;
  io::CheckpointReader reader = open_intact(from, progress);
  io::write_merged_from(to, io::tensors_of(reader), reader.facts(), writing(progress));
  log::info("{}: step {}, {} of tensors in one HDF5 file", to, reader.facts().step,
            io::format_bytes(bytes_of(reader)));
}

}  // namespace longspan::launcher
