#include "launcher/convert_dataset.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "io/dataset_layout.hpp"
#include "io/file.hpp"
#include "io/hdf5.hpp"
#include "io/prepare_dataset.hpp"
#include "io/token_files.hpp"
#include "launcher/progress.hpp"
#include "slurm/signals.hpp"

namespace longspan::launcher {
namespace {

using io::TokenFileFormat;

bool is_token_file_name(const std::string& path) {
  return path.ends_with(".npy") || path.ends_with(".bin") || path.ends_with(".idx");
}

bool is_dataset(const std::string& path) {
  if (!io::is_regular_file(path)) return false;
  try {
    const io::hdf5::File file = io::hdf5::File::open(path);
    return file.has_attribute("/", "format") &&
           file.text_attribute("/", "format") == io::kDatasetFormat;
  } catch (const Error&) {
    return false;
  }
}

void refuse(const Arguments& arguments, std::initializer_list<const char*> flags,
            const char* direction) {
  for (const char* flag : flags)
    if (arguments.has(flag))
      fail_usage("convert: --{} is for {} a dataset: leave it out", flag, direction);
}

std::optional<DType> dtype_asked(const Arguments& arguments) {
  if (!arguments.has("dtype")) return std::nullopt;
  for (const DType dtype : {DType::kU8, DType::kU16, DType::kU32})
    if (arguments.text("dtype") == name_of(dtype)) return dtype;
  fail_usage("convert: --dtype '{}' is not known: expected u8, u16 or u32",
             arguments.text("dtype"));
}

std::optional<TokenFileFormat> format_asked(const Arguments& arguments) {
  if (!arguments.has("format")) return std::nullopt;
  for (const auto format : {TokenFileFormat::kRaw, TokenFileFormat::kNpy, TokenFileFormat::kLlmc,
                            TokenFileFormat::kMegatron})
    if (arguments.text("format") == io::name_of(format)) return format;
  fail_usage("convert: --format '{}' is not known: expected raw, npy, llmc or megatron",
             arguments.text("format"));
}

void stop_if_asked() {
  if (const int signal = slurm::stop_signal())
    fail("convert: stopped by {}; nothing was left behind", slurm::signal_name(signal));
}

ExitStatus export_dataset(const Arguments& arguments, const std::string& from,
                          const std::string& to) {
  refuse(arguments,
         {"validation", "valid-documents", "vocabulary", "document-start", "document-end"},
         "making");
  io::TokenFileRequest request;
  request.output = to;
  const bool npy = to.ends_with(".npy");
  request.format =
      format_asked(arguments).value_or(npy ? TokenFileFormat::kNpy : TokenFileFormat::kRaw);
  if (npy != (request.format == TokenFileFormat::kNpy))
    fail_usage(
        "convert: --format {} does not go with the name {}: .npy is NumPy's, the others "
        "are .bin",
        io::name_of(request.format), to);
  request.dtype = dtype_asked(arguments);
  const std::string split = arguments.text("split");
  if (split == "train") request.split = io::Split::kTrain;
  if (split == "valid") request.split = io::Split::kValid;
  if (split != "train" && split != "valid" && split != "all")
    fail_usage("convert: --split '{}' is not known: expected all, train or valid", split);
  request.replace = arguments.has("force");
  const auto dataset = io::TokenDataset::open(from);
  io::TokenFileSummary summary;
  {
    Progress progress;
    summary = io::write_token_file(dataset, request, [&](std::int64_t done, std::int64_t total) {
      stop_if_asked();
      progress.update("writing", "tokens", done, total);
    });
  }
  const io::DatasetFacts& facts = dataset.facts();
  const auto documents = static_cast<std::int64_t>(facts.document_offsets.size()) - 1;
  const std::int64_t valid = documents - facts.train_documents;
  const bool keeps_borders = request.format == TokenFileFormat::kMegatron;
  if (arguments.has("json")) {
    fmt::print("{}\n", nlohmann::ordered_json{{"files", summary.files},
                                              {"format", io::name_of(request.format)},
                                              {"dtype", summary.dtype},
                                              {"tokens", summary.tokens},
                                              {"documents", summary.documents},
                                              {"document_borders_kept", keeps_borders},
                                              {"bytes", summary.bytes}}
                           .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    return ExitStatus::kDone;
  }
  std::string names;
  for (const std::string& file : summary.files) names += (names.empty() ? "" : " and ") + file;
  fmt::print("{}: {} as {}, {}, {}\n", names, counted(summary.tokens, "token"), summary.dtype,
             io::name_of(request.format), io::format_bytes(summary.bytes));
  if (!keeps_borders && summary.documents > 1)
    fmt::print("  the borders of its {} documents are not in it: --format megatron keeps them\n",
               grouped(summary.documents));
  if (!request.split && valid > 0)
    fmt::print(
        "  the last {}, {}, validated: --split train or valid writes one split; on the way "
        "back, --valid-documents {} sets them apart again\n",
        counted(valid, "document"), counted(dataset.split_tokens(io::Split::kValid), "token"),
        valid);
  return ExitStatus::kDone;
}

ExitStatus import_dataset(const Arguments& arguments, const std::string& from,
                          const std::string& to) {
  refuse(arguments, {"split"}, "writing out");
  io::PrepareRequest request;
  request.format.kind = io::DatasetKind::kTokens;
  const auto dtype = dtype_asked(arguments);
  const auto asked = format_asked(arguments);
  if (dtype && asked.value_or(TokenFileFormat::kRaw) != TokenFileFormat::kRaw)
    fail_usage("convert: --dtype is for raw ids: {} says itself what its ids are",
               io::name_of(*asked));
  const auto found = io::detect_token_file(from);
  if (!dtype) {
    if (asked == TokenFileFormat::kRaw || (!asked && !found))
      fail_usage("convert: {}: raw ids do not say what they are: give --dtype u8, u16 or u32",
                 from);
    if (asked && asked != found)
      fail_damaged("{}: is not of --format {}{}", from, io::name_of(*asked),
                   found ? fmt::format(", but of {}", io::name_of(*found)) : "");
  }
  request.format.described_ids = !dtype;
  request.format.id_dtype = dtype.value_or(DType::kU16);
  if (arguments.has("document-start"))
    request.format.document_start = arguments.integer("document-start");
  if (arguments.has("document-end"))
    request.format.document_end = arguments.integer("document-end");
  if (arguments.has("valid-documents")) {
    if (arguments.has("validation"))
      fail_usage("convert: --validation and --valid-documents exclude each other: leave one out");
    request.valid_documents = arguments.integer("valid-documents");
  }
  request.validation = arguments.number("validation");
  request.vocabulary = arguments.integer("vocabulary");
  request.inputs = {from};
  request.output = to;
  request.replace = arguments.has("force");
  request.created_by = "longspan " LONGSPAN_VERSION;
  io::PrepareSummary summary;
  {
    Progress progress;
    summary = io::prepare_dataset(request, [&](const char* phase, std::int64_t done,
                                               std::int64_t total) {
      stop_if_asked();
      progress.update(phase, std::string_view(phase) == "counting" ? "B" : "tokens", done, total);
    });
  }
  const io::DatasetFacts& facts = summary.facts;
  const auto documents = static_cast<std::int64_t>(facts.document_offsets.size()) - 1;
  if (arguments.has("json")) {
    fmt::print("{}\n", nlohmann::ordered_json{{"files", {facts.path}},
                                              {"uuid", facts.uuid},
                                              {"dtype", name_of(facts.dtype)},
                                              {"vocabulary", facts.vocabulary},
                                              {"tokens", facts.tokens},
                                              {"documents", documents},
                                              {"train_documents", facts.train_documents},
                                              {"train_tokens", summary.train_tokens},
                                              {"empty", summary.empty_documents},
                                              {"bytes", summary.file_bytes}}
                           .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    return ExitStatus::kDone;
  }
  fmt::print("{}: {} in {}, {} of them train; {}, vocabulary {}, {}\n", facts.path,
             counted(facts.tokens, "token"), counted(documents, "document"),
             grouped(facts.train_documents), name_of(facts.dtype), grouped(facts.vocabulary),
             io::format_bytes(summary.file_bytes));
  if (summary.empty_documents > 0)
    fmt::print("  {} without tokens left out\n", counted(summary.empty_documents, "document"));
  return ExitStatus::kDone;
}

}  // namespace

bool is_dataset_conversion(const std::string& from) {
  return is_token_file_name(from) || is_dataset(from);
}

std::vector<Flag> dataset_conversion_flags() {
  return {
      {"format", "raw|npy|llmc|megatron",
       "of a token file; a .npy is NumPy's, a .bin is raw unless said otherwise (out) or its first "
       "bytes or the .idx beside it say what it is (in)"},
      {"split", "all|train|valid", "of a dataset to write out", "all"},
      {"dtype", "u8|u16|u32", "of ids in raw files; also of a .npy to write"},
      {"validation", "SHARE",
       "of a dataset to make: share of the tokens set apart, in whole documents", "0.05"},
      {"valid-documents", "N",
       "of a dataset to make: the last N documents validate, all stay in order"},
      {"vocabulary", "N", "of a dataset to make: ids are below N; 0 = the largest id + 1", "0"},
      {"document-start", "ID", "of a dataset to make: a document begins with every such id"},
      {"document-end", "ID", "of a dataset to make: a document ends with every such id"},
  };
}

ExitStatus convert_dataset(const Arguments& arguments) {
  if (arguments.positional().size() != 2)
    fail_usage("convert needs FROM and TO, {} were given: longspan convert data.h5 data.npy",
               arguments.positional().size());
  const std::string &from = arguments.positional()[0], &to = arguments.positional()[1];
  if (!io::path_exists(from)) fail_usage("{}: no such file", from);
  slurm::catch_stop_signals();
  const bool out = is_dataset(from);
  if (out && !is_token_file_name(to))
    fail_usage("convert: a dataset becomes a .npy or .bin, not {}", to);
  if (!out && is_token_file_name(to))
    fail_usage("convert: {} is not a dataset: token files are first made into one (data.h5)", from);
  return out ? export_dataset(arguments, from, to) : import_dataset(arguments, from, to);
}

}  // namespace longspan::launcher
