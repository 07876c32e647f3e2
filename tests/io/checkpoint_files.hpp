/// What the checkpoint tests share: small tensors with known values, and ways to damage files.
#pragma once

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "io/checkpoint.hpp"
#include "parallel/array.hpp"
#include "parallel/error.hpp"
#include "tests/support/error_of.hpp"

namespace longspan::io::testing {

/// A tensor whose element i is unique to it and exact in every type: (i * 3 + salt) as the number,
/// or as raw bits.
inline std::vector<char> values_of(DType dtype, std::int64_t count, int salt) {
  std::vector<char> bytes(static_cast<std::size_t>(count) * size_of(dtype));
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint64_t number =
        static_cast<std::uint64_t>(i) * 3 + static_cast<std::uint64_t>(salt);
    char* at = bytes.data() + static_cast<std::size_t>(i) * size_of(dtype);
    if (dtype == DType::kF32) {
      const float value = static_cast<float>(number) * 0.5F;
      std::memcpy(at, &value, sizeof value);
    } else {
      std::memcpy(at, &number, size_of(dtype));
    }
  }
  return bytes;
}

/// The block [offset, offset + shape) of a global row-major tensor.
inline std::vector<char> block_of(const std::vector<char>& global, const Shape& global_shape,
                                  const Shape& offset, const Shape& shape, std::size_t element) {
  std::vector<char> block;
  const std::int64_t count = element_count(shape);
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t rest = i, position = 0, stride = 1;
    for (std::size_t d = shape.size(); d-- > 0;) {
      position += (offset[d] + rest % shape[d]) * stride;
      rest /= shape[d];
      stride *= global_shape[d];
    }
    const char* from = global.data() + static_cast<std::size_t>(position) * element;
    block.insert(block.end(), from, from + element);
  }
  return block;
}

/// A global tensor and one rank's block of it, with memory.
struct TestTensor {
  std::string name;
  DType dtype;
  Shape global_shape;
  std::vector<char> global, local;
  ShardedArray array;

  TestTensor(std::string tensor_name, DType type, Shape shape, int salt)
      : name(std::move(tensor_name)),
        dtype(type),
        global_shape(std::move(shape)),
        global(values_of(dtype, element_count(global_shape), salt)) {
    take(Shape(global_shape.size(), 0), global_shape);
  }
  void take(const Shape& offset, const Shape& shape) {
    local = block_of(global, global_shape, offset, shape, size_of(dtype));
    array = {name, dtype, global_shape, offset, shape, local.data()};
  }
  void take_rows(int rank, int ranks) {
    const std::int64_t begin = part_begin(global_shape[0], rank, ranks),
                       end = part_begin(global_shape[0], rank + 1, ranks);
    Shape offset(global_shape.size(), 0), shape = global_shape;
    offset[0] = begin;
    shape[0] = end - begin;
    take(offset, shape);
  }
};

/// Weights and states of several types and dims; "tiny" has fewer rows than the tests have ranks.
inline std::vector<TestTensor> test_tensors(int salt = 0) {
  std::vector<TestTensor> tensors;
  tensors.reserve(6);
  tensors.emplace_back("model/embedding.weight", DType::kF32, Shape{61, 40}, salt + 1);
  tensors.emplace_back("model/norm.weight", DType::kF32, Shape{40}, salt + 2);
  tensors.emplace_back("model/tiny", DType::kF32, Shape{1, 5}, salt + 3);
  tensors.emplace_back("optim/half", DType::kBF16, Shape{12, 7, 3}, salt + 4);
  tensors.emplace_back("rng/state", DType::kU64, Shape{9}, salt + 5);
  tensors.emplace_back("optim/exp_avg/norm.weight", DType::kF32, Shape{40}, salt + 6);
  return tensors;
}

inline std::vector<ShardedArray> arrays_of(const std::vector<TestTensor>& tensors) {
  std::vector<ShardedArray> arrays;
  for (const TestTensor& tensor : tensors) arrays.push_back(tensor.array);
  return arrays;
}

inline CheckpointFacts test_facts(std::int64_t step) {
  CheckpointFacts facts;
  facts.step = step;
  facts.tokens_seen = step * 1024;
  facts.seed = 0xfedcba9876543210;
  facts.next_sample = step * 4;
  facts.dataset_uuid = "d-uuid";
  facts.tokenizer = R"({"kind":"bytes"})";
  facts.config = "[model]\nlayers = 2\n";
  facts.program_version = "longspan test";
  facts.loss_history = {3.5F, 2.25F};
  return facts;
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

using testing_support::error_of;

inline void flip_byte(const std::string& path, std::uint64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  const char byte = static_cast<char>(file.get() ^ 0x10);
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(byte);
  ASSERT_TRUE(file.good());
}

/// Files may not grow above `bytes` while it lives; the system then refuses writes as it does on a
/// full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(std::int64_t bytes) {
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limited = {static_cast<rlim_t>(bytes), old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limited);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit old_ = {};
  void (*handler_)(int) = nullptr;
};

inline std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace longspan::io::testing
