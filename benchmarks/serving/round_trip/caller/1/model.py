# SPDX-License-Identifier: Apache-2.0
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from predict2_runtime.bls import bls_call
from predict2_spec.networks import LATENT_CHANNELS
from predict2_spec.tensors import VIDEO2WORLD_DENOISER
from predict2_spec.video import VideoShape


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.call = bls_call(pb_utils)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request.inputs()[0].as_numpy()) for request in requests]

    def answer(self, sizes: Any) -> Any:
        frames, height, width, calls, *text = map(int, sizes)
        shape = VideoShape(frames, height, width).latent
        state = np.zeros((LATENT_CHANNELS, shape.frames, shape.height, shape.width), np.float32)
        inputs = {"latents": state, "previous_x0": state, "condition_latents": state[:, :1]}
        embeds = np.zeros(text, np.float32)
        texts = {"prompt_embeds": embeds, "negative_prompt_embeds": embeds}
        seconds = []
        for step in range(calls):
            began = time.perf_counter()
            self.call(
                VIDEO2WORLD_DENOISER,
                **inputs, **texts, step=step, num_steps=calls, guidance=7.0, solver="ab2",
            )  # fmt: skip
            seconds.append(time.perf_counter() - began)
        tensor = pb_utils.Tensor("seconds", np.array(seconds))
        return pb_utils.InferenceResponse([tensor])
