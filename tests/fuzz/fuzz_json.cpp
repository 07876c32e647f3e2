/// JSON, and the INI of configurations: the first byte says whether the rest is the tokenizer of a
/// dataset or checkpoint, a run's history.jsonl, or its config.ini.
#include <stdlib.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "io/token_dataset.hpp"
#include "launcher/ini.hpp"
#include "launcher/options.hpp"
#include "launcher/run_history.hpp"
#include "parallel/error.hpp"

namespace {

void require(bool good) {
  if (!good) abort();
}

void read_tokenizer(const std::string& json) {
  const longspan::io::Tokenizer tokenizer(json);
  const std::int64_t ids = tokenizer.vocabulary();
  require(ids > 0);
  for (const std::int64_t id : {std::int64_t{0}, ids / 2, ids - 1}) {
    const auto one = static_cast<std::int32_t>(id);
    require(!tokenizer.decode({one}).empty());
  }
}

void read_history(const std::string& text) {
  static const std::string folder = [] {
    std::string pattern = "/tmp/longspan-fuzz-XXXXXX";
    require(::mkdtemp(pattern.data()) != nullptr);
    static const std::string made = pattern;
    atexit([] {
      ::remove((made + "/history.jsonl").c_str());
      ::remove(made.c_str());
    });
    return made;
  }();
  std::FILE* const file = std::fopen((folder + "/history.jsonl").c_str(), "wb");
  require(file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size());
  std::fclose(file);
  for (const auto& event : longspan::launcher::read_history(folder)) require(!event.event.empty());
}

void read_ini(const std::string& text) {
  std::vector<std::string> problems;
  for (const auto& entry : longspan::launcher::parse_ini_lines(text, "config.ini", problems)) {
    // What is written is read back the same.
    std::vector<std::string> none;
    const auto again = longspan::launcher::parse_ini_lines(
        "a.b = " + longspan::launcher::ini_value(entry.value) + "\n", "again", none);
    require(none.empty() && again.size() == 1 && again[0].value == entry.value);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (data[0] % 3 == 0) read_tokenizer(text);
    if (data[0] % 3 == 1) read_history(text);
    if (data[0] % 3 == 2) read_ini(text);
  } catch (const longspan::Error& error) {
    require(error.status() == longspan::ExitStatus::kDamaged);
    require(std::string_view(error.what()).find('\n') == std::string_view::npos);
  }
  return 0;
}
