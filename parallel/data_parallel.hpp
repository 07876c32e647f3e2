/// Gradients summed over the ranks in buckets, while the backward pass still runs. The flat
/// gradient buffer is laid out in the order of the forward pass, so the backward pass completes it
/// from its end towards its beginning.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/process_group.hpp"

namespace longspan {

class GradientReducer {
 public:
  /// 4 Mi floats: large enough to run at full bandwidth, small enough that several overlap with one
  /// backward pass.
  static constexpr std::int64_t kBucketElements = std::int64_t{1} << 22;

  /// `gradients` stays with the caller and must outlive the reducer.
  GradientReducer(ProcessGroup& group, View<float> gradients,
                  std::int64_t bucket_elements = kBucketElements);

  /// Everything from element `begin` to the end is final on this rank: starts the buckets that are
  /// complete. Every rank makes the same calls; communicates without waiting.
  void ready_from(std::int64_t begin);
  /// Starts what is left and waits for all of it. Afterwards the gradients are the sums over the
  /// group, and the reducer is ready for the next step. Throws Error if a transfer failed.
  void finish();

 private:
  ProcessGroup& group_;
  View<float> gradients_;
  std::int64_t bucket_elements_;
  std::int64_t reduced_from_;  ///< [reduced_from_, end) is on its way
  std::vector<PendingPtr> pending_;
};

}  // namespace longspan
