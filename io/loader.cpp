#include "io/loader.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "parallel/error.hpp"
#include "parallel/trace.hpp"

namespace longspan::io {
namespace {

/// Positions that follow each other in the sequence, and where they stand in the batch.
struct Run {
  std::size_t index;      ///< of the first one in positions_T
  std::int32_t position;  ///< of the first one in the sequence
  std::int64_t count;
};

std::vector<Run> runs_of(const std::vector<std::int32_t>& positions) {
  std::vector<Run> runs;
  for (std::size_t t = 0; t < positions.size(); ++t) {
    if (positions[t] < 0) continue;
    if (!runs.empty() && runs.back().index + static_cast<std::size_t>(runs.back().count) == t &&
        runs.back().position + runs.back().count == positions[t])
      ++runs.back().count;
    else
      runs.push_back({t, positions[t], 1});
  }
  return runs;
}

void check_plan(const LoaderPlan& plan, std::int64_t first_sample) {
  if (plan.micro_batch < 1 || plan.data_size < 1 || plan.data_index < 0 ||
      plan.data_index >= plan.data_size || plan.ahead < 1 || first_sample < 0)
    fail("loader: micro-batch {}, data rank {} of {}, {} ahead, first sample {} make no plan",
         plan.micro_batch, plan.data_index, plan.data_size, plan.ahead, first_sample);
  for (std::int32_t position : plan.positions_T)
    if (position < -1 || position >= plan.sequence_length)
      fail("loader: position {} is outside a sequence of {} tokens", position,
           plan.sequence_length);
}

}  // namespace

struct Loader::Impl {
  Impl(const TokenDataset& dataset_, Split split, std::uint64_t seed, bool shuffle_,
       LoaderPlan plan_, std::int64_t first_sample_)
      : dataset(dataset_),
        plan(std::move(plan_)),
        runs(runs_of(plan.positions_T)),
        sampler(seed, dataset.split_tokens(split), plan.sequence_length),
        split_begin(dataset.split_begin(split)),
        shuffle(shuffle_),
        first_sample(first_sample_) {
    check_plan(plan, first_sample);
    reader = std::thread([this, split] {
      trace::name_thread(split == Split::kTrain ? "data" : "validation data");
      read_ahead();
    });
  }

  ~Impl() {
    {
      std::lock_guard lock(mutex);
      stop = true;
    }
    changed.notify_all();
    reader.join();
  }

  Batch assemble(std::int64_t micro_batch_number) const {
    const std::size_t T = plan.positions_T.size(), B = static_cast<std::size_t>(plan.micro_batch);
    Batch batch;
    batch.inputs_BT.assign(B * T, 0);
    batch.targets_BT.assign(B * T, -1);
    if (plan.documents) batch.documents_BT.assign(B * T, -1);
    std::vector<std::int32_t> tokens, documents;
    for (std::size_t b = 0; b < B; ++b) {
      const std::int64_t sample =
          first_sample +
          (micro_batch_number * plan.data_size + plan.data_index) * plan.micro_batch +
          static_cast<std::int64_t>(b);
      batch.sequences_B.push_back(sample);
      const std::int64_t window =
          shuffle ? sampler.first_token(sample) : sample % sampler.windows() * plan.sequence_length;
      for (const Run& run : runs) {
        // One token more than the inputs: the last one is the target of the last input.
        const std::int64_t first = split_begin + window + run.position;
        const auto count = static_cast<std::size_t>(run.count);
        const std::size_t at = b * T + run.index;
        tokens.resize(count + 1);
        dataset.read(first, run.count + 1, tokens.data());
        std::copy_n(tokens.begin(), count, batch.inputs_BT.begin() + at);
        std::copy_n(tokens.begin() + 1, count, batch.targets_BT.begin() + at);
        if (!plan.documents) continue;
        documents.resize(count + 1);
        dataset.read_documents(first, run.count + 1, documents.data());
        std::copy_n(documents.begin(), count, batch.documents_BT.begin() + at);
        for (std::size_t i = 0; i < count; ++i)
          if (documents[i + 1] != documents[i]) batch.targets_BT[at + i] = -1;
      }
    }
    return batch;
  }

  void read_ahead() {
    for (std::int64_t number = 0;; ++number) {
      {
        std::unique_lock lock(mutex);
        changed.wait(lock,
                     [&] { return stop || ready.size() < static_cast<std::size_t>(plan.ahead); });
        if (stop) return;
      }
      Batch batch;
      std::exception_ptr met;
      try {
        const trace::Span span("read a micro-batch");
        batch = assemble(number);
      } catch (...) {
        met = std::current_exception();
      }
      {
        std::lock_guard lock(mutex);
        if (met)
          failure = met;
        else
          ready.push_back(std::move(batch));
      }
      changed.notify_all();
      if (met) return;
    }
  }

  Batch next() {
    std::unique_lock lock(mutex);
    const auto available = [&] { return !ready.empty() || failure; };
    if (!available()) {
      const auto begin = std::chrono::steady_clock::now();
      changed.wait(lock, available);
      waited += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    if (ready.empty()) std::rethrow_exception(failure);  // stays: every later call throws it again
    Batch batch = std::move(ready.front());
    ready.pop_front();
    lock.unlock();
    changed.notify_all();
    return batch;
  }

  const TokenDataset& dataset;
  const LoaderPlan plan;
  const std::vector<Run> runs;
  const Sampler sampler;
  const std::int64_t split_begin;
  const bool shuffle;
  const std::int64_t first_sample;

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Batch> ready;  // guarded by mutex, as is everything below
  std::exception_ptr failure;
  bool stop = false;
  double waited = 0;  // of next() alone
  std::thread reader;
};

Loader::Loader(const TokenDataset& dataset, Split split, std::uint64_t seed, bool shuffle,
               LoaderPlan plan, std::int64_t first_sample)
    : impl_(std::make_unique<Impl>(dataset, split, seed, shuffle, std::move(plan), first_sample)) {}
Loader::~Loader() = default;
Batch Loader::next() {
  return impl_->next();
}
double Loader::wait_seconds() const {
  return impl_->waited;
}
std::int64_t Loader::windows() const {
  return impl_->sampler.windows();
}

}  // namespace longspan::io
