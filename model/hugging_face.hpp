/// How our models lie in the files of Hugging Face's `transformers`: which of its architectures
/// computes the same, and where each parameter is in its tensors. Both conventions are those of
/// transformers 4 (models/gpt2/modeling_gpt2.py, models/llama/modeling_llama.py). Names and shapes
/// only: no file is touched here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.hpp"
#include "parallel/array.hpp"

namespace longspan::model {

/// GPT-2: LayerNorm, GELU in its tanh form ("gelu_new"), learned positions, biases, all heads with
/// keys and values of their own. Llama: RMSNorm, SwiGLU, rotary positions; biases or not.
enum class HuggingFaceLayout { kGpt2, kLlama };

/// The layout that computes what this model computes. `config` is resolved. Throws Error (usage),
/// one line with every setting that fits neither.
HuggingFaceLayout hugging_face_layout(const ModelConfig& config, const AttentionConfig& attention);

/// Where a parameter is. GPT-2 keeps its matrices transposed ([inputs, outputs]: Conv1D), and
/// query, key and value side by side in one. Both programs pair channel i of a head with i +
/// head-size / 2 to turn them (rotary.cpp; rotate_half there), so that nothing is permuted.
struct HuggingFacePlace {
  std::string parameter;  ///< "blocks.0.attention.key.weight"
  Shape shape;            ///< ours
  std::string tensor;     ///< "transformer.h.0.attn.c_attn.weight"
  Shape tensor_shape;     ///< theirs
  /// Transposed: element [row, column] is [column, first + row] of the tensor.
  bool transposed = false;
  /// Otherwise the elements follow each other from element `first` of the tensor.
  std::int64_t first = 0;
};

/// A place for every parameter, in the order of the model. `vocabulary`: rows of the embedding and
/// of the output in the file; where we have more (padding), the last ones have no place.
std::vector<HuggingFacePlace> hugging_face_places(HuggingFaceLayout layout,
                                                  const ModelConfig& config,
                                                  std::int64_t vocabulary);

/// What begins the names of all tensors but the output's: "transformer." or "model.". Files saved
/// from the model without its output leave it out.
std::string hugging_face_prefix(HuggingFaceLayout layout);
/// Whether a tensor is no parameter: masks and frequencies that older versions saved.
bool is_hugging_face_buffer(const std::string& tensor);

}  // namespace longspan::model
