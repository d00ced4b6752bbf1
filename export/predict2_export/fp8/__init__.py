# SPDX-License-Identifier: Apache-2.0
"""The level `fp8`: which layers of a denoiser are computed in FP8, at which scales, and engines of such networks."""
