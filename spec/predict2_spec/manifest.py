# SPDX-License-Identifier: Apache-2.0
"""What an installed engine says about itself: `manifest.json`, written by export, checked by runtime."""

import json
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import EngineMismatchError

MANIFEST_FILE = "manifest.json"
# Of a plan: part of it; part of it and replaceable; or left out of it, so that it can't run before it is refitted.
Weights = Literal["fixed", "refittable", "stripped", "stripped, refittable"]
FORMAT = 1  # raised when a field changes its meaning


@dataclass(frozen=True)
class Range:
    """The shapes that an engine takes for one input, and the one it was tuned for."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """One callable graph of an engine, as a file beside the manifest."""

    file: str
    sha256: str
    size_bytes: int
    inputs: dict[str, str]  # name -> dtype and dims, as text
    outputs: dict[str, str]
    data_file: str = ""  # its weights, outside the graph
    data_sha256: str = ""
    data_size_bytes: int = 0
    profile: dict[str, Range] = field(default_factory=dict)  # by input; TensorRT's alone


@dataclass(frozen=True)
class Verification:
    """How far the engine's answers were from the torch module's, and the limits it passed."""

    cosine: float
    min_cosine: float
    max_error: float  # largest |difference| over the largest |reference|
    max_error_limit: float
    # What else answered the same inputs: name -> cosine and largest error, from the same reference.
    beside: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """One installed engine."""

    network: (
        str  # text_encoder, vae_encoder, vae_decoder, text2image_denoiser, video2world_denoiser
    )
    preset: str
    kind: str  # onnxruntime, tensorrt, tensorrt_rtx, torch
    precision: str
    device: str  # cpu, cuda, or the GPU architectures of a plan: sm90, or sm89+sm120
    checkpoint_sha256: str
    recipe: str  # digest of everything that shaped the engine; equal recipe, equal engine
    versions: dict[str, str]  # of the software that built it, TensorRT's by its kind
    graphs: dict[str, Graph]
    verification: dict[str, Verification] = field(default_factory=dict)
    format: int = FORMAT
    # What a plan of TensorRT says besides; its graphs have profiles.
    plugins: dict[str, str] = field(default_factory=dict)  # it needs; name -> version
    plugins_inside: bool = False  # their code is in the plan, so that it needs no library
    weights: Weights = "fixed"
    version_compatible: bool = False  # runs with later versions of TensorRT too
    cuda_graphs: int = 0  # shapes of each graph whose launches are recorded and replayed; 0: none

    @property
    def rebuild_command(self) -> str:
        """What to type to have this engine built again on this machine."""
        command, kind = "engine", f" --flavour {self.kind}"
        if self.kind == "onnxruntime":
            command, kind = "build", ""
        elif self.kind == "torch":
            device = "" if self.device == "cpu" else " --device cuda"
            dtype = {"fp32": " --dtype float32", "bf16": " --dtype bfloat16"}.get(
                self.precision, ""
            )
            command, kind = "build", f" --kind torch{device}{dtype}"
        level = " --level fp8" if self.precision == "fp8" else ""
        return (
            f"predict2-export {command} --preset {self.preset} --only {self.network}{kind}{level}"
        )

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read `manifest.json`.

        Raises:
            EngineMismatchError: the text is damaged or of another format.
        """
        try:
            values = json.loads(text)
            if values["format"] != FORMAT:
                raise EngineMismatchError(
                    f"manifest format {values['format']} was found, this software reads {FORMAT}; "
                    "build the engines again with predict2-export"
                )
            manifest: Manifest = read_typed(cls, values, "manifest")
            for graph in manifest.graphs.values():
                _check_graph(graph)
            return manifest
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EngineMismatchError(
                f"{MANIFEST_FILE} is damaged ({error}); build the engine again with predict2-export"
            ) from error


def read_typed(kind: Any, value: Any, where: str) -> Any:
    """A value of JSON, which knows no tuples, as a value of this type.

    Raises:
        TypeError: it is of another type, or lacks a field.
        KeyError: it has a field that nobody knows.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        types = get_type_hints(kind)
        return kind(**{name: read_typed(types[name], v, name) for name, v in value.items()})
    if origin is dict and isinstance(value, dict):
        return {name: read_typed(inner[1], v, f"{where} {name}") for name, v in value.items()}
    if origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        return tuple(read_typed(k, v, where) for k, v in zip(kinds, value, strict=True))
    if type(value) is kind or (origin is Literal and value in inner):
        return value
    if kind is float and type(value) is int:  # as JSON writes 1.0 elsewhere
        return value
    raise TypeError(f"{where} can't be {value!r:.40}")


def _check_graph(graph: Graph) -> None:
    """Refuse what no engine was ever installed with.

    Raises:
        ValueError: a file that isn't beside the manifest, or a profile that nothing fits.
    """
    for file in (graph.file, graph.data_file):
        if file == ".." or PurePath(file).name != file:
            raise ValueError(f"{file!r:.80} isn't a file beside it")
    for name, bounds in graph.profile.items():
        sizes = list(zip(bounds.min, bounds.opt, bounds.max, strict=True))
        if not all(0 <= low <= best <= high for low, best, high in sizes):
            raise ValueError(f"the profile of {name} doesn't ascend")
