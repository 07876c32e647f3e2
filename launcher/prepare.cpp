/// longspan prepare: files and folders in, a dataset out.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "io/file.hpp"
#include "io/prepare_dataset.hpp"
#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/progress.hpp"
#include "slurm/signals.hpp"

namespace longspan::launcher {
namespace {

using io::DatasetKind;

const std::vector<Flag> kFlags = {
    {"kind", "text|genome|tokens",
     "documents: files of bytes; FASTA records of nucleotides; files of ready-made ids"},
    {"output", "FILE", "the dataset to write"},
    {"validation", "SHARE", "share of the tokens set apart, in whole documents; 0 = none", "0.05"},
    {"extensions", "LIST",
     "take only such files from folders, e.g. .hpp,.h, packed or not; genome: .fa .fasta .fna ..."},
    {"max-bytes", "N", "stop after so many tokens; 64M, 2Gi; 0 = take all", "0"},
    {"dtype", "u8|u16|u32",
     "tokens: how the raw little-endian ids were written; without it and --text-ids: NumPy .npy, "
     "Megatron .bin with .idx, llm.c .bin"},
    {"text-ids", "", "tokens: the ids are decimal numbers between white space"},
    {"document-start", "ID", "tokens: a document begins with every such id, which stays"},
    {"document-end", "ID", "tokens: a document ends with every such id, which stays"},
    {"valid-documents", "N",
     "the last N documents validate, instead of --validation; all stay in order"},
    {"vocabulary", "N", "tokens: ids are below N; 0 = the largest id + 1", "0"},
    {"unknown", "error|n", "genome: what becomes of letters that are no nucleotides", "error"},
    {"skip-unreadable", "", "leave out files and folders that cannot be read"},
    {"force", "", "overwrite an existing output"},
    {"json", "", "the summary as one JSON object"},
};

/// "64M", "2Gi", "1000".
std::int64_t parse_size(const std::string& text) {
  constexpr std::string_view kPrefixes = "kMGT";
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  std::string_view suffix(end);
  double factor = 1;
  if (!suffix.empty()) {
    const char prefix = suffix.front() == 'K' ? 'k' : suffix.front();
    const std::size_t power = kPrefixes.find(prefix);
    const double base = suffix.ends_with('i') ? 1024 : 1000;
    for (std::size_t i = 0; power != std::string_view::npos && i <= power; ++i) factor *= base;
    if (power != std::string_view::npos) suffix.remove_prefix(1);
    if (suffix == "i") suffix = {};
  }
  if (end == text.c_str() || !suffix.empty() || !(number >= 0) || number * factor > 9e18)
    fail_usage("--max-bytes '{}' is not a size: give a number such as 1000000, 64M or 2Gi", text);
  return static_cast<std::int64_t>(number * factor);
}

template <class T, std::size_t N>
T choose(const Arguments& arguments, const char* flag,
         const std::array<std::pair<const char*, T>, N>& choices) {
  std::string names;
  for (const auto& [name, value] : choices) {
    if (arguments.text(flag) == name) return value;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
  }
  fail_usage("--{} '{}' is not known: expected one of {}", flag, arguments.text(flag), names);
}

void allow_only_for(const Arguments& arguments, DatasetKind kind, DatasetKind owner,
                    const char* owner_name, std::initializer_list<const char*> flags) {
  if (kind == owner) return;
  for (const char* flag : flags)
    if (arguments.has(flag))
      fail_usage("--{} belongs to --kind {}: leave it out", flag, owner_name);
}

std::vector<std::string> endings_of(const std::string& list) {
  std::vector<std::string> endings;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const std::string ending = list.substr(begin, end - begin);
    if (!ending.empty())
      endings.push_back(ending.starts_with('.') ? ending : fmt::format(".{}", ending));
    begin = end + 1;
  }
  return endings;
}

io::PrepareRequest request_of(const Arguments& arguments) {
  if (!arguments.has("kind")) fail_usage("--kind is missing: text, genome or tokens");
  if (!arguments.has("output"))
    fail_usage("--output is missing: the dataset to write, such as data.h5");
  io::PrepareRequest request;
  io::DocumentFormat& format = request.format;
  format.kind = choose(
      arguments, "kind",
      std::array{std::pair{"text", DatasetKind::kText}, std::pair{"genome", DatasetKind::kGenome},
                 std::pair{"tokens", DatasetKind::kTokens}});
  allow_only_for(arguments, format.kind, DatasetKind::kTokens, "tokens",
                 {"dtype", "text-ids", "vocabulary", "document-start", "document-end"});
  allow_only_for(arguments, format.kind, DatasetKind::kGenome, "genome", {"unknown"});
  if (format.kind == DatasetKind::kTokens) {
    format.text_ids = arguments.has("text-ids");
    if (format.text_ids && arguments.has("dtype"))
      fail_usage("--dtype is of raw ids, --text-ids of decimal numbers: give either");
    format.described_ids = !format.text_ids && !arguments.has("dtype");
    const auto border = [&](const char* flag) -> std::optional<std::int64_t> {
      if (!arguments.has(flag)) return std::nullopt;
      if (format.text_ids) fail_usage("--{} is not for --text-ids", flag);
      return arguments.integer(flag);
    };
    format.document_start = border("document-start");
    format.document_end = border("document-end");
    if (arguments.has("dtype"))
      format.id_dtype =
          choose(arguments, "dtype",
                 std::array{std::pair{"u8", DType::kU8}, std::pair{"u16", DType::kU16},
                            std::pair{"u32", DType::kU32}});
    request.vocabulary = arguments.integer("vocabulary");
  }
  format.unknown_as_n =
      choose(arguments, "unknown", std::array{std::pair{"error", false}, std::pair{"n", true}});
  request.output = arguments.text("output");
  request.inputs = arguments.positional();
  request.endings = endings_of(arguments.text("extensions"));
  request.validation = arguments.number("validation");
  if (arguments.has("valid-documents")) {
    if (arguments.has("validation"))
      fail_usage("--validation and --valid-documents exclude each other: leave one out");
    request.valid_documents = arguments.integer("valid-documents");
  }
  request.max_tokens = parse_size(arguments.text("max-bytes"));
  request.skip_unreadable = arguments.has("skip-unreadable");
  request.replace = arguments.has("force");
  request.created_by = "longspan " LONGSPAN_VERSION;
  return request;
}

std::string split_line(const char* name, std::int64_t documents, std::int64_t tokens,
                       std::int64_t all) {
  return fmt::format("  {:<11} {:>14} documents {:>20} tokens {:6.2f} %\n", name,
                     grouped(documents), grouped(tokens),
                     100.0 * static_cast<double>(tokens) / static_cast<double>(all));
}

/// "12 empty, 3 hidden"; empty if nothing was.
std::string left_out(const io::PrepareSummary& summary) {
  std::string text;
  const auto add = [&](std::int64_t count, const std::string& what) {
    if (count > 0) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", grouped(count), what);
  };
  const io::InputFiles& input = summary.input;
  add(input.empty + summary.empty_documents, "empty");
  add(input.other_endings, "with other endings");
  add(input.hidden, "hidden");
  add(input.special, "pipes, sockets or devices");
  add(input.folder_links, "links to folders");
  add(static_cast<std::int64_t>(input.unreadable.size()), "unreadable");
  return text;
}

std::string summary_text(const io::PrepareSummary& summary, const io::PrepareRequest& request) {
  const io::DatasetFacts& facts = summary.facts;
  const auto documents = static_cast<std::int64_t>(facts.document_offsets.size()) - 1;
  std::string text = fmt::format("{}: {} in {}\n", facts.path, counted(facts.tokens, "token"),
                                 counted(documents, "document"));
  text += split_line("train", facts.train_documents, summary.train_tokens, facts.tokens);
  text += split_line("validation", documents - facts.train_documents,
                     facts.tokens - summary.train_tokens, facts.tokens);
  text += fmt::format("  {:<11} {} from {}, vocabulary {}\n", "tokens", name_of(facts.dtype),
                      counted(summary.input_files, "file"), grouped(facts.vocabulary));
  const auto note = [&](const char* name, const std::string& what) {
    if (!what.empty()) text += fmt::format("  {:<11} {}\n", name, what);
  };
  note("left out", left_out(summary));
  if (summary.counts.compressed_files > 0)
    note("gzip", counted(summary.counts.compressed_files, "file"));
  if (summary.counts.lower_case > 0)
    note("lower case", counted(summary.counts.lower_case, "letter") + " read as upper case");
  if (summary.counts.unknown > 0)
    note("unknown", counted(summary.counts.unknown, "letter") + " read as N");
  if (summary.tail_split) note("split", "the only document was cut: its tail validates");
  if (documents == facts.train_documents && request.validation > 0)
    note("split", "too little data to set any apart");
  if (summary.capped)
    note("limit", fmt::format("stopped after --max-bytes {}", grouped(request.max_tokens)));
  note("file",
       fmt::format("{} in {:.2f} s, {}/s", io::format_bytes(summary.file_bytes), summary.seconds,
                   io::format_bytes(static_cast<std::int64_t>(
                       static_cast<double>(summary.file_bytes) / summary.seconds))));
  note("uuid", facts.uuid);
  return text;
}

std::string summary_json(const io::PrepareSummary& summary) {
  const io::DatasetFacts& facts = summary.facts;
  const auto documents = static_cast<std::int64_t>(facts.document_offsets.size()) - 1;
  return nlohmann::ordered_json{
      {"path", facts.path},
      {"uuid", facts.uuid},
      {"tokens", facts.tokens},
      {"documents", documents},
      {"dtype", name_of(facts.dtype)},
      {"vocabulary", facts.vocabulary},
      {"train", {{"documents", facts.train_documents}, {"tokens", summary.train_tokens}}},
      {"valid",
       {{"documents", documents - facts.train_documents},
        {"tokens", facts.tokens - summary.train_tokens}}},
      {"tail_split", summary.tail_split},
      {"capped", summary.capped},
      {"input_files", summary.input_files},
      {"compressed_files", summary.counts.compressed_files},
      {"empty", summary.input.empty + summary.empty_documents},
      {"unreadable", summary.input.unreadable.size()},
      {"lower_case", summary.counts.lower_case},
      {"unknown", summary.counts.unknown},
      {"file_bytes", summary.file_bytes},
      {"seconds", summary.seconds}}

      .dump(-1, ' ', false,
            nlohmann::json::error_handler_t::replace);  // file names are bytes, not always UTF-8
}

}  // namespace

ExitStatus prepare_command(const std::vector<std::string>& command_line) {
  const Arguments arguments(
      command_line, "prepare",
      "makes a dataset of the files and folders (walked to the bottom) that are named after the "
      "flags",
      kFlags,
      "longspan prepare --kind text --extensions .hpp,.h --output code.h5 /usr/include/c++");
  if (arguments.help_wanted()) {
    fmt::print("{}\n", arguments.help());
    return ExitStatus::kDone;
  }
  const io::PrepareRequest request = request_of(arguments);
  slurm::catch_stop_signals();
  io::PrepareSummary summary;
  {
    Progress progress;
    summary = io::prepare_dataset(request, [&](const char* phase, std::int64_t done,
                                               std::int64_t total) {
      if (const int signal = slurm::stop_signal())
        fail("prepare: stopped by {}; nothing was left behind", slurm::signal_name(signal));
      progress.update(phase, std::string_view(phase) == "counting" ? "B" : "tokens", done, total);
    });
  }
  constexpr std::size_t kShown = 5;
  const auto& unreadable = summary.input.unreadable;
  for (std::size_t i = 0; i < std::min(kShown, unreadable.size()); ++i)
    fmt::print(stderr, "warning: left out {}\n", unreadable[i]);
  if (unreadable.size() > kShown)
    fmt::print(stderr, "warning: and {} more\n", unreadable.size() - kShown);
  fmt::print("{}{}", arguments.has("json") ? summary_json(summary) : summary_text(summary, request),
             arguments.has("json") ? "\n" : "");
  return ExitStatus::kDone;
}

}  // namespace longspan::launcher
