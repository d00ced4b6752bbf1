# SPDX-License-Identifier: Apache-2.0
"""Stages: each owns one engine and answers one Triton model's calls, arrays in and arrays out."""

from collections.abc import Mapping
from typing import Any

from array_api_compat import array_namespace

from predict2_spec.errors import ServerError

Arrays = Mapping[str, Any]  # tensor name -> numpy array


def check_made(stage: str, array: Any) -> None:
    """Let numbers that an engine made go on, and nothing else: what comes after could only blame its caller.

    Args:
        stage: the Triton model's name.
        array: floats, a numpy array or a torch tensor where it is.

    Raises:
        ServerError: some are NaN or infinite.
    """
    xp = array_namespace(array)
    if not bool(xp.all(xp.isfinite(array))):
        raise ServerError(
            f"{stage} made NaN or infinite values of a request's finite ones; where ordinary requests end so, its "
            "engine is at fault, and predict2-export verify shows it"
        )
