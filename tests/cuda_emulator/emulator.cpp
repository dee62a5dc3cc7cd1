// Compiled without ThreadSanitizer's instrumentation: the scheduler's own memory is shared by all
// fibers without what would count as synchronisation.
#include "emulator.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <sstream>
#include <vector>

#include "fiber.h"

namespace emulator {

Settings settings;
Fault planted = Fault::kNone;

namespace {

enum class State { kReady, kSpinning, kAtBlockBarrier, kAtWarp, kDone };

struct Warp {
  void* payload[32] = {};
  int arrived = 0, phase = 0;
  void (*operation)(Lanes) = nullptr;
  Site site = {};
  char sync[2] = {};  // addresses that stand for the barrier's phases
};

struct Block {
  Index index;
  std::unique_ptr<unsigned char, decltype(&std::free)> shared = {nullptr, std::free};
  std::vector<Warp> warps;
  int arrived = 0, phase = 0;
  Site site = {};
  char sync[2] = {};
};

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  int index = 0;
  State state = State::kReady;
  Site site = {};
  std::deque<Copy> copies;
  int group = 0;
  Copy completed = {};
};

std::string where(Site site) {
  const char* slash = site.file ? std::strrchr(site.file, '/') : nullptr;
  std::ostringstream out;
  out << (site.file ? (slash ? slash + 1 : site.file) : "start") << ':' << site.line;
  return out.str();
}

class Launch {
 public:
  Launch(const std::function<void()>& body, int threads) : body(body), threads_(threads) {
    main.adopt();
  }

  void run(std::vector<Index> indices, int64_t shared_bytes);
  void yield(State state, Site site) {
    current->state = state, current->site = site;
    Thread* self = current;
    self->fiber.switch_to(main);
  }
  void wake(int first, int count, State from) {
    for (int i = first; i < first + count; ++i)
      if (threads[i].state == from) ready(i);
  }
  int first_of(const Block& block) const {
    return static_cast<int>(&block - blocks.data()) * threads_;
  }
  int threads_per_block() const { return threads_; }

  Fiber main;
  const std::function<void()>& body;
  std::vector<Block> blocks;
  std::unique_ptr<Thread[]> threads;
  Thread* current = nullptr;
  std::string failure;
  bool progress = true;
  char start = 0, end = 0;

 private:
  void ready(int i) {
    threads[i].state = State::kReady;
    ready_[static_cast<size_t>(i) / 64] |= uint64_t(1) << i % 64;
  }
  int pick();
  int find(int from, int step, int first, int count) const;
  void revive_spinners();
  [[noreturn]] void deadlock();

  int threads_, count_ = 0, live_ = 0, cursor_ = 0;
  std::vector<uint64_t> ready_;
  uint64_t random_ = 0;
};

Launch* launched = nullptr;

void check_in_flight(Thread& self) {
  if (self.copies.empty()) return;
  std::ostringstream out;
  out << self.copies.size() << " cp.async in flight at a thread's exit";
  fail(out.str(), self.site);
}

void check_nobody_waits(Thread& self) {
  const Warp& warp = self.block->warps[static_cast<size_t>(self.index / 32)];
  if (self.block->arrived)
    fail("a thread ended while others wait in __syncthreads at " + where(self.block->site),
         self.site);
  if (warp.arrived) fail("a lane ended while its warp waits at " + where(warp.site), self.site);
}

void thread_main() {
  Launch& launch = *launched;
  Thread& self = *launch.current;
  self.fiber.entered();
  acquire(&launch.start);
  launch.body();
  check_in_flight(self);
  check_nobody_waits(self);
  release(&launch.end);
  launch.progress = true;
  launch.yield(State::kDone, self.site);
  std::abort();
}

// The first ready thread of [first, first + count), going from `from` by `step`, around the end.
int Launch::find(int from, int step, int first, int count) const {
  for (int i = 0, at = from; i < count; ++i, at += step) {
    if (at >= first + count) at -= count;
    if (at < first) at += count;
    const uint64_t word = ready_[static_cast<size_t>(at) / 64];
    if (word >> at % 64 & 1) return at;
    // A whole word of threads that are not ready.
    if (word == 0 && step > 0 && at % 64 == 0 && at + 64 <= first + count) at += 63, i += 63;
    if (word == 0 && step < 0 && at % 64 == 63 && at - 63 >= first) at -= 63, i += 63;
  }
  return -1;
}

int Launch::pick() {
  random_ = random_ * 6364136223846793005u + 1442695040888963407u;
  const int any = static_cast<int>((random_ >> 33) % static_cast<uint64_t>(count_));
  switch (settings.schedule) {
    case Schedule::kInOrder:
      return find(cursor_, 1, 0, count_);
    case Schedule::kReversed:
      return find(cursor_, -1, 0, count_);
    case Schedule::kRandom:
      return find(any, 1, 0, count_);
    case Schedule::kAhead:
      break;
  }
  const int first = static_cast<int>(settings.seed % blocks.size()) * threads_;
  const int ahead = find(first, 1, first, threads_);
  return ahead >= 0 ? ahead : find(any, 1, 0, count_);
}

void Launch::revive_spinners() {
  if (!progress) deadlock();
  progress = false;
  bool any = false;
  for (int i = 0; i < count_; ++i)
    if (threads[i].state == State::kSpinning) ready(i), any = true;
  if (!any) deadlock();
}

void Launch::deadlock() {
  static const char* const kStates[] = {"ready", "spinning", "in __syncthreads", "in its warp"};
  std::ostringstream out;
  out << "deadlock:";
  int shown = 0;
  for (int i = 0; i < count_; ++i) {
    const Thread& t = threads[i];
    if (t.state == State::kDone) continue;
    const bool as_before = i > 0 && threads[i - 1].state == t.state &&
                           threads[i - 1].site.line == t.site.line && i % threads_;
    if (as_before || ++shown > 12) continue;
    out << " block (" << t.block->index.x << ',' << t.block->index.y << ',' << t.block->index.z
        << ") thread " << t.index << " is " << kStates[int(t.state)] << " at " << where(t.site)
        << ';';
  }
  throw Failure(out.str() + " [" + describe_schedule() + "]");
}

void Launch::run(std::vector<Index> indices, int64_t shared_bytes) {
  count_ = live_ = static_cast<int>(indices.size()) * threads_;
  blocks = std::vector<Block>(indices.size());
  threads = std::make_unique<Thread[]>(static_cast<size_t>(count_));
  ready_.assign(static_cast<size_t>(count_) / 64 + 1, 0);
  random_ = settings.seed * 0x9e3779b97f4a7c15u + 1;
  cursor_ = settings.schedule == Schedule::kReversed ? count_ - 1 : 0;
  for (size_t i = 0; i < indices.size(); ++i) {
    Block& block = blocks[i];
    block.index = indices[i];
    block.warps.resize(static_cast<size_t>(threads_ / 32));
    void* memory = nullptr;
    if (shared_bytes && posix_memalign(&memory, 128, static_cast<size_t>(shared_bytes)))
      std::abort();
    if (memory) std::memset(memory, 0xff, static_cast<size_t>(shared_bytes));
    block.shared.reset(static_cast<unsigned char*>(memory));
    for (int t = 0; t < threads_; ++t) {
      const int at = static_cast<int>(i) * threads_ + t;
      threads[at].block = &block, threads[at].index = t;
      threads[at].fiber.prepare(thread_main);
      ready(at);
    }
  }
  launched = this;
  release(&start);
  while (live_ > 0) {
    const int next = pick();
    if (next < 0) {
      revive_spinners();
      continue;
    }
    ready_[static_cast<size_t>(next) / 64] &= ~(uint64_t(1) << next % 64);
    cursor_ = next;
    current = &threads[next];
    main.switch_to(current->fiber);
    if (!failure.empty()) throw Failure(failure + " [" + describe_schedule() + "]");
    live_ -= current->state == State::kDone;
  }
  acquire(&end);
}

// All of one launch are alive together, or as many as there is room for.
constexpr int kMostThreads = 6144;

}  // namespace

std::string describe_schedule() {
  static const char* const kNames[] = {"in-order", "reversed", "random", "ahead"};
  std::ostringstream out;
  out << kNames[int(settings.schedule)] << ' ' << settings.seed;
  return out.str();
}

int launch(const std::function<void()>& body, Index grid, int threads, int64_t shared_bytes,
           bool cooperative) {
  const int blocks = grid.x * grid.y * grid.z;
  if (threads < 32 || threads > 1024 || threads % 32 || blocks < 1 || shared_bytes < 0 ||
      shared_bytes > settings.shared_per_block)
    return kInvalidValue;
  constexpr int64_t kReserved = 1024;  // bytes of shared memory that a block takes besides
  const int64_t by_shared = settings.shared_per_multiprocessor / (shared_bytes + kReserved);
  const int64_t by_threads = settings.threads_per_multiprocessor / threads;
  if (cooperative &&
      blocks > settings.multiprocessors * (by_shared < by_threads ? by_shared : by_threads))
    return kCooperativeLaunchTooLarge;
  const int wave =
      cooperative || blocks * threads <= kMostThreads ? blocks : kMostThreads / threads;
  for (int first = 0; first < blocks; first += wave) {
    std::vector<Index> indices;
    for (int i = first; i < blocks && i < first + wave; ++i)
      indices.push_back({i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y});
    Launch one(body, threads);
    one.run(std::move(indices), shared_bytes);
  }
  return 0;
}

int thread_index() { return launched->current->index; }
Index block_index() { return launched->current->block->index; }
unsigned char* dynamic_shared() { return launched->current->block->shared.get(); }

void fail(const std::string& what, Site site) {
  Thread& self = *launched->current;
  std::ostringstream out;
  out << what << " at " << where(site) << ", block (" << self.block->index.x << ','
      << self.block->index.y << ',' << self.block->index.z << ") thread " << self.index;
  launched->failure = out.str();
  self.fiber.switch_to(launched->main);
  std::abort();
}

void block_barrier(Site site) {
  Launch& launch = *launched;
  Block& block = *launch.current->block;
  if (block.arrived && (block.site.line != site.line || std::strcmp(block.site.file, site.file)))
    fail("__syncthreads of some threads, while others wait in that at " + where(block.site), site);
  char* sync = &block.sync[block.phase];
  release(sync);
  block.site = site;
  if (++block.arrived < launch.threads_per_block()) {
    launch.yield(State::kAtBlockBarrier, site);
  } else {
    block.arrived = 0, block.phase ^= 1, launch.progress = true;
    launch.wake(launch.first_of(block), launch.threads_per_block(), State::kAtBlockBarrier);
  }
  acquire(sync);
}

namespace {

Warp& meet(void (*operation)(Lanes), void* payload, Site site) {
  Launch& launch = *launched;
  Thread& self = *launch.current;
  Warp& warp = self.block->warps[static_cast<size_t>(self.index / 32)];
  if (warp.arrived && (warp.operation != operation || warp.site.line != site.line))
    fail("lanes of a warp diverge: others are at " + where(warp.site), site);
  warp.operation = operation, warp.site = site;
  warp.payload[self.index % 32] = payload;
  if (++warp.arrived < 32) {
    launch.yield(State::kAtWarp, site);
  } else {
    if (operation) operation(warp.payload);
    warp.arrived = 0, warp.phase ^= 1, launch.progress = true;
    launch.wake(launch.first_of(*self.block) + self.index / 32 * 32, 32, State::kAtWarp);
  }
  return warp;
}

}  // namespace

void warp_barrier(Site site) {
  Thread& self = *launched->current;
  Warp& warp = self.block->warps[static_cast<size_t>(self.index / 32)];
  char* sync = &warp.sync[warp.phase];
  release(sync);
  meet(nullptr, nullptr, site);
  acquire(sync);
}

// A collective orders no memory: only the barriers do.
void rendezvous(void (*operation)(Lanes), void* payload, Site site) {
  meet(operation, payload, site);
}

void spin(Site site) { launched->yield(State::kSpinning, site); }
void progress() { launched->progress = true; }

void cp_async_record(const Copy& copy, Site site) {
  Thread& self = *launched->current;
  self.copies.push_back(copy);
  self.copies.back().group = self.group;
  self.site = site;
}
void cp_async_commit() { ++launched->current->group; }
const Copy* cp_async_complete(int pending) {
  Thread& self = *launched->current;
  if (self.copies.empty() || self.copies.front().group >= self.group - pending) return nullptr;
  self.completed = self.copies.front();
  self.copies.pop_front();
  return &self.completed;
}

}  // namespace emulator
