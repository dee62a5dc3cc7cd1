// From a problem and its plan to the launches.
#include <string>

#include "check.h"
#include "launch.h"

namespace fastrnn::cuda {

const Functions& functions(Cell cell, Format format) {
  switch (format) {
    case kFormatFloat64:
      return float64_functions(cell);
    case kFormatBfloat16:
      return bfloat16_functions(cell);
    case kFormatFloat16:
      return float16_functions(cell);
    case kFormatTf32:
      return tf32_functions(cell);
    case kFormatFloat32:
      break;
  }
  return float32_functions(cell);
}

namespace {

const Functions& functions_of(const Problem& p, const Plan& plan) {
  return functions(p.cell, format_of(p.dtype, plan.tf32));
}

void check_weights(const Problem& p, const void* const (&w_hh)[2], const void* const (&w_hr)[2]) {
  for (int d = 0; d < p.directions; ++d) {
    FASTRNN_CHECK(w_hh[d], "w_hh of direction " << d << " must not be null");
    FASTRNN_CHECK(!p.P || w_hr[d], "w_hr of direction " << d << " must not be null when P > 0");
  }
}

}  // namespace

Sizes sizes(const Problem& p, const Plan& plan) {
  Sizes s;
  s.workspace = functions_of(p, plan).workspace(p, plan);
  s.saved = layout(p.cell).saved + (p.P > 0);
  return s;
}

void forward(const Problem& p, const Plan& plan, const ForwardBuffers& b, Stream stream) {
  FASTRNN_CHECK(!plan.backward && plan.kernel != Kernel::kStream,
                "plan must be one of the forward pass");
  if (p.B == 0) return;
  check_weights(p, b.w_hh, b.w_hr);
  const Sizes s = sizes(p, plan);
  FASTRNN_CHECK(!p.ragged || b.offsets, "offsets must not be null when the problem is ragged");
  FASTRNN_CHECK(b.wx[0] && (p.directions == 1 || b.wx[1]), "wx must not be null");
  FASTRNN_CHECK(b.y && b.h_n, "y and h_n must not be null");
  FASTRNN_CHECK(layout(p.cell).states == 1 || b.c_n, "c_n must not be null");
  FASTRNN_CHECK(!p.training || !s.saved || b.reserve, "reserve must not be null when training");
  FASTRNN_CHECK(!s.workspace || b.workspace, "workspace must have " << s.workspace << " bytes");
  functions_of(p, plan).forward(p, plan, b, stream);
}

void backward(const Problem& p, const Plan& plan, const BackwardBuffers& b, Stream stream) {
  FASTRNN_CHECK(plan.backward, "plan must be one of the backward pass");
  if (p.B == 0) return;
  check_weights(p, b.w_hh, b.w_hr);
  const Sizes s = sizes(p, plan);
  FASTRNN_CHECK(!p.ragged || b.offsets, "offsets must not be null when the problem is ragged");
  for (int d = 0; d < p.directions; ++d) {
    FASTRNN_CHECK(b.dgates[d], "dgates of direction " << d << " must not be null");
    FASTRNN_CHECK(!p.P || b.dprojected[d], "dprojected must not be null when P > 0");
  }
  FASTRNN_CHECK(b.y, "y must not be null");
  FASTRNN_CHECK(!s.saved || b.reserve, "reserve must not be null");
  FASTRNN_CHECK(!s.workspace || b.workspace, "workspace must have " << s.workspace << " bytes");
  functions_of(p, plan).backward(p, plan, b, stream);
}

size_t stream_bytes(const Problem& p, const Plan& plan) {
  return StreamState(p, plan.layers, nullptr).bytes;
}

void stream_step(const Problem& p, const Plan& plan, const StreamBuffers& b, Stream stream) {
  FASTRNN_CHECK(plan.kernel == Kernel::kStream, "plan must be one of stream_plan()");
  if (p.B == 0) return;
  FASTRNN_CHECK(b.x && b.y && b.state && b.weights, "x, y, state and weights must not be null");
  for (int l = 0; l < plan.layers; ++l) {
    const Weights& w = b.weights[l];
    FASTRNN_CHECK(w.w_ih && w.w_hh, "w_ih and w_hh of layer " << l << " must not be null");
    FASTRNN_CHECK(!p.P || w.w_hr, "w_hr of layer " << l << " must not be null when P > 0");
  }
  functions_of(p, plan).stream(p, plan, b, stream);
}

}  // namespace fastrnn::cuda
