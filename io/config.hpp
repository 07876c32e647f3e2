/// Settings of data and checkpoints; names, units and help stand once in launcher/options.cpp.
#pragma once

#include <cstdint>
#include <string>

namespace longspan::io {

enum class Pack { kNone, kDocuments };

struct DataConfig {
  std::string path;
  std::int64_t sequence_length = 1024;  ///< tokens per sequence, over all ranks that share it
  Pack pack = Pack::kNone;              ///< documents: no attention across document borders
};

struct CheckpointConfig {
  std::int64_t every = 0;       ///< steps between checkpoints; 0 = only at the end
  std::int64_t keep = 2;        ///< newest checkpoints to keep; 0 = all
  std::string resume = "auto";  ///< auto | never | path of a checkpoint
  bool overlap = true;          ///< training goes on while a checkpoint is written
};

}  // namespace longspan::io
