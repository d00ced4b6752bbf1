# SPDX-License-Identifier: Apache-2.0
"""The networks as torch modules of our own, under the released checkpoints' names."""
