/// The fence: whoever was replaced publishes nothing, points at nothing and deletes nothing,
/// wherever in its save it is when the new owner comes; and the new owner's files are whole.
#include "io/fence.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>
#include <vector>

#include "io/checkpoint.hpp"
#include "io/checkpoint_index.hpp"
#include "io/checkpoint_reader.hpp"
#include "io/file.hpp"
#include "parallel/error.hpp"
#include "tests/io/checkpoint_files.hpp"
#include "tests/support/temporary_directory.hpp"

namespace longspan::io {
namespace {

using namespace testing;
namespace fs = std::filesystem;

Attempt job(const std::string& id, int restart) {
  return {.job = id, .restart = restart, .process = "process 1 on n1"};
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

class FenceTest : public ::testing::Test {
 protected:
  std::string save(std::int64_t step, const Fence* fence) {
    const auto tensors = test_tensors(static_cast<int>(step));
    return write_checkpoint(checkpoints_, arrays_of(tensors), test_facts(step),
                            Communicator::self(), fence);
  }
  /// Everything below the folder but the owner's own, as "path bytes".
  std::vector<std::string> contents() const {
    std::vector<std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(checkpoints_)) {
      const std::string path = entry.path().string();
      if (path.find("/.owner-") != std::string::npos) continue;
      all.push_back(path + (entry.is_symlink()        ? fs::read_symlink(path).string()
                            : entry.is_regular_file() ? std::to_string(entry.file_size())
                                                      : ""));
    }
    std::sort(all.begin(), all.end());
    return all;
  }

  testing_support::TemporaryDirectory folder_;
  std::string checkpoints_ = folder_.file("run/checkpoints");
};

TEST_F(FenceTest, AReplacedStartIsRefusedByNameAndTouchesNothing) {
  const Fence old(checkpoints_, job("7", 0));
  for (const std::int64_t step : {1, 2, 3}) save(step, &old);
  EXPECT_FALSE(old.lost());
  const Fence next(checkpoints_, job("7", 1));
  EXPECT_TRUE(old.lost());
  EXPECT_FALSE(next.lost());
  save(4, &next);
  const auto before = contents();
  // A new step, one that the successor has, and one that it has thrown away.
  for (const std::int64_t step : {5, 4, 1}) {
    const std::string error = error_of([&] { save(step, &old); });
    EXPECT_NE(error.find("this run was replaced"), std::string::npos) << error;
    EXPECT_NE(error.find("process 1 on n1 (restart 1 of Slurm job 7)"), std::string::npos) << error;
  }
  EXPECT_NE(error_of([&] { prune_checkpoints(checkpoints_, 1, &old); }), "");
  EXPECT_EQ(contents(), before);
  // The fence has not closed on the owner.
  save(5, &next);
  prune_checkpoints(checkpoints_, 2, &next);
  EXPECT_EQ(list_checkpoints(checkpoints_).size(), 2u);
  EXPECT_EQ(newest_checkpoint(checkpoints_), checkpoints_ + "/step-0000000005");
}

TEST_F(FenceTest, TheGapBetweenCheckAndRenameIsClosed) {
  // What remains of a save after its last look at the fence is renames. The old owner is stopped
  // before them, replaced, and goes on.
  Fence old(checkpoints_, job("7", 0));
  save(1, &old);
  const std::string half = temporary_path(checkpoints_, "step-0000000002", &old);
  fs::copy(checkpoints_ + "/step-0000000001", half, fs::copy_options::recursive);
  const Fence next(checkpoints_, job("7", 1));
  const auto before = contents();
  EXPECT_THROW(rename_path(half, checkpoints_ + "/step-0000000002"), Error);
  EXPECT_THROW(replace_symlink("step-0000000002", checkpoints_ + "/latest",
                               temporary_path(checkpoints_, "latest", &old)),
               Error);
  EXPECT_THROW(rename_path(checkpoints_ + "/step-0000000001",
                           temporary_path(checkpoints_, "step-0000000001", &old)),
               Error);
  EXPECT_EQ(contents(), before);
}

TEST_F(FenceTest, AShardThatIsStillBeingWrittenGoesWithItsFolder) {
  const Fence old(checkpoints_, job("7", 0));
  const std::string half = temporary_path(checkpoints_, "step-0000000002", &old);
  fs::create_directory(half);
  std::ofstream shard(half + "/rank0.h5");
  std::atomic<bool> stop = false;
  std::thread writer([&] {  // new files too, as by a rank that knows nothing yet
    for (int i = 0; !stop; ++i) {
      shard << "bytes" << std::flush;
      std::ofstream(half + "/more" + std::to_string(i)) << "x";
    }
  });
  const Fence next(checkpoints_, job("7", 1));
  stop = true;
  writer.join();
  EXPECT_FALSE(fs::exists(old.folder()));
  EXPECT_EQ(contents(), std::vector<std::string>{});
  EXPECT_EQ(list_directory(checkpoints_), std::vector<std::string>{base_name(next.folder())});
}

TEST_F(FenceTest, ManyStartsAndReplacedSaversLeaveOneOwnerAndOnlyWholeCheckpoints) {
  // Owners come one after the other while every earlier one goes on saving and deleting as fast as
  // it can: with no lock between them at all.
  std::atomic<bool> stop = false;
  std::vector<std::thread> savers;
  std::vector<std::unique_ptr<Fence>> fences;
  for (int start = 0; start < 4; ++start) {
    fences.push_back(std::make_unique<Fence>(checkpoints_, job("7", start)));
    const std::string seen = newest_checkpoint(checkpoints_);
    savers.emplace_back([&, fence = fences.back().get(), start] {
      for (std::int64_t step = start * 1000 + 1; !stop && step < (start + 1) * 1000; ++step) {
        try {
          std::ofstream(temporary_path(checkpoints_, "probe", fence)) << "x";
          const std::string made = temporary_path(checkpoints_, step_folder_name(step), fence);
          make_directory(made);
          std::ofstream(made + "/owner") << start;
          rename_path(made, checkpoints_ + "/" + step_folder_name(step));
          if (step % 3 == 0)
            rename_path(checkpoints_ + "/" + step_folder_name(step - 1),
                        temporary_path(checkpoints_, "doomed" + std::to_string(step), fence));
        } catch (const Error&) {
          // Fenced: goes on trying, which is what the test is about.
        }
      }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    if (start == 0) continue;
    // From the takeover on nothing of the earlier ones comes or goes.
    const auto of_earlier = [&] {
      std::vector<std::int64_t> steps;
      for (const auto& stored : list_checkpoints(checkpoints_))
        if (stored.step < start * 1000) steps.push_back(stored.step);
      return steps;
    };
    const auto before = of_earlier();
    EXPECT_FALSE(before.empty());
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    EXPECT_EQ(of_earlier(), before);
  }
  stop = true;
  for (std::thread& saver : savers) saver.join();
  for (int start = 0; start < 3; ++start)
    EXPECT_TRUE(fences[static_cast<std::size_t>(start)]->lost());
  EXPECT_FALSE(fences.back()->lost());
}

TEST_F(FenceTest, StartsAtTheSameMomentLeaveOneOwner) {
  for (int round = 0; round < 20; ++round) {
    std::vector<std::unique_ptr<Fence>> fences(4);
    std::vector<std::thread> starts;
    for (auto& fence : fences)
      starts.emplace_back([&] {
        try {
          fence = std::make_unique<Fence>(checkpoints_, Attempt{});
        } catch (const Error&) {
          // Overtaken.
        }
      });
    for (std::thread& start : starts) start.join();
    int owners = 0;
    for (const auto& fence : fences) owners += fence && !fence->lost();
    EXPECT_EQ(owners, 1) << "round " << round;
    EXPECT_EQ(list_directory(checkpoints_).size(), 1u) << "round " << round;
  }
}

TEST_F(FenceTest, AnOlderRestartOfTheSameJobCannotComeBack) {
  const Fence next(checkpoints_, job("7", 2));
  const std::string error = error_of([&] { Fence(checkpoints_, job("7", 1)); });
  EXPECT_NE(error.find("(restart 2 of Slurm job 7): this one, process 1 on n1 (restart 1 of Slurm "
                       "job 7), was replaced"),
            std::string::npos)
      << error;
  EXPECT_FALSE(next.lost());
  EXPECT_EQ(list_directory(checkpoints_).size(), 1u);
  // Another job, and the same restart again (a second srun of one script), come after it.
  const Fence same(checkpoints_, job("7", 2)), other(checkpoints_, job("8", 0));
  EXPECT_TRUE(next.lost() && same.lost() && !other.lost());
}

TEST_F(FenceTest, NumbersRiseAlsoAfterRunsThatEnded) {
  std::string last;
  for (int start = 0; start < 3; ++start) {
    const Fence fence(checkpoints_, Attempt{});
    EXPECT_GT(fence.folder(), last);
    last = fence.folder();
  }
  EXPECT_TRUE(fs::exists(last));
}

TEST_F(FenceTest, ARemovedFolderIsToldFromASuccessor) {
  const Fence fence(checkpoints_, Attempt{});
  fs::remove_all(fence.folder());
  EXPECT_FALSE(fence.lost());
  EXPECT_EQ(error_of([&] { fence.require(); }), "");
  // Nothing can be published without it all the same.
  EXPECT_NE(error_of([&] { save(1, &fence); }).find("cannot create the folder"), std::string::npos);
  const Fence successor(checkpoints_, Attempt{});
  EXPECT_TRUE(fence.lost());
}

TEST(AttemptTest, LaterIsOnlyARestartOfTheSameJobOrLaunch) {
  const Attempt a{.job = "7", .restart = 1}, b{.job = "7", .restart = 2},
      c{.job = "8", .restart = 3};
  EXPECT_TRUE(is_later_restart(b, a));
  EXPECT_FALSE(is_later_restart(a, b) || is_later_restart(a, a) || is_later_restart(c, a));
  const Attempt none{}, l0{.launch = "x"}, l1{.launch = "x", .launch_restart = 1},
      m{.launch = "y", .launch_restart = 2};
  EXPECT_TRUE(is_later_restart(l1, l0));
  EXPECT_FALSE(is_later_restart(l0, l1) || is_later_restart(m, l1) || is_later_restart(none, none));
  // Slurm's restart comes first: the launch in it begins anew.
  const Attempt before{.job = "7", .restart = 0, .launch = "x", .launch_restart = 5},
      after{.job = "7", .restart = 1, .launch = "y"};
  EXPECT_TRUE(is_later_restart(after, before));
  EXPECT_FALSE(is_later_restart(before, after));
}

TEST(AttemptTest, TextReadsBackAndDamageIsNobody) {
  const Attempt a{"7 of \"alps\"\n", 3, "n1:12", 4, "process 5 on n2"};
  const Attempt b = attempt_from(to_text(a));
  EXPECT_EQ(b.job, a.job);
  EXPECT_EQ(b.restart, 3);
  EXPECT_EQ(b.launch, a.launch);
  EXPECT_EQ(b.launch_restart, 4);
  EXPECT_EQ(b.process, a.process);
  for (const char* damaged : {"", "x", "[]", "{\"job\": 7}"})
    EXPECT_FALSE(is_later_restart({.job = "7", .restart = 9}, attempt_from(damaged))) << damaged;
}

}  // namespace
}  // namespace longspan::io
