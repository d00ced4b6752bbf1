# SPDX-License-Identifier: Apache-2.0
"""The calculated traffic of a request against what a pipeline really sends, and the line through round trips."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.headline import WORKLOADS
from benchmarks.serving.bench_overhead import calculate, compare, paired
from benchmarks.serving.inputs import arrays
from benchmarks.serving.traffic import Cost, calls, fit
from predict2_runtime.pipelines.generation import Backend
from predict2_runtime.pipelines.tasks import task_handler
from predict2_runtime.progress import Progress
from predict2_spec.guardrails import Verdict
from predict2_spec.presets import TOY
from predict2_spec.video import LatentShape, VideoShape

NUM_STEPS = 35


class Counting:
    """Stages that answer with zeros of the right shapes; what goes in and out is counted."""

    def __init__(self):
        self.sizes = []

    def __call__(self, model, **inputs):
        outputs = getattr(self, model.name)(**inputs)
        tensors = [x for x in (*inputs.values(), *outputs.values()) if isinstance(x, np.ndarray)]
        self.sizes.append(sum(x.nbytes for x in tensors))
        return outputs

    def guardrail_text(self, text, subject):
        return {"verdict": [Verdict(True, subject, "test").to_json()]}

    def guardrail_video(self, frames, subject):
        return {"frames": frames, **self.guardrail_text("", subject)}

    def text_encoder(self, prompt):
        text = TOY.text_encoder
        return {"prompt_embeds": np.zeros((len(prompt), text.num_tokens, text.width), np.float32)}

    def vae_encoder(self, frames):
        shape = VideoShape(*frames.shape[:3]).latent
        return {"latents": np.zeros((16, shape.frames, shape.height, shape.width), np.float32)}

    def vae_decoder(self, latents):
        shape = LatentShape(*latents.shape[1:]).pixels
        return {"frames": np.zeros((shape.frames, shape.height, shape.width, 3), np.uint8)}

    def text2image_denoiser(self, latents, **rest):
        return {"latents": latents, "x0": latents}

    video2world_denoiser = text2image_denoiser


@pytest.mark.parametrize("task", ["text2image", "video2world"])
def test_the_traffic_is_what_a_pipeline_sends(task):
    call = Counting()
    precision = {"text2image_denoiser": "fp32", "video2world_denoiser": "fp32"}
    handler = task_handler(task, Backend(TOY, precision, call))
    inputs = {
        key: array.tolist() if array.dtype == np.object_ else array
        for key, array in arrays(task, TOY, 0).items()
    }
    handler(inputs, Progress(lambda event: None, lambda: None))
    assert sorted(call.sizes) == sorted(calls(TOY, task, NUM_STEPS))


def test_the_line_goes_through_the_smallest_call():
    cost = fit({1_000: 0.001, 1_001_000: 0.011, 2_001_000: 0.021})
    assert cost.of([1_000]) == pytest.approx(0.001)
    assert cost.of([1_001_000]) == pytest.approx(0.011)
    assert cost.of([0, 0]) == pytest.approx(2 * cost.seconds)


def test_a_released_networks_share_is_of_the_originals_time():
    (workload,) = [w for w in WORKLOADS if w.name == "2b-720p-16fps-video2world"]
    found = calculate(workload, Cost(0.001, 0.0))
    assert found["calls"] == 41  # 36 steps; two guards, the text encoder, both halves of the VAE
    assert found["calculated_s"] == pytest.approx(0.041)
    assert found["share"] == pytest.approx(0.041 / workload.published_s, abs=1e-6)
    more = calculate(replace(workload, published_s=2 * workload.published_s), Cost(0.001, 0.0))
    assert more["share"] == pytest.approx(found["share"] / 2, abs=1e-6)


def test_overhead_is_the_median_of_pairs_and_not_the_difference_of_medians():
    found = compare([1.0, 2.0, 9.0], [0.5, 1.9, 5.0])
    assert found["overhead_s"] == pytest.approx(0.5)
    assert found["share"] == pytest.approx(0.25)


def test_pairs_alternate_who_begins():
    order = []
    times = paired(lambda: order.append("a"), lambda: order.append("b"), 4)
    assert order == ["b", "a", "a", "b"] * 2
    assert [len(seconds) for seconds in times] == [4, 4]
