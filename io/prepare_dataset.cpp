#include "io/prepare_dataset.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>

#include "io/dataset_layout.hpp"
#include "io/dataset_writer.hpp"
#include "io/fasta.hpp"
#include "io/file.hpp"
#include "parallel/error.hpp"
#include "parallel/random.hpp"

namespace longspan::io {
namespace {

template <class T>
std::uint32_t largest_of(const TokenRun& run) {
  const T* ids = static_cast<const T*>(run.ids);
  T largest = 0;
  for (std::int64_t i = 0; i < run.count; ++i) largest = std::max(largest, ids[i]);
  return largest;
}

std::uint32_t largest_of(const TokenRun& run) {
  if (run.dtype == DType::kU8) return largest_of<std::uint8_t>(run);
  return run.dtype == DType::kU16 ? largest_of<std::uint16_t>(run) : largest_of<std::uint32_t>(run);
}

std::uint32_t id_at(const TokenRun& run, std::int64_t i) {
  if (run.dtype == DType::kU8) return static_cast<const std::uint8_t*>(run.ids)[i];
  return run.dtype == DType::kU16 ? static_cast<const std::uint16_t*>(run.ids)[i]
                                  : static_cast<const std::uint32_t*>(run.ids)[i];
}

TokenRun first_of(TokenRun run, std::int64_t count) {
  return {run.ids, run.dtype, std::min(run.count, count)};
}

TokenRun without_first(TokenRun run, std::int64_t count) {
  const auto bytes = static_cast<std::size_t>(count) * size_of(run.dtype);
  return {static_cast<const std::uint8_t*>(run.ids) + bytes, run.dtype, run.count - count};
}

/// First pass: lengths and names of the documents, the largest id.
class Census : public DocumentSink {
 public:
  Census(const PrepareRequest& request, const PrepareProgress& progress, std::int64_t input_bytes)
      : kind_(request.format.kind),
        limit_(request.max_tokens),
        bound_(request.vocabulary > 0 ? request.vocabulary : kLargestVocabulary),
        bound_given_(request.vocabulary > 0),
        progress_(progress),
        input_bytes_(input_bytes) {}

  void begin_document(const std::string& name) override {
    name_ = name;
    length_ = 0;
  }
  void tokens(const TokenRun& run) override {
    if (kind_ == DatasetKind::kTokens && run.count > 0) {
      const std::uint32_t largest = largest_of(run);
      if (largest >= bound_) fail_bound(run);
      largest_ = std::max(largest_, largest);
    }
    count_tokens(run.count);
  }
  void count_tokens(std::int64_t count) override {
    if (limit_ > 0 && total_ + count > limit_) {
      capped_ = true;
      count = limit_ - total_;
    }
    length_ += count;
    total_ += count;
  }
  void end_document() override {
    if (length_ == 0) {
      if (!capped_) ++empty_;
      return;
    }
    lengths_.push_back(length_);
    hashes_.push_back(derive_key(hash_name(name_), 0));
  }
  bool counts_only() const override { return true; }
  bool full() const override { return capped_; }
  void consumed(std::int64_t bytes) override {
    done_ += bytes;
    progress_("counting", done_, input_bytes_);
  }

  const std::vector<std::int64_t>& lengths() const { return lengths_; }
  const std::vector<std::uint64_t>& hashes() const { return hashes_; }
  std::int64_t total() const { return total_; }
  std::int64_t empty() const { return empty_; }
  bool capped() const { return capped_; }
  std::uint32_t largest() const { return largest_; }

 private:
  [[noreturn]] void fail_bound(const TokenRun& run) const {
    std::int64_t i = 0;
    while (id_at(run, i) < bound_) ++i;
    if (bound_given_)
      fail_damaged(
          "{}: token {} has the id {}, not below --vocabulary {}: raise it, or check --dtype",
          name_, length_ + i, id_at(run, i), bound_);
    fail_damaged("{}: token {} has the id {}: ids must be below {}; check --dtype", name_,
                 length_ + i, id_at(run, i), bound_);
  }

  const DatasetKind kind_;
  const std::int64_t limit_, bound_;
  const bool bound_given_;
  const PrepareProgress& progress_;
  const std::int64_t input_bytes_;
  std::string name_;
  std::int64_t length_ = 0, total_ = 0, empty_ = 0, done_ = 0;
  bool capped_ = false;
  std::uint32_t largest_ = 0;
  std::vector<std::int64_t> lengths_;
  std::vector<std::uint64_t> hashes_;
};

/// What of each document goes where: the census as pieces of it.
struct Plan {
  std::vector<std::int64_t> lengths;
  std::vector<bool> validates;
  std::int64_t tail = 0;  ///< last tokens of the only document that validate
};

/// Second pass: to the writer, each document to its split.
class Distributor : public DocumentSink {
 public:
  Distributor(const Plan& plan, DatasetWriter& writer, const PrepareProgress& progress,
              std::int64_t total, bool capped)
      : plan_(plan), writer_(writer), progress_(progress), total_(total), capped_(capped) {}

  void begin_document(const std::string& name) override {
    name_ = name;
    given_ = 0;
  }
  void tokens(const TokenRun& all) override {
    if (all.count == 0 || full()) return;
    // Documents without tokens were not counted: the number moves on with the first token.
    if (given_ == 0 && document_ == plan_.lengths.size()) fail_changed();
    const std::int64_t length = plan_.lengths[document_];
    const bool cut = capped_ && document_ + 1 == plan_.lengths.size();
    if (given_ + all.count > length && !cut) fail_changed();
    TokenRun run = first_of(all, length - given_);
    const bool validates = plan_.validates[document_];
    const std::int64_t head = std::clamp<std::int64_t>(length - plan_.tail - given_, 0, run.count);
    writer_.append(validates ? Split::kValid : Split::kTrain, first_of(run, head));
    writer_.append(Split::kValid, without_first(run, head));
    given_ += run.count;
    done_ += run.count;
    progress_("writing", done_, total_);
  }
  void end_document() override {
    if (given_ == 0) return;
    if (given_ != plan_.lengths[document_]) fail_changed();
    ++document_;
    given_ = 0;
  }
  bool full() const override { return capped_ && done_ == total_; }

 private:
  [[noreturn]] void fail_changed() const {
    fail("{}: changed while it was read: let it rest and run prepare again", name_);
  }

  const Plan& plan_;
  DatasetWriter& writer_;
  const PrepareProgress& progress_;
  const std::int64_t total_;
  const bool capped_;
  std::string name_;
  std::size_t document_ = 0;
  std::int64_t given_ = 0, done_ = 0;
};

void check_request(const PrepareRequest& request) {
  if (!(request.validation >= 0 && request.validation < 1))
    fail_usage("--validation {} is not a share of the data: give a number from 0 (none) to below 1",
               request.validation);
  if (request.valid_documents && *request.valid_documents < 0)
    fail_usage("--valid-documents {} is negative", *request.valid_documents);
  if (request.max_tokens < 0) fail_usage("--max-bytes {} is negative", request.max_tokens);
  if (request.vocabulary < 0 || request.vocabulary > kLargestVocabulary)
    fail_usage("--vocabulary {} is not between 1 and {}", request.vocabulary, kLargestVocabulary);
  if (request.inputs.empty())
    fail_usage("no input: name the files and folders to read after the flags");
  if (is_directory(request.output))
    fail_usage("{}: --output is a folder, expected a file name such as data.h5", request.output);
  if (path_exists(request.output) && !request.replace)
    fail_usage("{}: exists already: write elsewhere, or overwrite it with --force", request.output);
  for (const std::string& input : request.inputs) {
    std::error_code none;
    if (std::filesystem::equivalent(input, request.output, none))
      fail_usage("{}: is both input and output", request.output);
  }
}

/// Of a Megatron pair the .bin stands for both, whichever was named or found.
void join_pairs(std::vector<InputFile>& files) {
  const auto is_index = [](const std::string& path) { return path.ends_with(".idx"); };
  const auto as_data = [](std::string text) { return text.replace(text.size() - 4, 4, ".bin"); };
  std::set<std::string> paths;
  for (const InputFile& file : files) paths.insert(file.path);
  std::erase_if(files, [&](const InputFile& file) {
    return is_index(file.path) && paths.contains(as_data(file.path));
  });
  for (InputFile& file : files)
    if (is_index(file.path) && path_exists(as_data(file.path))) {
      file.path = as_data(file.path);
      file.name = as_data(file.name);
    }
}

std::string tokenizer_of(DatasetKind kind) {
  switch (kind) {
    case DatasetKind::kText:
      return R"({"kind":"bytes"})";
    case DatasetKind::kGenome:
      return nlohmann::json{{"kind", "nucleotides"}, {"letters", kNucleotides}}.dump();
    case DatasetKind::kTokens:
      return R"({"kind":"ids"})";
  }
  return {};
}

std::int64_t vocabulary_of(const PrepareRequest& request, const Census& census) {
  switch (request.format.kind) {
    case DatasetKind::kText:
      return 256;
    case DatasetKind::kGenome:
      return static_cast<std::int64_t>(kNucleotides.size());
    case DatasetKind::kTokens:
      break;
  }
  return request.vocabulary > 0 ? request.vocabulary : std::int64_t{census.largest()} + 1;
}

std::string source_of(const PrepareRequest& request, std::size_t files) {
  constexpr const char* kKinds[] = {"text", "genome", "tokens"};
  std::string places;
  for (const std::string& input : request.inputs) {
    if (places.size() + input.size() > 400) {
      places += " ...";
      break;
    }
    places += " " + input;
  }
  return fmt::format("{} from {} file{}:{}", kKinds[static_cast<int>(request.format.kind)], files,
                     files == 1 ? "" : "s", places);
}

Plan plan_of(const Census& census, const PrepareRequest& request) {
  const double validation = request.validation;
  if (request.valid_documents) {
    const auto documents = static_cast<std::int64_t>(census.lengths().size());
    if (*request.valid_documents > documents)
      fail_usage("--valid-documents {}: the input has {}", *request.valid_documents, documents);
    Plan plan{census.lengths(), std::vector<bool>(census.lengths().size())};
    std::fill(plan.validates.end() - *request.valid_documents, plan.validates.end(), true);
    return plan;
  }
  Plan plan{census.lengths(), choose_validation(census.lengths(), census.hashes(), validation)};
  if (plan.lengths.size() == 1 && validation > 0 && census.total() > 1)
    plan.tail = std::clamp<std::int64_t>(
        std::llround(static_cast<double>(census.total()) * validation), 1, census.total() - 1);
  return plan;
}

/// Lengths to offsets: documents that train first, those that validate after them, both in input
/// order.
void place_documents(const Plan& plan, DatasetFacts& facts) {
  facts.document_offsets = {0};
  const auto add = [&](std::int64_t tokens) {
    facts.document_offsets.push_back(facts.document_offsets.back() +
                                     static_cast<std::uint64_t>(tokens));
  };
  for (std::size_t i = 0; i < plan.lengths.size(); ++i)
    if (!plan.validates[i]) add(plan.lengths[i] - plan.tail);
  facts.train_documents = static_cast<std::int64_t>(facts.document_offsets.size()) - 1;
  for (std::size_t i = 0; i < plan.lengths.size(); ++i)
    if (plan.validates[i]) add(plan.lengths[i]);
  if (plan.tail > 0) add(plan.tail);
}

DType smallest_dtype(std::int64_t vocabulary) {
  return vocabulary <= 256 ? DType::kU8 : vocabulary <= 65536 ? DType::kU16 : DType::kU32;
}

}  // namespace

std::vector<bool> choose_validation(const std::vector<std::int64_t>& tokens,
                                    const std::vector<std::uint64_t>& name_hashes,
                                    double fraction) {
  std::vector<bool> chosen(tokens.size());
  if (fraction <= 0 || tokens.size() < 2) return chosen;
  std::vector<std::size_t> order(tokens.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return name_hashes[a] < name_hashes[b]; });
  const double total =
      static_cast<double>(std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0}));
  std::int64_t taken = 0;
  for (std::size_t i : order) {
    if (static_cast<double>(taken + tokens[i]) > fraction * total) continue;
    chosen[i] = true;
    taken += tokens[i];
  }
  if (taken == 0) {
    const auto shortest = std::min_element(order.begin(), order.end(),
                                           [&](auto a, auto b) { return tokens[a] < tokens[b]; });
    chosen[*shortest] = true;
  }
  return chosen;
}

PrepareSummary prepare_dataset(const PrepareRequest& request, const PrepareProgress& progress) {
  const auto begin = std::chrono::steady_clock::now();
  check_request(request);
  remove_path(request.output + ".partial");  // of a run that was killed
  InputFilter filter{request.endings, request.skip_unreadable, request.output};
  if (request.format.kind == DatasetKind::kGenome && filter.endings.empty())
    filter.endings = {".fa", ".fasta", ".fna", ".ffn", ".frn", ".FA", ".FASTA"};
  PrepareSummary summary;
  summary.input = list_input_files(request.inputs, filter);
  if (request.format.described_ids) join_pairs(summary.input.files);
  const std::vector<InputFile> files = std::move(summary.input.files);
  summary.input.files.clear();

  Census census(request, progress, summary.input.bytes);
  for (const InputFile& file : files) {
    if (census.full()) break;
    read_documents(file, request.format, census, summary.counts);
    ++summary.input_files;
  }
  summary.empty_documents = census.empty();
  summary.capped = census.capped();
  if (census.total() == 0)
    fail_usage(
        "no tokens in the input: {} files with contents, {} empty, {} with other endings: check "
        "paths and --extensions",
        files.size(), summary.input.empty, summary.input.other_endings);

  const Plan plan = plan_of(census, request);
  summary.tail_split = plan.tail > 0;
  DatasetFacts facts;
  facts.source = source_of(request, static_cast<std::size_t>(summary.input_files));
  facts.created_by = request.created_by;
  facts.tokens = census.total();
  facts.vocabulary = vocabulary_of(request, census);
  facts.dtype = smallest_dtype(facts.vocabulary);
  facts.tokenizer = tokenizer_of(request.format.kind);
  place_documents(plan, facts);
  summary.train_tokens = static_cast<std::int64_t>(
      facts.document_offsets[static_cast<std::size_t>(facts.train_documents)]);

  DatasetWriter writer(request.output, std::move(facts));
  Distributor distributor(plan, writer, progress, census.total(), census.capped());
  InputCounts second_pass;
  for (const InputFile& file : files) {
    if (distributor.full()) break;
    read_documents(file, request.format, distributor, second_pass);
  }
  summary.counts = second_pass;
  summary.facts = writer.finish();
  summary.file_bytes = file_size(request.output);
  summary.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return summary;
}

}  // namespace longspan::io
