#include "threads.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "../check.h"

namespace fastrnn {
namespace {

constexpr int kMaxWorkers = kMaxThreads - 1;
constexpr int kMaxChains = 128;

// After the last ticket a worker looks for more this long before it sleeps: longer than the gaps
// within a call and between calls in a loop, short beside what it would take from other threads.
constexpr auto kSpinTime = std::chrono::microseconds(60);
// A lent one is waited for at the end of the call, and would have to be woken.
constexpr auto kLentSpinTime = std::chrono::microseconds(1000);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits for a condition that another thread is about to make true.
template <class Condition>
void spin_until(Condition&& condition) {
  for (int spins = 0; !condition(); ++spins) {
    if (spins < 20000)
      pause();
    else
      std::this_thread::yield();
  }
}

// The processor that this thread runs on; -1: not known.
inline int processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Those that this thread may run on.
int processor_count() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return int(std::thread::hardware_concurrency());
}

// Moves this thread elsewhere, if it may run elsewhere, and gives it back all the processors that
// it may run on now: where it wakes next the kernel goes by where it ran last.
void leave_processor([[maybe_unused]] int which) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  cpu_set_t others = allowed;
  CPU_CLR(which, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
  sched_setaffinity(0, sizeof allowed, &allowed);
#endif
}

}  // namespace

struct Pool {
  // The phase's generation (high half) and the next ticket (low half) change together, so that a
  // worker that looked at an older phase cannot take a ticket of a newer one.
  std::atomic<uint64_t> word{kClosed};
  std::atomic<int64_t> count{0};
  std::atomic<void (*)(const void*, int64_t, int)> call{nullptr};
  std::atomic<const void*> body{nullptr};
  std::atomic<int64_t> done{0};
  std::atomic<int> helpers{0};  // workers with a smaller index may take tickets
  // The same of lent threads, how many have come, and whether they are to go.
  std::atomic<int> lent_helpers{0}, lent_came{0};
  std::atomic<bool> lent_leave{false};

  // By the team that has the pool. Not a mutex: what an interrupt runs may make a team of its own.
  std::atomic<bool> taken{false};
  std::atomic<uint64_t> team_number{0};
  fenv_t floating_point;                   // of the team's caller
  std::atomic<int> callers_processor{-1};  // when the phase began

  std::mutex sleep;
  std::condition_variable wake;
  std::atomic<int> asleep{0};
  int workers = 0;

  static constexpr uint64_t kClosed = 0xffffffffu;
  static uint64_t ticket(uint64_t word) { return word & kClosed; }

  // Takes tickets of the phase that `seen` belongs to until none is left. `team_seen` is the last
  // one that this thread took the floating-point mode of; a ticket in hand keeps its team alive.
  void work(uint64_t seen, int slot, uint64_t& team_seen) {
    for (;;) {
      if (ticket(seen) == kClosed) return;
      if (int64_t(ticket(seen)) >= count.load(std::memory_order_relaxed)) return;
      auto* function = call.load(std::memory_order_relaxed);
      const void* argument = body.load(std::memory_order_relaxed);
      const uint64_t phase = seen >> 32;
      if (word.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) {
        const uint64_t now = team_number.load(std::memory_order_relaxed);
        if (slot > 0 && now != team_seen) {
          std::fesetenv(&floating_point);
          team_seen = now;
        }
        function(argument, int64_t(ticket(seen)), slot);
        done.fetch_add(1, std::memory_order_release);
        seen = word.load(std::memory_order_acquire);
      }
      if (seen >> 32 != phase) return;
    }
  }

  // A thread that spins on every other processor, as torch's do for milliseconds after an
  // operation, makes the kernel wake a worker on its caller's. There it is in the way: the caller
  // stands still while the worker works, and while it looks for more.
  void leave_callers_processor() const {
    const int callers = callers_processor.load(std::memory_order_relaxed);
    if (callers >= 0 && callers == processor()) leave_processor(callers);
  }

  void start_worker(int index) {
    std::thread([this, index] { serve(index, false); }).detach();
  }

  void lent_loop() {
    fenv_t before;
    std::fegetenv(&before);
    serve(lent_came.fetch_add(1), true);
    std::fesetenv(&before);
  }

  // Takes tickets as one of the helpers, or as a lent one until it is told to leave.
  void serve(int index, bool lent) {
    const std::atomic<int>& most = lent ? lent_helpers : helpers;
    const auto spin_time = lent ? kLentSpinTime : kSpinTime;
    const auto told_to_leave = [&] { return lent && lent_leave.load(); };
    uint64_t team_seen = 0;
    auto idle_since = std::chrono::steady_clock::now();
    while (!told_to_leave()) {
      const uint64_t seen = word.load(std::memory_order_acquire);
      const bool open = ticket(seen) != kClosed &&
                        int64_t(ticket(seen)) < count.load(std::memory_order_relaxed) &&
                        index < most.load(std::memory_order_relaxed);
      if (open) {
        if (!lent) leave_callers_processor();
        work(seen, index + 1, team_seen);
        idle_since = std::chrono::steady_clock::now();
        continue;
      }
      for (int i = 0; i < 64; ++i) pause();
      if (std::chrono::steady_clock::now() - idle_since < spin_time) continue;
      std::unique_lock<std::mutex> lock(sleep);
      asleep.fetch_add(1);
      wake.wait(lock, [&] { return told_to_leave() || word.load() >> 32 != seen >> 32; });
      asleep.fetch_sub(1);
      idle_since = std::chrono::steady_clock::now();
    }
  }

  void wake_sleepers() {
    if (asleep.load() == 0) return;
    std::lock_guard<std::mutex> lock(sleep);
    wake.notify_all();
  }

  // Where memory or limits allow no more threads, those that there are do the work.
  void start_workers(int wanted) {
    try {
      for (; workers < wanted && workers < kMaxWorkers; ++workers) start_worker(workers);
    } catch (const std::exception&) {
      return;
    }
  }
};

namespace {

// On the heap and never freed: workers outlive static destruction.
std::atomic<Pool*> the_pool{nullptr};

ThreadLender the_lender;
std::atomic<int> most_lent{0};  // including the caller; 0: no lender

// Threads do not survive a fork; the child starts with a pool of its own. The lender may not know
// that it has none any more: libgomp would wait for them.
void renew_pool() {
  the_pool.store(new Pool);
  most_lent.store(0);
}

Pool& pool() {
  static const bool once = [] {
    renew_pool();
    pthread_atfork(nullptr, nullptr, renew_pool);
    return true;
  }();
  (void)once;
  return *the_pool.load();
}

}  // namespace

// The end of a call would have to wait for more threads than processors one after the other. Fewer
// than kMaxThreads are as many as the caller asked for: a lender may end those that it is not asked
// for.
void use_threads(const ThreadLender* lender) {
  FASTRNN_CHECK(!lender || (lender->start && lender->end && lender->within),
                "use_threads: a lender must have all three functions, got null");
  pool();
  if (lender) the_lender = *lender;
  const int most = processor_count();
  most_lent.store(!lender ? 0 : most < kMaxThreads ? most : kMaxThreads - 1);
}

Team::Team(int size, Interrupt interrupt)
    : size_(size < kMaxThreads ? size : kMaxThreads), interrupt_(interrupt) {
  if (size_ <= 1) return;
  Pool& p = pool();
  if (p.taken.exchange(true, std::memory_order_acquire)) {
    size_ = 1;
    return;
  }
  pool_ = &p;
  std::fegetenv(&p.floating_point);
  p.team_number.fetch_add(1, std::memory_order_release);
  if (size_ <= most_lent.load() && !the_lender.within()) lender_ = &the_lender;
  p.helpers.store(lender_ ? 0 : size_ - 1, std::memory_order_relaxed);
  p.lent_helpers.store(lender_ ? size_ - 1 : 0, std::memory_order_relaxed);
  if (!lender_) p.start_workers(size_ - 1);
}

Team::~Team() {
  if (!pool_) return;
  if (borrowed_ && !works_alone()) {
    pool_->lent_leave.store(true);
    pool_->wake_sleepers();
    lender_->end();
  }
  pool_->taken.store(false, std::memory_order_release);
}

// Also in a child that was forked meanwhile, whose team has lost its threads.
bool Team::works_alone() const { return !pool_ || pool_ != &pool(); }

void Team::borrow() {
  borrowed_ = true;
  pool_->lent_came.store(0);
  pool_->lent_leave.store(false);
  lender_->start([](void* lent_to) { static_cast<Pool*>(lent_to)->lent_loop(); }, pool_,
                 unsigned(size_));
}

bool Team::asked_to_stop() {
  if (interrupt_.asked && !stopped() && interrupt_.asked(interrupt_.context))
    stopped_.store(true, std::memory_order_relaxed);
  return stopped();
}

void Team::run_tickets(int64_t count, Ticket call, const void* body) {
  if (count <= 1 || works_alone()) {
    for (int64_t i = 0; i < count; ++i) call(body, i, 0);
    return;
  }
  if (lender_ && !borrowed_) borrow();
  Pool& p = *pool_;
  p.count.store(count, std::memory_order_relaxed);
  p.call.store(call, std::memory_order_relaxed);
  p.body.store(body, std::memory_order_relaxed);
  p.done.store(0, std::memory_order_relaxed);
  p.callers_processor.store(processor(), std::memory_order_relaxed);
  const uint64_t open = ((p.word.load(std::memory_order_relaxed) >> 32) + 1) << 32;
  p.word.store(open);
  p.wake_sleepers();
  uint64_t team_seen = 0;
  p.work(open, 0, team_seen);
  // Others may have taken every ticket: still to be asked, so that they stop.
  spin_until(
      [&] { return p.done.load(std::memory_order_acquire) == count || (asked_to_stop(), false); });
  // Closed before the next phase's fields are written: an exchange, so that they stay after it.
  p.word.exchange(open | Pool::kClosed, std::memory_order_acq_rel);
}

void Team::run_chain_steps(int chains, int64_t steps, ChainStep call, const void* body) {
  struct Chain {
    std::atomic<bool> busy{false};
    std::atomic<int64_t> next{0};
  };
  Chain chain[kMaxChains];
  const auto agent = [&](int64_t first, int slot) {
    while (!(slot == 0 ? asked_to_stop() : stopped())) {
      bool finished = true, worked = false;
      for (int i = 0; i < chains; ++i) {
        const int c = int((first + i) % chains);
        if (chain[c].next.load(std::memory_order_acquire) == steps) continue;
        finished = false;
        if (chain[c].busy.exchange(true, std::memory_order_acquire)) continue;
        // One step at a time: a slower thread's chains can be taken over at every step.
        const int64_t s = chain[c].next.load(std::memory_order_relaxed);
        if (s < steps) {
          call(body, c, s);
          chain[c].next.store(s + 1, std::memory_order_release);
        }
        chain[c].busy.store(false, std::memory_order_release);
        worked = true;
        break;
      }
      if (finished) return;
      if (!worked) pause();
    }
  };
  if (chains == 1 || works_alone()) {
    for (int c = 0; c < chains; ++c)
      for (int64_t s = 0; s < steps && !asked_to_stop(); ++s) call(body, c, s);
    return;
  }
  run(size_ < chains ? size_ : chains, agent);
}

}  // namespace fastrnn
