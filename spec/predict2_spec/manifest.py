# SPDX-License-Identifier: Apache-2.0
"""What an installed engine says about itself: `manifest.json`, written by export, checked by runtime."""

import json
from dataclasses import asdict, dataclass, field

from .errors import EngineMismatchError

MANIFEST_FILE = "manifest.json"
FORMAT = 1  # raised when a field changes its meaning


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


@dataclass(frozen=True)
class Verification:
    """How far the engine's answers were from the torch module's, and the limits it passed."""

    cosine: float
    min_cosine: float
    max_error: float  # largest |difference| over the largest |reference|
    max_error_limit: float


@dataclass(frozen=True)
class Manifest:
    """One installed engine."""

    network: (
        str  # text_encoder, vae_encoder, vae_decoder, text2image_denoiser, video2world_denoiser
    )
    preset: str
    kind: str  # onnxruntime, tensorrt, torch
    precision: str
    device: str  # cpu, or the GPU architecture such as sm90
    checkpoint_sha256: str
    recipe: str  # digest of everything that shaped the engine; equal recipe, equal engine
    versions: dict[str, str]  # of the software that built it
    graphs: dict[str, Graph]
    verification: dict[str, Verification] = field(default_factory=dict)
    format: int = FORMAT

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
            values["graphs"] = {k: Graph(**v) for k, v in values["graphs"].items()}
            values["verification"] = {
                k: Verification(**v) for k, v in values["verification"].items()
            }
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineMismatchError(
                f"{MANIFEST_FILE} is damaged ({error}); build the engine again with predict2-export"
            ) from error
