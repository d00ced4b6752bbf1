# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

from predict2_spec.networks import (
    DIT_0_6B_TEXT2IMAGE,
    DIT_2B_TEXT2IMAGE,
    DIT_2B_VIDEO2WORLD,
    DIT_14B_VIDEO2WORLD,
)


def test_patch_features_are_the_originals():
    assert DIT_2B_TEXT2IMAGE.patch_inputs == 68
    assert DIT_2B_VIDEO2WORLD.patch_inputs == 72
    assert DIT_2B_TEXT2IMAGE.patch_outputs == 64


def test_rotary_dims_of_a_head_are_the_originals():
    assert DIT_14B_VIDEO2WORLD.head_dim == 128
    assert DIT_14B_VIDEO2WORLD.rope_dims == (44, 42, 42)
    assert DIT_0_6B_TEXT2IMAGE.head_dim == 64
    assert DIT_0_6B_TEXT2IMAGE.rope_dims == (24, 20, 20)


def test_the_contract_needs_the_standard_library_only():
    code = (
        "import sys; before = set(sys.modules); import predict2_spec.tensors, predict2_spec.manifest, "
        "predict2_spec.results; new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'predict2_spec'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
