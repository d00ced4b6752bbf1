# SPDX-License-Identifier: Apache-2.0
"""Pipelines: what a task does, written over a `call` function, so that it runs with or without Triton."""
