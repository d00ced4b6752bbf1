# SPDX-License-Identifier: Apache-2.0
"""Stages: each owns one engine and answers one Triton model's calls, arrays in and arrays out."""

from collections.abc import Mapping
from typing import Any

Arrays = Mapping[str, Any]  # tensor name -> numpy array
