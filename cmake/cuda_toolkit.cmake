# Decides whether the CUDA kernels are built and with what, and says what to do where they cannot be.
# Sets FASTRNN_CUDA_BUILT and, if it is true, FASTRNN_NVCC. `cmake -P` runs it alone.
cmake_minimum_required(VERSION 3.21)

set(FASTRNN_CUDA AUTO CACHE STRING "Build the CUDA kernels: ON, OFF, or AUTO, when nvcc is found")
# sm_75 has no bfloat16 and no TF32: those formats are left out of it.
set(FASTRNN_CUDA_SUPPORTED 75 80 86 89 90 100 120)
set(FASTRNN_CUDA_ARCHITECTURES "${FASTRNN_CUDA_SUPPORTED}" CACHE STRING
    "GPUs the CUDA kernels are compiled for; the last one's PTX is for all later ones")
set(FASTRNN_CUDA_OLDEST 12.8)  # the first to know sm_100 and sm_120

set(FASTRNN_CUDA_BUILT FALSE)
string(TOUPPER "${FASTRNN_CUDA}" wanted)
if(NOT wanted MATCHES "^(AUTO|ON|OFF|TRUE|FALSE|1|0)$")
  message(FATAL_ERROR "FASTRNN_CUDA must be AUTO, ON or OFF, got ${FASTRNN_CUDA}")
endif()
if(wanted MATCHES "^(OFF|FALSE|0)$")
  return()
endif()

foreach(architecture IN LISTS FASTRNN_CUDA_ARCHITECTURES)
  if(NOT architecture IN_LIST FASTRNN_CUDA_SUPPORTED)
    message(FATAL_ERROR
      "FASTRNN_CUDA_ARCHITECTURES has ${architecture}, which the CUDA kernels are not written for. "
      "Supported: ${FASTRNN_CUDA_SUPPORTED}. A GPU that is not listed runs the code of the nearest "
      "smaller number with the same first digits (8.7: 86, 12.1: 120), a newer one the PTX of the "
      "last")
  endif()
endforeach()
if(NOT FASTRNN_CUDA_ARCHITECTURES)
  message(FATAL_ERROR "FASTRNN_CUDA_ARCHITECTURES is empty. Supported: ${FASTRNN_CUDA_SUPPORTED}")
endif()

set(cure "install the CUDA toolkit, ${FASTRNN_CUDA_OLDEST} or later, or set CUDACXX to its nvcc")
unset(FASTRNN_NVCC CACHE)
if(DEFINED ENV{CUDACXX})
  find_program(FASTRNN_NVCC "$ENV{CUDACXX}" NO_CACHE)
  set(sought "CUDACXX is $ENV{CUDACXX}, which is no program")
else()
  find_program(FASTRNN_NVCC nvcc NO_CACHE HINTS ENV CUDA_PATH ENV CUDA_HOME PATH_SUFFIXES bin)
  if(NOT FASTRNN_NVCC)
    find_program(FASTRNN_NVCC nvcc NO_CACHE PATHS /usr/local/cuda/bin)
  endif()
  set(sought "it is neither in PATH nor in /usr/local/cuda/bin")
endif()
if(NOT FASTRNN_NVCC)
  if(wanted STREQUAL "AUTO")
    message(STATUS "nvcc not found (${sought}): building the CPU-only package; to build the CUDA "
                   "kernels, ${cure}")
    return()
  endif()
  message(FATAL_ERROR "FASTRNN_CUDA=${FASTRNN_CUDA}, but nvcc was not found: ${sought}. To build the "
                      "CUDA kernels, ${cure}; for a CPU-only package, set FASTRNN_CUDA=OFF")
endif()

execute_process(COMMAND "${FASTRNN_NVCC}" --version RESULT_VARIABLE failed OUTPUT_VARIABLE version
                ERROR_VARIABLE version)
if(failed OR NOT version MATCHES "release ([0-9]+\\.[0-9]+)")
  message(FATAL_ERROR "${FASTRNN_NVCC} --version does not work (${failed}): ${version}\n"
                      "To build the CUDA kernels, ${cure}; for a CPU-only package, set "
                      "FASTRNN_CUDA=OFF")
endif()
set(version "${CMAKE_MATCH_1}")
if(version VERSION_LESS FASTRNN_CUDA_OLDEST)
  message(FATAL_ERROR "${FASTRNN_NVCC} is of CUDA ${version}, the CUDA kernels need "
                      "${FASTRNN_CUDA_OLDEST} or later: ${cure}; for a CPU-only package, set "
                      "FASTRNN_CUDA=OFF")
endif()
set(FASTRNN_CUDA_BUILT TRUE)
message(STATUS "CUDA kernels: nvcc ${version} (${FASTRNN_NVCC}), "
               "architectures ${FASTRNN_CUDA_ARCHITECTURES}")
