# SPDX-License-Identifier: Apache-2.0
"""What leaves a pipeline is what its guardrails let leave."""

import io

import av
import numpy as np
import pytest
from PIL import Image

from predict2_runtime.pipelines.generation import Backend
from predict2_runtime.pipelines.tasks import task_handler
from predict2_runtime.policy import Policy
from predict2_runtime.progress import Progress
from predict2_spec.errors import BlockedError
from predict2_spec.guardrails import Verdict
from predict2_spec.presets import TOY
from predict2_spec.results import Metadata

MADE, GUARDED = 40, 200  # the grey of what the networks make, and of what the guard makes of it


class Stages:
    """Networks that draw plain grey, and a frame guard that paints it over."""

    def __init__(self, safe=True):
        self.safe = safe

    def call(self, model, **inputs):
        return getattr(self, model.name)(**inputs)

    def guardrail_text(self, text, subject):
        return {"verdict": [Verdict(True, subject, "blocklist").to_json()]}

    def guardrail_video(self, frames, subject):
        assert (frames == MADE).all()
        verdict = Verdict(self.safe, subject, "content", "" if self.safe else "Violence")
        return {"frames": np.full_like(frames, GUARDED), "verdict": [verdict.to_json()]}

    def text_encoder(self, prompt):
        return {"prompt_embeds": np.zeros((len(prompt), 32, 64), np.float32)}

    def vae_encoder(self, frames):
        return {"latents": np.zeros((16, 1, 6, 10), np.float32)}

    def text2image_denoiser(self, latents, **rest):
        return {"latents": latents, "x0": latents}

    video2world_denoiser = text2image_denoiser

    def vae_decoder(self, latents):
        count = 4 * (latents.shape[1] - 1) + 1
        return {"frames": np.full((count, 48, 80, 3), MADE, np.uint8)}


def run(task, policy=None, safe=True, image="fp32", video="fp32"):
    precision = {"text2image_denoiser": image, "video2world_denoiser": video}
    backend = Backend(TOY, precision, Stages(safe).call, policy or Policy())
    arrays = {"prompt": ["a robot"], "num_steps": [1], "return_frames": [True]}
    if task == "video2world":
        arrays["image"] = np.frombuffer(picture(), np.uint8)
    if task == "text2image":
        arrays["output_format"] = ["png"]
    return task_handler(task, backend)(arrays, Progress(lambda event: None, lambda: None))


def picture():
    stream = io.BytesIO()
    Image.new("RGB", (80, 48)).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize("task", ["video2world", "text2world"])
def test_a_clip_leaves_as_the_frame_guard_made_it(task):
    outputs = run(task)
    assert (outputs["frames"] == GUARDED).all()
    with av.open(io.BytesIO(outputs["media"].tobytes()), "r", format="mp4") as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) == 13
    assert abs(np.mean(shown) - GUARDED) < 3  # H.264 rounds a little


@pytest.mark.parametrize("task", ["video2world", "text2world"])
def test_nothing_of_an_unsafe_clip_leaves(task):
    with pytest.raises(BlockedError, match="the clip that was made: Violence"):
        run(task, safe=False)


def test_a_picture_is_guarded_where_the_owner_wants_it():
    policy = Policy(guard_pictures=True)
    outputs = run("text2image", policy)
    assert (outputs["frames"] == GUARDED).all()
    assert (np.asarray(Image.open(io.BytesIO(outputs["media"].tobytes()))) == GUARDED).all()
    with pytest.raises(BlockedError, match="the picture that was made"):
        run("text2image", policy, safe=False)


def test_a_picture_is_left_alone_otherwise():
    assert (run("text2image")["frames"] == MADE).all()


@pytest.mark.parametrize(
    ("task", "image", "video", "level", "precision"),
    [
        ("text2image", "fp8", "bf16", "fp8", "fp8"),
        ("text2image", "bf16", "fp8", "exact", "bf16"),
        ("video2world", "fp8", "bf16", "exact", "bf16"),
        ("text2world", "fp8", "bf16", "fp8", "bf16"),  # its first frame is a picture
        ("text2world", "fp8", "fp8", "fp8", "fp8"),
    ],
)
def test_the_metadata_says_whether_fp8_took_part(task, image, video, level, precision):
    metadata = Metadata.from_json(run(task, image=image, video=video)["metadata"])
    assert (metadata.level, metadata.precision) == (level, precision)
