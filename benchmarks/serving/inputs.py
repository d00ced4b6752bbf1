# SPDX-License-Identifier: Apache-2.0
"""What perf_analyzer sends: the toy world's captions, pictures and clips, in the shapes of the served preset."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import triton_to_np_dtype

from predict2_export.toyworld.scene import draw, plain_caption, random_scene
from predict2_runtime.frames import encode_image, encode_mp4
from predict2_runtime.language import Question
from predict2_spec.networks import LATENT_CHANNELS
from predict2_spec.presets import TOY, Preset, Task
from predict2_spec.requests import DEFAULT_NEGATIVE_PROMPT, MAX_DISTILL_STEPS
from predict2_spec.tensors import MODELS, Model, Tensor
from predict2_spec.video import TEMPORAL_STRIDE, VideoShape

EXAMPLES = 4  # in each file, sent in turn
NUM_STEPS = 35
# perf_analyzer holds a file in memory, three times as large as its tensors
_MOST_FRAME_BYTES = 64 * 2**20

Values = Mapping[str, Any]  # input -> a number, a text, a list of texts, bytes, or an array


@dataclass(frozen=True)
class Example:
    """One scene of the toy world in a preset's sizes."""

    preset: Preset
    seed: int

    @property
    def prompt(self) -> str:
        return plain_caption(self._scene())

    def picture(self) -> NDArray[np.uint8]:
        """[H, W, 3] in the size that clips have, or pictures where the preset makes no clips."""
        return self.clip(1)[0]

    def clip(self, num_frames: int) -> NDArray[np.uint8]:
        """[num_frames, H, W, 3]: drawn in the toy's size and enlarged by whole pixels."""
        width, height = self._size()
        drawn = draw(self._scene(), *TOY.size("video2world", "16:9"), num_frames)
        times = max(-(-height // drawn.shape[1]), -(-width // drawn.shape[2]))
        return drawn.repeat(times, 1).repeat(times, 2)[:, :height, :width]

    def whole_clip(self) -> NDArray[np.uint8]:
        """As many frames as a clip has, or as are worth sending."""
        width, height = self._size()
        fitting = _MOST_FRAME_BYTES // (3 * width * height)
        most = max(fitting - 1, 0) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1
        return self.clip(min(self.preset.num_frames, most))

    def png(self) -> bytes:
        return encode_image(self.picture(), "png")

    def mp4(self) -> bytes:
        return encode_mp4(self.whole_clip(), self.preset.fps or TOY.fps)

    def latents(self, task: Task) -> NDArray[np.float32]:
        """Normals in the shape of a picture's or a clip's latents, [16, T, H/8, W/8]."""
        width, height = self.preset.size(task, "16:9")
        shape = VideoShape(self.preset.max_frames(task), height, width).latent
        return self.normals(LATENT_CHANNELS, shape.frames, shape.height, shape.width)

    def normals(self, *dims: int) -> NDArray[np.float32]:
        return np.random.default_rng(self.seed).standard_normal(dims, np.float32)

    def _scene(self) -> Any:
        rng = np.random.default_rng(self.seed)
        return random_scene(rng, *TOY.size("video2world", "16:9"))

    def _size(self) -> tuple[int, int]:
        task: Task = "video2world" if self.preset.video2world else "text2image"
        return self.preset.size(task, "16:9")


def _text2image(of: Example) -> Values:
    return {"prompt": of.prompt, "seed": of.seed}


def _text2world(of: Example) -> Values:
    # What a language model takes is no measure of this server; `prompt_refiner` has its own runs.
    return {"prompt": of.prompt, "seed": of.seed, "disable_prompt_refiner": True}


def _video2world(of: Example) -> Values:
    return {**_text2world(of), "image": of.png()}


def _best_of_n(of: Example) -> Values:
    return {**_video2world(of), "num_generations": 2, "num_critic_trials": 5}


def _step(of: Example, task: Task) -> dict[str, Any]:
    text, latents = of.preset.text_encoder, of.latents(task)
    distilled = of.preset.distilled and task == "text2image"
    embeds = of.normals(2, text.num_tokens, text.width)
    return {
        "latents": latents,
        "previous_x0": latents,
        "step": 1,
        "num_steps": MAX_DISTILL_STEPS if distilled else NUM_STEPS,
        "solver": "distilled" if distilled else "ab2",
        "guidance": 0.0 if distilled else 7.0,
        "prompt_embeds": embeds[0],
        **({} if distilled else {"negative_prompt_embeds": embeds[1]}),
    }


def _clip_step(of: Example) -> Values:
    step = _step(of, "video2world")
    return {**step, "condition_latents": step["latents"][:, :1]}


def _decoder(of: Example) -> Values:
    task: Task = "video2world" if of.preset.video2world else "text2image"
    return {"latents": of.latents(task)}


def _reasoner(of: Example) -> Values:
    return {"question": Question("What moves?").to_json(), "frames": of.picture()[None]}


# By the name of the file: a model, or a model, a dash and what it is asked for.
INPUTS: Mapping[str, Callable[[Example], Values]] = {
    "text2image": _text2image,
    "video2world": _video2world,
    "text2world": _text2world,
    "generate-text2image": lambda of: {"task": "text2image", **_text2image(of)},
    "generate-video2world": lambda of: {"task": "video2world", **_video2world(of)},
    "generate-text2world": lambda of: {"task": "text2world", **_text2world(of)},
    "best_of_n": _best_of_n,
    "tracking": lambda of: {"request_id": f"benchmark-{of.seed}", "action": "look"},
    "text_encoder": lambda of: {"prompt": [of.prompt, DEFAULT_NEGATIVE_PROMPT]},
    "vae_encoder": lambda of: {"frames": of.clip(1)},
    "vae_decoder": _decoder,
    "text2image_denoiser": lambda of: _step(of, "text2image"),
    "video2world_denoiser": _clip_step,
    "guardrail_text": lambda of: {"text": of.prompt, "subject": "prompt"},
    "guardrail_video": lambda of: {"frames": of.whole_clip(), "subject": "clip"},
    "reasoner": _reasoner,
    "prompt_refiner": lambda of: {"prompt": of.prompt, "frames": of.picture()[None]},
    "critic": lambda of: {"video": of.mp4(), "num_trials": 5, "seed": of.seed},
}


def model_of(name: str) -> Model:
    """The model that the inputs of this name are for."""
    return MODELS[name.partition("-")[0]]


def arrays(name: str, preset: Preset, seed: int) -> dict[str, NDArray[Any]]:
    """One entry: every input as an array of the type that the contract gives it."""
    contract = {tensor.name: tensor for tensor in model_of(name).inputs}
    values = INPUTS[name](Example(preset, seed))
    return {key: _array(contract[key], value) for key, value in values.items()}


def _array(tensor: Tensor, value: Any) -> NDArray[Any]:
    if tensor.dtype == "BYTES":
        return np.array([value] if isinstance(value, str) else value, dtype=np.object_)
    if isinstance(value, bytes):
        return np.frombuffer(value, np.uint8)
    return np.atleast_1d(np.asarray(value, triton_to_np_dtype(tensor.dtype)))


def to_json(entries: list[dict[str, NDArray[Any]]]) -> str:
    """The entries in perf_analyzer's format."""
    return json.dumps({"data": [{k: _written(v) for k, v in entry.items()} for entry in entries]})


def _written(array: NDArray[Any]) -> dict[str, Any]:
    if array.dtype == np.object_:
        return {"content": array.tolist(), "shape": list(array.shape)}
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"content": {"b64": data}, "shape": list(array.shape)}


def write_inputs(preset: Preset, names: set[str], folder: Path) -> None:
    """A JSON file a name in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(names):
        entries = [arrays(name, preset, seed) for seed in range(EXAMPLES)]
        (folder / f"{name}.json").write_text(to_json(entries))
