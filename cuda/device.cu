// What only the CUDA runtime knows.
#include <stdexcept>
#include <string>

#include "launch.h"
#include "primitives.cuh"

namespace fastrnn::cuda {

Versions versions() {
  Versions found;
  check_launch(query_versions(found), "no versions");
  return found;
}

Device device_properties() {
  Device device;
  check_launch(query_device(device), "no device");
  device.l2_gb_per_s = l2_gb_per_s(device);
  return device;
}

void check_launch(int code, const char* kernel) {
  if (code)
    throw std::runtime_error(std::string("CUDA error ") + std::to_string(code) + ", " +
                             error_text(code) + " (" + kernel + ")");
}

}  // namespace fastrnn::cuda
