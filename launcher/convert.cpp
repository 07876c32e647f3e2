#include "launcher/convert.hpp"

#include <algorithm>
#include <filesystem>

#include "io/file.hpp"
#include "launcher/command.hpp"
#include "launcher/convert_dataset.hpp"
#include "launcher/resume.hpp"
#include "parallel/error.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

constexpr std::int64_t kMostShards = 99999;

bool ends_in_hdf5(const std::string& path) {
  return path.ends_with(".h5") || path.ends_with(".hdf5");
}

bool is_hugging_face(const std::string& folder) {
  for (const char* name : {"config.json", "model.safetensors", "model.safetensors.index.json"})
    if (io::path_exists(folder + "/" + name)) return true;
  return false;
}

/// What TO is to be, as the user says or as the other arguments leave no doubt about.
std::string target_of(const Arguments& args, const std::string& to) {
  if (args.has("to")) {
    const std::string to_kind = args.text("to");
    if (to_kind != "checkpoint" && to_kind != "hdf5" && to_kind != "huggingface")
      fail_usage("--to={}: it must be checkpoint, hdf5 or huggingface", to_kind);
    return to_kind;
  }
  if (ends_in_hdf5(to)) return "hdf5";
  if (args.has("dtype") || args.has("vocabulary")) return "huggingface";
  if (args.has("shards")) return "checkpoint";
  fail_usage(
      "what shall {} be? --to huggingface (a folder that transformers loads), --to checkpoint "
      "--shards N, or --to hdf5 (also where TO ends in .h5)",
      to);
}

/// Takes the settings of the run out of the arguments: "--section.key VALUE", which parse_config
/// checks. Arguments reads either settings or paths, and an import has both.
std::vector<std::string> take_settings(std::vector<std::string>& arguments) {
  std::vector<std::string> settings, others;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const std::string name = word.substr(0, word.find('='));
    const bool value_inside = name.size() < word.size();
    if (!word.starts_with("--") || name.find('.') == std::string::npos) {
      others.push_back(word);
      continue;
    }
    if (!value_inside && i + 1 == arguments.size())
      fail_usage("convert: {} needs a value: {} VALUE", name, name);
    settings.push_back(name);
    settings.push_back(value_inside ? word.substr(name.size() + 1) : arguments[++i]);
  }
  arguments = std::move(others);
  return settings;
}

void refuse(const Arguments& args, const char* flag, const char* of) {
  if (args.has(flag)) fail_usage("--{} does not go with {}", flag, of);
}

DType dtype_of(const Arguments& args) {
  const std::string dtype = args.text("dtype");
  if (dtype != "fp32" && dtype != "bf16") fail_usage("--dtype={}: it must be fp32 or bf16", dtype);
  return dtype == "fp32" ? DType::kF32 : DType::kBF16;
}

/// A folder is a folder, with slashes at its end or without.
std::string trimmed(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

/// `longspan convert` with FROM a dataset or a token file: other flags, so a command line of its
/// own. Throws Error (usage).
Arguments dataset_arguments(const std::vector<std::string>& words) {
  std::vector<Flag> flags = dataset_conversion_flags();
  flags.push_back({"force", "", "replace TO if it exists"});
  flags.push_back({"json", "", "one JSON object instead of text"});
  return Arguments(words, "convert",
                   "longspan convert FROM TO; a dataset becomes a file of token ids (NumPy, raw, "
                   "Megatron, llm.c), and such a file a dataset",
                   flags,
                   "longspan convert data/code.h5 code.npy\n"
                   "  longspan convert corpus.bin data/corpus.h5 --dtype u16");
}

/// Whether the first of the words that is the name of something is a dataset or a token file.
bool is_about_dataset(const std::vector<std::string>& words) {
  const auto from = std::find_if(words.begin(), words.end(), [](const std::string& word) {
    return !word.starts_with("--") && io::path_exists(word);
  });
  return from != words.end() && is_dataset_conversion(*from);
}

void convert_checkpoint(const Arguments& args, const std::vector<std::string>& settings,
                        const std::string& from, const std::string& to) {
  if (!settings.empty())
    fail_usage("{} belongs to a run: a checkpoint keeps the settings it was trained with",
               settings.front());
  const std::string target = target_of(args, to);
  const std::int64_t shards = args.integer("shards");
  if (shards < 0 || shards > kMostShards)
    fail_usage("--shards={}: it must be 1 to {}, or 0 for as many as there are", shards,
               kMostShards);
  if (target != "checkpoint") refuse(args, "shards", ("--to " + target).c_str());
  if (target != "huggingface") {
    refuse(args, "dtype", ("--to " + target).c_str());
    refuse(args, "vocabulary", ("--to " + target).c_str());
  }
  if (target == "hdf5") return merge_checkpoint(from, to);
  if (target == "checkpoint") return reshard_checkpoint(from, to, shards);
  const std::int64_t vocabulary = args.integer("vocabulary");
  if (vocabulary < 0) fail_usage("--vocabulary={}: it must be at least 1", vocabulary);
  export_hugging_face(from, to, dtype_of(args), vocabulary);
}

}  // namespace

ExitStatus convert_command(const std::vector<std::string>& arguments) {
  if (is_about_dataset(arguments)) {
    const Arguments args = dataset_arguments(arguments);
    if (args.help_wanted()) {
      log::line(args.help());
      return ExitStatus::kDone;
    }
    if (args.positional().size() != 2)
      fail_usage("convert needs two paths, FROM and TO; {} were given", args.positional().size());
    return convert_dataset(args);
  }
  std::vector<std::string> words = arguments;
  const std::vector<std::string> settings = take_settings(words);
  const Arguments args(
      words, "convert",
      "longspan convert FROM TO [--section.key VALUE ...]; a checkpoint becomes one of other "
      "shards, one HDF5 file or a folder of Hugging Face, and such a folder a checkpoint",
      {{"to", "KIND", "checkpoint, hdf5, or huggingface (GPT-2 or Llama, for transformers)"},
       {"shards", "N", "of the new checkpoint; 0 = as many as FROM has, 1 for an import", "0"},
       {"dtype", "TYPE", "of exported weights: fp32 or bf16", "fp32"},
       {"vocabulary", "N", "tokens to export, the rest is padding; 0 = work it out", "0"}},
      "longspan convert runs/code exported --to huggingface\n"
      "  longspan convert runs/code whole.h5\n"
      "  longspan convert runs/code/checkpoints/latest one --to checkpoint --shards 1\n"
      "  longspan convert gpt2/ imported --data.path data/ids.h5 --data.sequence-length 1024\n"
      "  longspan train --config imported/config.ini");
  if (args.help_wanted()) {
    log::line(args.help() + "\n\n" + dataset_arguments({"--help"}).help());
    return ExitStatus::kDone;
  }
  if (args.positional().size() != 2)
    fail_usage("convert needs two paths, FROM and TO; {} were given", args.positional().size());
  const std::string from = trimmed(args.positional()[0]), to = trimmed(args.positional()[1]);
  if (from.empty() || to.empty()) fail_usage("convert: a path is empty");
  if (io::path_exists(to)) fail_usage("{} exists: give another name, or remove it first", to);
  if (!io::path_exists(from)) fail_usage("{}: there is no such file or folder", from);

  if (is_hugging_face(from)) {
    for (const char* flag : {"dtype", "vocabulary"}) refuse(args, flag, "an import");
    if (args.has("to") && args.text("to") != "checkpoint")
      fail_usage("{} is a model of Hugging Face: it becomes a checkpoint, --to checkpoint", from);
    const std::int64_t shards = args.has("shards") ? args.integer("shards") : 1;
    if (shards < 1 || shards > kMostShards)
      fail_usage("--shards={}: it must be 1 to {}", shards, kMostShards);
    import_hugging_face(from, to, shards, settings);
    return ExitStatus::kDone;
  }
  convert_checkpoint(args, settings, checkpoint_at(from), to);
  return ExitStatus::kDone;
}

}  // namespace longspan::launcher
