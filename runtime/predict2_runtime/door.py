# SPDX-License-Identifier: Apache-2.0
"""Who may call a stage: this server's own pipelines, which carry a word that only its processes know.

Whoever calls the stages directly passes the guardrails by: texts are encoded and latents decoded without being looked
at. So a stage answers nobody else, unless the owner opens it, as for measuring.
"""

import hmac
import json
from collections.abc import Mapping
from typing import Any

from predict2_spec.errors import InvalidRequestError
from predict2_spec.tensors import CRITIC, Model

WORD_VARIABLE = (
    "PREDICT2_WORD"  # of the environment, made anew at each start; without it stages answer anybody
)
_PARAMETER = "word"  # of a call
_OPEN = (CRITIC,)  # a stage that people call: it judges what they have already


def carried(environment: Mapping[str, str]) -> dict[str, str]:
    """The parameters of a call from within."""
    word = environment.get(WORD_VARIABLE)
    return {_PARAMETER: word} if word else {}


def check_caller(model: Model, request: Any, environment: Mapping[str, str]) -> None:
    """Let a call of a stage pass.

    Args:
        model: the stage.
        request: Triton's.
        environment: of this process.

    Raises:
        InvalidRequestError: it comes from outside, and the owner hasn't opened the stages.
    """
    word = environment.get(WORD_VARIABLE)
    if not word or model in _OPEN:
        return
    try:
        said = json.loads(request.parameters() or "{}").get(_PARAMETER)
    except (ValueError, AttributeError):
        said = None
    if not (isinstance(said, str) and hmac.compare_digest(said.encode(), word.encode())):
        raise InvalidRequestError(
            f"{model.name} answers this server's own pipelines only; call one of the tasks, or have the owner start "
            "the server with predict2-serve --allow-stage-calls"
        )
