# Every target does its own set-up in .venv: `make demo` or `make test` is all a fresh machine needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
TORCH ?= torch==2.13.0
DEMO_ARGS ?=
TEST_ARGS ?=
# What `make versions` tries: the oldest that the package takes, and the newest.
TORCH_VERSIONS ?= 2.4.0 2.13.0 2.14.1
ESN_ARGS ?=
JOBS := $(shell nproc 2>/dev/null || echo 2)
# The CUDA kernels take nvcc minutes: `make install CUDA=ON` builds them, for these architectures.
CUDA ?= OFF
CUDA_ARCHITECTURES ?=
BENCH_ARGS ?= --json gpu-bench.json --png gpu-bench.png
# As many test processes as processors, up to eight; nothing: the tests run in one.
PARALLEL ?= -n auto --maxprocesses 8 --dist worksteal

VENV := $(CURDIR)/.venv
INSTALLED := $(VENV)/.installed-cuda-$(CUDA)
export PATH := $(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SOURCES := $(shell find csrc cuda python -type f -not -name '*.pyc') $(wildcard cmake/*)
CXX_FILES = $(shell find csrc cuda tests/cpp tests/cuda_emulator examples/cpp \
  -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | sort | awk -F'\t' '{printf "  %-10s %s\n", $$1, $$2}'

# torch comes first and pinned, so that no resolver picks another build. The build tools stand beside
# it because the package is built without isolation: then only what changed compiles again. The pip of
# Debian 12 and Ubuntu 22.04 is too old for its option -C.
$(VENV)/.tools:
	$(PYTHON) -m venv --upgrade-deps $(VENV)
	pip install $(TORCH) scikit-build-core pybind11 cmake ninja
	touch $@

$(INSTALLED): $(VENV)/.tools pyproject.toml CMakeLists.txt $(SOURCES)
	rm -f $(VENV)/.installed*
	pip install --no-build-isolation $(CUDA_BUILD) '.[dev]'
	pip install --no-deps aeon || echo "aeon, for its data alone, is not there: a test will be skipped"
	touch $@

CUDA_BUILD = -C cmake.define.FASTRNN_CUDA=$(CUDA) \
  $(if $(CUDA_ARCHITECTURES),-C "cmake.define.FASTRNN_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)")

.PHONY: install demo test bench esn-tasks
install: $(INSTALLED)  ## build and install into .venv

demo: $(INSTALLED)  ## train the digit classifier; options: DEMO_ARGS="--data DIR"
	python examples/digits_rows.py $(DEMO_ARGS)

test: $(INSTALLED)  ## run the Python tests; options: TEST_ARGS="-k lstm"
	python -m pytest $(PARALLEL) $(TEST_ARGS)

esn-tasks: $(INSTALLED)  ## accuracy of echo state networks; options: ESN_ARGS="--quick"
	python benchmarks/esn_tasks.py $(ESN_ARGS)

bench: $(INSTALLED)  ## time fastrnn beside torch, quick mode
	python benchmarks/run.py --quick

.PHONY: isa-test cpp-test asan asan-python tsan neon example versions
# The best one is what `make test` runs on. Where it is amx or avx512_bf16, all but bfloat16 and int8
# was avx512's code, so that of those that it stands on only the tests that know these are repeated.
isa-test: $(INSTALLED)  ## the core of the Python tests, each further instruction set of this machine forced
	best=$$(python -c "import fastrnn; print(fastrnn.isa())"); \
	isas=$$(python -c "import fastrnn; print(*fastrnn.available_isas())"); \
	for isa in $$isas; do \
	  if [ $$isa = $$best ]; then continue; fi; \
	  tests=; case $$best-$$isa in amx-avx512* | avx512_bf16-avx512) \
	    tests=$$(echo tests/test_{isa,reduced,quantize,checkpoint,cells}*.py);; \
	  esac; \
	  echo "FASTRNN_ISA=$$isa"; \
	  FASTRNN_ISA=$$isa python -m pytest -q -m core $(PARALLEL) $$tests $(TEST_ARGS); \
	done

# $(call cpp-test,DIRECTORY,CMAKE OPTIONS[,SOME TESTS])
define cpp-test
	cmake -S . -B build/$(1) -G Ninja -DFASTRNN_BUILD_TESTS=ON $(2)
	cmake --build build/$(1) -j $(JOBS) $(if $(3),--target $(3))
	ctest --test-dir build/$(1) --output-on-failure -j $(JOBS) \
	  $(if $(3),-R '^($(subst $(space),|,$(3)))$$')
endef

space := $(empty) $(empty)
# -O1: with the sanitizers' checks in it, -O3 takes long to compile and runs no faster.
SANITIZED := -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O1
ASAN := address,undefined
# What takes longest is to compile kernels: left out are those that cannot run here. Threads are the
# same for all.
has = $(shell grep -m 1 -o -w $(1) /proc/cpuinfo 2>/dev/null)
ASAN_SKIP := $(subst $(space),;,$(strip $(if $(call has,avx512f),,avx512) \
  $(if $(call has,avx512_bf16),,avx512_bf16) $(if $(call has,amx_tile),,amx)))
TSAN_SKIP := avx2;avx512;avx512_bf16;amx
MODULE = -DFASTRNN_BUILD_PYTHON=ON -DFASTRNN_CUDA=OFF -Dpybind11_DIR=$$(pybind11-config --cmakedir) \
  -DPython_EXECUTABLE=$(VENV)/bin/python
# Sanitizers and qemu are slow: their runs thin out the longest loops.
asan asan-python tsan neon: export FASTRNN_TEST_QUICK := 1
neon: export FASTRNN_TEST_NO_FORK := 1

cpp-test: $(VENV)/.tools  ## C++ tests, warnings are errors
	$(call cpp-test,cpp,-DFASTRNN_WERROR=ON $(MODULE))

asan: $(VENV)/.tools  ## C++ tests under AddressSanitizer and UBSan
	$(call cpp-test,asan,$(SANITIZED) -DFASTRNN_SANITIZE=$(ASAN) \
	  '-DFASTRNN_SKIP_ISAS=$(ASAN_SKIP)' $(MODULE))

# The sanitizers' run-time libraries must be loaded before everything else. torch's own leaks, and
# its symbols in several libraries, are not ours to report.
asan-python: $(INSTALLED) asan  ## the core of the Python tests under AddressSanitizer and UBSan
	rm -rf build/asan/python && mkdir -p build/asan/python
	cp -r python/fastrnn build/asan/python/ && cp build/asan/_c*.so build/asan/python/fastrnn/
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 PYTHONPATH=$(CURDIR)/build/asan/python \
	  python -m pytest -q -m core $(PARALLEL) $(TEST_ARGS)

tsan: $(VENV)/.tools  ## C++ tests of threads and of the engine under ThreadSanitizer
	$(call cpp-test,tsan,$(SANITIZED) -DFASTRNN_SANITIZE=thread \
	  '-DFASTRNN_SKIP_ISAS=$(TSAN_SKIP)',test_threads test_engine test_contract)

neon: $(VENV)/.tools  ## C++ tests for Arm under qemu (g++-aarch64-linux-gnu, qemu-user)
	$(call cpp-test,neon,-DFASTRNN_WERROR=ON \
	  -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake)

# $(call cuda-test,DIRECTORY,CMAKE OPTIONS): only what the emulator's tests need is built.
define cuda-test
	cmake -S . -B build/$(1) -G Ninja -DFASTRNN_BUILD_CUDA_EMULATOR=ON -DFASTRNN_WERROR=ON $(2)
	cmake --build build/$(1) -j $(JOBS) --target tests/cuda_emulator/all
	ctest --test-dir build/$(1) --output-on-failure -j $(JOBS)
endef

# Tests of the layers that hold for every engine.
EVERY_ENGINE := $(addprefix tests/test_,packed.py lengths.py reset_mask.py autocast.py \
  functional.py transforms.py)

.PHONY: cuda-emulator cuda-tsan cuda-check cuda-python gpu-check gpu-bench
cuda-python: $(INSTALLED)  ## the Python way to the CUDA engine, its kernels emulated
	cmake -S . -B build/cuda-python -G Ninja -DFASTRNN_BUILD_CUDA_EMULATOR=ON -DFASTRNN_WERROR=ON $(MODULE)
	cmake --build build/cuda-python -j $(JOBS) --target _cuda_emu
	python -m pytest $(PARALLEL) tests/cuda tests/test_gpu*.py $(TEST_ARGS)
	python -m pytest $(PARALLEL) --cuda-emulated $(EVERY_ENGINE) $(TEST_ARGS)

cuda-emulator: $(VENV)/.tools  ## the CUDA kernels on an emulated GPU, under ASan and UBSan
	$(call cuda-test,cuda-emulator,-DFASTRNN_SANITIZE=$(ASAN))

cuda-tsan: $(VENV)/.tools  ## small cases of them, each CUDA thread a thread of ThreadSanitizer
	$(call cuda-test,cuda-tsan,-DFASTRNN_SANITIZE=thread)

cuda-check: wheel-cuda  ## the machine code in the CUDA wheel, every architecture, read
	python tests/cuda_static.py dist/*.whl

# Before anything is built it says so where there is no GPU.
gpu-check:  ## for GPU owners: tests and compute-sanitizer on the GPU, one report file
	architecture=$$($(PYTHON) tests/gpu_check.py --architecture); \
	$(MAKE) install CUDA=ON CUDA_ARCHITECTURES=$$architecture; \
	python tests/gpu_check.py

gpu-bench:  ## for GPU owners: times beside cuDNN, haste and FlashRNN: BENCH_ARGS="--set quick"
	architecture=$$($(PYTHON) tests/gpu_check.py --architecture); \
	$(MAKE) install CUDA=ON CUDA_ARCHITECTURES=$$architecture; \
	python benchmarks/gpu.py $(BENCH_ARGS)

example: cpp-test $(INSTALLED)  ## the installed C++ library, used by examples/cpp
	cmake --install build/cpp --component cpp --prefix build/prefix
	cmake -S examples/cpp -B build/example -G Ninja -DCMAKE_PREFIX_PATH=$(CURDIR)/build/prefix
	cmake --build build/example
	python examples/cpp/export_lstm.py build/example/lstm.bin
	build/example/lstm build/example/lstm.bin

.PHONY: lint format
lint: $(INSTALLED)  ## ruff, mypy, clang-format and clang-tidy, changing nothing
	ruff check
	ruff format --check
	mypy
	clang-format --dry-run -Werror $(CXX_FILES)
	cmake -S . -B build/cpp -G Ninja -DFASTRNN_BUILD_TESTS=ON $(MODULE) >/dev/null
	find csrc cuda tests/cpp -name '*.cpp' | xargs -P $(JOBS) -n 1 clang-tidy -p build/cpp --quiet

format: $(INSTALLED)  ## let ruff and clang-format rewrite the files
	ruff check --fix
	ruff format
	clang-format -i $(CXX_FILES)

.PHONY: sdist wheel wheel-cuda clean
sdist: $(INSTALLED)  ## source distribution in dist/
	python -m build --sdist

# The wheel is built from the sdist, in isolation, as a user's pip would.
define build-wheel
	rm -rf dist build/wheel build/smoke
	python -m build --outdir build/wheel $(1)
	mkdir -p dist && cp build/wheel/*.tar.gz dist/
	auditwheel repair -w dist build/wheel/*.whl $(2)
	$(PYTHON) -m venv build/smoke
	build/smoke/bin/pip install $(TORCH) dist/*.whl
endef
# What a wheel with the kernels of every architecture may weigh.
LARGEST_WHEEL := 60000000

wheel: $(INSTALLED)  ## wheel in dist/, tried in an empty environment
	$(call build-wheel,,|| cp build/wheel/*.whl dist/)
	cd build/smoke && bin/python ../../.ci/smoke.py

# Without nvcc in the path and without a GPU it must be imported all the same.
wheel-cuda: $(INSTALLED)  ## wheel with the CUDA kernels too, tried without nvcc and GPU
	$(call build-wheel,-C cmake.define.FASTRNN_CUDA=ON -C cmake.define.FASTRNN_WERROR=ON)
	size=$$(stat -c %s dist/*.whl); echo "CUDA wheel: $$size bytes of at most $(LARGEST_WHEEL)"; \
	  test $$size -le $(LARGEST_WHEEL)
	cd build/smoke && PATH=/usr/bin:/bin CUDA_VISIBLE_DEVICES= bin/python ../../.ci/smoke.py --cuda

# The wheel, not the source tree. torch's own wheels bring several gigabytes each, so one at a time.
versions: wheel  ## the core of the Python tests with other versions of torch: TORCH_VERSIONS="2.4.0"
	for torch in $(TORCH_VERSIONS); do \
	  echo "torch $$torch"; rm -rf build/versions; $(PYTHON) -m venv build/versions; \
	  build/versions/bin/pip install -q torch==$$torch "$$(ls dist/*.whl)[test]"; \
	  build/versions/bin/python -m pytest -q -m core $(PARALLEL); rm -rf build/versions; \
	done

clean:  ## remove what the other targets made
	rm -rf .venv build dist
