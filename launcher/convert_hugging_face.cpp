/// `longspan convert` to and from the folders of Hugging Face's `transformers`. Which tensor is
/// where says model/hugging_face.hpp, what config.json means hugging_face_config.hpp.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <utility>

#include "io/checkpoint_convert.hpp"
#include "io/file.hpp"
#include "io/safetensors.hpp"
#include "io/token_dataset.hpp"
#include "launcher/convert.hpp"
#include "launcher/hugging_face_config.hpp"
#include "launcher/machine.hpp"
#include "launcher/options.hpp"
#include "launcher/progress.hpp"
#include "model/flops.hpp"
#include "model/hugging_face.hpp"
#include "parallel/error.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

using model::HuggingFaceLayout;
using model::HuggingFacePlace;

constexpr std::int64_t kPiece = std::int64_t{16} << 20;

const char* name_of_layout(HuggingFaceLayout layout) {
  return layout == HuggingFaceLayout::kGpt2 ? "GPT-2" : "Llama";
}

void write_synced(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) fail("{}: cannot write it: free space there, or write elsewhere", path);
  io::sync_file(path);
}

/// out[column * rows + row] = in[row * columns + column]
void transpose(const float* in, std::int64_t rows, std::int64_t columns, float* out) {
  constexpr std::int64_t kTile = 32;  // both sides stay in the cache
  for (std::int64_t r0 = 0; r0 < rows; r0 += kTile)
    for (std::int64_t c0 = 0; c0 < columns; c0 += kTile)
      for (std::int64_t r = r0; r < std::min(r0 + kTile, rows); ++r)
        for (std::int64_t c = c0; c < std::min(c0 + kTile, columns); ++c)
          out[c * rows + r] = in[r * columns + c];
}

/// Rows of the embedding that are tokens. The others were added by `resolve`, so that matrices are
/// whole vectors; a vocabulary that the user has set larger than that is what he wants.
std::int64_t real_vocabulary(const RunConfig& config, const io::CheckpointFacts& facts,
                             std::int64_t wanted) {
  const std::int64_t all = config.model.vocabulary;
  if (wanted > all)
    fail_usage("--vocabulary={}: the model has {} rows (model.vocabulary)", wanted, all);
  if (wanted > 0) return wanted;
  std::int64_t tokens = io::Tokenizer(facts.tokenizer).vocabulary();
  if (tokens > all) {                            // ids: only their dataset knows how many
    if (facts.dataset_uuid.empty()) return all;  // imported, and never trained on anything
    std::string why = "it is not there";
    std::int64_t found = 0;
    if (io::path_exists(config.data.path)) {
      const auto dataset = io::TokenDataset::open(config.data.path);
      why = "it is another dataset now";
      if (dataset.facts().uuid == facts.dataset_uuid) found = dataset.facts().vocabulary;
    }
    if (found == 0)
      fail_usage(
          "how many of the {} rows of the vocabulary are tokens is known to the dataset alone, "
          "data.path={}, and {}: say --vocabulary N (N={} exports all of them)",
          all, config.data.path, why, all);
    tokens = found;
  }
  RunConfig rounded = config;
  rounded.model.vocabulary = 0;
  resolve(rounded, tokens);
  return rounded.model.vocabulary == all ? tokens : all;
}

/// Copies parameters of a checkpoint into the tensors of a file.
class Exporter {
 public:
  Exporter(io::CheckpointReader& from, const std::vector<HuggingFacePlace>& places)
      : from_(from), places_(places) {
    for (const HuggingFacePlace& place : places)
      if (numbers_.try_emplace(place.tensor, tensors_.size()).second)
        tensors_.push_back({place.tensor, place.tensor_shape});
  }
  const std::vector<io::SafetensorsWriter::Tensor>& tensors() const { return tensors_; }

  void copy_to(io::SafetensorsWriter& file, Progress& progress) {
    std::int64_t done = 0, all = 0;
    for (const HuggingFacePlace& place : places_) all += 4 * element_count(place.shape);
    for (const HuggingFacePlace& place : places_) {
      copy(place, file);
      done += 4 * element_count(place.shape);
      progress.update("writing", "B", done, all);
    }
  }

 private:
  void copy(const HuggingFacePlace& place, io::SafetensorsWriter& file) {
    const std::size_t tensor = numbers_.at(place.tensor);
    const std::int64_t columns = element_count(place.shape) / place.shape[0];
    // Padding of the vocabulary has no place.
    const std::int64_t rows = std::min(place.shape[0], place.tensor_shape[0]);
    const std::int64_t our_rows = place.transposed ? place.shape[0] : rows;
    const std::int64_t at_once = std::clamp<std::int64_t>(kPiece / (4 * columns), 1, our_rows);
    values_.resize(static_cast<std::size_t>(at_once * columns));
    for (std::int64_t row = 0; row < our_rows; row += at_once) {
      ShardedArray piece;
      piece.name = "model/" + place.parameter;
      piece.global_shape = place.shape;
      piece.offset.assign(place.shape.size(), 0);
      piece.shape = place.shape;
      piece.offset[0] = row;
      piece.shape[0] = std::min(at_once, our_rows - row);
      piece.data = values_.data();
      from_.read(piece);
      const std::int64_t count = piece.shape[0];
      if (!place.transposed) {
        file.write(tensor, place.first + row * columns, count * columns, values_.data());
        continue;
      }
      turned_.resize(values_.size());
      transpose(values_.data(), count, columns, turned_.data());
      const std::int64_t stride = place.tensor_shape[1];
      if (count == stride) {
        file.write(tensor, 0, count * columns, turned_.data());
        continue;
      }
      for (std::int64_t column = 0; column < columns; ++column)
        file.write(tensor, column * stride + place.first + row, count,
                   turned_.data() + column * count);
    }
  }

  io::CheckpointReader& from_;
  const std::vector<HuggingFacePlace>& places_;
  std::vector<io::SafetensorsWriter::Tensor> tensors_;
  std::map<std::string, std::size_t> numbers_;
  std::vector<float> values_, turned_;
};

/// The rows of a parameter out of the tensors of a folder.
void read_rows(const io::SafetensorsFolder& folder, const HuggingFacePlace& place,
               const std::string& tensor, const ShardedArray& rows) {
  auto* out = static_cast<float*>(rows.data);
  const std::int64_t row = rows.offset[0], count = rows.shape[0];
  const std::int64_t columns = element_count(place.shape) / place.shape[0];
  if (!place.transposed)
    return folder.read(tensor, place.first + row * columns, count * columns, out);
  const std::int64_t stride = place.tensor_shape[1];
  std::vector<float> values(static_cast<std::size_t>(count * columns));
  if (count == stride) {
    folder.read(tensor, 0, count * columns, values.data());
  } else {
    for (std::int64_t column = 0; column < columns; ++column)
      folder.read(tensor, column * stride + place.first + row, count,
                  values.data() + column * count);
  }
  transpose(values.data(), columns, count, out);
}

/// What each place's tensor is called in this folder. Throws Error (damaged) naming a tensor that
/// is missing, has another shape, or is nobody's.
std::map<std::string, std::string> matched(const io::SafetensorsFolder& folder,
                                           const std::vector<HuggingFacePlace>& places,
                                           const ForeignModel& foreign) {
  const std::string prefix = model::hugging_face_prefix(foreign.layout);
  std::map<std::string, std::string> names;
  std::set<std::string> used;
  for (const HuggingFacePlace& place : places) {
    std::string name = place.tensor;
    if (folder.find(name) == nullptr && name.starts_with(prefix)) name = name.substr(prefix.size());
    const io::SafetensorsTensor* tensor = folder.find(name);
    if (tensor == nullptr)
      fail_damaged("{}: a {} as config.json describes it has a tensor '{}', which is not there",
                   folder.path(), name_of_layout(foreign.layout), place.tensor);
    if (tensor->shape != place.tensor_shape)
      fail_damaged("{}: '{}' is {}, by config.json it should be {}", folder.path(), name,
                   to_string(tensor->shape), to_string(place.tensor_shape));
    names[place.tensor] = name;
    used.insert(name);
  }
  const bool tied = foreign.tied;
  for (const std::string& name : folder.names())
    if (!used.contains(name) && !model::is_hugging_face_buffer(name) &&
        !(tied && name == "lm_head.weight"))
      fail_damaged("{}: it has a tensor '{}', which no {} as config.json describes it has",
                   folder.path(), name, name_of_layout(foreign.layout));
  return names;
}

/// Weights, and an optimizer that has seen nothing.
std::vector<io::TensorSource> sources_of(const io::SafetensorsFolder& folder,
                                         const std::vector<HuggingFacePlace>& places,
                                         const std::map<std::string, std::string>& names) {
  std::vector<io::TensorSource> sources;
  for (const HuggingFacePlace& place : places)
    sources.push_back({"model/" + place.parameter, DType::kF32, place.shape,
                       [&, name = names.at(place.tensor)](const ShardedArray& rows) {
                         read_rows(folder, place, name, rows);
                       }});
  for (const char* state : {"optimizer/exp_avg/", "optimizer/exp_avg_sq/"})
    for (const HuggingFacePlace& place : places)
      sources.push_back(
          {state + place.parameter, DType::kF32, place.shape, [](const ShardedArray& rows) {
             std::memset(rows.data, 0, static_cast<std::size_t>(rows.bytes()));
           }});
  return sources;
}

}  // namespace

void export_hugging_face(const std::string& from, const std::string& to, DType dtype,
                         std::int64_t vocabulary) {
  Progress progress;
  io::CheckpointReader reader(from);
  RunConfig config = parse_ini(reader.facts().config);
  resolve(config, config.model.vocabulary);
  if (config.model.layers > static_cast<std::int64_t>(reader.tensors().size()))
    fail_damaged("{}: model.layers={}, but it has {} tensors", from, config.model.layers,
                 reader.tensors().size());
  const HuggingFaceLayout layout = model::hugging_face_layout(config.model, config.attention);
  const std::int64_t rows = real_vocabulary(config, reader.facts(), vocabulary);
  const auto places = model::hugging_face_places(layout, config.model, rows);
  io::require_intact(reader, from, [&](std::int64_t done, std::int64_t all) {
    progress.update("checking", "B", done, all);
  });
  Exporter exporter(reader, places);
  std::int64_t bytes = 1 << 20;
  for (const auto& tensor : exporter.tensors())
    bytes += element_count(tensor.shape) * static_cast<std::int64_t>(size_of(dtype));

  const std::string temporary = io::begin_replacement(to, bytes);
  try {
    io::make_directory(temporary);
    // transformers wants to know which framework the file is for.
    io::SafetensorsWriter file(temporary + "/model.safetensors", exporter.tensors(), dtype,
                               {{"format", "pt"}});
    exporter.copy_to(file, progress);
    file.close();
    write_synced(temporary + "/config.json",
                 hugging_face_config(layout, config, rows, dtype, reader.facts()));
    io::commit_replacement(temporary, to);
  } catch (...) {
    io::abandon_replacement(temporary);
    throw;
  }
  const std::int64_t padding = config.model.vocabulary - rows;
  log::info("{}: {} of step {} for transformers, {} tokens{}", to, name_of_layout(layout),
            reader.facts().step, rows,
            padding == 0 ? "" : fmt::format(" ({} rows of padding are left out)", padding));
}

void import_hugging_face(const std::string& from, const std::string& to, std::int64_t shards,
                         const std::vector<std::string>& settings) {
  Progress progress;
  const io::SafetensorsFolder folder(from);
  const ForeignModel foreign =
      read_hugging_face_config(from, static_cast<std::int64_t>(folder.names().size()));
  RunConfig config = run_of(foreign, settings, from);
  const auto places =
      model::hugging_face_places(foreign.layout, config.model, config.model.vocabulary);
  const auto names = matched(folder, places, foreign);

  io::CheckpointFacts facts;
  facts.seed = config.run.seed;
  facts.tokenizer = foreign.tokenizer;
  if (!config.data.path.empty()) {
    const auto dataset = io::TokenDataset::open(config.data.path);
    if (dataset.facts().vocabulary > config.model.vocabulary)
      fail_usage(
          "data.path={} has token ids up to {}, the model of {} knows {}: tokenize with the "
          "model's own vocabulary",
          config.data.path, dataset.facts().vocabulary - 1, from, config.model.vocabulary);
    facts.dataset_uuid = dataset.facts().uuid;
    facts.tokenizer = dataset.facts().tokenizer;
  }
  const std::string absolute = std::filesystem::absolute(to).lexically_normal().string();
  if (config.checkpoint.resume == RunConfig().checkpoint.resume)
    config.checkpoint.resume = absolute;
  facts.config = to_ini(config);
  facts.program_version = version_line();
  io::write_checkpoint_from(
      to, sources_of(folder, places, names), facts, static_cast<int>(shards),
      [&](std::int64_t done, std::int64_t all) { progress.update("writing", "B", done, all); },
      [&](const std::string& temporary) {
        write_synced(temporary + "/config.ini",
                     fmt::format("# to continue from {}, which was imported from {}\n{}", to, from,
                                 facts.config));
      });
  log::info(
      "{}: {} of {} parameters, step 0, optimizer fresh; train on with: longspan train "
      "--config {}/config.ini{}",
      to, name_of_layout(foreign.layout), grouped(model::parameter_count(config.model)), to,
      config.data.path.empty() ? " --data.path DATASET.h5" : "");
}

}  // namespace longspan::launcher
