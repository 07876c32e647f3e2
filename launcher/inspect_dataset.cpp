#include "launcher/inspect_dataset.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "io/dataset_layout.hpp"
#include "io/dataset_statistics.hpp"
#include "io/file.hpp"
#include "io/token_dataset.hpp"
#include "launcher/progress.hpp"

namespace longspan::launcher {
namespace {

constexpr std::size_t kTopTokens = 12;
constexpr int kBarColumns = 32;

/// Everything the two forms of the view show.
struct View {
  const io::DatasetFacts& facts;
  std::int64_t documents, train_tokens, file_bytes, blocks;
  io::DocumentLengths lengths;
  io::TokenFrequencies frequencies;
  bool verified;
};

/// What a token looks like in a table: 'a', '\n', 0xff, A; empty for ids without letters.
std::string symbol_of(const std::string& kind, const io::Tokenizer& tokenizer, std::int32_t id) {
  if (kind == "ids") return "";
  const std::string text = tokenizer.decode({id});
  if (kind != "bytes") return text;
  const auto byte = static_cast<unsigned char>(text[0]);
  constexpr std::array<std::pair<char, const char*>, 3> kEscapes = {
      {{'\n', "'\\n'"}, {'\t', "'\\t'"}, {'\r', "'\\r'"}}};
  for (const auto& [character, escape] : kEscapes)
    if (text[0] == character) return escape;
  return byte >= 0x20 && byte < 0x7f ? fmt::format("'{}'", text) : fmt::format("0x{:02x}", byte);
}

std::string kind_of(const io::DatasetFacts& facts) {
  return nlohmann::json::parse(facts.tokenizer)["kind"];
}

std::string describe_tokenizer(const io::DatasetFacts& facts) {
  const auto json = nlohmann::json::parse(facts.tokenizer);
  if (json["kind"] == "nucleotides") return "nucleotides " + json["letters"].get<std::string>();
  return json["kind"] == "bytes" ? "bytes" : "ids without text";
}

std::string axis_number(std::int64_t number) {
  constexpr std::array<std::pair<std::int64_t, char>, 4> kSteps = {
      {{1'000'000'000'000, 'T'}, {1'000'000'000, 'G'}, {1'000'000, 'M'}, {1'000, 'k'}}};
  for (const auto& [step, letter] : kSteps)
    if (number >= step) return fmt::format("{}{}", number / step, letter);
  return fmt::format("{}", number);
}

void print_facts(const View& view) {
  const io::DatasetFacts& facts = view.facts;
  const auto line = [](const char* name, const std::string& value) {
    fmt::print("  {:<12} {}\n", name, value);
  };
  const auto split = [&](const char* name, std::int64_t documents, std::int64_t tokens) {
    fmt::print("  {:<12} {:>20} tokens {:>14} documents {:6.2f} %\n", name, grouped(tokens),
               grouped(documents),
               100.0 * static_cast<double>(tokens) / static_cast<double>(facts.tokens));
  };
  fmt::print("{}: dataset, {}\n\n", facts.path, io::format_bytes(view.file_bytes));
  split("all", view.documents, facts.tokens);
  split("train", facts.train_documents, view.train_tokens);
  split("validation", view.documents - facts.train_documents, facts.tokens - view.train_tokens);
  fmt::print("\n");
  line("tokens", fmt::format("{}, vocabulary {}: {}", name_of(facts.dtype),
                             grouped(facts.vocabulary), describe_tokenizer(facts)));
  line("source", facts.source);
  line("created by", facts.created_by);
  line("uuid", facts.uuid);
  line("checksums", fmt::format("{} (XXH3-64 of 16 MiB each){}", counted(view.blocks, "block"),
                                view.verified ? ": all match" : ": check them with --verify"));
}

void print_lengths(const io::DocumentLengths& lengths) {
  fmt::print("\ndocument lengths in tokens: shortest {}, median {}, mean {:.1f}, longest {}\n\n",
             grouped(lengths.shortest), grouped(lengths.median), lengths.mean,
             grouped(lengths.longest));
  std::int64_t most = 1;
  for (const io::LengthBin& bin : lengths.bins) most = std::max(most, bin.documents);
  for (const io::LengthBin& bin : lengths.bins)
    fmt::print("  {:>5} to {:>5} {:>14}  {}\n", axis_number(bin.begin), axis_number(bin.end),
               grouped(bin.documents),
               bar(static_cast<double>(bin.documents) / static_cast<double>(most), kBarColumns));
}

void print_frequencies(const View& view) {
  const io::TokenFrequencies& found = view.frequencies;
  const io::Tokenizer tokenizer(view.facts.tokenizer);
  const std::string kind = kind_of(view.facts);
  fmt::print("\ntoken frequencies: {} of {} ids occur{}\n", grouped(found.distinct),
             grouped(view.facts.vocabulary),
             found.sampled
                 ? fmt::format(" (in a sample of {} tokens, spread evenly)", grouped(found.scanned))
                 : "");
  fmt::print(
      "entropy: {:.3f} bits per token, of {:.3f} possible; a model that knows only these "
      "frequencies has a loss of {:.3f}\n\n",
      found.entropy_bits, std::log2(static_cast<double>(view.facts.vocabulary)),
      found.entropy_bits * std::log(2.0));
  const double most = static_cast<double>(found.most_frequent.front().count);
  for (const io::TokenCount& token : found.most_frequent)
    fmt::print("  {:>10} {:>5} {:>18} {:7.3f} %  {}\n", token.id,
               symbol_of(kind, tokenizer, token.id), grouped(token.count),
               100.0 * static_cast<double>(token.count) / static_cast<double>(found.scanned),
               bar(static_cast<double>(token.count) / most, kBarColumns));
}

void print_json(const View& view) {
  using Json = nlohmann::ordered_json;
  const io::DatasetFacts& facts = view.facts;
  Json bins = Json::array(), tokens = Json::array();
  for (const io::LengthBin& bin : view.lengths.bins)
    bins.push_back({{"begin", bin.begin}, {"end", bin.end}, {"documents", bin.documents}});
  for (const io::TokenCount& token : view.frequencies.most_frequent)
    tokens.push_back({{"id", token.id},
                      {"count", token.count},
                      {"share", static_cast<double>(token.count) /
                                    static_cast<double>(view.frequencies.scanned)}});
  const Json object = {
      {"path", facts.path},
      {"kind", "dataset"},
      {"uuid", facts.uuid},
      {"source", facts.source},
      {"created_by", facts.created_by},
      {"dtype", name_of(facts.dtype)},
      {"vocabulary", facts.vocabulary},
      {"tokenizer", Json::parse(facts.tokenizer)},
      {"file_bytes", view.file_bytes},
      {"tokens", facts.tokens},
      {"documents", view.documents},
      {"train", {{"documents", facts.train_documents}, {"tokens", view.train_tokens}}},
      {"valid",
       {{"documents", view.documents - facts.train_documents},
        {"tokens", facts.tokens - view.train_tokens}}},
      {"checksum_blocks", view.blocks},
      {"verified", view.verified ? Json(true) : Json(nullptr)},
      {"document_lengths",
       {{"shortest", view.lengths.shortest},
        {"median", view.lengths.median},
        {"mean", view.lengths.mean},
        {"longest", view.lengths.longest},
        {"bins", bins}}},
      {"token_frequencies",
       {{"scanned", view.frequencies.scanned},
        {"sampled", view.frequencies.sampled},
        {"distinct", view.frequencies.distinct},
        {"entropy_bits", view.frequencies.entropy_bits},
        {"most_frequent", tokens}}}};
  // File names and sources are bytes; what is not UTF-8 is replaced rather than refused.
  fmt::print("{}\n", object.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace

std::string bar(double share, int width) {
  constexpr std::array<const char*, 8> kEighths = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  auto eighths = static_cast<int>(std::lround(share * 8 * width));
  if (share > 0) eighths = std::max(eighths, 1);
  std::string text;
  for (int i = 0; i < eighths / 8; ++i) text += "█";
  return text + kEighths[static_cast<std::size_t>(eighths % 8)];
}

ExitStatus inspect_dataset(const std::string& path, bool verify, bool json) {
  const io::TokenDataset dataset = io::TokenDataset::open(path);
  if (verify) dataset.verify();
  const io::DatasetFacts& facts = dataset.facts();
  std::optional<Progress> progress(std::in_place);
  const View view{facts,
                  static_cast<std::int64_t>(facts.document_offsets.size()) - 1,
                  dataset.split_tokens(io::Split::kTrain),
                  io::file_size(path),
                  io::hash_blocks(facts.tokens * static_cast<std::int64_t>(size_of(facts.dtype))),
                  io::document_lengths(facts),
                  io::token_frequencies(dataset, kTopTokens, std::int64_t{256} << 20,
                                        [&](std::int64_t done, std::int64_t total) {
                                          progress->update("counting tokens", "pieces", done,
                                                           total);
                                        }),
                  verify};
  progress.reset();
  if (json) {
    print_json(view);
    return ExitStatus::kDone;
  }
  print_facts(view);
  print_lengths(view.lengths);
  print_frequencies(view);
  return ExitStatus::kDone;
}

}  // namespace longspan::launcher
