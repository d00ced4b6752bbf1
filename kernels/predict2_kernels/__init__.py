# SPDX-License-Identifier: Apache-2.0
"""Python face of the CUDA kernels."""
