/// Golden values from PyTorch: a tiny model's weights and, for one batch, its logits, loss and
/// gradients, computed in double precision by tests/golden/make_golden.py. Reading them needs no
/// Python.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/config.hpp"
#include "parallel/array.hpp"

namespace longspan::testing_support {

struct GoldenParameter {
  Shape shape;
  std::vector<double> weight;  ///< exact in fp32
  std::vector<double>
      gradient;  ///< of the mean loss; rounded to fp32; all 0 where it vanishes mathematically
};

struct Golden {
  model::ModelConfig
      model;  ///< resolved: no zeros that mean "work it out"; attention is causal, no window
  std::int64_t batch = 0, sequence_length = 0;
  std::vector<std::int32_t> tokens;   ///< [batch, sequence_length]
  std::vector<std::int32_t> targets;  ///< [batch, sequence_length]; -1 = not counted
  std::int64_t valid_targets = 0;     ///< how many targets are not -1
  double loss = 0;                    ///< mean over the valid targets
  std::vector<double> logits;         ///< [batch, sequence_length, vocabulary]; rounded to fp32
  std::map<std::string, GoldenParameter> parameters;  ///< by name, as in a checkpoint
};

/// Reads tests/golden/<name>.json: gpt2_tiny or llama_tiny. Throws Error (damaged) naming the file
/// and what is wrong.
Golden read_golden(const std::string& name);

}  // namespace longspan::testing_support
