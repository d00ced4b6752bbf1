# SPDX-License-Identifier: Apache-2.0
from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from predict2_runtime.serve import serve_stage
from predict2_spec.tensors import VIDEO2WORLD_DENOISER


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return serve_stage(pb_utils, VIDEO2WORLD_DENOISER, requests, self.answer)

    @staticmethod
    def answer(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"latents": inputs["latents"], "x0": inputs["previous_x0"]}
