#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# wheel.sh SOURCE OUT: the project's wheel, for any Python 3. With kernels where nvcc is, and without if PREDICT2_PURE is 1.
set -eu
source=$1 out=$2

python3 -m venv "$out/venv"
"$out/venv/bin/pip" wheel --no-cache-dir --disable-pip-version-check --no-deps \
  --config-settings=wheel.py-api=py3 --wheel-dir "$out" "$source"
rm -r "$out/venv"
