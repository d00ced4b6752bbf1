# SPDX-License-Identifier: Apache-2.0
"""What the Triton models run: engines, sampler, conditioning, pipelines, serving."""
