#include "launcher/hugging_face_config.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "io/file.hpp"
#include "io/token_dataset.hpp"
#include "launcher/machine.hpp"
#include "launcher/options.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::ordered_json;
using model::HuggingFaceLayout;

constexpr std::int64_t kLargestConfig = 1 << 20;

/// The double with the shortest text: 1e-05, not 9.99999974e-06.
double shortest(float value) {
  return std::strtod(fmt::format("{}", value).c_str(), nullptr);
}

Json parse_file(const std::string& path) {
  const std::int64_t size = io::file_size(path);
  if (size < 0) fail_damaged("{}: it is not there: transformers saves it with the weights", path);
  if (size > kLargestConfig)
    fail_damaged("{}: {} bytes are more than such a file can have", path, size);
  std::string text(static_cast<std::size_t>(size), '\0');
  io::RawFile::open(path, io::RawFile::Mode::kRead).read(text.data(), size, 0);
  const auto shallow = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > 32) fail_damaged("{}: it is nested deeper than 32 levels", path);
    return true;
  };
  Json parsed = Json::parse(text, shallow, /*allow_exceptions=*/false);
  if (!parsed.is_object()) fail_damaged("{}: it is no JSON object", path);
  return parsed;
}

/// The fields of config.json with their defaults in transformers, and what of them we cannot do.
class Fields {
 public:
  explicit Fields(const std::string& path) : path_(path), json_(parse_file(path)) {}

  std::string text(const char* key, const char* otherwise) const {
    const Json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_string()) fail_damaged("{}: \"{}\" is no text", path_, key);
    return value->get<std::string>();
  }
  /// `otherwise` < 0: it must be there.
  std::int64_t integer(const char* key, std::int64_t otherwise = -1) const {
    const Json* value = find(key);
    if (value == nullptr && otherwise >= 0) return otherwise;
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    if (value == nullptr || !value->is_number_integer() || value->get<std::int64_t>() < 1 ||
        value->get<std::int64_t>() > kMost)
      fail_damaged("{}: \"{}\" must be a whole number from 1 to {}", path_, key, kMost);
    return value->get<std::int64_t>();
  }
  double number(const char* key, double otherwise) const {
    const Json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_number()) fail_damaged("{}: \"{}\" is no number", path_, key);
    return value->get<double>();
  }
  bool flag(const char* key, bool otherwise) const {
    const Json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) fail_damaged("{}: \"{}\" is neither true nor false", path_, key);
    return value->get<bool>();
  }
  /// Null where it is absent or null.
  const Json* find(const char* key) const {
    const auto found = json_.find(key);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }

  void unless(bool fits, const std::string& misfit) {
    if (!fits) misfits_.push_back(misfit);
  }
  void require_fit() const {
    if (!misfits_.empty())
      fail_usage("{}: Longspan does not compute {}", path_, fmt::join(misfits_, "; "));
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  Json json_;
  std::vector<std::string> misfits_;
};

std::string switch_text(bool on) {
  return on ? "on" : "off";
}

using Settings = std::vector<std::pair<const char*, std::string>>;

std::string number_text(std::int64_t value) {
  return std::to_string(value);
}

Settings gpt2_settings(Fields& f, std::int64_t& positions) {
  const std::string activation = f.text("activation_function", "gelu_new");
  f.unless(
      activation == "gelu_new" || activation == "gelu_pytorch_tanh" || activation == "gelu_fast",
      fmt::format("activation_function={} (only the tanh form of GELU: gelu_new)", activation));
  f.unless(f.flag("scale_attn_weights", true), "scale_attn_weights=false");
  f.unless(!f.flag("scale_attn_by_inverse_layer_idx", false),
           "scale_attn_by_inverse_layer_idx=true");
  f.unless(!f.flag("add_cross_attention", false), "add_cross_attention=true");
  positions = f.integer("n_positions", 1024);
  const std::int64_t width = f.integer("n_embd", 768);
  return {{"layers", number_text(f.integer("n_layer", 12))},
          {"width", number_text(width)},
          {"heads", number_text(f.integer("n_head", 12))},
          {"kv-heads", "0"},
          {"head-size", "0"},
          {"mlp", "gelu"},
          {"mlp-width", number_text(f.integer("n_inner", 4 * width))},
          {"norm", "layernorm"},
          {"norm-epsilon", fmt::format("{}", f.number("layer_norm_epsilon", 1e-5))},
          {"position", "learned"},
          {"max-positions", number_text(positions)},
          {"bias", "on"},
          {"tie-embeddings", switch_text(f.flag("tie_word_embeddings", true))},
          {"vocabulary", number_text(f.integer("vocab_size", 50257))}};
}

/// The base of the angles. Newer versions keep it with the kind of scaling.
double rope_theta(Fields& f) {
  double theta = f.number("rope_theta", 10000.0);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* rope = f.find(key);
    if (rope == nullptr) continue;
    if (!rope->is_object()) fail_damaged("{}: \"{}\" is no JSON object", f.path(), key);
    const auto kind = rope->contains("rope_type") ? rope->find("rope_type") : rope->find("type");
    const bool plain = kind == rope->end() || (kind->is_string() && *kind == "default");
    f.unless(plain, fmt::format("{}={}", key, rope->dump()));
    const auto base = rope->find("rope_theta");
    if (base != rope->end() && base->is_number()) theta = base->get<double>();
  }
  return theta;
}

Settings llama_settings(Fields& f, std::int64_t& positions) {
  const std::string activation = f.text("hidden_act", "silu");
  f.unless(activation == "silu" || activation == "swish",
           fmt::format("hidden_act={} (only silu)", activation));
  const bool bias = f.flag("attention_bias", false);
  f.unless(f.flag("mlp_bias", false) == bias,
           fmt::format("attention_bias={} with mlp_bias={}", bias, !bias));
  positions = f.integer("max_position_embeddings", 2048);
  const std::int64_t width = f.integer("hidden_size", 4096);
  const std::int64_t heads = f.integer("num_attention_heads", 32);
  f.unless(f.find("head_dim") != nullptr || width % heads == 0,
           fmt::format("hidden_size={} with num_attention_heads={}", width, heads));
  return {{"layers", number_text(f.integer("num_hidden_layers", 32))},
          {"width", number_text(width)},
          {"heads", number_text(heads)},
          {"kv-heads", number_text(f.integer("num_key_value_heads", heads))},
          {"head-size", number_text(f.integer("head_dim", width / heads))},
          {"mlp", "swiglu"},
          {"mlp-width", number_text(f.integer("intermediate_size", 11008))},
          {"norm", "rmsnorm"},
          {"norm-epsilon", fmt::format("{}", f.number("rms_norm_eps", 1e-6))},
          {"position", "rope"},
          {"rope-theta", fmt::format("{}", rope_theta(f))},
          {"bias", switch_text(bias)},
          {"tie-embeddings", switch_text(f.flag("tie_word_embeddings", false))},
          {"vocabulary", number_text(f.integer("vocab_size", 32000))}};
}

/// JSON of the tokenizer, which we know only of models that we exported.
std::string tokenizer_of(const Fields& f) {
  const Json* ours = f.find("longspan");
  if (ours == nullptr || !ours->is_object() || !ours->contains("tokenizer"))
    return R"({"kind":"ids"})";
  const std::string text = (*ours)["tokenizer"].dump();
  io::Tokenizer check(text);
  return text;
}

}  // namespace

ForeignModel read_hugging_face_config(const std::string& folder, std::int64_t tensors) {
  Fields f(folder + "/config.json");
  ForeignModel foreign;
  const std::string type = f.text("model_type", "");
  if (type != "gpt2" && type != "llama")
    fail_usage("{}: model_type is '{}': Longspan imports gpt2 and llama", f.path(),
               type.substr(0, 40));
  foreign.layout = type == "gpt2" ? HuggingFaceLayout::kGpt2 : HuggingFaceLayout::kLlama;
  const bool gpt2 = foreign.layout == HuggingFaceLayout::kGpt2;
  const std::int64_t layers = f.integer(gpt2 ? "n_layer" : "num_hidden_layers", gpt2 ? 12 : 32);
  if (layers > tensors)
    fail_damaged("{}: {} layers, but there are {} tensors", f.path(), layers, tensors);
  const Settings settings =
      gpt2 ? gpt2_settings(f, foreign.positions) : llama_settings(f, foreign.positions);
  f.require_fit();
  for (const auto& [name, value] : settings) {
    foreign.settings.push_back(std::string("--model.") + name);
    foreign.settings.push_back(value);
    if (name == std::string_view("tie-embeddings")) foreign.tied = value == "on";
  }
  foreign.tokenizer = tokenizer_of(f);
  return foreign;
}

RunConfig run_of(const ForeignModel& foreign, const std::vector<std::string>& settings,
                 const std::string& folder) {
  const auto parsed = [&](const std::vector<std::string>& first,
                          const std::vector<std::string>& last) {
    // The last word counts.
    std::vector<std::string> all = {"--data.sequence-length", std::to_string(foreign.positions)};
    all.insert(all.end(), first.begin(), first.end());
    all.insert(all.end(), last.begin(), last.end());
    RunConfig config = parse_config("", all);
    resolve(config, config.model.vocabulary);
    return config;
  };
  RunConfig config = parsed(settings, foreign.settings);
  const auto ours = describe_options(config);
  const auto wanted = describe_options(parsed(foreign.settings, settings));
  for (std::size_t i = 0; i < ours.size(); ++i)
    if (ours[i].value != wanted[i].value)
      fail_usage("--{}={}: the model of {} has {}: leave it out", wanted[i].name, wanted[i].value,
                 folder, ours[i].value);
  model::hugging_face_layout(config.model, config.attention);
  return config;
}

std::string hugging_face_config(HuggingFaceLayout layout, const RunConfig& config,
                                std::int64_t vocabulary, DType dtype,
                                const io::CheckpointFacts& facts) {
  const model::ModelConfig& m = config.model;
  Json json;
  if (layout == HuggingFaceLayout::kGpt2) {
    json = {{"architectures", {"GPT2LMHeadModel"}},
            {"model_type", "gpt2"},
            {"activation_function", "gelu_new"},
            {"n_layer", m.layers},
            {"n_embd", m.width},
            {"n_head", m.heads},
            {"n_inner", m.mlp_width},
            {"n_positions", m.max_positions},
            {"layer_norm_epsilon", shortest(m.norm_epsilon)},
            {"scale_attn_weights", true},
            {"scale_attn_by_inverse_layer_idx", false},
            {"embd_pdrop", shortest(m.dropout)},
            {"resid_pdrop", shortest(m.dropout)},
            {"attn_pdrop", 0.0}};
  } else {
    json = {{"architectures", {"LlamaForCausalLM"}},
            {"model_type", "llama"},
            {"hidden_act", "silu"},
            {"num_hidden_layers", m.layers},
            {"hidden_size", m.width},
            {"num_attention_heads", m.heads},
            {"num_key_value_heads", m.kv_heads},
            {"head_dim", m.head_size},
            {"intermediate_size", m.mlp_width},
            {"max_position_embeddings", config.data.sequence_length},
            {"rms_norm_eps", shortest(m.norm_epsilon)},
            {"rope_theta", m.rope_theta},
            {"attention_bias", m.bias},
            {"mlp_bias", m.bias},
            {"attention_dropout", 0.0}};
  }
  json["vocab_size"] = vocabulary;
  json["tie_word_embeddings"] = m.tie_embeddings;
  // Without these transformers puts those of its own tokenizers.
  for (const char* token : {"bos_token_id", "eos_token_id", "pad_token_id"}) json[token] = nullptr;
  json["torch_dtype"] = dtype == DType::kBF16 ? "bfloat16" : "float32";
  json["longspan"] = {{"step", facts.step},
                      {"tokens_seen", facts.tokens_seen},
                      {"tokenizer", Json::parse(facts.tokenizer, nullptr, false)},
                      {"version", version_line()}};
  return json.dump(2) + "\n";
}

}  // namespace longspan::launcher
