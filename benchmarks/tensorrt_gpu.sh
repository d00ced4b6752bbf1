#!/usr/bin/env bash
# What only a GPU with TensorRT can show: plugins inside engines, plans against torch, their times. `make tensorrt-gpu` runs it.
# The python of PYTHON has this package with its extras export, gpu and test.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
flavour=${TENSORRT_FLAVOUR:-tensorrt}      # or tensorrt_rtx, on an RTX GPU
full_size=${TENSORRT_PRESET:-2b-480p-16fps} # built with random weights
work=build/tensorrt
toy=export/predict2_export/toyworld/weights
others=build/tensorrt-weights # random ones of the toy
export PYTHONPATH=spec:kernels:runtime:export:client
export="$python -m predict2_export.cli"

failed=()

# step COMMAND ARGUMENT...: what fails is told again at the end and doesn't keep the rest from being seen
step() {
    printf '\n== %s\n' "$*"
    "$@" || failed+=("$*")
}

# engine NAME ARGUMENT...: a repository of plans
engine() {
    local name=$1
    shift
    step $export engine --flavour "$flavour" --output "$work/$name" "$@"
}

# verify NAME ARGUMENT...: its plans beside torch
verify() {
    local name=$1
    shift
    step $export verify "$work/$name" --device cuda "$@"
}

$python -c "
import torch
from predict2_runtime.engines.bindings import bindings
print('$flavour', bindings('$flavour').__version__, 'torch', torch.__version__, torch.cuda.get_device_name())"
mkdir -p "$work"

if [ "$flavour" = tensorrt ]; then
    # kernels and plugins, with the headers of the TensorRT that is installed where they are found
    cmake -S . -B build/gpu -DCMAKE_BUILD_TYPE=Release
    cmake --build build/gpu
    cmake --install build/gpu --prefix kernels
    ours=(--plugins load --timing-cache "$work/timing.cache")
else
    ours=()
fi

for tests in tests/kernels tests/runtime/engines tests/export/test_to_engine_on_gpu.py; do # a process each: a registry keeps what it has
    step $python -m pytest -q -m "gpu and tensorrt" "$tests"
done

engine toy --checkpoints "$toy" "${ours[@]}"
verify toy --checkpoints "$toy"
verify toy --checkpoints "$toy" --shapes max --skip-onnxruntime
engine toy-recorded --checkpoints "$toy" --cuda-graphs 2 "${ours[@]}"
verify toy-recorded --checkpoints "$toy" --skip-onnxruntime
engine toy-fp8 --checkpoints "$toy" --level fp8 --device cuda "${ours[@]}"
verify toy-fp8 --checkpoints "$toy"
if [ "$flavour" = tensorrt ]; then
    engine toy-standard --checkpoints "$toy" --plugins none --workspace 8
    verify toy-standard --checkpoints "$toy" --skip-onnxruntime
    engine toy-compatible --checkpoints "$toy" --plugins serialize --version-compatible
    verify toy-compatible --checkpoints "$toy" --skip-onnxruntime
    engine toy-refit --checkpoints "$toy" --plugins load --refit
    verify toy-refit --checkpoints "$toy" --skip-onnxruntime
    step $export toy-weights --checkpoints "$others"
    step $export refit "$work/toy-refit" --checkpoints "$others"
    verify toy-refit --checkpoints "$others" --skip-onnxruntime
    engine toy-stripped --checkpoints "$toy" --plugins load --strip-weights
    step $export refit "$work/toy-stripped" --checkpoints "$toy"
    verify toy-stripped --checkpoints "$toy" --skip-onnxruntime
fi

for stage in text2image_denoiser video2world_denoiser; do
    engine "$full_size" --preset "$full_size" --only "$stage" --random-weights --sizes table "${ours[@]}"
    verify "$full_size" --only "$stage" --random-weights --skip-onnxruntime
    if [ "$flavour" = tensorrt ]; then
        engine "$full_size-standard" --preset "$full_size" --only "$stage" --random-weights --sizes table --plugins none
    fi
done

for repository in "$work"/*/; do # a process each: plugins are inside of some, and loaded for others
    step $python -m benchmarks.engines.bench_plans "$repository"
done
step $python -m benchmarks.engines.bench_dit
step $python -m benchmarks.report

if [ ${#failed[@]} -gt 0 ]; then
    printf '\n%s failed:\n' "${#failed[@]}"
    printf '  %s\n' "${failed[@]}"
    exit 1
fi
