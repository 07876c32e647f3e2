/// config.json of Hugging Face's `transformers`, from and to our settings.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"
#include "launcher/run_config.hpp"
#include "model/hugging_face.hpp"

namespace longspan::launcher {

/// What config.json says, as our settings.
struct ForeignModel {
  model::HuggingFaceLayout layout = model::HuggingFaceLayout::kGpt2;
  std::vector<std::string> settings;  ///< "--model.layers", "12", ...: all that shape the model
  std::int64_t positions = 0;         ///< tokens it was made for
  bool tied = false;
  std::string tokenizer;  ///< JSON; {"kind":"ids"} unless it was exported by us
};

/// Reads `<folder>/config.json`; `tensors` are in the folder, which bounds the layers. Throws Error
/// (damaged) for what is no configuration, (usage) naming each setting that we compute otherwise.
ForeignModel read_hugging_face_config(const std::string& folder, std::int64_t tensors);

/// The configuration of a run of this model with the user's settings, resolved. Throws Error
/// (usage) if these change the model.
RunConfig run_of(const ForeignModel& foreign, const std::vector<std::string>& settings,
                 const std::string& folder);

/// The text of config.json. `config` is resolved and fits `layout`; `vocabulary`: rows in the file.
std::string hugging_face_config(model::HuggingFaceLayout layout, const RunConfig& config,
                                std::int64_t vocabulary, DType dtype,
                                const io::CheckpointFacts& facts);

}  // namespace longspan::launcher
