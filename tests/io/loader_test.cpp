/// The reading thread: every batch holds what the plan says, whatever the mesh, and errors and ends
/// are clean.
#include "io/loader.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <numeric>
#include <set>
#include <thread>

#include "tests/io/dataset_fixture.hpp"

namespace longspan::io {
namespace {

using testing_support::TemporaryDirectory;
using Ids = std::vector<std::int32_t>;

constexpr std::int64_t kSequence = 12;

/// Token i of the file has the id i; documents of 30 tokens; the last ones validate.
class Loading : public testing::Test {
 protected:
  Loading() {
    std::vector<std::string> inputs;
    for (int document = 0; document < 20; ++document) {
      std::string text;
      for (int i = 0; i < 30; ++i) text += fmt::format("{} ", 1000 + document);
      inputs.push_back(folder.file(fmt::format("{:02}", document)));
      write_file(inputs.back(), text);
    }
    PrepareRequest request;
    request.format = {.kind = DatasetKind::kTokens, .text_ids = true};
    request.output = folder.file("data.h5");
    request.inputs = inputs;
    request.validation = 0.2;
    request.vocabulary = 2000;
    prepare(request);
    dataset = std::make_unique<TokenDataset>(TokenDataset::open(request.output));
    tokens = all_tokens(*dataset);
    EXPECT_EQ(dataset->split_tokens(Split::kTrain), 480);
    EXPECT_EQ(dataset->split_tokens(Split::kValid), 120);
  }

  LoaderPlan plan(Ids positions = {}) const {
    LoaderPlan result;
    result.positions_T = std::move(positions);
    if (result.positions_T.empty()) {
      result.positions_T.resize(kSequence);
      std::iota(result.positions_T.begin(), result.positions_T.end(), 0);
    }
    result.sequence_length = kSequence;
    return result;
  }

  /// What the batch must be, from the whole token array.
  void expect_batch(const Batch& batch, const LoaderPlan& plan, Split split,
                    std::int64_t first_sample, const Sampler* sampler) {
    const std::size_t T = plan.positions_T.size(), B = static_cast<std::size_t>(plan.micro_batch);
    ASSERT_EQ(batch.inputs_BT.size(), B * T);
    ASSERT_EQ(batch.targets_BT.size(), B * T);
    ASSERT_EQ(batch.documents_BT.size(), plan.documents ? B * T : 0);
    ASSERT_EQ(batch.sequences_B.size(), B);
    const std::int64_t windows = (dataset->split_tokens(split) - 1) / kSequence;
    for (std::size_t b = 0; b < B; ++b) {
      const std::int64_t sample = first_sample + static_cast<std::int64_t>(b);
      ASSERT_EQ(batch.sequences_B[b], sample);
      const std::int64_t window =
          sampler ? sampler->first_token(sample) : sample % windows * kSequence;
      for (std::size_t t = 0; t < T; ++t) {
        const std::size_t at = b * T + t;
        if (plan.positions_T[t] < 0) {
          ASSERT_EQ(batch.inputs_BT[at], 0);
          ASSERT_EQ(batch.targets_BT[at], -1);
          continue;
        }
        const auto token =
            static_cast<std::size_t>(dataset->split_begin(split) + window + plan.positions_T[t]);
        ASSERT_EQ(batch.inputs_BT[at], tokens[token]) << "sample " << sample << " position " << t;
        const bool border = plan.documents && (token + 1) % 30 == 0;
        ASSERT_EQ(batch.targets_BT[at], border ? -1 : tokens[token + 1])
            << "sample " << sample << " position " << t;
        if (plan.documents) {
          ASSERT_EQ(batch.documents_BT[at], static_cast<std::int32_t>(token / 30));
        }
      }
    }
  }

  TemporaryDirectory folder;
  std::unique_ptr<TokenDataset> dataset;
  Ids tokens;
};

TEST_F(Loading, WholeSequencesOverTwoEpochs) {
  LoaderPlan p = plan();
  p.micro_batch = 3;
  Loader loader(*dataset, Split::kTrain, 5, true, p, 0);
  const Sampler sampler(5, 480, kSequence);
  EXPECT_EQ(loader.windows(), 39);
  for (std::int64_t m = 0; m < 26; ++m)
    expect_batch(loader.next(), p, Split::kTrain, 3 * m, &sampler);
}

TEST_F(Loading, ValidationInFileOrder) {
  LoaderPlan p = plan();
  p.documents = true;
  Loader loader(*dataset, Split::kValid, 5, false, p, 0);
  EXPECT_EQ(loader.windows(), 9);
  for (std::int64_t m = 0; m < 20; ++m) expect_batch(loader.next(), p, Split::kValid, m, nullptr);
}

TEST_F(Loading, ResumesAtAnySample) {
  LoaderPlan p = plan();
  p.micro_batch = 2;
  Loader whole(*dataset, Split::kTrain, 5, true, p, 0);
  for (int skip = 0; skip < 7; ++skip) whole.next();
  Loader resumed(*dataset, Split::kTrain, 5, true, p, 14);
  for (int m = 0; m < 5; ++m) {
    const Batch a = whole.next(), b = resumed.next();
    EXPECT_EQ(a.inputs_BT, b.inputs_BT);
    EXPECT_EQ(a.targets_BT, b.targets_BT);
    EXPECT_EQ(a.sequences_B, b.sequences_B);
  }
}

TEST_F(Loading, ShardsOfASequenceWithPadding) {
  // Zigzag over 2 ranks of 4 chunks of 4 positions; the last chunk is padding beyond the 12 tokens.
  // Odd orders as well.
  const std::vector<Ids> shards = {
      {0, 1, 2, 3, -1, -1, -1, -1}, {4, 5, 6, 7, 8, 9, 10, 11}, {11, 0, 5, 6, -1, 7}, {-1, -1}};
  for (const Ids& positions : shards) {
    LoaderPlan p = plan(positions);
    p.micro_batch = 2;
    p.documents = true;
    Loader loader(*dataset, Split::kTrain, 5, true, p, 0);
    const Sampler sampler(5, 480, kSequence);
    for (std::int64_t m = 0; m < 30; ++m)
      expect_batch(loader.next(), p, Split::kTrain, 2 * m, &sampler);
  }
}

TEST_F(Loading, AStepHasTheSameSamplesOnEveryMesh) {
  constexpr std::int64_t kGlobalBatch = 36;
  const auto samples_of_steps = [&](int data_size, std::int64_t micro_batch) {
    std::vector<std::set<std::int64_t>> steps(4);
    for (int rank = 0; rank < data_size; ++rank) {
      LoaderPlan p = plan();
      p.micro_batch = micro_batch;
      p.data_index = rank;
      p.data_size = data_size;
      Loader loader(*dataset, Split::kTrain, 5, true, p, 100);
      const Sampler sampler(5, 480, kSequence);
      for (std::size_t step = 0; step < steps.size(); ++step)
        for (std::int64_t m = 0; m < kGlobalBatch / data_size / micro_batch; ++m) {
          const Batch batch = loader.next();
          expect_batch(batch, p, Split::kTrain, batch.sequences_B[0], &sampler);
          for (std::int64_t sample : batch.sequences_B)
            EXPECT_TRUE(steps[step].insert(sample).second) << "twice: " << sample;
        }
    }
    return steps;
  };
  const auto expected = samples_of_steps(1, 1);
  EXPECT_EQ(*expected[1].begin(), 100 + kGlobalBatch);
  EXPECT_EQ(expected[1].size(), static_cast<std::size_t>(kGlobalBatch));
  for (int data_size : {1, 2, 3, 4})
    for (std::int64_t micro_batch : {1, 3})
      EXPECT_EQ(samples_of_steps(data_size, micro_batch), expected) << data_size;
}

TEST_F(Loading, ReadsAheadAndCountsOnlyRealWaiting) {
  LoaderPlan p = plan();
  p.ahead = 3;
  Loader loader(*dataset, Split::kTrain, 5, true, p, 0);
  loader.next();
  // On a busy machine the thread may need several tries to be ahead.
  bool ready = false;
  for (int i = 0; i < 50 && !ready; ++i) {
    const double before = loader.wait_seconds();
    EXPECT_GE(before, 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    for (int batch = 0; batch < 3; ++batch) loader.next();
    ready = loader.wait_seconds() == before;
  }
  EXPECT_TRUE(ready);
}

TEST_F(Loading, ErrorsOfTheThreadReachNextAndStay) {
  LoaderPlan p = plan();
  p.ahead = 1;
  Loader loader(*dataset, Split::kTrain, 5, true, p, 0);
  loader.next();
  std::filesystem::resize_file(dataset->facts().path, 100);
  const auto drain = [&] {
    for (int i = 0; i < 5; ++i) loader.next();
  };
  const std::string message = error_of(drain, ExitStatus::kDamaged);
  EXPECT_TRUE(contains(message, dataset->facts().path)) << message;
  EXPECT_EQ(error_of([&] { loader.next(); }, ExitStatus::kDamaged), message);
}

TEST_F(Loading, EndsWhileTheThreadIsBusy) {
  for (int i = 0; i < 50; ++i) {
    LoaderPlan p = plan();
    p.micro_batch = 8;
    p.ahead = 1 + i % 5;
    Loader loader(*dataset, Split::kTrain, 5, true, p, i);
    if (i % 2 == 0) loader.next();
  }
}

TEST_F(Loading, RefusesPlansThatAreNone) {
  const auto refused = [&](const LoaderPlan& p) {
    EXPECT_THROW(Loader(*dataset, Split::kTrain, 5, true, p, 0), Error);
  };
  refused(plan({0, 12}));
  refused(plan({-2}));
  LoaderPlan p = plan();
  p.data_index = 1;
  refused(p);
  p = plan();
  p.sequence_length = 480;
  refused(p);  // longer than the split with its last target
}

}  // namespace
}  // namespace longspan::io
