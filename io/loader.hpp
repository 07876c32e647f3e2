/// The thread that reads ahead: it assembles this rank's share of every micro-batch before the step
/// asks for it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "io/sampler.hpp"
#include "io/token_dataset.hpp"

namespace longspan::io {

/// One micro-batch on this rank: B sequences, T of their tokens each (all of them unless the
/// sequence is sharded).
struct Batch {
  std::vector<std::int32_t> inputs_BT;
  std::vector<std::int32_t>
      targets_BT;  ///< the next token; shifted before sharding; -1 = not counted
  std::vector<std::int32_t> documents_BT;  ///< document numbers; empty unless asked for
  std::vector<std::int64_t> sequences_B;   ///< global sample numbers
};

/// What this rank reads. Sample numbers of a step: first_sample + [0, global_batch); micro-batch m
/// of data rank r takes the samples first + (m * data_size + r) * micro_batch + [0, micro_batch).
struct LoaderPlan {
  std::vector<std::int32_t> positions_T;  ///< positions inside the sequence this rank holds; -1 =
                                          ///< padding (input 0, target -1)
  std::int64_t sequence_length = 0;
  std::int64_t micro_batch = 1;  ///< sequences per micro-batch on one data rank
  int data_index = 0, data_size = 1;
  bool documents = false;  ///< fill documents_BT, and targets across a document border become -1
  int ahead = 4;           ///< micro-batches kept ready
};

/// Not thread safe; the reading thread is its own. Throws from next() what the reading thread met.
class Loader {
 public:
  /// Starts reading at sample `first_sample`; with shuffle = false windows come in file order
  /// (validation).
  Loader(const TokenDataset& dataset, Split split, std::uint64_t seed, bool shuffle,
         LoaderPlan plan, std::int64_t first_sample);
  ~Loader();
  /// The next micro-batch; waits only if the disk is slower than the steps.
  Batch next();
  /// Seconds next() has waited since the loader was made.
  double wait_seconds() const;
  std::int64_t windows() const;  ///< samples in one epoch of the split

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longspan::io
