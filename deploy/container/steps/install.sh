#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# install.sh SOURCE WHEELS PREFIX EXTRAS: a virtual environment with the wheel and what the extras need.
set -eu
source=$1 wheels=$2 prefix=$3 extras=$4

python3 -m venv "$prefix"
pip() { "$prefix/bin/pip" --disable-pip-version-check "$@"; }
constraints=$prefix/constraints.txt
cp "$source/constraints.txt" "$constraints"
# A plan runs with the TensorRT that built it: the image's, where it has one.
for library in /usr/lib/*-linux-gnu/libnvinfer.so.*.*.*; do
  test ! -e "$library" || echo "tensorrt==${library##*/libnvinfer.so.}.*" >>"$constraints"
done
pip install --no-cache-dir --constraint "$constraints" "$(echo "$wheels"/*.whl)[$extras]"
# Both have the same files, and the last one wins: on a GPU, the one for it.
if pip show --quiet onnxruntime-gpu 2>/dev/null; then
  version=$(pip list --format=freeze | sed -n 's/^onnxruntime-gpu==//p')
  pip uninstall --yes onnxruntime onnxruntime-gpu
  pip install --no-cache-dir --no-deps "onnxruntime-gpu==$version"
fi
