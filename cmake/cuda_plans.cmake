# fastrnn._cuda where there is no compiler for CUDA: it plans, and says that it has no kernels. Plans
# need the kernels' sizes but not the kernels, so the host's compiler reads them as it does for the
# emulator.
set(cuda ${PROJECT_SOURCE_DIR}/cuda)
set(plans_only -DFASTRNN_ISA=cuda -DFASTRNN_EMULATED -DFASTRNN_PLANS_ONLY
               "SHELL:-iquote ${PROJECT_SOURCE_DIR}/tests")
pybind11_add_module(_cuda MODULE NO_EXTRAS ${cuda}/module.cpp ${cuda}/plan.cpp ${cuda}/api.cpp)
target_compile_options(_cuda PRIVATE ${plans_only})
target_compile_definitions(_cuda PRIVATE FASTRNN_CUDA_MODULE=_cuda)
target_include_directories(_cuda PRIVATE csrc/include)
set_source_files_properties(${cuda}/kernels.cu PROPERTIES LANGUAGE CXX)
foreach(format float32 tf32 float64 bfloat16 float16)
  add_library(cuda_plans_${format} OBJECT ${cuda}/kernels.cu)
  target_compile_options(cuda_plans_${format} PRIVATE "SHELL:-x c++" ${plans_only})
  target_compile_definitions(cuda_plans_${format} PRIVATE FASTRNN_CUDA_FORMAT=${format})
  target_include_directories(cuda_plans_${format} PRIVATE csrc/include)
  target_link_libraries(_cuda PRIVATE cuda_plans_${format})
endforeach()
install(TARGETS _cuda DESTINATION fastrnn COMPONENT python)
