# Every target sets up what it needs in .venv; nothing else on the machine is touched.
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(VENV)/bin
PRESET ?= toy
ifeq ($(PRESET),toy)
CHECKPOINTS ?= export/predict2_export/toyworld/weights
else
CHECKPOINTS ?= build/checkpoints
endif
SERVED := build/served/$(PRESET)
# Passed to pip, for example: make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_FLAGS ?=
# Of gpu: sections to run, such as "time-2b-*"; make gpu ONLY=--list prints them
ONLY ?=
# Of tensorrt-gpu: the full size it builds besides the toy, and tensorrt or tensorrt_rtx
TENSORRT_PRESET ?= 2b-480p-16fps
TENSORRT_FLAVOUR ?= tensorrt

.DEFAULT_GOAL := help
.PHONY: help setup demo test check types serve bench quality gpu report tensorrt-gpu promtool format clean

help:  ## Print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# A library that was made of other sources would be called with arguments that it doesn't take.
KERNELS := $(wildcard kernels/*.cpp $(foreach kind,cu cuh cpp h,kernels/*/*.$(kind) kernels/include/predict2/*.$(kind)))

$(VENV)/.installed: pyproject.toml constraints.txt CMakeLists.txt kernels/CMakeLists.txt $(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) --quiet --disable-pip-version-check -c constraints.txt -e ".[server,export,test,dev]"
	touch $@

# What tests use beside it: the quantizer and a builder of TensorRT engines that needs no GPU.
$(VENV)/.installed-for-tests: $(VENV)/.installed
	$(BIN)/pip install $(PIP_FLAGS) --quiet --disable-pip-version-check -c constraints.txt "cosmos-predict2-triton[fp8,tensorrt-rtx]"
	touch $@

setup: $(VENV)/.installed  ## Make the environment

.PHONY: $(SERVED)/repository.json
$(SERVED)/repository.json: | $(VENV)/.installed
	$(BIN)/predict2-export build --preset $(PRESET) --checkpoints $(CHECKPOINTS) --output $(SERVED)

demo: $(SERVED)/repository.json  ## Generate a picture and a clip from text through a real Triton
	$(BIN)/predict2-serve $(SERVED) --http-port 0 --grpc-port 0 --metrics-port 0 -- $(BIN)/predict2 demo --output_dir output/demo

test: $(VENV)/.installed-for-tests  ## Run every test that needs no GPU
	$(BIN)/pytest -q -m "not gpu and not tensorrt and not weights and not slow"

check: $(VENV)/.installed  ## Lint, formatting, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory types
	$(BIN)/lint-imports
	git ls-files '*.cu' '*.cuh' '*.h' '*.cpp' | xargs -r $(BIN)/clang-format --dry-run --Werror

types: $(VENV)/.installed  ## Types of what uses TensorRT, against its real bindings; part of check
	$(BIN)/python tests/types/check_tensorrt.py build/types

serve: $(SERVED)/repository.json  ## Serve PRESET (toy) on this machine until Ctrl-C
	$(BIN)/predict2-serve $(SERVED)

bench: build/served/toy/repository.json  ## Measure the toy server on this machine; results go to benchmarks/results
	$(BIN)/predict2-serve build/served/toy --http-port 0 --grpc-port 0 --metrics-port 0 -- sh -c '$(BIN)/python -m benchmarks.serving.bench_tasks --url $$PREDICT2_URL --repository build/served/toy'
	$(BIN)/python -m benchmarks.serving.bench_overhead --repository build/served/toy
	$(BIN)/python -m benchmarks.serving.bench_sweep --repository build/served/toy; failed=$$?; $(BIN)/python -m benchmarks.report; exit $$failed

quality: | $(VENV)/.installed-for-tests  ## Judge what the toy's weights draw, and hold both kinds of the level fp8 against exact (some 15 minutes)
	$(BIN)/python -m benchmarks.quality.bench_quality --output output/quality

# Needs CUDA, nvcc, cmake and a python with torch, pytest and array-api-compat; no TensorRT, no network.
GPU_PATH := spec:kernels:runtime:export:client
gpu:  ## On a GPU machine: correctness first, then benchmarks, in sections (ONLY=...); results go to benchmarks/results
	PYTHONPATH=$(GPU_PATH) $(PYTHON) -m benchmarks.gpu $(foreach name,$(ONLY),'$(name)')

report: $(VENV)/.installed  ## Make the tables and plots of docs/ from benchmarks/results
	$(BIN)/python -m benchmarks.report

# Needs a GPU, nvcc, cmake and a python with this package, its extras export, gpu and test, and TensorRT.
tensorrt-gpu:  ## On a GPU machine with TensorRT: plugins, plans and their times
	PYTHON=$(PYTHON) TENSORRT_PRESET=$(TENSORRT_PRESET) TENSORRT_FLAVOUR=$(TENSORRT_FLAVOUR) benchmarks/tensorrt_gpu.sh

promtool: build/tools/promtool  ## Fetch Prometheus's promtool from Debian for the tests of the alerts; needs no root
build/tools/promtool:
	mkdir -p $@.deb && cd $@.deb && apt-get -qq download prometheus && dpkg -x prometheus_*.deb .
	mv $@.deb/usr/bin/promtool $@ && rm -r $@.deb

format: $(VENV)/.installed  ## Rewrite files the way `make check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.cu' '*.cuh' '*.h' '*.cpp' | xargs -r $(BIN)/clang-format -i

clean:  ## Remove everything that make made
	rm -rf $(VENV) build output
