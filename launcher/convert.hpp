/// What `longspan convert FROM TO` can turn into what. convert.cpp reads the arguments and looks at
/// FROM and TO; each kind of conversion has a file of its own. Every one writes under a temporary
/// name, syncs and renames, and never holds a whole model or dataset in memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/arguments.hpp"
#include "parallel/array.hpp"

namespace longspan::launcher {

/// convert_checkpoint.cpp: the same tensors, bit for bit, in `shards` shards (0 = as many as it
/// has).
void reshard_checkpoint(const std::string& from, const std::string& to, std::int64_t shards);
/// The same in one HDF5 file without virtual datasets (io/FORMAT.md section 3).
void merge_checkpoint(const std::string& from, const std::string& to);

/// convert_hugging_face.cpp: a folder that `transformers` loads: model.safetensors and config.json.
/// `dtype`: kF32 or kBF16; `vocabulary`: rows of the embedding that are tokens, 0 = work it out.
/// Throws Error (usage) naming the setting if the model is neither a GPT-2 nor a Llama.
void export_hugging_face(const std::string& from, const std::string& to, DType dtype,
                         std::int64_t vocabulary);
/// The other way: a checkpoint of step 0 with a fresh optimizer, in `shards` shards. `settings`
/// ("--section.key", "value", ...): of the run that will continue from it, kept in its
/// configuration; those of the model come from config.json and may not differ.
void import_hugging_face(const std::string& from, const std::string& to, std::int64_t shards,
                         const std::vector<std::string>& settings);

}  // namespace longspan::launcher
