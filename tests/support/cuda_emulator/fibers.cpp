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

enum class State { kReady, kBarrier, kWarp, kDone };

struct Fiber {
  context::fiber fiber;      ///< suspended here
  context::fiber scheduler;  ///< while it runs: where to go back to
  Index thread;
  State state = State::kReady;
  unsigned mask = 0;           ///< kWarp: the lanes it waits for
  const char* name = nullptr;  ///< kWarp: the operation
  void* mine = nullptr;
  int result = 0;
};

std::vector<std::unique_ptr<Fiber>> fibers;
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
std::string broken;  ///< set inside a fiber: the block cannot go on

void push(unsigned thread) {
  queue[(queue_begin + queue_count++) % queue.size()] = thread;
  fibers[thread]->state = State::kReady;
}

/// Threads [begin, end) for which `which` holds become ready, in this block's order.
template <class Which>
void push_range(unsigned begin, unsigned end, Which&& which) {
  for (unsigned i = begin; i < end; ++i) {
    const unsigned thread = falling ? begin + end - 1 - i : i;
    if (which(thread)) push(thread);
  }
}

void suspend() {
  Fiber& me = *fibers[current];
  me.scheduler = std::move(me.scheduler).resume();
}

std::unique_ptr<Fiber> make_fiber() {
  auto made = std::make_unique<Fiber>();
  Fiber* const me = made.get();
  made->fiber = context::fiber(std::allocator_arg, context::protected_fixedsize_stack(kStackBytes),
                               [me](context::fiber&& scheduler) {
                                 me->scheduler = std::move(scheduler);
                                 for (;;) {
                                   body(body_context);
                                   me->state = State::kDone;
                                   ++done;
                                   me->scheduler = std::move(me->scheduler).resume();
                                 }
                                 return context::fiber();
                               });
  return made;
}

std::string place(unsigned thread) {
  const Index& t = fibers[thread]->thread;
  const Index& b = position.block;
  char text[160];
  std::snprintf(text, sizeof text, "thread (%u,%u,%u) of block (%u,%u,%u)", t.x, t.y, t.z, b.x, b.y,
                b.z);
  return text;
}

std::string describe(unsigned thread) {
  const Fiber& fiber = *fibers[thread];
  char text[160];
  switch (fiber.state) {
    case State::kBarrier:
      return "waits in __syncthreads()";
    case State::kDone:
      return "has returned";
    case State::kWarp:
      std::snprintf(text, sizeof text, "waits in %s of lanes 0x%08x", fiber.name, fiber.mask);
      return text;
    case State::kReady:
      break;
  }
  return "runs";
}

/// Nothing can run and not all have returned: who waits for whom.
std::string deadlock() {
  for (unsigned i = 0; i < threads; ++i) {
    if (fibers[i]->state != State::kWarp) continue;
    const unsigned first = i / 32 * 32;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if ((fibers[i]->mask >> lane & 1) == 0) continue;
      const unsigned other = first + lane;
      if (other >= threads)
        return place(i) + " " + describe(i) + ", but the block has only " +
               std::to_string(threads) + " threads";
      if (fibers[other]->state != State::kWarp || fibers[other]->mask != fibers[i]->mask ||
          std::strcmp(fibers[other]->name, fibers[i]->name) != 0)
        return place(i) + " " + describe(i) + ", but " + place(other) + " " + describe(other);
    }
  }
  for (unsigned i = 0; i < threads; ++i)
    for (unsigned j = 0; fibers[i]->state == State::kBarrier && j < threads; ++j)
      if (fibers[j]->state != State::kBarrier)
        return place(i) + " " + describe(i) + ", but " + place(j) + " " + describe(j);
  return "threads wait for ever";
}

bool run_block() {
  queue_begin = queue_count = 0;
  at_barrier = done = 0;
  barrier_sum = 0;
  push_range(0, threads, [](unsigned) { return true; });
  while (queue_count > 0) {
    current = queue[queue_begin];
    queue_begin = (queue_begin + 1) % queue.size();
    --queue_count;
    Fiber& fiber = *fibers[current];
    position.thread = fiber.thread;
    fiber.fiber = std::move(fiber.fiber).resume();
    if (!broken.empty()) break;
  }
  if (broken.empty() && done < threads) broken = deadlock();
  return broken.empty();
}

}  // namespace

unsigned lane() {
  return current % 32;
}

int barrier(int predicate) {
  Fiber& me = *fibers[current];
  me.state = State::kBarrier;
  barrier_sum += predicate;
  if (++at_barrier == threads) {
    for (unsigned i = 0; i < threads; ++i) fibers[i]->result = barrier_sum;
    at_barrier = 0;
    barrier_sum = 0;
    push_range(0, threads, [](unsigned) { return true; });
  }
  suspend();
  return me.result;
}

void warp_operation(unsigned mask, const char* name, void* mine,
                    void (*combine)(void** lanes, unsigned mask)) {
  Fiber& me = *fibers[current];
  const unsigned first = current / 32 * 32;
  me.state = State::kWarp;
  me.mask = mask;
  me.name = name;
  me.mine = mine;
  if ((mask >> (current % 32) & 1) == 0) {
    broken = place(current) + " calls " + name + " with a mask that leaves itself out";
    suspend();
  }
  void* lanes[32] = {};
  for (unsigned i = 0; i < 32; ++i) {
    if ((mask >> i & 1) == 0) continue;
    if (first + i >= threads) return suspend();  // reported when nothing can run any more
    const Fiber& other = *fibers[first + i];
    if (other.state != State::kWarp || other.mask != mask ||
        (other.name != name && std::strcmp(other.name, name) != 0))
      return suspend();
    lanes[i] = other.mine;
  }
  combine(lanes, mask);
  const unsigned end = first + 32 < threads ? first + 32 : threads;
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
  while (fibers.size() < threads) fibers.push_back(make_fiber());
  queue.resize(threads + 1);
  for (unsigned i = 0; i < threads; ++i)
    fibers[i]->thread = {i % block.x, i / block.x % block.y, i / block.x / block.y};
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
          fibers.clear();  // unwinds the stacks of those that hang
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
