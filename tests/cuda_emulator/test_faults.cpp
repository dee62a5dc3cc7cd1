// Plants faults in the kernels, one at a time, and shows that each is caught. FASTRNN_PLANT_FAULTS
// compiles them in; each runs in a child process, under every schedule, until a check speaks.
#include <sys/wait.h>
#include <unistd.h>

#include "stream.h"

// The first race ends a child.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options();
extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }

namespace {

using namespace test;

enum Verdict { kUnnoticed = 0, kWrongNumbers = 10, kReport = 11, kRace = 66 };

struct Planted {
  emulator::Fault fault;
  const char* name;
  gpu::Kernel kernel;
  bool registers;  // weights in registers
  // Which build must catch it; every fault is caught by at least one.
  bool plain, thread_sanitizer;
};
using emulator::Fault;
constexpr gpu::Kernel kStep = gpu::Kernel::kStep, kPersistent = gpu::Kernel::kPersistent,
                      kStream = gpu::Kernel::kStream;
constexpr Planted kPlanted[] = {
    {Fault::kNone, "none", kStep, false, false, false},
    {Fault::kNone, "none", kPersistent, false, false, false},
    {Fault::kNone, "none", kPersistent, true, false, false},
    {Fault::kNone, "none", kStream, false, false, false},
    {Fault::kMissingBarrier, "missing __syncthreads", kStep, false, true, true},
    {Fault::kWaitCount, "cp.async wait count off by one", kStep, false, true, false},
    {Fault::kDivergentBarrier, "divergent __syncthreads", kStep, false, true, true},
    {Fault::kPastTheEnd, "write past the end", kStep, false, true, false},
    {Fault::kLaneMap, "wrong lane map of a fragment", kStep, false, true, true},
    {Fault::kLaneMap, "the same in registers", kPersistent, true, true, true},
    {Fault::kNoRelease, "barrier without release", kPersistent, false, false, true},
    {Fault::kCountShort, "barrier counting one short", kPersistent, false, true, true},
    {Fault::kSingleBuffer, "single-buffered h", kPersistent, false, true, true},
    {Fault::kUnsynchronised, "unsynchronised gradient accumulation", kPersistent, false, true,
     true},
    {Fault::kNoRelease, "stream's barrier without release", kStream, false, false, true},
    {Fault::kCountShort, "stream's barrier counting one short", kStream, false, true, true},
};

constexpr emulator::Schedule kAny = emulator::Schedule::kRandom;

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

Case make_case(gpu::Kernel kernel) {
  Case c;
  c.kernel = kernel;
  Problem& p = c.setup.problem;
  p.cell = Cell::kGru, p.directions = 1, p.I = 2, p.B = 3, p.T = kThreadSanitizer ? 3 : 6;
  // Several chunks of k; as threads, few blocks that still exchange h and parts of sums.
  p.H = kThreadSanitizer && kernel != kStep ? 31 : 65;
  return c;
}

void run_case(gpu::Kernel kernel, uint64_t seed, double& worst, emulator::Schedule schedule) {
  const Case c = make_case(kernel);
  if (kernel == kStream)
    compare_stream<Bfloat16>({c.setup, 2}, seed, worst, {schedule});
  else
    compare<Bfloat16>(c, seed, worst, {schedule});
}

// In the child. Numbers that are wrong end it at once, as does a report.
[[noreturn]] void run(const Planted& planted) {
  emulator::planted = planted.fault;
  waiting_is_free = true;
  emulator::settings.multiprocessors = kThreadSanitizer || planted.registers ? 4 : 16;
  if (planted.registers) {
    Problem p = make_case(kPersistent).setup.problem;
    p.dtype = Dtype::kBfloat16;
    squeeze(p, false);
  }
  double worst = 0;
  try {
    for (uint64_t seed = 1; seed <= (kThreadSanitizer ? 1 : 4); ++seed)
      for (emulator::Schedule schedule : emulator::kSchedules) {
        // Threads race or do not, whatever the schedule.
        if (kThreadSanitizer && planted.fault == Fault::kNone && schedule != kAny) continue;
        run_case(planted.kernel, seed, worst, schedule);
        if (failed) std::exit(kWrongNumbers);
      }
  } catch (const emulator::Failure& failure) {
    std::printf("  %s\n", failure.what());
    std::exit(kReport);
  }
  std::exit(kUnnoticed);
}

const char* verdict_of(int status) {
  if (!WIFEXITED(status)) return "crash";
  switch (WEXITSTATUS(status)) {
    case kUnnoticed:
      return "";
    case kWrongNumbers:
      return "numbers";
    case kReport:
      return "report";
    case kRace:
      return "race";
    default:
      return "sanitizer";
  }
}

}  // namespace

int main() {
  std::printf("| fault | caught by |\n|---|---|\n");
  for (const Planted& planted : kPlanted) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      if (!std::getenv("FASTRNN_SHOW_FAULTS") && !std::freopen("/dev/null", "w", stdout)) _exit(1);
      if (!std::getenv("FASTRNN_SHOW_FAULTS") && !std::freopen("/dev/null", "w", stderr)) _exit(1);
      run(planted);
    }
    int status = 0;
    waitpid(child, &status, 0);
    const std::string verdict = verdict_of(status);
    std::printf("| %s | %s |\n", planted.name, verdict.c_str());
    const bool expected = kThreadSanitizer ? planted.thread_sanitizer : planted.plain;
    if (expected) EXPECT(!verdict.empty(), planted.name << " was not caught");
    if (planted.fault == Fault::kNone) EXPECT(verdict.empty(), "reports without a fault");
  }
  return finish("test_faults");
}
