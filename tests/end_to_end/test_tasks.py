# SPDX-License-Identifier: Apache-2.0
"""All tasks on a live server: what comes back is what was asked for, whole, described and repeatable."""

import http.client
import io
import json
import time
from dataclasses import asdict
from fractions import Fraction
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from predict2_runtime.pipelines.tasks import any_task_handler, open_backend
from predict2_runtime.policy import Policy
from predict2_runtime.progress import Progress
from predict2_runtime.stages.denoiser import Denoiser
from predict2_runtime.stages.guardrail_text import GuardrailText
from predict2_runtime.stages.guardrail_video import GuardrailVideo
from predict2_runtime.stages.text_encoder import TextEncoder
from predict2_runtime.stages.vae import VaeDecoder, VaeEncoder
from predict2_runtime.tensors import from_tensors, to_tensors
from predict2_spec import tensors
from predict2_spec.guardrails import Verdict
from predict2_spec.presets import TOY
from predict2_spec.requests import (
    DEFAULT_NEGATIVE_PROMPT,
    Text2ImageRequest,
    Text2WorldRequest,
    Video2WorldRequest,
)
from predict2_spec.results import Event, Metadata
from predict2_spec.tensors import MODELS

pytestmark = pytest.mark.server

PROMPT = "a red ball rolls over a table"
QUICK = {"num_steps": 2, "width": 48, "height": 32}
PICTURE_STAGES = ["check_prompt", "encode_text", "denoise_image", "decode_image", "write"]
CLIP_STAGES = [
    "check_prompt",
    "encode_text",
    "encode_input",
    "denoise_video",
    "decode_video",
    "check_clip",
    "write",
]


@pytest.fixture
def both_ways(client):
    """Run a request both ways; the results must be the same."""

    def run(request):
        unary = client.generate(request)
        streamed = client.generate(request, lambda event: None)
        assert unary.media == streamed.media
        assert untimed(unary.metadata) == untimed(streamed.metadata)
        return unary

    return run


def untimed(metadata):
    return {name: value for name, value in asdict(metadata).items() if name != "seconds"}


def passed(subject, check):
    """The verdict of the guardrail that was asked last."""
    return asdict(Verdict(True, subject, check))


def check_seconds(metadata, stages):
    parts = dict(metadata.seconds)
    total = parts.pop("total")
    assert list(parts) == stages
    # Each number is rounded to a millisecond, and what follows the last stage is in none of them.
    assert sum(parts.values()) <= total + 0.001 * len(parts)
    assert all(value >= 0 for value in parts.values())
    assert parts[max(parts, key=parts.get)] > 0


@pytest.mark.parametrize(
    ("output_format", "pillow_format", "media_type"),
    [("jpg", "JPEG", "image/jpeg"), ("png", "PNG", "image/png")],
)
def test_a_picture_is_what_was_asked_for(both_ways, output_format, pillow_format, media_type):
    result = both_ways(
        Text2ImageRequest(prompt=PROMPT, output_format=output_format, seed=5, **QUICK)
    )
    with Image.open(io.BytesIO(result.media)) as image:
        assert (image.format, image.size, image.mode) == (pillow_format, (48, 32), "RGB")
        assert np.asarray(image).std() > 5  # the toy's weights make noise, but never one colour
    assert result.frames is None
    assert untimed(result.metadata) == {
        "task": "text2image",
        "prompt": PROMPT,
        "negative_prompt": "",
        "seed": 5,
        "guidance": 4.0,
        "num_steps": 2,
        "solver": "ab2",
        "width": 48,
        "height": 32,
        "num_frames": 1,
        "fps": 0,
        "media_type": media_type,
        "preset": "toy",
        "level": "exact",
        "precision": "fp32",
        "version": version("cosmos-predict2-triton"),
        "image_guidance": None,
        "num_conditional_frames": None,
        "guardrail": "on",
        "verdicts": [passed("prompt", "blocklist")],
        "refiner": "",
        "refined_prompt": "",
        "score": None,
    }
    check_seconds(result.metadata, PICTURE_STAGES)


def check_clip(result, read_mp4, frames, height, width):
    decoded, fps = read_mp4(result.media)
    assert decoded.shape == (frames, height, width, 3)
    assert fps == Fraction(TOY.fps)
    metadata = result.metadata
    assert (metadata.num_frames, metadata.height, metadata.width) == (frames, height, width)
    assert (metadata.fps, metadata.media_type) == (TOY.fps, "video/mp4")
    assert decoded.std() > 5


def test_a_clip_from_text_is_what_was_asked_for(both_ways, read_mp4):
    request = Text2WorldRequest(
        prompt=PROMPT, num_frames=9, guidance=3.0, image_guidance=2.0, seed=6, **QUICK
    )
    result = both_ways(request)
    check_clip(result, read_mp4, 9, 32, 48)
    assert untimed(result.metadata) == {
        "task": "text2world",
        "prompt": PROMPT,
        "negative_prompt": DEFAULT_NEGATIVE_PROMPT,
        "seed": 6,
        "guidance": 3.0,
        "num_steps": 2,
        "solver": "ab2",
        "width": 48,
        "height": 32,
        "num_frames": 9,
        "fps": 8,
        "media_type": "video/mp4",
        "preset": "toy",
        "level": "exact",
        "precision": "fp32",
        "version": version("cosmos-predict2-triton"),
        "image_guidance": 2.0,
        "num_conditional_frames": None,
        "guardrail": "on",
        "verdicts": [passed("prompt", "blocklist"), passed("clip", "faces")],
        "refiner": "off",
        "refined_prompt": "",
        "score": None,
    }
    check_seconds(
        result.metadata,
        ["check_prompt", "encode_text", "denoise_image", "decode_image", *CLIP_STAGES[2:]],
    )


@pytest.mark.parametrize(("source", "count"), [("image", 1), ("video", 1), ("video", 5)])
def test_a_clip_from_a_picture_or_clip_is_what_was_asked_for(
    both_ways, read_mp4, picture_png, clip_mp4, source, count
):
    data = picture_png if source == "image" else clip_mp4
    request = Video2WorldRequest(
        prompt=PROMPT,
        negative_prompt="blurry",
        num_conditional_frames=count,
        num_frames=9,
        **{source: data},
        **QUICK,
    )
    result = both_ways(request)
    check_clip(result, read_mp4, 9, 32, 48)
    assert (result.metadata.task, result.metadata.num_conditional_frames) == ("video2world", count)
    assert (result.metadata.prompt, result.metadata.negative_prompt) == (PROMPT, "blurry")
    check_seconds(result.metadata, CLIP_STAGES)


@pytest.mark.parametrize("aspect_ratio", TOY.image_sizes)
def test_an_aspect_ratio_stands_for_a_size(client, aspect_ratio):
    result = client.text2image(PROMPT, num_steps=1, aspect_ratio=aspect_ratio)
    with Image.open(io.BytesIO(result.media)) as image:
        assert image.size == TOY.image_sizes[aspect_ratio]
    width, height = map(int, aspect_ratio.split(":"))
    assert (image.width > image.height) == (width > height)


def test_a_clip_takes_its_aspect_ratio_and_length_from_the_preset(client, read_mp4):
    result = client.text2world(PROMPT, num_steps=1, aspect_ratio="3:4")
    check_clip(result, read_mp4, 13, 64, 48)


def test_an_input_of_another_shape_fills_the_clip(client, read_mp4):
    data = io.BytesIO()
    Image.new("RGB", (300, 50), "green").save(data, "JPEG")
    result = client.video2world(PROMPT, image=data.getvalue(), num_frames=5, **QUICK)
    check_clip(result, read_mp4, 5, 32, 48)


def test_raw_frames_come_when_asked_for(client, read_mp4):
    picture = client.text2image(PROMPT, output_format="png", return_frames=True, **QUICK)
    with Image.open(io.BytesIO(picture.media)) as image:
        np.testing.assert_array_equal(picture.frames, np.asarray(image)[None])
    clip = client.text2world(
        PROMPT, num_frames=5, return_frames=True, on_event=lambda event: None, **QUICK
    )
    decoded, _ = read_mp4(clip.media)
    assert (clip.frames.shape, clip.frames.dtype) == (decoded.shape, np.uint8)
    # H.264 halves the colours' resolution, and neighbouring pixels of this toy are unrelated.
    grey, decoded_grey = clip.frames.mean(axis=-1), decoded.mean(axis=-1)
    assert np.corrcoef(grey.ravel(), decoded_grey.ravel())[0, 1] > 0.9


def test_the_same_request_gives_the_same_bytes_and_another_seed_or_prompt_others(client):
    def media(prompt=PROMPT, **settings):
        return client.text2world(prompt, num_frames=5, **QUICK, **settings).media

    first = media(seed=1)
    assert media(seed=1) == first
    others = [
        media(seed=2),
        media(prompt="a blue ball", seed=1),
        media(seed=1, negative_prompt=""),
        media(seed=1, guidance=1.0),
        media(seed=1, image_guidance=1.0),
        media(seed=1, solver="euler"),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_guidance_without_a_negative_prompt_changes_no_clip(client, picture_png):
    """Both branches see the same text then, as in the original."""
    media = {
        client.video2world(
            PROMPT, image=picture_png, negative_prompt="", guidance=guidance, num_frames=5, **QUICK
        ).media
        for guidance in (0.0, 7.0)
    }
    assert len(media) == 1


def expected_events(stages):
    return [(stage, step, of) for stage, of in stages for step in range(1, of + 1)]


@pytest.mark.parametrize(
    ("request_", "stages"),
    [
        (
            Text2ImageRequest(prompt=PROMPT, width=48, height=32),
            [
                ("check_prompt", 1),
                ("encode_text", 1),
                ("denoise_image", 36),
                ("decode_image", 1),
                ("write", 1),
            ],
        ),
        (
            Text2ImageRequest(prompt=PROMPT, solver="euler", num_steps=10, width=48, height=32),
            [
                ("check_prompt", 1),
                ("encode_text", 1),
                ("denoise_image", 9),
                ("decode_image", 1),
                ("write", 1),
            ],
        ),
        (
            Text2WorldRequest(prompt=PROMPT, num_frames=5, width=48, height=32),
            [
                ("check_prompt", 1),
                ("encode_text", 1),
                ("denoise_image", 36),
                ("decode_image", 1),
                ("encode_text", 1),
                ("encode_input", 1),
                ("denoise_video", 36),
                ("decode_video", 1),
                ("check_clip", 1),
                ("write", 1),
            ],
        ),
    ],
    ids=["text2image", "text2image-euler", "text2world"],
)
def test_every_step_is_reported_in_order(client, request_, stages):
    events: list[Event] = []
    result = client.generate(request_, events.append)
    assert [(e.stage, e.step, e.of) for e in events] == expected_events(stages)
    seconds = [event.seconds for event in events]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[0] < seconds[-1] <= result.metadata.seconds["total"] + 0.001


def test_events_arrive_while_the_work_goes_on(client):
    """Not all at once at the end."""
    began = time.monotonic()
    arrivals = []
    client.text2image(PROMPT, num_steps=100, on_event=lambda _: arrivals.append(time.monotonic()))
    all_of_it = time.monotonic() - began
    assert len(arrivals) == 105
    assert arrivals[0] - began < all_of_it / 2
    assert arrivals[-1] - arrivals[0] > all_of_it / 2


@pytest.mark.parametrize(("source", "count"), [("image", 1), ("video", 1), ("video", 5)])
def test_a_clip_begins_with_the_frames_it_was_given(
    client, call, picture, picture_png, clip, clip_mp4, source, count
):
    """They show what the VAE makes of them: the frames through its encoder and decoder and nothing else."""
    given = picture[None] if source == "image" else clip[-count:]
    latents = call("vae_encoder", frames=given)["latents"]
    expected = call("vae_decoder", latents=latents)["frames"]
    result = client.video2world(
        PROMPT,
        num_conditional_frames=count,
        num_frames=9,
        num_steps=2,
        return_frames=True,
        **{source: picture_png if source == "image" else clip_mp4},
    )
    assert result.frames.shape == (9, *picture.shape)
    # The same network over the same numbers, but a sum may be rounded another way.
    difference = np.abs(result.frames[:count].astype(int) - expected)
    assert difference.max() <= 1
    assert np.abs(result.frames[count].astype(int) - expected[-1]).max() > 1


class LocalStages:
    """Answers as the server's stages do, from the same installed engines, in this process."""

    def __init__(self, repository):
        folders = {stage.name: repository / stage.name / "1" for stage in tensors.STAGES}
        self.stages = {
            "text_encoder": TextEncoder.open(folders["text_encoder"], TOY),
            "vae_encoder": VaeEncoder.open(folders["vae_encoder"], TOY),
            "vae_decoder": VaeDecoder.open(folders["vae_decoder"], TOY),
            "text2image_denoiser": Denoiser.open(folders["text2image_denoiser"], TOY, "text2image"),
            "video2world_denoiser": Denoiser.open(
                folders["video2world_denoiser"], TOY, "video2world"
            ),
            "guardrail_text": GuardrailText.open(Policy(), TOY),
            "guardrail_video": GuardrailVideo.open(folders["guardrail_video"], TOY),
        }

    def __call__(self, model, **inputs):
        sent = to_tensors(SimpleNamespace(Tensor=_Tensor), model.inputs, inputs)
        outputs = self.stages[model.name](from_tensors(model.inputs, sent))
        received = to_tensors(SimpleNamespace(Tensor=_Tensor), model.outputs, outputs)
        return from_tensors(model.outputs, received)


class _Tensor:
    def __init__(self, name, array):
        self.name, self.as_numpy = (lambda: name), (lambda: array)


@pytest.fixture(scope="module")
def local_stages(toy_repository):
    return LocalStages(toy_repository)


@pytest.fixture(scope="module")
def run_here(toy_repository, local_stages):
    """Run a request in this process, over the same engines."""
    handler = any_task_handler(open_backend(toy_repository, local_stages))

    def run(task, **fields):
        arrays = {
            name: np.frombuffer(value, np.uint8) if isinstance(value, bytes) else [value]
            for name, value in fields.items()
        }
        return handler({"task": [task], **arrays}, Progress(lambda event: None, lambda: None))

    return run


@pytest.mark.parametrize("task", ["text2image", "video2world", "text2world"])
def test_a_served_result_equals_one_made_without_a_server(client, run_here, task, clip_mp4):
    fields = {"prompt": PROMPT, "seed": 9, "num_steps": 5, "return_frames": True}
    if task == "video2world":
        fields |= {"video": clip_mp4, "num_conditional_frames": 5}
    kind = {
        "text2image": Text2ImageRequest,
        "video2world": Video2WorldRequest,
        "text2world": Text2WorldRequest,
    }[task]
    served = client.generate(kind(**fields))
    here = run_here(task, **fields)
    difference = np.abs(served.frames.astype(int) - here["frames"])
    assert difference.max() <= 1
    assert untimed(served.metadata) == untimed(Metadata.from_json(here["metadata"]))


def noise(*shape):
    return np.random.RandomState(3).standard_normal(shape).astype(np.float32)


EMBEDS = noise(TOY.text_encoder.num_tokens, TOY.text_encoder.width)
STEP = {
    "latents": noise(16, 3, 4, 6),
    "previous_x0": 0.5 * noise(16, 3, 4, 6),
    "step": 4,
    "num_steps": 35,
    "guidance": 3.0,
    "prompt_embeds": EMBEDS,
    "negative_prompt_embeds": -EMBEDS,
}
STAGE_CALLS = {
    "prompts": ("text_encoder", {"prompt": ["a ball", "", "Größe 大きさ"]}),
    "frames": ("vae_encoder", {"frames": np.uint8(40 * noise(5, 32, 48, 3) + 128)}),
    "latents": ("vae_decoder", {"latents": noise(16, 2, 4, 6)}),
    "picture step": (
        "text2image_denoiser",
        {**STEP, "latents": noise(16, 1, 4, 6), "previous_x0": noise(16, 1, 4, 6)},
    ),
    "unguided step": (
        "video2world_denoiser",
        {
            **{name: value for name, value in STEP.items() if not name.startswith("negative")},
            "condition_latents": noise(16, 1, 4, 6),
        },
    ),
    "clip step": ("video2world_denoiser", {**STEP, "condition_latents": noise(16, 1, 4, 6)}),
    "euler step": (
        "video2world_denoiser",
        {**STEP, "solver": "euler", "condition_latents": noise(16, 2, 4, 6)},
    ),
}


@pytest.mark.parametrize("name", STAGE_CALLS)
def test_each_stage_can_be_called_by_itself(call, local_stages, name):
    model, inputs = STAGE_CALLS[name]
    served, here = call(model, **inputs), local_stages(MODELS[model], **inputs)
    assert {k: v.shape for k, v in served.items()} == {k: v.shape for k, v in here.items()}
    assert set(served) == {tensor.name for tensor in MODELS[model].outputs}
    for output, array in served.items():
        assert array.dtype == here[output].dtype
        assert np.isfinite(array).all()
        if array.dtype == np.uint8:
            assert np.abs(array.astype(int) - here[output]).max() <= 1
        else:
            # The same operators over the same float32 numbers; latents are up to 80 in size.
            np.testing.assert_allclose(array, here[output], rtol=1e-4, atol=1e-4)


def test_http_gives_the_same_bytes_as_grpc(call, call_http, picture_png):
    fields = {
        "prompt": PROMPT,
        "image": picture_png,
        "num_frames": 5,
        "return_frames": True,
        **QUICK,
    }
    by_grpc, by_http = call("video2world", **fields), call_http("video2world", **fields)
    assert by_http.keys() == {"media", "metadata", "frames"}
    np.testing.assert_array_equal(by_http["media"], by_grpc["media"])
    np.testing.assert_array_equal(by_http["frames"], by_grpc["frames"])
    served = Metadata.from_json(by_http["metadata"].item().decode())
    assert served.prompt == PROMPT


def test_plain_json_by_http_will_do(http_server, client):
    """For tools without a Triton client, such as curl."""
    fields = {"prompt": PROMPT, **QUICK}
    status, answer = post_json(http_server, "text2image", fields)
    assert status == 200
    assert bytes(answer["media"]) == client.text2image(**fields).media
    assert Metadata.from_json(answer["metadata"]).prompt == PROMPT
    status, answer = post_json(http_server, "text2image", {**fields, "num_steps": 0})
    assert status == 400
    assert answer["error"].startswith("num_steps 0 must be ")


def post_json(server, model, fields):
    host, port = server.http_url.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        connection.request("POST", f"/v2/models/{model}/generate", json.dumps(fields))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_prompts_of_any_script_come_back_as_they_went(client):
    prompt = "Ein Würfel, 一个红色的球 🟥 “quoted” \\n {braces}\ttab"
    result = client.text2image(prompt, negative_prompt="ünscharf", **QUICK)
    assert (result.metadata.prompt, result.metadata.negative_prompt) == (prompt, "ünscharf")


@pytest.mark.parametrize("name", MODELS)
def test_the_server_offers_what_the_contract_says(triton, name):
    def described(tensors_):
        return [(t.name, t.datatype, tuple(t.shape)) for t in tensors_]

    model, served = MODELS[name], triton.get_model_metadata(name)
    assert described(served.inputs) == [(t.name, t.dtype, t.dims) for t in model.inputs]
    assert described(served.outputs) == [(t.name, t.dtype, t.dims) for t in model.outputs]
