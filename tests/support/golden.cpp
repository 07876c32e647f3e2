#include "support/golden.hpp"

#include <array>
#include <bit>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>

#include "parallel/error.hpp"

namespace longspan::testing_support {
namespace {

using nlohmann::json;

std::string decode_base64(const std::string& text) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  std::uint32_t bits = 0;
  int pending = 0;
  for (char c : text) {
    if (c == '=') break;
    const std::size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) fail_damaged("'{}' is not a base64 digit", c);
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    pending += 6;
    if (pending >= 8) bytes.push_back(static_cast<char>(bits >> (pending -= 8) & 0xff));
  }
  return bytes;
}

/// Little-endian fp32 in base64, widened.
std::vector<double> decode_floats(const json& text, std::int64_t count, const std::string& what) {
  const std::string bytes = decode_base64(text.get<std::string>());
  if (static_cast<std::int64_t>(bytes.size()) != 4 * count)
    fail_damaged("{} has {} bytes instead of {}", what, bytes.size(), 4 * count);
  std::vector<double> values;
  values.reserve(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < bytes.size(); i += 4) {
    std::uint32_t word = 0;
    for (std::size_t b = 0; b < 4; ++b)
      word |= std::uint32_t{static_cast<unsigned char>(bytes[i + b])} << (8 * b);
    values.push_back(std::bit_cast<float>(word));
  }
  return values;
}

template <class T, std::size_t N>
T choose(const std::string& text, const std::array<std::pair<const char*, T>, N>& choices) {
  for (const auto& [name, value] : choices)
    if (text == name) return value;
  fail_damaged("'{}' is no known kind", text);
}

model::ModelConfig model_from(const json& j) {
  using namespace model;
  ModelConfig c;
  c.layers = j.at("layers"), c.width = j.at("width"), c.heads = j.at("heads");
  c.kv_heads = j.at("kv-heads"), c.head_size = j.at("head-size");
  c.mlp = choose(j.at("mlp"), std::array{std::pair{"gelu", MlpKind::kGelu},
                                         std::pair{"swiglu", MlpKind::kSwiglu}});
  c.mlp_width = j.at("mlp-width");
  c.norm = choose(j.at("norm"), std::array{std::pair{"layernorm", NormKind::kLayerNorm},
                                           std::pair{"rmsnorm", NormKind::kRmsNorm}});
  c.norm_epsilon = j.at("norm-epsilon");
  c.position = choose(j.at("position"), std::array{std::pair{"learned", PositionKind::kLearned},
                                                   std::pair{"rope", PositionKind::kRope}});
  c.rope_theta = j.at("rope-theta");
  c.max_positions = j.at("max-positions");
  c.bias = j.at("bias"), c.tie_embeddings = j.at("tie-embeddings");
  c.vocabulary = j.at("vocabulary");
  return c;
}

Golden golden_from(const json& j) {
  Golden g;
  g.model = model_from(j.at("model"));
  g.batch = j.at("batch"), g.sequence_length = j.at("sequence_length");
  const std::int64_t tokens = g.batch * g.sequence_length;
  j.at("tokens").get_to(g.tokens);
  j.at("targets").get_to(g.targets);
  if (std::ssize(g.tokens) != tokens || std::ssize(g.targets) != tokens)
    fail_damaged("{} tokens and {} targets instead of {}", g.tokens.size(), g.targets.size(),
                 tokens);
  for (std::int32_t target : g.targets) g.valid_targets += target >= 0;
  g.loss = j.at("loss");
  g.logits = decode_floats(j.at("logits"), tokens * g.model.vocabulary, "logits");
  for (const auto& [name, entry] : j.at("parameters").items()) {
    GoldenParameter& p = g.parameters[name];
    entry.at("shape").get_to(p.shape);
    p.weight = decode_floats(entry.at("weight"), element_count(p.shape), name + ": weight");
    p.gradient = decode_floats(entry.at("gradient"), element_count(p.shape), name + ": gradient");
  }
  return g;
}

}  // namespace

Golden read_golden(const std::string& name) {
  const std::string path = std::string(LONGSPAN_SOURCE_DIR) + "/tests/golden/" + name + ".json";
  std::ifstream file(path);
  if (!file) fail_damaged("cannot open {}: make it with tests/golden/make_golden.py", path);
  try {
    return golden_from(json::parse(file));
  } catch (const std::exception& e) {
    fail_damaged("{}: {}", path, e.what());
  }
}

}  // namespace longspan::testing_support
