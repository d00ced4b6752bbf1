#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# toy_engines.sh SOURCE PREFIX OUT: a repository of the toy preset, from the weights that ship.
set -eu
source=$1 prefix=$2 out=$3

"$prefix/bin/predict2-export" build --preset toy --checkpoints "$source/export/predict2_export/toyworld/weights" \
  --model-repository "$source/model_repository" --output "$out"
