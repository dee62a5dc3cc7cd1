// The instruction sets compiled into this library, and the one in use.
#pragma once

#include <string>
#include <vector>

namespace fastrnn {

struct Kernels;

// Best last. "baseline" always runs; the others only where processor and system support them, the
// function that returns the kernels included: it is compiled like them.
struct IsaEntry {
  const char* name;
  bool supported;
  const Kernels& (*kernels)();
};
const std::vector<IsaEntry>& isa_list();

// The kernels in use; the first call reads FASTRNN_ISA.
const IsaEntry& current_isa();

}  // namespace fastrnn
