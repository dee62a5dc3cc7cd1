// All kernels of one format; compiled once for each, FASTRNN_CUDA_FORMAT naming its row of the list
// below.
#include "cells/list.h"
#include "run_persistent.cuh"
#include "run_stream.cuh"

namespace fastrnn::cuda {
namespace {

using Float32 = Plain<float>;
using Float64 = Plain<double>;

bool persistent(const Plan& plan) { return plan.kernel == Kernel::kPersistent; }

template <class C, class F>
void run_forward(const Problem& p, const Plan& plan, const ForwardBuffers& b, Stream stream) {
  return persistent(plan) ? persistent_run<C, F>(p, plan, b, stream)
                          : step_forward<C, F>(p, plan, b, stream);
}
template <class C, class F>
void run_backward(const Problem& p, const Plan& plan, const BackwardBuffers& b, Stream stream) {
  return persistent(plan) ? persistent_run_backward<C, F>(p, plan, b, stream)
                          : step_backward<C, F>(p, plan, b, stream);
}
template <class C, class F>
size_t workspace(const Problem& p, const Plan& plan) {
  if (plan.backward)
    return persistent(plan) ? PersistentBackwardWorkspace<C, F>(p, plan, nullptr).pieces.used()
                            : BackwardWorkspace<C, F>(p, nullptr).pieces.used();
  return persistent(plan) ? PersistentWorkspace<C, F>(p, plan, nullptr).pieces.used()
                          : ForwardWorkspace<C, F>(p, nullptr).pieces.used();
}
template <class C, class F>
int64_t shared_bytes(const Problem& p, const Plan& plan) {
  if (plan.kernel == Kernel::kStream) return StreamBlock<StreamTask<C, F>>::shared_bytes(plan.rows);
  if (plan.backward)
    return persistent(plan) ? backward_shape<C, F>(p, plan).bytes()
                            : StepTile<BackwardChain<C, F>>::shared_bytes(plan.rows);
  if (persistent(plan) && p.P) return projected_task<C, F>(p, plan).bytes();
  return persistent(plan) ? forward_shape<C, F>(p, plan).bytes()
                          : StepTile<ForwardGates<C, F>>::shared_bytes(plan.rows);
}
template <class C, class F>
int64_t weight_bytes(const Problem& p, const Plan& plan) {
  if (!persistent(plan)) return 0;
  if (p.P) return projected_task<C, F>(p, plan).weight_bytes();
  return plan.backward ? backward_shape<C, F>(p, plan).weight_bytes()
                       : forward_shape<C, F>(p, plan).weight_bytes();
}

template <class C, class F>
int64_t register_bytes(const Problem& p, const Plan& plan) {
  if (!persistent(plan) || p.P) return 0;
  return plan.backward ? backward_shape<C, F>(p, plan).register_bytes()
                       : forward_shape<C, F>(p, plan).register_bytes();
}

// Without a compiler for CUDA there are no kernels to run, but plans can be made all the same.
#ifdef FASTRNN_PLANS_ONLY
#define FASTRNN_RUN(...) nullptr
#else
#define FASTRNN_RUN(...) __VA_ARGS__
#endif

template <class F>
const Functions& table(Cell cell) {
#define FASTRNN_ROW(type, enumerator, name)                             \
  static const Functions k##type = {FASTRNN_RUN(run_forward<type, F>),  \
                                    FASTRNN_RUN(run_backward<type, F>), \
                                    FASTRNN_RUN(stream_run<type, F>),   \
                                    workspace<type, F>,                 \
                                    shared_bytes<type, F>,              \
                                    weight_bytes<type, F>,              \
                                    register_bytes<type, F>};           \
  if (cell == enumerator) return k##type;
  FASTRNN_CELLS(FASTRNN_ROW)
#undef FASTRNN_ROW
  return table<F>(static_cast<Cell>(0));
}

}  // namespace

#define FASTRNN_FORMAT_float32 Float32
#define FASTRNN_FORMAT_tf32 Tf32
#define FASTRNN_FORMAT_float64 Float64
#define FASTRNN_FORMAT_bfloat16 Halves<Bfloat16>
#define FASTRNN_FORMAT_float16 Halves<Float16>
#define FASTRNN_JOIN(a, b) a##b
#define FASTRNN_DEFINE(format)                                   \
  const Functions& FASTRNN_JOIN(format, _functions)(Cell cell) { \
    return table<FASTRNN_JOIN(FASTRNN_FORMAT_, format)>(cell);   \
  }
FASTRNN_DEFINE(FASTRNN_CUDA_FORMAT)

}  // namespace fastrnn::cuda
