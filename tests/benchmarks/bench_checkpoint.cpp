// ranks: 2
/// Saving and loading a checkpoint against the same bytes written and read raw, and what a save in
/// the background costs a training loop. Under mpirun, unbound:
///   mpirun -n 2 --bind-to none bench_checkpoint [--tiny] [--megabytes N] [--rounds R]
///                                               [--step-seconds S] [--directory D]
/// megabytes: of the checkpoint, over all ranks. Raw: one file a rank, reserved, written and
/// synced, then read, with the requests of the checkpoint (as large, as many under way, past the
/// cache where that works, memory in huge pages), but straight from and to the tensors: no HDF5,
/// hashes, copies, index and rename. Both alternate, and take turns in going first; the ratio is
/// the median of the rounds' ratios. Before each read the files' pages are dropped from the cache.
/// What was read is compared. The loop: every rank computes for S seconds a step on memory of its
/// own; every other step a save begins as the step does. Stall: what start() and wait_for_copy()
/// take; and how much longer the steps with a save are, all in all, which contains the share of
/// cores and memory that writing takes.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <future>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint_reader.hpp"
#include "io/checkpoint_saver.hpp"
#include "io/direct_buffer.hpp"
#include "io/file.hpp"
#include "parallel/error.hpp"

namespace longspan {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Options {
  double megabytes = 2000, step_seconds = 1;
  int rounds = 5;
  std::string directory = ".";
};

Options parse(int argc, char** argv) {
  Options options;
  const auto wrong = [&] {
    fmt::print(stderr,
               "usage: mpirun -n 2 --bind-to none bench_checkpoint [--tiny] [--megabytes N] "
               "[--rounds R] [--step-seconds S] [--directory D]\n");
    std::exit(2);
  };
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--tiny") {
      options = {8, 0.02, 2, std::filesystem::temp_directory_path().string()};
      continue;
    }
    if (i + 1 == argc) wrong();
    const char* value = argv[++i];
    if (name == "--megabytes")
      options.megabytes = std::atof(value);
    else if (name == "--rounds")
      options.rounds = std::max(1, std::atoi(value));
    else if (name == "--step-seconds")
      options.step_seconds = std::atof(value);
    else if (name == "--directory")
      options.directory = value;
    else
      wrong();
  }
  return options;
}

/// Memory that O_DIRECT takes as it is, in huge pages where the system has them.
template <class T>
struct PageAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{std::size_t{2} << 20};
  T* allocate(std::size_t n) {
    T* memory = static_cast<T*>(::operator new(n * sizeof(T), kAlignment));
#ifdef MADV_HUGEPAGE
    ::madvise(memory, n * sizeof(T), MADV_HUGEPAGE);
#endif
    return memory;
  }
  void deallocate(T* memory, std::size_t) {
    ::operator delete(memory, kAlignment);
  }
  bool operator==(const PageAllocator&) const {
    return true;
  }
};
using Pages = std::vector<float, PageAllocator<float>>;

/// A rank's rows of tensors of 32 MB, as a model of such a width has them, and some small ones.
struct Model {
  std::vector<Pages> memory;
  std::vector<ShardedArray> arrays;
  std::int64_t bytes = 0;  ///< of this rank

  Model(double megabytes, const Communicator& world) {
    const std::int64_t total = static_cast<std::int64_t>(megabytes * 1e6 / 4);
    constexpr std::int64_t kColumns = 2048;
    for (std::int64_t done = 0, i = 0; done < total; ++i) {
      const std::int64_t rows = i % 4 == 3 ? 1 : std::min<std::int64_t>(4096, total / kColumns + 1);
      const std::int64_t begin = part_begin(rows, world.rank(), world.size()),
                         end = part_begin(rows, world.rank() + 1, world.size());
      auto& values = memory.emplace_back(static_cast<std::size_t>((end - begin) * kColumns));
      for (std::size_t k = 0; k < values.size(); ++k)
        values[k] = static_cast<float>(i + 1) + static_cast<float>(k % 100'003) * 1e-3f;
      arrays.push_back({fmt::format("model/tensor.{}", i),
                        DType::kF32,
                        {rows, kColumns},
                        {begin, 0},
                        {end - begin, kColumns},
                        values.data()});
      done += rows * kColumns;
      bytes += arrays.back().bytes();
    }
  }
};

void drop_from_cache(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  ::close(file);
}

/// Calls `move(memory, bytes, offset)` for every piece of a file, by as many threads as the
/// checkpoint has requests under way.
template <class Move>
void move_raw(Model& model, Move&& move) {
  struct Piece {
    char* memory;
    std::int64_t bytes, offset;
  };
  std::vector<Piece> pieces;
  std::int64_t at = 0;
  for (Pages& values : model.memory) {
    const auto bytes = static_cast<std::int64_t>(values.size() * sizeof(float));
    for (std::int64_t done = 0; done < bytes; done += io::DirectBuffer::kPiece) {
      const std::int64_t count = std::min(io::DirectBuffer::kPiece, bytes - done);
      pieces.push_back({reinterpret_cast<char*>(values.data()) + done, count, at});
      at += count;
    }
  }
  std::atomic<std::size_t> next = 0;
  std::vector<std::future<void>> threads;
  for (std::size_t i = 0; i < io::kDirectRequests; ++i)
    threads.push_back(std::async(std::launch::async, [&] {
      for (std::size_t k = next++; k < pieces.size(); k = next++)
        move(pieces[k].memory, pieces[k].bytes, pieces[k].offset);
    }));
  for (auto& thread : threads) thread.get();
}

void write_raw(const std::string& path, Model& model) {
  io::RawFile cached = io::RawFile::create(path);
  cached.reserve(model.bytes);
  const io::Descriptor direct = io::open_direct(path, io::RawFile::Mode::kWrite);
  move_raw(model, [&](const char* memory, std::int64_t bytes, std::int64_t offset) {
    if (direct) {
      if (::pwrite(direct.get(), memory, static_cast<std::size_t>(bytes), offset) != bytes)
        io::fail_errno(path, "cannot write", errno);
    } else {
      cached.write(memory, bytes, offset);
      cached.start_writeback(offset, bytes);
    }
  });
  cached.sync();
  cached.close();
}

void read_raw(const std::string& path, Model& into) {
  const io::RawFile cached = io::RawFile::open(path, io::RawFile::Mode::kRead);
  const io::Descriptor direct = io::open_direct(path, io::RawFile::Mode::kRead);
  move_raw(into, [&](char* memory, std::int64_t bytes, std::int64_t offset) {
    if (!direct)
      cached.read(memory, bytes, offset);
    else if (::pread(direct.get(), memory, static_cast<std::size_t>(bytes), offset) != bytes)
      io::fail_errno(path, "cannot read", errno);
  });
}

/// The longest of the ranks' times.
template <class Work>
double timed(const Communicator& world, Work&& work) {
  world.barrier();
  const auto begin = Clock::now();
  work();
  return world.all_reduce_max(seconds_since(begin));
}

void wipe(Model& model) {
  for (auto& values : model.memory) std::fill(values.begin(), values.end(), -1.0f);
}

bool same(const Model& a, const Model& b, const Communicator& world) {
  return world.all_reduce_min(std::int64_t{a.memory == b.memory}) == 1;
}

void save_and_load(const Options& options, const std::string& folder, const Communicator& world) {
  Model model(options.megabytes, world);
  Model back = model;
  for (std::size_t i = 0; i < back.arrays.size(); ++i) back.arrays[i].data = back.memory[i].data();
  const double bytes = static_cast<double>(world.all_reduce_sum(model.bytes));
  const std::string raw = fmt::format("{}/raw-{}", folder, world.rank());
  io::CheckpointFacts facts;
  std::vector<double> raw_writes, saves, raw_reads, loads, save_ratios, load_ratios;
  for (int round = 0; round <= options.rounds; ++round) {
    double raw_write = 0, save = 0, raw_read = 0, load = 0;
    std::string path;
    facts.step = round + 1;
    const auto in_turns = [&](const std::function<void()>& one,
                              const std::function<void()>& other) {
      (round % 2 == 0 ? one : other)();
      (round % 2 == 0 ? other : one)();
    };
    in_turns([&] { raw_write = timed(world, [&] { write_raw(raw, model); }); },
             [&] {
               save = timed(world, [&] {
                 path = io::write_checkpoint(folder + "/checkpoints", model.arrays, facts, world);
               });
             });
    drop_from_cache(raw);
    if (world.rank() == 0)
      for (const auto& entry : std::filesystem::directory_iterator(path))
        drop_from_cache(entry.path().string());
    bool good = true;
    const auto compare = [&] { good = same(model, back, world) && good; };
    in_turns(
        [&] {
          wipe(back);
          raw_read = timed(world, [&] { read_raw(raw, back); });
          compare();
        },
        [&] {
          wipe(back);
          load = timed(world, [&] {
            io::CheckpointReader reader(path);
            reader.read(back.arrays);
          });
          compare();
        });
    if (!good) fail("bench_checkpoint: what was read is not what was written");
    world.barrier();
    if (world.rank() == 0) io::remove_path(path);
    io::remove_path(raw);
    world.barrier();
    if (round == 0) continue;  // warms up
    raw_writes.push_back(raw_write), saves.push_back(save), save_ratios.push_back(raw_write / save);
    raw_reads.push_back(raw_read), loads.push_back(load), load_ratios.push_back(raw_read / load);
  }
  if (world.rank() != 0) return;
  fmt::print("{} ranks, {:.0f} MB in {} tensors, {} rounds, {}\n", world.size(), bytes * 1e-6,
             model.arrays.size(), options.rounds, folder);
  const auto row = [&](const char* what, const std::vector<double>& raws,
                       const std::vector<double>& ours, const std::vector<double>& ratios) {
    fmt::print(
        "{}: {:.3f} s, {:.2f} GB/s; raw {:.3f} s, {:.2f} GB/s; ratio median {:.3f}, {:.3f} to "
        "{:.3f} (asked: 0.9)\n",
        what, median(ours), bytes / median(ours) * 1e-9, median(raws), bytes / median(raws) * 1e-9,
        median(ratios), *std::min_element(ratios.begin(), ratios.end()),
        *std::max_element(ratios.begin(), ratios.end()));
  };
  row("save", raw_writes, saves, save_ratios);
  row("load", raw_reads, loads, load_ratios);
}

/// Arithmetic for about so long, always the same amount; returns something of the result.
class Work {
 public:
  explicit Work(double seconds) {
    for (rounds_ = 1;; rounds_ *= 2) {
      const auto begin = Clock::now();
      run();
      const double took = seconds_since(begin);
      if (took < 0.1 * seconds) continue;  // the first rounds are slow
      rounds_ = std::max<std::int64_t>(
          1, static_cast<std::int64_t>(static_cast<double>(rounds_) * seconds / took));
      return;
    }
  }
  float run() {
    for (std::int64_t round = 0; round < rounds_; ++round)
      for (float& value : values_) value = value * 0.999f + 0.001f;
    return values_[0];
  }
  std::int64_t rounds_ = 1;

 private:
  std::vector<float> values_ = std::vector<float>(1 << 16, 0.5f);
};

void stall(const Options& options, const std::string& folder, const Communicator& world) {
  const Model model(options.megabytes, world);
  io::CheckpointSaver saver(folder + "/stall", 1, world);
  saver.reserve(model.arrays);
  Work work(options.step_seconds);
  work.rounds_ = world.all_reduce_max(work.rounds_);
  std::vector<double> plain, saving, stalls;
  io::CheckpointFacts facts;
  for (int round = 0; round <= options.rounds; ++round) {
    plain.push_back(timed(world, [&] { work.run(); }));
    double in_the_way = 0;
    facts.step = round + 1;
    saving.push_back(timed(world, [&] {
      auto begin = Clock::now();
      saver.start(model.arrays, facts);
      in_the_way = seconds_since(begin);
      work.run();
      begin = Clock::now();
      saver.wait_for_copy();
      in_the_way += seconds_since(begin);
    }));
    stalls.push_back(world.all_reduce_max(in_the_way));
    saver.wait();  // the next plain step is one
    const auto outcome = saver.take();
    if (!outcome || !outcome->failure.empty())
      fail("bench_checkpoint: {}", outcome ? outcome->failure : "no outcome");
    if (round == 0) plain.clear(), saving.clear(), stalls.clear();
  }
  if (world.rank() == 0)
    fmt::print(
        "background save of {:.0f} MB: step {:.3f} s without, {:.3f} s with; stall {:.4f} s = "
        "{:.2f} % "
        "of a step (asked: 2 % of 1 s), longest {:.4f} s\n",
        options.megabytes, median(plain), median(saving), median(stalls),
        100 * median(stalls) / median(plain), *std::max_element(stalls.begin(), stalls.end()));
}

}  // namespace
}  // namespace longspan

int main(int argc, char** argv) {
  using namespace longspan;
  const Options options = parse(argc, argv);
  const MpiRuntime mpi;
  const Communicator world = Communicator::world();
  const std::string folder = world.broadcast(
      fmt::format("{}/bench-checkpoint-{}", options.directory, static_cast<long>(::getpid())), 0);
  if (world.rank() == 0) io::make_directories(folder);
  world.barrier();
  save_and_load(options, folder, world);
  stall(options, folder, world);
  world.barrier();
  if (world.rank() == 0) io::remove_path(folder);
  return 0;
}
