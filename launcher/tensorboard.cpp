#include "launcher/tensorboard.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "launcher/run_record.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

/// Little endian, as all of the format is.
template <class T>
std::string bytes_of(T value) {
  std::string bytes;
  for (std::size_t i = 0; i < sizeof(T); ++i)
    bytes.push_back(static_cast<char>(static_cast<std::uint64_t>(value) >> (8 * i)));
  return bytes;
}

/// The few wire types of protobuf that events need.
std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>(value | 0x80));
  bytes.push_back(static_cast<char>(value));
  return bytes;
}
enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
std::string key(int field, WireType type) {
  return varint(static_cast<std::uint64_t>(field) << 3 | type);
}
std::string bytes_field(int field, std::string_view bytes) {
  return key(field, kBytes) + varint(bytes.size()) + std::string(bytes);
}
std::string double_field(int field, double value) {
  return key(field, kFixed64) + bytes_of(std::bit_cast<std::uint64_t>(value));
}
std::string float_field(int field, double value) {
  return key(field, kFixed32) + bytes_of(std::bit_cast<std::uint32_t>(static_cast<float>(value)));
}
std::string int_field(int field, std::int64_t value) {
  return key(field, kVarint) + varint(static_cast<std::uint64_t>(value));
}

double now() {
  using namespace std::chrono;
  return duration<double>(system_clock::now().time_since_epoch()).count();
}

/// tensorflow.Event: wall_time = 1, step = 2, and what it tells.
std::string event(std::int64_t step, const std::string& what) {
  return double_field(1, now()) + int_field(2, step) + what;
}

/// tensorflow.Summary.Value: tag = 1, simple_value = 2; Summary has them as 1.
std::string scalar(std::string_view tag, double value) {
  return bytes_field(1, bytes_field(1, tag) + float_field(2, value));
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static const std::array<std::uint32_t, 256> table = [] {
    constexpr std::uint32_t kPolynomial = 0x82f63b78;  // reflected
    std::array<std::uint32_t, 256> t{};
    for (std::uint32_t i = 0; i < t.size(); ++i) {
      std::uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? kPolynomial : 0);
      t[i] = crc;
    }
    return t;
  }();
  std::uint32_t crc = ~std::uint32_t{0};
  for (const char c : bytes) crc = crc >> 8 ^ table[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  return ~crc;
}

std::uint32_t masked_crc32c(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xa282ead8;
}

std::string tfrecord(std::string_view data) {
  const std::string length = bytes_of(static_cast<std::uint64_t>(data.size()));
  return length + bytes_of(masked_crc32c(length)) + std::string(data) +
         bytes_of(masked_crc32c(data));
}

EventFile::EventFile(const std::string& folder, std::int64_t step) {
  io::make_directories(folder);
  // TensorBoard takes any file with "tfevents" in its name, in the order of the names.
  const std::string where = this_host_and_process();
  const std::string start =
      fmt::format("{}/events.out.tfevents.{:010}.{}", folder, static_cast<std::int64_t>(now()),
                  where.substr(0, where.find(':')));
  for (int i = 0; !file_; ++i) {
    path_ = fmt::format("{}.{}.{}", start, ::getpid(), i);
    file_ = io::Descriptor(
        ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666));
    if (!file_ && errno != EEXIST) io::fail_errno(path_, "create", errno);
  }
  // file_version = 3; session_log = 7 with status = 1: START = 1 says that later steps of earlier
  // files do not count any more.
  write(event(0, bytes_field(3, "brain.Event:2")));
  write(event(step + 1, bytes_field(7, int_field(1, 1))));
}

void EventFile::add(const StepMetrics& m) {
  std::string summary = scalar("loss/train", m.loss);
  if (m.validation_loss) summary += scalar("loss/validation", *m.validation_loss);
  summary += scalar("optimizer/grad_norm", m.grad_norm) +
             scalar("optimizer/learning_rate", m.learning_rate) +
             scalar("speed/tokens_per_second", m.tokens_per_second) +
             scalar("speed/step_seconds", m.step_seconds) + scalar("speed/mfu", m.mfu) +
             scalar("speed/comm_seconds", m.comm_seconds) +
             scalar("speed/data_seconds", m.data_seconds) +
             scalar("memory/peak_bytes", static_cast<double>(m.peak_memory_bytes)) +
             scalar("progress/tokens", static_cast<double>(m.tokens));
  write(event(m.step, bytes_field(5, summary)));
}

void EventFile::write(const std::string& event) {
  const std::string frame = tfrecord(event);
  const ssize_t written = ::write(file_.get(), frame.data(), frame.size());
  if (written == static_cast<ssize_t>(frame.size())) {
    size_ += written;
    return;
  }
  const int error = written < 0 ? errno : ENOSPC;
  // Half a frame would end what TensorBoard reads.
  if (written > 0 && ::ftruncate(file_.get(), size_) != 0) file_.reset();
  if (!std::exchange(lost_, true))
    log::warn("cannot write {}: {}: TensorBoard will lack steps, metrics.jsonl has them", path_,
              std::strerror(error));
}

}  // namespace longspan::launcher
