#include "parallel/data_parallel.hpp"

#include <algorithm>

namespace longspan {

GradientReducer::GradientReducer(ProcessGroup& group, View<float> gradients,
                                 std::int64_t bucket_elements)
    : group_(group),
      gradients_(gradients),
      bucket_elements_(bucket_elements),
      reduced_from_(gradients.size()) {}

void GradientReducer::ready_from(std::int64_t begin) {
  if (group_.size() == 1) return;
  // Whole buckets only, unless this is the rest: the buckets, and with them the order of the sums,
  // do not depend on timing.
  while (reduced_from_ > begin && (reduced_from_ - begin >= bucket_elements_ || begin == 0)) {
    const std::int64_t length = std::min(bucket_elements_, reduced_from_);
    reduced_from_ -= length;
    pending_.push_back(group_.all_reduce_sum(gradients_.slice(reduced_from_, length)));
  }
}

void GradientReducer::finish() {
  ready_from(0);
  for (auto& transfer : pending_) transfer->wait();
  pending_.clear();
  reduced_from_ = gradients_.size();
}

}  // namespace longspan
