# SPDX-License-Identifier: Apache-2.0
"""The client: numpy, tritonclient and PyAV; never torch, never an engine."""
