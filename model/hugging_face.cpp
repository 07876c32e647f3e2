#include "model/hugging_face.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <utility>

#include "parallel/error.hpp"

namespace longspan::model {
namespace {

using Texts = std::vector<std::string>;

void unless(bool fits, const char* what, Texts& misfits) {
  if (!fits) misfits.emplace_back(what);
}

Texts misfits_of_both(const AttentionConfig& attention) {
  Texts misfits;
  unless(attention.mask == MaskKind::kCausal, "attention.mask=causal", misfits);
  unless(attention.window == 0, "attention.window=0", misfits);
  return misfits;
}

Texts misfits_of_gpt2(const ModelConfig& c, Texts misfits) {
  unless(c.norm == NormKind::kLayerNorm, "model.norm=layernorm", misfits);
  unless(c.mlp == MlpKind::kGelu, "model.mlp=gelu", misfits);
  unless(c.position == PositionKind::kLearned, "model.position=learned", misfits);
  unless(c.bias, "model.bias=on", misfits);
  unless(c.kv_heads == c.heads, "model.kv-heads=0", misfits);
  unless(c.heads * c.head_size == c.width, "model.head-size=0", misfits);
  return misfits;
}

Texts misfits_of_llama(const ModelConfig& c, Texts misfits) {
  unless(c.norm == NormKind::kRmsNorm, "model.norm=rmsnorm", misfits);
  unless(c.mlp == MlpKind::kSwiglu, "model.mlp=swiglu", misfits);
  unless(c.position == PositionKind::kRope, "model.position=rope", misfits);
  return misfits;
}

class Places {
 public:
  explicit Places(bool transposed) : transposed_(transposed) {}

  /// A parameter that is a tensor of its own.
  void same(const std::string& parameter, const std::string& tensor, const Shape& shape) {
    all_.push_back({parameter, shape, tensor, shape});
  }
  void vocabulary(const std::string& parameter, const std::string& tensor, const Shape& shape,
                  std::int64_t rows) {
    all_.push_back({parameter, shape, tensor, {rows, shape[1]}});
  }
  /// Outputs [first, first + outputs) of the `all` outputs of a linear layer of theirs.
  void linear(const std::string& parameter, const std::string& tensor, std::int64_t outputs,
              std::int64_t inputs, bool bias, std::int64_t first, std::int64_t all) {
    HuggingFacePlace weight{parameter + ".weight", {outputs, inputs}, tensor + ".weight", {}};
    weight.transposed = transposed_;
    weight.tensor_shape = transposed_ ? Shape{inputs, all} : Shape{all, inputs};
    weight.first = transposed_ ? first : first * inputs;
    all_.push_back(std::move(weight));
    if (!bias) return;
    HuggingFacePlace added{parameter + ".bias", {outputs}, tensor + ".bias", {all}};
    added.first = first;
    all_.push_back(std::move(added));
  }
  void linear(const std::string& parameter, const std::string& tensor, std::int64_t outputs,
              std::int64_t inputs, bool bias) {
    linear(parameter, tensor, outputs, inputs, bias, 0, outputs);
  }
  std::vector<HuggingFacePlace> take() { return std::move(all_); }

 private:
  bool transposed_;
  std::vector<HuggingFacePlace> all_;
};

void add_gpt2_block(const ModelConfig& c, std::int64_t index, Places& places) {
  const std::string ours = fmt::format("blocks.{}.", index);
  const std::string theirs = fmt::format("transformer.h.{}.", index);
  const std::int64_t width = c.width;
  const auto norm = [&](const char* our_name, const char* their_name) {
    places.same(ours + our_name + ".weight", theirs + their_name + ".weight", {width});
    places.same(ours + our_name + ".bias", theirs + their_name + ".bias", {width});
  };
  norm("attention_norm", "ln_1");
  const char* fused[] = {"attention.query", "attention.key", "attention.value"};
  for (std::int64_t i = 0; i < 3; ++i)
    places.linear(ours + fused[i], theirs + "attn.c_attn", width, width, true, i * width,
                  3 * width);
  places.linear(ours + "attention.output", theirs + "attn.c_proj", width, width, true);
  norm("mlp_norm", "ln_2");
  places.linear(ours + "mlp.up", theirs + "mlp.c_fc", c.mlp_width, width, true);
  places.linear(ours + "mlp.down", theirs + "mlp.c_proj", width, c.mlp_width, true);
}

void add_llama_block(const ModelConfig& c, std::int64_t index, Places& places) {
  const std::string ours = fmt::format("blocks.{}.", index);
  const std::string theirs = fmt::format("model.layers.{}.", index);
  const std::int64_t width = c.width, queries = c.heads * c.head_size,
                     keys = c.kv_heads * c.head_size;
  places.same(ours + "attention_norm.weight", theirs + "input_layernorm.weight", {width});
  places.linear(ours + "attention.query", theirs + "self_attn.q_proj", queries, width, c.bias);
  places.linear(ours + "attention.key", theirs + "self_attn.k_proj", keys, width, c.bias);
  places.linear(ours + "attention.value", theirs + "self_attn.v_proj", keys, width, c.bias);
  places.linear(ours + "attention.output", theirs + "self_attn.o_proj", width, queries, c.bias);
  places.same(ours + "mlp_norm.weight", theirs + "post_attention_layernorm.weight", {width});
  places.linear(ours + "mlp.gate", theirs + "mlp.gate_proj", c.mlp_width, width, c.bias);
  places.linear(ours + "mlp.up", theirs + "mlp.up_proj", c.mlp_width, width, c.bias);
  places.linear(ours + "mlp.down", theirs + "mlp.down_proj", width, c.mlp_width, c.bias);
}

}  // namespace

HuggingFaceLayout hugging_face_layout(const ModelConfig& config, const AttentionConfig& attention) {
  const Texts both = misfits_of_both(attention);
  const Texts gpt2 = misfits_of_gpt2(config, both), llama = misfits_of_llama(config, both);
  if (gpt2.empty()) return HuggingFaceLayout::kGpt2;
  if (llama.empty()) return HuggingFaceLayout::kLlama;
  fail_usage(
      "transformers has no model that computes what this one does: GPT-2 needs {}, Llama needs {}",
      fmt::join(gpt2, ", "), fmt::join(llama, ", "));
}

std::vector<HuggingFacePlace> hugging_face_places(HuggingFaceLayout layout,
                                                  const ModelConfig& config,
                                                  std::int64_t vocabulary) {
  const bool gpt2 = layout == HuggingFaceLayout::kGpt2;
  const std::string prefix = hugging_face_prefix(layout);
  const Shape table = {config.vocabulary, config.width};
  Places places(gpt2);
  places.vocabulary("embedding.token.weight",
                    prefix + (gpt2 ? "wte.weight" : "embed_tokens.weight"), table, vocabulary);
  if (gpt2)
    places.same("embedding.position.weight", prefix + "wpe.weight",
                {config.max_positions, config.width});
  for (std::int64_t i = 0; i < config.layers; ++i)
    gpt2 ? add_gpt2_block(config, i, places) : add_llama_block(config, i, places);
  places.same("final_norm.weight", prefix + (gpt2 ? "ln_f.weight" : "norm.weight"), {config.width});
  if (gpt2) places.same("final_norm.bias", prefix + "ln_f.bias", {config.width});
  if (!config.tie_embeddings)
    places.vocabulary("output.weight", "lm_head.weight", table, vocabulary);
  return places.take();
}

std::string hugging_face_prefix(HuggingFaceLayout layout) {
  return layout == HuggingFaceLayout::kGpt2 ? "transformer." : "model.";
}

bool is_hugging_face_buffer(const std::string& tensor) {
  // attn.c_attn.bias is none of them.
  return tensor.ends_with(".attn.bias") || tensor.ends_with(".attn.masked_bias") ||
         tensor.ends_with(".rotary_emb.inv_freq");
}

}  // namespace longspan::model
