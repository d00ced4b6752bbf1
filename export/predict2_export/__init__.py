# SPDX-License-Identifier: Apache-2.0
"""Checkpoint -> torch module -> ONNX -> verified engine -> installed model repository. Runs offline."""
