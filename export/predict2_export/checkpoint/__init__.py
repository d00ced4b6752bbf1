# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files -> lazy tensors -> the original's names -> modules, refusing what doesn't fit.

Files are read a tensor at a time and nothing is kept, so a network costs the memory of its own weights.
"""
