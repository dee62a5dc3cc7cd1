// Runs CUDA kernels on one CPU thread, one fiber for each CUDA thread, so that every run can be
// replayed from its schedule and seed. This is the runtime; primitives.h is what kernels see of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

namespace emulator {

// Who runs next: threads in order, in reversed order, any, or one block for as long as it can.
enum class Schedule { kInOrder, kReversed, kRandom, kAhead };
constexpr Schedule kSchedules[] = {Schedule::kInOrder, Schedule::kReversed, Schedule::kRandom,
                                   Schedule::kAhead};

// FASTRNN_EMULATOR="<schedule> <seed>", as failures print it, overrides the first two.
struct Settings {
  Schedule schedule = Schedule::kInOrder;
  uint64_t seed = 1;
  int multiprocessors = 132;
  int threads_per_multiprocessor = 2048;
  int64_t shared_per_block = 232448;
  int64_t shared_per_multiprocessor = 233472;
};
extern Settings settings;

// What a test-only build plants in the kernels; the others ignore it.
enum class Fault {
  kNone,
  kMissingBarrier,
  kWaitCount,
  kDivergentBarrier,
  kPastTheEnd,
  kLaneMap,
  kNoRelease,
  kCountShort,
  kSingleBuffer,
  kUnsynchronised
};
extern Fault planted;

std::string describe_schedule();  // "random 7"

// A fault of the kernel: a deadlock, a divergence, a copy still in flight.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Site {
  const char* file;
  int line;
};

struct Index {
  int x = 1, y = 1, z = 1;
};

// CUDA's error codes.
constexpr int kInvalidValue = 1, kCooperativeLaunchTooLarge = 720;
int launch(const std::function<void()>& body, Index grid, int threads, int64_t shared_bytes,
           bool cooperative);

// What a running CUDA thread may call.
int thread_index();
Index block_index();
unsigned char* dynamic_shared();
void block_barrier(Site site);
void warp_barrier(Site site);
void spin(Site site);
void progress();  // a write that a spinning thread may wait for
[[noreturn]] void fail(const std::string& what, Site site);

// An asynchronous copy between its issue and its completion.
struct Copy {
  void* to;
  unsigned words[4];
  int group;
};
void cp_async_record(const Copy& copy, Site site);
void cp_async_commit();
// The next copy that a wait for all but the `pending` latest groups completes; null: no more.
const Copy* cp_async_complete(int pending);

// All lanes of a warp post a payload; the last to arrive computes for all. `operation` and the site
// must be the same for all.
using Lanes = void* const*;  // [32]
void rendezvous(void (*operation)(Lanes), void* payload, Site site);

// Payloads and operations of the collectives.
struct Shuffle {
  float value;
  int mask;
  float result;
};
void shuffle_xor(Lanes lanes);
struct Matrices {
  unsigned row[4];      // the 16 bytes that this lane's address holds
  unsigned* registers;  // [4]
};
void load_matrices(Lanes lanes);             // ldmatrix.x4
void load_matrices_transposed(Lanes lanes);  // ldmatrix.x4.trans
struct Product {
  float* sums;            // [4]
  const unsigned *a, *b;  // [4], [2]
};
void multiply_bfloat16(Lanes lanes);  // m16n8k16
void multiply_float16(Lanes lanes);   // m16n8k16
void multiply_tf32(Lanes lanes);      // m16n8k8

}  // namespace emulator
