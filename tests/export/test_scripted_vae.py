# SPDX-License-Identifier: Apache-2.0
"""The fast image tokenizer, from a file made here as the published one is: programs traced in bfloat16.

The reference is the module that was traced, run by torch in float32; nothing here has its source.
"""

import io
import os
import warnings
import zipfile
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predict2_export import cli
from predict2_export.build import build
from predict2_export.build_options import BuildOptions
from predict2_export.checkpoint.scripted import read_scripted_decoder
from predict2_export.layouts import located
from predict2_export.networks.scripted_vae import lowerable, scripted_image_decoder
from predict2_export.plans import PlanChoices, build_plans
from predict2_export.recipes import recipes
from predict2_export.wanted import wanted
from predict2_runtime.engines import open_engine, read_manifest
from predict2_runtime.stages.vae import VaeDecoder
from predict2_spec.errors import CheckpointError, InvalidRequestError
from predict2_spec.presets import (
    IMAGE_0_6B_FAST,
    IMAGE_0_6B_FAST_DISTILLED,
    PRESETS,
    TOY,
)

# Saving and loading TorchScript says that it is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

TEMPLATES = Path(__file__).parents[2] / "model_repository"
STAGE = "vae_decoder"
MEAN, STD = torch.linspace(-1, 1, 16), torch.linspace(0.5, 2, 16)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(2, width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv(F.silu(self.norm(x)))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(b, 3, c, h * w).unbind(1)
        scores = torch.bmm(q.transpose(1, 2), k) * c**-0.5
        return x + self.out(torch.bmm(v, scores.softmax(2).transpose(1, 2)).reshape(b, c, h, w))


class Wavelets(nn.Module):
    """Four channels to one of twice the size, by kernels that are formed in the dtype of what comes in."""

    def __init__(self):
        super().__init__()
        self.register_buffer("signs", torch.tensor([[1.0, 1.0], [1.0, -1.0]]), persistent=False)

    def forward(self, x):
        channels = x.shape[1] // 4
        kernels = torch.einsum("ai,bj->abij", self.signs, self.signs).reshape(4, 1, 2, 2)
        kernels = kernels.repeat(channels, 1, 1, 1).to(dtype=x.dtype)
        halves = torch.full((1,), 0.5, dtype=x.dtype, device=x.device)
        return F.conv_transpose2d(x, kernels * halves, stride=2, groups=channels)


class Decoder(nn.Module):
    """Latents [1, 16, h, w] to pictures [1, 3, 8h, 8w] with the kinds of layers of such tokenizers."""

    def __init__(self, width=8):
        super().__init__()
        self.first, self.last = nn.Conv2d(16, width, 3, padding=1), nn.Conv2d(width, 48, 1)
        self.middle = nn.Sequential(Block(width), Attention(width))
        self.up, self.wavelets = Block(width), Wavelets()

    def forward(self, z):
        x = self.middle(self.first(z))
        x = self.up(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
        return self.wavelets(self.wavelets(self.last(x)))


def traced(module, *shape, dtype=torch.bfloat16):
    """The bytes of a program, and the module in float32 with the weights that it has."""
    module = module.eval().requires_grad_(False).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a trace keeps no checks of sizes, and says so
        program = torch.jit.trace(module, torch.zeros(shape, dtype=dtype))
    return saved(program), deepcopy(module).float()


def saved(program):
    stream = io.BytesIO()
    torch.jit.save(program, stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return traced(Decoder(), 1, 16, 4, 4)


@pytest.fixture(scope="module")
def content(program):
    # The encoder is never touched, so its bytes may be anything.
    return {"encoder": b"any", "decoder": program[0], "mean_std": (MEAN, STD)}


def written(folder, content):
    path = folder / IMAGE_0_6B_FAST.vae_path
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def checkpoints(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    written(folder, content)
    return folder


def built(checkpoints, output, **choices):
    lines = []
    build(
        IMAGE_0_6B_FAST, checkpoints, TEMPLATES, output, lines.append, only=STAGE, **choices
    )  # fmt: skip
    return lines


@pytest.fixture(scope="module")
def repository(checkpoints, tmp_path_factory):
    output = tmp_path_factory.mktemp("served") / "fast"
    built(checkpoints, output, trust_torchscript=True)
    return output


def test_a_program_becomes_a_plan_in_the_one_type_it_can_have(checkpoints, tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings", reason="it builds the plan")
    found = recipes(IMAGE_0_6B_FAST, checkpoints, trust_torchscript=True)
    choices = PlanChoices(BuildOptions("tensorrt_rtx", ("sm120",)))
    build_plans(
        IMAGE_0_6B_FAST, found, TEMPLATES, tmp_path / "fast", lambda line: None, choices, only=STAGE
    )
    manifest = read_manifest(tmp_path / "fast" / STAGE / "1")
    assert (manifest.precision, manifest.device) == ("fp32", "sm120")
    assert manifest.graphs["first"].inputs["latents"].startswith("FLOAT [")


def decoded(module, latents):
    with torch.no_grad():
        z = latents[:, :, 0] * STD[:, None, None] + MEAN[:, None, None]
        return module(z)[:, :, None].numpy()


@pytest.mark.parametrize(("rows", "columns"), [(8, 6), (5, 7), (1, 12)])
def test_the_engine_decodes_as_the_module_that_was_traced(repository, program, rows, columns):
    engine = open_engine(repository / STAGE / "1", STAGE).graphs
    assert engine.keys() == {"first"}  # no clips, so nothing follows
    torch.manual_seed(rows)
    latents = torch.randn(1, 16, 1, rows, columns)
    frames = engine["first"]({"latents": latents.numpy()})["frames"]
    expected = decoded(program[1], latents)
    assert frames.shape == (1, 3, 1, 8 * rows, 8 * columns)
    # float32 on both sides; sums in another order give about 1e-6 of the largest value
    np.testing.assert_allclose(frames, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_the_stage_makes_a_picture(repository, program):
    stage = VaeDecoder.open(repository / STAGE / "1", IMAGE_0_6B_FAST)
    torch.manual_seed(1)
    latents = torch.randn(16, 1, 6, 10)
    frames = stage({"latents": latents.numpy()})["frames"]
    assert (frames.shape, frames.dtype) == ((1, 48, 80, 3), np.uint8)
    picture = decoded(program[1], latents[None])[0, :, 0].transpose(1, 2, 0)
    expected = (picture.clip(-1, 1) + 1) * 127.5
    # Half a step of rounding, or a whole one where the original cuts the fraction off.
    assert np.abs(frames[0] - expected).max() <= 1 + 1e-3
    assert len(np.unique(frames)) > 100  # and it is a picture, not one that is cut off everywhere


def test_clips_are_refused(repository):
    clip = {"latents": np.zeros((16, 2, 4, 4), np.float32)}
    with pytest.raises(InvalidRequestError, match=r"num_frames 5 is more than preset 0\.6b-fast"):
        VaeDecoder.open(repository / STAGE / "1", IMAGE_0_6B_FAST)(clip)
    # The same engine where a preset with clips is served.
    with pytest.raises(InvalidRequestError, match="decodes pictures only"):
        VaeDecoder.open(repository / STAGE / "1", TOY)(clip)


def test_the_manifest_says_how_well_the_engine_agrees(repository):
    manifest = read_manifest(repository / STAGE / "1")
    assert (manifest.preset, manifest.precision) == ("0.6b-fast", "fp32")
    (result,) = manifest.verification.values()
    assert result.cosine >= result.min_cosine
    assert result.max_error <= result.max_error_limit
    (graph,) = manifest.graphs.values()
    assert graph.inputs == {"latents": "FLOAT [1, 16, 1, latent_height, latent_width]"}
    assert graph.outputs == {"frames": "FLOAT [1, 3, 1, 8*latent_height, 8*latent_width]"}


def test_a_second_build_keeps_the_engine(checkpoints, repository):
    lines = built(checkpoints, repository, trust_torchscript=True)
    assert any("already built" in line for line in lines)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_program_computes_in_float32_whatever_it_was_traced_in(tmp_path, dtype):
    torch.manual_seed(2)
    decoder, module = traced(Decoder(), 1, 16, 4, 4, dtype=dtype)
    path = written(tmp_path, {"decoder": decoder, "mean_std": torch.stack([MEAN, STD])})
    found = read_scripted_decoder(path, trusted=True)
    widened = scripted_image_decoder(found.program, found.mean, found.std, str(path))
    latents = torch.randn(1, 16, 1, 3, 5)
    frames, expected = widened(latents).numpy(), decoded(module, latents)
    # The same operations in the same dtype; the interpreter may fuse a few.
    np.testing.assert_allclose(frames, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_a_program_runs_here_wherever_it_was_traced(tmp_path, program, content):
    # What a trace on a GPU differs in, beside the place of its weights: the device of tensors it makes.
    elsewhere = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content["decoder"])) as old,
        zipfile.ZipFile(elsewhere, "w") as new,
    ):
        code = {entry.filename: old.read(entry) for entry in old.infolist()}
        assert sum(text.count(b'torch.device("cpu")') for text in code.values()) > 0
        for name, text in code.items():
            new.writestr(name, text.replace(b'torch.device("cpu")', b'torch.device("cuda:0")'))
    path = written(tmp_path, {**content, "decoder": elsewhere.getvalue()})
    found = read_scripted_decoder(path, trusted=True)
    decoder = scripted_image_decoder(found.program, found.mean, found.std, str(path))
    latents = torch.randn(1, 16, 1, 3, 5)
    expected = decoded(program[1], latents)
    np.testing.assert_allclose(decoder(latents), expected, rtol=0, atol=2e-5 * expected.max())


class Trap:
    """Makes a folder when it's unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_read_unless_the_owner_trusts_it(tmp_path, content):
    path = written(tmp_path, {**content, "mean_std": Trap(tmp_path / "sprung")})
    with pytest.raises(
        CheckpointError, match=rf"{path} holds TorchScript: a program .* --trust-torchscript"
    ):
        built(tmp_path, tmp_path / "served")
    (recipe,) = (r for r in recipes(IMAGE_0_6B_FAST, tmp_path) if r.network == STAGE)
    with pytest.raises(CheckpointError, match="Nothing of it was read"):
        recipe.module(recipe.weights())
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "served").exists()


def test_trust_covers_the_programs_and_not_the_pickle_around_them(tmp_path, content):
    path = written(tmp_path, {**content, "mean_std": Trap(tmp_path / "sprung")})
    with pytest.raises(CheckpointError, match=r"asks for (posix|os)\.mkdir, more than the bytes"):
        read_scripted_decoder(path, trusted=True)
    assert not (tmp_path / "sprung").exists()


def test_the_command_takes_the_owners_word(tmp_path, capsys):
    build_it = ["build", "--preset", "0.6b-fast", "--only", STAGE, "--checkpoints", str(tmp_path)]
    assert cli.main(build_it) == 1
    assert "--trust-torchscript" in capsys.readouterr().err
    assert cli.main([*build_it, "--trust-torchscript"]) == 1  # and goes on to what is missing
    assert "preset 0.6b-fast needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": None}, r"should hold \"decoder\" as bytes .* holds encoder \(bytes\), decoder \(NoneType\)"),
        ({"decoder": torch.zeros(3)}, r"decoder \(Tensor\)"),
        ({"mean_std": None}, r"mean_std \(NoneType\); use the tokenizer_fast/tokenizer.pth"),
        ({"mean_std": 1.0}, "is float, not two rows of 16"),
        ({"mean_std": torch.tensor(1.0)}, "is Tensor, not two rows of 16"),
        ({"mean_std": (torch.zeros(8), torch.ones(8))}, r"is \[8\] and \[8\], not two rows of 16"),
        ({"mean_std": (MEAN, torch.zeros(16))}, "no means and deviations"),
        ({"mean_std": (MEAN * torch.nan, STD)}, "no means and deviations"),
        ({"decoder": b"no program"}, "can't be read .* download it again"),
    ],
)  # fmt: skip
def test_files_of_something_else_are_refused(tmp_path, content, change, message):
    path = written(tmp_path, {**content, **change})
    with pytest.raises(CheckpointError, match=message):
        read_scripted_decoder(path, trusted=True)


@pytest.mark.parametrize("save", [lambda x, path: torch.save([x], path), lambda x, path: path.write_bytes(b"")])  # fmt: skip
def test_a_file_without_names_is_refused(tmp_path, content, save):
    path = written(tmp_path, content)
    save(content, path)
    with pytest.raises(CheckpointError, match=f"{path} .*(holds nothing|can't be read)"):
        read_scripted_decoder(path, trusted=True)


def test_damage_is_told_from_other_files(tmp_path, content):
    path = written(tmp_path, content)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"can't be read \(.*; download it again"):
        read_scripted_decoder(path, trusted=True)
    program = content["decoder"]
    path = written(tmp_path, {**content, "decoder": program[: len(program) // 2]})
    with pytest.raises(CheckpointError, match=r"can't be read \(.*; download it again"):
        read_scripted_decoder(path, trusted=True)


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (nn.Conv2d(3, 16, 8, stride=8), (1, 3, 16, 16), r"fails on latents \[1, 16, 2, 3\]"),
        (nn.ConvTranspose2d(16, 3, 16, stride=16), (1, 16, 2, 2), r"makes \[1, 3, 1, 32, 48\] of"),
    ],
)
def test_programs_that_are_no_such_decoder_are_refused(tmp_path, content, module, shape, message):
    path = written(tmp_path, {**content, "decoder": traced(module, *shape)[0]})
    found = read_scripted_decoder(path, trusted=True)
    with pytest.raises(CheckpointError, match=f"{message}.*; it is another kind of tokenizer"):
        scripted_image_decoder(found.program, found.mean, found.std, str(path))


def test_a_program_that_cannot_be_converted_is_refused_with_the_reason():
    program = torch.jit.script(nn.Sequential(nn.GroupNorm(2, 16), nn.ConvTranspose2d(16, 3, 8, 8)))
    decoder = scripted_image_decoder(program.eval(), MEAN, STD, "a.pth")
    with pytest.raises(
        CheckpointError, match=r"a\.pth can't be made an engine .* programs of torch.jit.trace can"
    ):
        lowerable(decoder, "a.pth")


def test_both_presets_are_served_fetched_and_found():
    assert PRESETS["0.6b-fast"].tasks == PRESETS["0.6b-fast-distilled"].tasks == ("text2image",)
    for preset, model in (
        (IMAGE_0_6B_FAST, "model_fast_tokenizer.pt"),
        (IMAGE_0_6B_FAST_DISTILLED, "model_fast_tokenizer_distilled.pt"),
    ):
        wants = {want.repo.name: want.include for want in wanted(preset)}
        assert set(wants["nvidia/Cosmos-Predict2-0.6B-Text2Image"]) == {
            model,
            "tokenizer_fast/tokenizer.pth",
        }


def test_no_other_vae_takes_its_place(tmp_path):
    beside = tmp_path / IMAGE_0_6B_FAST.vae_path
    (beside.parents[1] / "vae").mkdir(parents=True)
    assert located(IMAGE_0_6B_FAST, tmp_path) == IMAGE_0_6B_FAST


def test_presets_with_clips_need_a_vae_for_clips():
    with pytest.raises(ValueError, match="decodes only pictures; give it a VaeSpec"):
        replace(TOY, vae=IMAGE_0_6B_FAST.vae)
