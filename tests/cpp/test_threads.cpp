// Team, on which every call runs: each ticket once, slots and chains in order, any number of
// callers at once, after a fork and after idleness, in the caller's floating-point mode.
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <initializer_list>
#include <optional>
#include <thread>

#include "cpu/threads.h"
#include "engine.h"

#if defined(__SANITIZE_THREAD__)
// Threads in a forked child are what is tested.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options();
const char* __tsan_default_options() { return "die_after_fork=0"; }
#endif

namespace {

using fastrnn::kMaxThreads;
using fastrnn::Team;

// Long enough for other threads to come, short enough for thousands.
void work(int64_t amount) {
  volatile int64_t sink = 0;
  for (int64_t i = 0; i < amount; ++i) sink = sink + i;
}

// True if every ticket was called once and no slot twice at a time.
bool run_tickets(Team& team, int64_t count, int64_t amount) {
  std::vector<int> calls(size_t(count), 0);  // not atomic: a data race would be the library's
  std::vector<std::atomic<int>> busy(static_cast<size_t>(kMaxThreads));
  std::atomic<int64_t> total{0};
  std::atomic<bool> ok{true};
  team.run(count, [&](int64_t i, int slot) {
    if (slot < 0 || slot >= team.size() || busy[size_t(slot)].exchange(1)) ok = false;
    ++calls[size_t(i)];
    work(amount);
    ++total;
    busy[size_t(slot)] = 0;
  });
  for (int n : calls) ok = ok && n == 1;
  return ok && total == count;
}

// True if every chain took its steps in order, one at a time.
bool run_chains(Team& team, int chains, int64_t steps, int64_t amount) {
  std::vector<int64_t> next(size_t(chains), 0);
  std::atomic<bool> ok{true};
  team.run_chains(chains, steps, [&](int64_t chain, int64_t step) {
    if (next[size_t(chain)]++ != step) ok = false;
    work(amount);
  });
  for (int64_t n : next) ok = ok && n == steps;
  return ok;
}

void check_team(int rounds) {
  test::Random random(5);
  for (int size : {1, 2, 3, 4, 5, 8, 64, 200})
    for (int i = 0; i < rounds; ++i) {
      Team team(size);
      EXPECT(team.size() == (size < kMaxThreads ? size : kMaxThreads), "size " << team.size());
      const int64_t count = random.below(i % 4 ? 20 : 500);
      const int64_t amount = random.below(3) ? 0 : random.below(3000);
      EXPECT(run_tickets(team, count, amount), size << " threads, " << count << " tickets");
      const int chains = 1 + int(random.below(i % 8 ? 6 : 128));
      const int64_t steps = random.below(30);
      EXPECT(run_chains(team, chains, steps, amount),
             size << " threads, " << chains << " chains of " << steps << " steps");
    }
}

void check_contention(int rounds) {
  std::atomic<int64_t> bad{0}, ready{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&, caller] {
      for (++ready; ready < 4;) std::this_thread::yield();
      for (int i = 0; i < rounds; ++i) {
        Team team(2 + (caller + i) % 3);
        bad += !run_tickets(team, 1 + i % 50, i % 7 * 100);
        bad += !run_chains(team, 1 + i % 5, i % 9, i % 7 * 100);
      }
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT(bad == 0, bad << " runs went wrong beside other teams");
}

void check_idle() {
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    Team team(4);
    EXPECT(run_tickets(team, 100, 1000), "after 30 ms of idleness");
    EXPECT(run_chains(team, 3, 20, 1000), "after 30 ms of idleness");
  }
}

bool exits_well(pid_t child) {
  const auto start = std::chrono::steady_clock::now();
  for (int status = 0;;) {
    if (waitpid(child, &status, WNOHANG) == child) return WIFEXITED(status) && !WEXITSTATUS(status);
    if (std::chrono::steady_clock::now() - start > std::chrono::seconds(60)) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// The child has its own workers, and a pool that nobody holds.
bool works_in_child() {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    bool ok = true, helped = false;
    const auto start = std::chrono::steady_clock::now();
    while (ok && !helped && std::chrono::steady_clock::now() - start < std::chrono::seconds(30)) {
      Team team(3);
      ok = team.size() == 3 && run_tickets(team, 200, 100) && run_chains(team, 4, 10, 100);
      std::atomic<bool> other{false};
      team.run(50, [&](int64_t, int slot) {
        if (slot > 0) other = true;
        work(20000);
      });
      helped = other;
    }
    _exit(ok && helped ? 0 : 1);
  }
  return child > 0 && exits_well(child);
}

int processor_count() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return int(std::thread::hardware_concurrency());
}

// A lender of threads that are made for each team, and keep their own rounding mode.
struct Lender {
  static inline thread_local bool within = false;
  static inline thread_local std::vector<std::thread> threads;
  static inline std::atomic<int> starts{0}, changed{0}, absent{0};
  static inline const pid_t process = getpid();

  static void start(void (*body)(void*), void* data, unsigned size) {
    if (getpid() != process) std::abort();
    within = true;
    ++starts;
    for (unsigned i = 1; i < size && !absent; ++i)
      threads.emplace_back([=] {
        within = true;
        std::fesetround(FE_UPWARD);
        body(data);
        changed += std::fegetround() != FE_UPWARD;
      });
  }
  static void end() {
    if (getpid() != process) std::abort();
    for (std::thread& t : threads) t.join();
    threads.clear();
    within = false;
  }
  static int in_use() { return within; }
};

// A child that is forked between two runs of a team has none of its threads, and ends it alone.
bool ends_team_in_child() {
  std::optional<Team> team(std::in_place, 2);
  run_tickets(*team, 50, 100);
  std::fflush(stdout);
  const pid_t child = fork();
  const bool right = run_tickets(*team, 50, 100) && run_chains(*team, 3, 20, 100);
  team.reset();
  if (child == 0) _exit(right ? 0 : 1);
  return right && child > 0 && exits_well(child);
}

void check_fork() {
  {
    Team team(4);
    run_tickets(team, 100, 100);
  }
  EXPECT(works_in_child(), "in a forked child");
  const fastrnn::ThreadLender lender{Lender::start, Lender::end, Lender::in_use};
  for (const auto* l : {static_cast<const fastrnn::ThreadLender*>(nullptr), &lender}) {
    fastrnn::use_threads(l);
    const int starts = Lender::starts;
    EXPECT(ends_team_in_child(), "forked within a team");
    EXPECT(works_in_child(), "in a forked child of a process with lent threads");
    const bool lends = l && processor_count() > 1;
    EXPECT(Lender::starts - starts == lends, "threads were borrowed");
  }
  fastrnn::use_threads(nullptr);
#if !defined(__SANITIZE_THREAD__)  // which takes the child's threads for the parent's
  // Forked while another thread's team has the pool, which stays locked in the child's copy.
  std::atomic<bool> started{false}, stop{false};
  std::thread holder([&] {
    Team team(3);
    team.run(3, [&](int64_t, int) {
      started = true;
      while (!stop) std::this_thread::yield();
    });
  });
  while (!started) std::this_thread::yield();
  EXPECT(works_in_child(), "in a child forked beside a running team");
  stop = true;
  holder.join();
#endif
  Team team(4);
  EXPECT(team.size() == 4 && run_tickets(team, 100, 100), "in the parent after forks");
}

// Every thread computes in the caller's rounding mode, also when it changes from team to team.
void check_rounding() {
  const int modes[] = {FE_UPWARD, FE_DOWNWARD, FE_TONEAREST, FE_TOWARDZERO, FE_TONEAREST};
  for (int mode : modes) {
    std::fesetround(mode);
    volatile double one = 1, three = 3;
    const double expected = one / three;
    std::atomic<int64_t> bad{0}, helped{0};
    const auto start = std::chrono::steady_clock::now();
    while (!helped && std::chrono::steady_clock::now() - start < std::chrono::seconds(30)) {
      Team team(3);
      team.run(60, [&](int64_t, int slot) {
        bad += std::fegetround() != mode || one / three != expected;
        helped += slot > 0;
        work(20000);
      });
    }
    EXPECT(bad == 0, bad << " tickets ran in another rounding mode than " << mode);
    EXPECT(helped > 0, "no worker came");
  }
  std::fesetround(FE_TONEAREST);
}

#if defined(__linux__)
cpu_set_t set_of(std::initializer_list<int> processors) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int p : processors) CPU_SET(p, &set);
  return set;
}

// A worker that is woken on its caller's processor, since a thread spins on the other one that it
// may use, goes there all the same; and may use both afterwards.
void check_processors() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) {
    std::printf("SKIPPED: workers on a processor of their own, for want of a second one\n");
    return;
  }
  int callers = 0, other = 0;
  while (!CPU_ISSET(callers, &allowed)) ++callers;
  for (other = callers + 1; !CPU_ISSET(other, &allowed);) ++other;
  const cpu_set_t one = set_of({callers}), second = set_of({other}),
                  both = set_of({callers, other});
  std::atomic<bool> stop{false};
  std::thread spinner([&] {
    sched_setaffinity(0, sizeof second, &second);
    while (!stop) continue;
  });
  sched_setaffinity(0, sizeof one, &one);
  std::atomic<pid_t> worker{0};
  std::atomic<int> at{-1};
  const auto run = [&] {
    Team team(2);
    at = -1;
    team.run(400, [&](int64_t, int slot) {
      if (slot > 0 && at != callers) at = sched_getcpu();
      if (slot > 0) worker = pid_t(syscall(SYS_gettid));
      work(20000);
    });
  };
  const auto start = std::chrono::steady_clock::now();
  while (!worker && std::chrono::steady_clock::now() - start < std::chrono::seconds(30)) run();
  // Three times, if need be: other processes may be in the way.
  int helped = 0, in_the_way = 10;
  for (int round = 0; round < 30 && worker && (round % 10 || in_the_way > 2); ++round) {
    if (round % 10 == 0) in_the_way = 0;
    sched_setaffinity(worker, sizeof one, &one);  // where it now falls asleep
    run();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    sched_setaffinity(worker, sizeof both, &both);
    run();
    helped += at >= 0, in_the_way += at == callers;
    cpu_set_t left;
    sched_getaffinity(worker, sizeof left, &left);
    EXPECT(CPU_EQUAL(&left, &both), "a worker's processors are not what they were");
  }
  EXPECT(helped > 0, "no worker came");
  EXPECT(in_the_way <= 2, in_the_way << " of 10 times a worker ran on its caller's processor");
  stop = true;
  spinner.join();
  if (worker) sched_setaffinity(worker, sizeof allowed, &allowed);
  sched_setaffinity(0, sizeof allowed, &allowed);
}
#endif

void check_lent_threads(int rounds) {
  const fastrnn::ThreadLender lender{Lender::start, Lender::end, Lender::in_use};
  const int processors = processor_count();
  if (processors < 2) {
    std::printf("SKIPPED: lent threads, for want of a second processor\n");
    return;
  }
  fastrnn::use_threads(&lender);
  check_team(rounds / 10 + 1);
  check_contention(rounds / 10 + 1);
  EXPECT(Lender::starts > 0, "no threads were borrowed");
  EXPECT(Lender::changed == 0, Lender::changed << " threads came back in another rounding mode");
  std::atomic<int64_t> lent{0}, others{0};
  const auto whose = [&](int64_t, int slot) {
    if (slot > 0) ++(Lender::within ? lent : others);
    work(20000);
  };
  const auto start = std::chrono::steady_clock::now();
  while (!lent && std::chrono::steady_clock::now() - start < std::chrono::seconds(30))
    Team(2).run(50, whose);
  EXPECT(lent > 0 && others == 0,
         others << " tickets of workers beside " << lent << " of lent ones");
  Lender::starts = 0;
  Team(2).run(1, whose);  // nothing to share
  Team(processors + 1).run(50, whose);
  Lender::within = true;
  Team(2).run(50, whose);
  EXPECT(Lender::within, "a caller that is a lent thread itself");
  Lender::within = false;
  EXPECT(Lender::starts == 0, "threads were borrowed for nothing, too many, or within");
  Lender::absent = 1;
  {
    Team team(2);
    EXPECT(run_tickets(team, 50, 100) && run_chains(team, 3, 20, 100), "of a lender that has none");
  }
  Lender::absent = 0;
  fastrnn::use_threads(nullptr);
}

// Whole calls of the engine, several at a time.
void check_calls() {
  test::Setup setup;
  test::Problem& p = setup.problem;
  p.cell = test::Cell::kLstm, p.training = true, p.threads = 3;
  p.T = 23, p.B = 11, p.I = 24, p.H = 40, p.directions = 2;
  const test::Geometry g(p, setup.lengths);
  const test::Inputs in = test::make_inputs(p, g, setup.given, 3);
  const auto call = [&] {
    test::Engine<float> engine(setup, g, in);
    engine.forward();
    engine.backward();
    const auto r = engine.results();
    std::vector<float> all = r.y;
    for (const auto* v : {&r.h_n, &r.c_n, &r.dx, &r.dh0, &r.dc0, &r.dw[0][0], &r.dw[1][1]})
      all.insert(all.end(), v->begin(), v->end());
    return all;
  };
  const std::vector<float> expected = call();
  std::atomic<int64_t> bad{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&] {
      for (int i = 0; i < 4; ++i) {
        const std::vector<float> got = call();
        bad += std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) != 0;
      }
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT(bad == 0, bad << " calls gave other results beside other calls");
}

// Asked to stop after some answers, a call ends early on every thread, says so, has written nothing
// outside its buffers, and leaves the next call as it was.
void check_interrupts(int64_t B, int threads) {
  test::Setup setup;
  test::Problem& p = setup.problem;
  p.cell = test::Cell::kGru, p.training = true, p.threads = threads;
  p.T = 500, p.B = B, p.I = 16, p.H = B == 1 ? 340 : 40, p.directions = B == 1 ? 1 : 2;
  const test::Geometry g(p, setup.lengths);
  const test::Inputs in = test::make_inputs(p, g, setup.given, 4);
  struct Asked {
    std::thread::id caller = std::this_thread::get_id();
    int64_t answers = 0, before = 0;
    bool elsewhere = false;
  };
  const auto with = [&](int64_t before, bool& forward, bool& backward, Asked& asked) {
    test::Engine<float> engine(setup, g, in);
    asked.before = before;
    const fastrnn::Interrupt interrupt{[](void* context) {
                                         auto& a = *static_cast<Asked*>(context);
                                         a.elsewhere |= a.caller != std::this_thread::get_id();
                                         return a.answers++ >= a.before;
                                       },
                                       &asked};
    engine.change_forward = [&](fastrnn::ForwardBuffers& b) { b.interrupt = interrupt; };
    engine.change_backward = [&](fastrnn::BackwardBuffers& b) { b.interrupt = interrupt; };
    forward = engine.forward();
    EXPECT(forward == (asked.answers <= before), "after " << asked.answers << " answers, B=" << B);
    asked.answers = 0;
    backward = engine.backward();
    EXPECT(backward == (asked.answers <= before), "after " << asked.answers << " answers, B=" << B);
    engine.expect_clean();
    return engine.results();
  };
  bool forward = false, backward = false;
  Asked whole;
  const auto expected = with(INT64_MAX, forward, backward, whole);
  EXPECT(forward && backward, "a call that is never asked to stop ends");
  EXPECT(whole.answers > 0 && !whole.elsewhere, "asked " << whole.answers << " times");
  for (int64_t before : {0, 1, 2, 3}) {
    Asked asked;
    with(before, forward, backward, asked);
    EXPECT(before > 0 || (!forward && !backward), "asked to stop at once, B=" << B);
    EXPECT(!asked.elsewhere && asked.answers <= before + 1, "asked after it said stop");
  }
  Asked again;
  const auto after = with(INT64_MAX, forward, backward, again);
  EXPECT(after.y == expected.y && after.dw[0][1] == expected.dw[0][1], "after interrupted calls");
}

// Once told to stop, a team passes over all tickets and steps that are left, its helpers' too.
void check_stopping() {
  for (int threads : {1, 3})
    for (int64_t before : {0, 5}) {
      int64_t left = before;
      Team team(threads,
                {[](void* context) { return --*static_cast<int64_t*>(context) < 0; }, &left});
      std::atomic<int64_t> own{0}, later{0};
      team.run(1000, [&](int64_t, int slot) { own += slot == 0, work(100); });
      EXPECT(own <= before && (threads > 1 || own == before),
             own << " tickets, told to stop after " << before << ", threads=" << threads);
      while (!team.asked_to_stop()) continue;
      team.run(100, [&](int64_t, int) { ++later; });
      team.run_chains(3, 100, [&](int64_t, int64_t) { ++later; });
      EXPECT(later == 0, later << " tickets and steps after the stop, threads=" << threads);
    }
}

// What is asked may make calls of its own.
void check_nested_calls() {
  bool alone = true;
  const fastrnn::Interrupt interrupt{[](void* context) {
                                       Team inner(3);
                                       bool& ok = *static_cast<bool*>(context);
                                       ok = ok && inner.size() == 1 && run_tickets(inner, 20, 100);
                                       return false;
                                     },
                                     &alone};
  Team team(3, interrupt);
  EXPECT(run_tickets(team, 50, 100), "with calls in between");
  EXPECT(alone, "a team within a team works alone");
}

}  // namespace

int main() {
  const int rounds = test::quick() ? 20 : 200;
  check_team(rounds);
  std::printf("teams: every ticket once, slots alone, chains in order\n");
  check_contention(rounds);
  check_idle();
  std::printf("four callers at once; after 30 ms of idleness\n");
  check_rounding();
  std::printf("the caller's rounding mode\n");
#if defined(__linux__)
  check_processors();
  std::printf("workers beside a thread that spins\n");
#endif
  check_lent_threads(rounds);
  std::printf("threads of a lender\n");
  check_calls();
  std::printf("concurrent calls\n");
  for (int64_t B : {1, 7, 40})
    for (int threads : {1, 3}) check_interrupts(B, threads);
  check_stopping();
  check_nested_calls();
  std::printf("interrupted calls\n");
  if (std::getenv("FASTRNN_TEST_NO_FORK")) {  // qemu-user cannot run threads in a forked child
    std::printf("SKIPPED: forked children\n");
  } else {
    check_fork();
    std::printf("forked children\n");
  }
  return test::finish("test_threads");
}
