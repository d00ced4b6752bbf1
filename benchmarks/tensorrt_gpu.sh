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
export PYTHONPATH=spec:kernels:runtime:export:client
export="$python -m predict2_export.cli"

step() { printf '\n== %s\n' "$*"; }

# engine NAME ARGUMENT...: a repository of plans, compared with torch
engine() {
    local name=$1
    shift
    step "$name: engine $*"
    $export engine --flavour "$flavour" --output "$work/$name" "$@"
}

step "this machine"
$python -c "
import torch
from predict2_runtime.engines.bindings import bindings
print('$flavour', bindings('$flavour').__version__, 'torch', torch.__version__, torch.cuda.get_device_name())"
mkdir -p "$work"

if [ "$flavour" = tensorrt ]; then
    step "kernels and plugins, with the headers of the TensorRT that is installed where they are found"
    cmake -S . -B build/gpu -DCMAKE_BUILD_TYPE=Release
    cmake --build build/gpu
    cmake --install build/gpu --prefix kernels
    ours=(--plugins load --timing-cache "$work/timing.cache")
else
    ours=()
fi

step "tests"
$python -m pytest -q -m "gpu and tensorrt" tests/kernels tests/runtime/engines

engine toy --checkpoints "$toy" "${ours[@]}"
$export verify "$work/toy" --checkpoints "$toy" --device cuda
$export verify "$work/toy" --checkpoints "$toy" --device cuda --shapes max --skip-onnxruntime
engine toy-recorded --checkpoints "$toy" --cuda-graphs 2 "${ours[@]}"
$export verify "$work/toy-recorded" --checkpoints "$toy" --device cuda --skip-onnxruntime
engine toy-fp8 --checkpoints "$toy" --level fp8 --device cuda "${ours[@]}"
$export verify "$work/toy-fp8" --checkpoints "$toy" --device cuda
if [ "$flavour" = tensorrt ]; then
    engine toy-standard --checkpoints "$toy" --plugins none
    $export verify "$work/toy-standard" --checkpoints "$toy" --device cuda --skip-onnxruntime
    engine toy-compatible --checkpoints "$toy" --plugins serialize --version-compatible
    $export verify "$work/toy-compatible" --checkpoints "$toy" --device cuda --skip-onnxruntime
    engine toy-refit --checkpoints "$toy" --plugins load --refit
    $export verify "$work/toy-refit" --checkpoints "$toy" --device cuda --skip-onnxruntime
fi

denoisers=(text2image_denoiser video2world_denoiser)
for stage in "${denoisers[@]}"; do
    engine "$full_size" --preset "$full_size" --only "$stage" --random-weights --sizes table "${ours[@]}"
    $export verify "$work/$full_size" --only "$stage" --random-weights --device cuda --skip-onnxruntime
    if [ "$flavour" = tensorrt ]; then
        engine "$full_size-standard" --preset "$full_size" --only "$stage" --random-weights --sizes table --plugins none
    fi
done

step "times"
$python -m benchmarks.engines.bench_plans "$work"/*/
$python -m benchmarks.engines.bench_dit
$python -m benchmarks.report
