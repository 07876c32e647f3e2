/// Small files and datasets for the tests of io/.
#pragma once

#include <gtest/gtest.h>
#include <zlib.h>

#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "io/prepare_dataset.hpp"
#include "io/token_dataset.hpp"
#include "parallel/error.hpp"
#include "tests/support/error_of.hpp"
#include "tests/support/temporary_directory.hpp"

namespace longspan::io {

inline void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file << bytes;
  ASSERT_TRUE(file.good()) << path;
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// One complete gzip member.
inline std::string gzip(const std::string& text) {
  z_stream zip = {};
  EXPECT_EQ(deflateInit2(&zip, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string packed(deflateBound(&zip, text.size()) + 64, '\0');
  zip.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  zip.avail_in = static_cast<uInt>(text.size());
  zip.next_out = reinterpret_cast<Bytef*>(packed.data());
  zip.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&zip, Z_FINISH), Z_STREAM_END);
  packed.resize(zip.total_out);
  deflateEnd(&zip);
  return packed;
}

/// The message of the Error that `work` throws, which must have `status` and be one line.
template <class Work>
std::string error_of(Work&& work, ExitStatus status) {
  const std::string text = testing_support::error_of(std::forward<Work>(work), status);
  EXPECT_FALSE(contains(text, "\n")) << text;
  return text;
}

inline PrepareSummary prepare(const PrepareRequest& request) {
  return prepare_dataset(request, [](const char*, std::int64_t, std::int64_t) {});
}

inline std::vector<std::int32_t> all_tokens(const TokenDataset& dataset) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(dataset.facts().tokens));
  dataset.read(0, dataset.facts().tokens, ids.data());
  return ids;
}

/// The documents of a dataset as text, in file order.
inline std::vector<std::string> documents_of(const TokenDataset& dataset) {
  const Tokenizer tokenizer(dataset.facts().tokenizer);
  const std::vector<std::int32_t> ids = all_tokens(dataset);
  std::vector<std::string> texts;
  const auto& offsets = dataset.facts().document_offsets;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i)
    texts.push_back(tokenizer.decode({ids.begin() + static_cast<std::ptrdiff_t>(offsets[i]),
                                      ids.begin() + static_cast<std::ptrdiff_t>(offsets[i + 1])}));
  return texts;
}

}  // namespace longspan::io
