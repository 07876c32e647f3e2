/// `log.tensorboard=on`: the metrics of a run as TensorBoard event files in `<run
/// directory>/tensorboard/`. Written by hand, for the format is small: TFRecord frames (length, its
/// masked CRC-32C, data, its masked CRC-32C) around protobuf messages tensorflow.Event with
/// wall_time, step and a Summary of simple values.
/// https://github.com/tensorflow/tensorboard/blob/2.18.0/tensorboard/compat/proto/event.proto
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "io/file.hpp"
#include "launcher/metrics.hpp"

namespace longspan::launcher {

/// CRC-32C (Castagnoli), and the disguise that TFRecord puts on it.
std::uint32_t crc32c(std::string_view bytes);
std::uint32_t masked_crc32c(std::string_view bytes);
/// One frame.
std::string tfrecord(std::string_view data);

/// One event file. One rank has one.
class EventFile {
 public:
  /// A new file in `folder`, beside those of earlier starts of the run. `step`: of the run at this
  /// start; TensorBoard drops what an earlier file has of later steps, which will be computed
  /// again. Throws Error.
  EventFile(const std::string& folder, std::int64_t step);
  /// Every event is in the file when this returns. What a full disk does not take is lost, with one
  /// warning: the same numbers are in metrics.jsonl.
  void add(const StepMetrics& metrics);
  const std::string& path() const { return path_; }

 private:
  void write(const std::string& event);
  std::string path_;
  io::Descriptor file_;
  std::int64_t size_ = 0;  ///< of the whole frames in the file
  bool lost_ = false;
};

}  // namespace longspan::launcher
