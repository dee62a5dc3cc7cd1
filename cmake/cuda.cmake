# The module fastrnn._cuda: the CUDA runtime is linked into it, torch is not.
include(${CMAKE_CURRENT_LIST_DIR}/cuda_toolkit.cmake)
if(NOT FASTRNN_CUDA_BUILT)
  return()
endif()

set(CMAKE_CUDA_COMPILER "${FASTRNN_NVCC}")
set(CMAKE_CUDA_ARCHITECTURES OFF)  # each target names its own
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)

# Machine code of every architecture but the last, which has its PTX too.
function(fastrnn_set_architectures target)
  set(numbers ${ARGN})
  list(POP_BACK numbers last)
  list(TRANSFORM numbers APPEND "-real")
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${numbers};${last}")
endfunction()

add_library(fastrnn_cuda STATIC cuda/plan.cpp cuda/api.cpp cuda/device.cu)
target_include_directories(fastrnn_cuda PUBLIC csrc/include)
target_compile_options(fastrnn_cuda PRIVATE -DFASTRNN_ISA=cuda)
fastrnn_set_architectures(fastrnn_cuda ${FASTRNN_CUDA_ARCHITECTURES})

# kernels.cu once for each format.
foreach(format float32 tf32 float64 bfloat16 float16)
  set(architectures ${FASTRNN_CUDA_ARCHITECTURES})
  if(format MATCHES "tf32|bfloat16")
    list(REMOVE_ITEM architectures 75)
    if(NOT architectures)
      set(architectures 80)  # never launched on sm_75: plan() refuses
    endif()
  endif()
  set(library fastrnn_cuda_${format})
  add_library(${library} OBJECT cuda/kernels.cu)
  target_include_directories(${library} PRIVATE csrc/include)
  target_compile_definitions(${library} PRIVATE FASTRNN_ISA=cuda FASTRNN_CUDA_FORMAT=${format})
  fastrnn_set_architectures(${library} ${architectures})
  target_link_libraries(fastrnn_cuda PRIVATE ${library})
endforeach()

pybind11_add_module(_cuda MODULE NO_EXTRAS cuda/module.cpp)
target_compile_definitions(_cuda PRIVATE FASTRNN_CUDA_MODULE=_cuda)
target_link_libraries(_cuda PRIVATE fastrnn_cuda)
target_link_options(_cuda PRIVATE "LINKER:--exclude-libs,ALL")
set_target_properties(_cuda PROPERTIES LINKER_LANGUAGE CXX)
install(TARGETS _cuda DESTINATION fastrnn COMPONENT python)
