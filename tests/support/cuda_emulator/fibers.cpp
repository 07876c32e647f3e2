#include <alloca.h>

#include <algorithm>
#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "emulator.hpp"

namespace cuda_emulator {

Position position;
void* dynamic_shared = nullptr;

namespace {

namespace context = boost::context;
constexpr std::size_t kStackBytes = 256 * 1024;
constexpr std::size_t kMostShared = 227 * 1024;

enum class State { kFresh, kReady, kBarrier, kWarp, kDone };

/// What a thread runs on. A thread that never waits leaves its stack to the next one, without a
/// switch.
struct Stack {
  context::fiber fiber;  ///< suspended here
};

struct Thread {
  Index index;
  State state = State::kFresh;
  Stack* stack = nullptr;      ///< from its begin to its end
  unsigned mask = 0;           ///< kWarp: the lanes it waits for
  const char* name = nullptr;  ///< kWarp: the operation
  int result = 0;
};

/// The lanes of one mask that have arrived at a warp operation.
struct Meeting {
  unsigned mask = 0, arrived = 0;
  const char* name = nullptr;
  void* lanes[32] = {};
};

std::vector<Thread> all;                  ///< of a block
std::vector<std::vector<Meeting>> warps;  ///< their meetings; mostly one
std::vector<std::unique_ptr<Stack>> stacks;
std::vector<Stack*> unused;
context::fiber scheduler;     ///< run_block(), while threads run
std::vector<unsigned> queue;  ///< threads that may run, as a ring
std::size_t queue_begin = 0, queue_count = 0;
unsigned threads = 0;  ///< of a block
unsigned current = 0;  ///< the thread that runs
unsigned at_barrier = 0, done = 0;
int barrier_sum = 0;
bool falling = false;
void (*body)(void*) = nullptr;
void* body_context = nullptr;
std::string failure_text;
std::string broken;  ///< set inside a thread: the block cannot go on

void push(unsigned thread) {
  std::size_t end = queue_begin + queue_count++;
  if (end >= queue.size()) end -= queue.size();
  queue[end] = thread;
}

/// Threads [begin, end) for which `which` holds become ready, in this block's order.
template <class Which>
void push_range(unsigned begin, unsigned end, Which&& which) {
  for (unsigned i = begin; i < end; ++i) {
    const unsigned thread = falling ? begin + end - 1 - i : i;
    if (which(thread)) push(thread), all[thread].state = State::kReady;
  }
}

/// The next thread of the queue is the one that runs.
void take_next() {
  current = queue[queue_begin];
  if (++queue_begin == queue.size()) queue_begin = 0;
  --queue_count;
  position.thread = all[current].index;
}

/// Leaves `from` for `to`, whose owner has left it.
void jump(context::fiber& from, context::fiber& to) {
  std::move(to).resume_with([&from](context::fiber&& left) {
    from = std::move(left);
    return context::fiber();
  });
}

std::unique_ptr<Stack> make_stack(std::size_t number);

Stack* take_stack() {
  if (unused.empty()) {
    stacks.push_back(make_stack(stacks.size()));
    unused.push_back(stacks.back().get());
  }
  Stack* const taken = unused.back();
  unused.pop_back();
  return taken;
}

/// Goes on with the next thread of the queue, or in run_block() when there is none.
void leave(Stack& mine) {
  if (queue_count == 0 || !broken.empty()) return jump(mine.fiber, scheduler);
  take_next();
  Thread& next = all[current];
  if (next.stack == nullptr) next.stack = take_stack();
  if (next.stack != &mine) jump(mine.fiber, next.stack->fiber);
}

void suspend() {
  leave(*all[current].stack);
}

std::unique_ptr<Stack> make_stack(std::size_t number) {
  auto made = std::make_unique<Stack>();
  Stack* const mine = made.get();
  made->fiber = context::fiber(
      std::allocator_arg, context::protected_fixedsize_stack(kStackBytes),
      [mine, number](context::fiber&&) {
        // Stacks lie a multiple of 4 KiB apart: without this all tops share few lines of the cache.
        volatile char* const shift = static_cast<volatile char*>(alloca(number % 61 * 64 + 1));
        *shift = 0;
        for (;;) {
          body(body_context);
          all[current].state = State::kDone;
          all[current].stack = nullptr;
          ++done;
          if (queue_count > 0 && broken.empty() && all[queue[queue_begin]].state == State::kFresh) {
            take_next();
            all[current].state = State::kReady;
            all[current].stack = mine;
            continue;
          }
          unused.push_back(mine);
          leave(*mine);
          all[current].state = State::kReady;
        }
        return context::fiber();
      });
  return made;
}

std::string place(unsigned thread) {
  const Index& t = all[thread].index;
  const Index& b = position.block;
  char text[160];
  std::snprintf(text, sizeof text, "thread (%u,%u,%u) of block (%u,%u,%u)", t.x, t.y, t.z, b.x, b.y,
                b.z);
  return text;
}

std::string describe(unsigned thread) {
  const Thread& fiber = all[thread];
  char text[160];
  switch (fiber.state) {
    case State::kBarrier:
      return "waits in __syncthreads()";
    case State::kDone:
      return "has returned";
    case State::kWarp:
      std::snprintf(text, sizeof text, "waits in %s of lanes 0x%08x", fiber.name, fiber.mask);
      return text;
    case State::kFresh:
    case State::kReady:
      break;
  }
  return "runs";
}

/// Nothing can run and not all have returned: who waits for whom.
std::string deadlock() {
  for (unsigned i = 0; i < threads; ++i) {
    if (all[i].state != State::kWarp) continue;
    const unsigned first = i / 32 * 32;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if ((all[i].mask >> lane & 1) == 0) continue;
      const unsigned other = first + lane;
      if (other >= threads)
        return place(i) + " " + describe(i) + ", but the block has only " +
               std::to_string(threads) + " threads";
      if (all[other].state != State::kWarp || all[other].mask != all[i].mask ||
          std::strcmp(all[other].name, all[i].name) != 0)
        return place(i) + " " + describe(i) + ", but " + place(other) + " " + describe(other);
    }
  }
  for (unsigned i = 0; i < threads; ++i)
    for (unsigned j = 0; all[i].state == State::kBarrier && j < threads; ++j)
      if (all[j].state != State::kBarrier)
        return place(i) + " " + describe(i) + ", but " + place(j) + " " + describe(j);
  return "threads wait for ever";
}

/// The one that others have begun, or a new one.
Meeting& meeting_of(std::vector<Meeting>& warp, unsigned mask, const char* name) {
  for (Meeting& meeting : warp)
    if (meeting.arrived != 0 && meeting.mask == mask &&
        (meeting.name == name || std::strcmp(meeting.name, name) == 0))
      return meeting;
  auto free =
      std::find_if(warp.begin(), warp.end(), [](const Meeting& m) { return m.arrived == 0; });
  if (free == warp.end()) free = warp.emplace(warp.end());
  *free = {mask, 0, name, {}};
  return *free;
}

bool run_block() {
  queue_begin = queue_count = 0;
  at_barrier = done = 0;
  barrier_sum = 0;
  for (auto& warp : warps) warp.clear();
  push_range(0, threads, [](unsigned) { return true; });
  for (Thread& thread : all) thread.state = State::kFresh;
  take_next();
  all[current].stack = take_stack();
  jump(scheduler, all[current].stack->fiber);
  if (broken.empty() && done < threads) broken = deadlock();
  return broken.empty();
}

}  // namespace

unsigned lane() {
  return current % 32;
}

int barrier(int predicate) {
  Thread& me = all[current];
  me.state = State::kBarrier;
  barrier_sum += predicate;
  if (++at_barrier == threads) {
    for (unsigned i = 0; i < threads; ++i) all[i].result = barrier_sum;
    at_barrier = 0;
    barrier_sum = 0;
    push_range(0, threads, [](unsigned) { return true; });
  }
  suspend();
  return me.result;
}

void warp_operation(unsigned mask, const char* name, void* mine,
                    void (*combine)(void** lanes, unsigned mask)) {
  Thread& me = all[current];
  const unsigned first = current / 32 * 32;
  const unsigned number = current % 32;
  me.state = State::kWarp;
  me.mask = mask;
  me.name = name;
  if ((mask >> number & 1) == 0) {
    broken = place(current) + " calls " + name + " with a mask that leaves itself out";
    return suspend();
  }
  Meeting& meeting = meeting_of(warps[current / 32], mask, name);
  meeting.arrived |= 1u << number;
  meeting.lanes[number] = mine;
  if (meeting.arrived != mask) return suspend();
  meeting.arrived = 0;
  combine(meeting.lanes, mask);
  const unsigned end = std::min(first + 32, threads);
  push_range(first, end, [&](unsigned thread) { return mask >> (thread - first) & 1; });
  suspend();
}

bool run_grid(Index grid, Index block, std::size_t shared_bytes, void (*run)(void*),
              void* run_context) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  const DeviceAccess access;
  const std::uint64_t in_block = std::uint64_t{block.x} * block.y * block.z;
  if (in_block == 0 || in_block > 1024 || block.z > 64 || grid.x == 0 || grid.y == 0 ||
      grid.z == 0 || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffu ||
      shared_bytes > kMostShared) {
    char text[200];
    std::snprintf(text, sizeof text,
                  "no such launch: grid (%u,%u,%u), block (%u,%u,%u), %zu bytes of shared memory",
                  grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes);
    set_failure(text);
    return false;
  }
  threads = static_cast<unsigned>(in_block);
  all.assign(threads, {});
  warps.resize((threads + 31) / 32);
  queue.resize(threads + 1);
  queue_begin = 0;
  for (unsigned i = 0; i < threads; ++i)
    all[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  body = run;
  body_context = run_context;
  position.block_size = block;
  position.grid_size = grid;
  static std::vector<unsigned char> shared(kMostShared + 1024);
  const auto address = reinterpret_cast<std::uintptr_t>(shared.data());
  dynamic_shared = shared.data() + (1024 - address % 1024);
  falling = false;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        position.block = {x, y, z};
        std::memset(dynamic_shared, 0xff, shared_bytes);
        if (!run_block()) {
          set_failure(broken);
          broken.clear();
          unused.clear();
          stacks.clear();  // unwinds those of the threads that hang
          return false;
        }
        falling = !falling;
      }
  return true;
}

const std::string& failure() {
  return failure_text;
}
void set_failure(const std::string& message) {
  failure_text = message;
}

}  // namespace cuda_emulator
