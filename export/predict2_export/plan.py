# SPDX-License-Identifier: Apache-2.0
"""What a task of a preset costs: shapes, work, memory and disk, known before anything is downloaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from predict2_spec import networks as nets
from predict2_spec import tensors
from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import Preset, Task
from predict2_spec.requests import MAX_DISTILL_STEPS, GenerationRequest
from predict2_spec.video import LatentShape, VideoShape

from .costs import (
    BF16_BYTES,
    FP32_BYTES,
    Conv,
    DitFlops,
    decoder_convs,
    dit_activation_bytes,
    dit_flops,
    dit_fp8_bytes,
    dit_parameters,
    encoder_convs,
    text_encoder_activation_bytes,
    text_encoder_flops,
    text_encoder_parameters,
    vae_activation_bytes,
    vae_flops,
    vae_parameters,
    whole_t5_parameters,
)
from .gpus import Gpu

STEPS = GenerationRequest.num_steps + 1  # the clean pass at the end is one more
GUIDED_PASSES = 2  # a step asks with the prompt and without
VAE_STAGES = (tensors.VAE_ENCODER, tensors.VAE_DECODER)
VAE_GRAPHS = 2  # the first chunk and later ones, each with the weights
# Of a network's float32 weights: what building and comparing its engine was seen to take at its peak
# (11.6 GB of 7.8; the line memory.build of benchmarks/results/cpu.jsonl).
ENGINE_MEMORY = 1.5
# CUDA's contexts and libraries take some of the GPU in every process of a server.
RESERVED_BYTES = 4 * 10**9


@dataclass(frozen=True)
class Size:
    """A picture or a clip, as the networks see it."""

    of: Literal["picture", "clip"]
    pixels: VideoShape
    latent: LatentShape
    grid: nets.Axes
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one stage does for one generation."""

    stage: str
    of: str  # prompt, input, picture or clip
    parameters: int
    small_bytes: int = (
        0  # of the weights with the blocks' matrices in 8 bits; only denoisers have any
    )
    activation_bytes: int
    pass_flops: int  # of the whole batch
    passes: int = 1
    steps: int = 1  # that the passes are shared among
    by_kind: DitFlops | None = None  # of a denoiser's pass, for one sample

    @property
    def flops(self) -> int:
        """FLOPs of a generation."""
        return self.pass_flops * self.passes

    @property
    def step_flops(self) -> int:
        """FLOPs of one solver step."""
        return self.flops // self.steps

    @property
    def bf16_bytes(self) -> int:
        """Bytes of the weights in bf16."""
        return self.parameters * BF16_BYTES

    @property
    def fp8_bytes(self) -> int:
        """Bytes of the weights with 8-bit blocks, where there are any."""
        return self.small_bytes or self.bf16_bytes

    def bf16_seconds(self, gpu: Gpu) -> float:
        """Floor of all passes in bf16."""
        return self.passes * floor_seconds(
            self.pass_flops, self.bf16_bytes, gpu.bf16_flops, gpu.bandwidth
        )

    def fp8_seconds(self, gpu: Gpu) -> float:
        """Floor of all passes with a denoiser's matrices and attention in 8 bits, all else in bf16."""
        rate = gpu.fp8_flops if self.small_bytes else gpu.bf16_flops
        return self.passes * floor_seconds(self.pass_flops, self.fp8_bytes, rate, gpu.bandwidth)


def floor_seconds(flops: float, weight_bytes: float, rate: float, bandwidth: float) -> float:
    """The least time of a pass: all FLOPs at the peak rate, or all weights read once.

    Activations are left out: fused kernels keep most of them out of memory.
    """
    return max(flops / rate, weight_bytes / bandwidth)


@dataclass(frozen=True)
class Memory:
    """Bytes of a GPU that serves the task: all networks stay on it."""

    bf16_weights: int
    fp8_weights: int
    activations: int  # every engine keeps working memory of its own
    reserved: int = RESERVED_BYTES

    @property
    def bf16(self) -> int:
        """With bf16 engines."""
        return self.bf16_weights + self.activations + self.reserved

    @property
    def fp8(self) -> int:
        """With the denoisers' blocks in 8 bits."""
        return self.fp8_weights + self.activations + self.reserved


@dataclass(frozen=True)
class Host:
    """Disk and host memory, in bytes, for all stages of the preset."""

    checkpoints: int  # tensors of the published files, in the original's layout
    checkpoints_diffusers: int  # the same, with the text encoder that diffusers' layout has
    onnx_fp32: int  # external data of the graphs; a VAE's two graphs hold its weights twice
    onnx_bf16: int
    engines_bf16: int  # of TensorRT: the weights, and little beside them
    engines_fp8: int
    temporary: int  # while building: the largest stage's fp32 graphs, beside the ones they replace
    export_memory: (
        int  # with the largest network's fp32 engine open, to compare it with the torch module
    )
    engine_build_memory: int  # the largest network in bf16 twice: the graph and the engine


@dataclass(frozen=True)
class Plan:
    """All that is known of a task before it runs."""

    preset: str
    task: Task
    batch: int
    gpu: Gpu
    sizes: tuple[Size, ...]
    work: tuple[Work, ...]
    memory: Memory
    host: Host
    uncounted: tuple[str, ...]  # stages of which nothing is known before their file is there

    @property
    def flops(self) -> int:
        """FLOPs of a generation."""
        return sum(work.flops for work in self.work)

    @property
    def bf16_seconds(self) -> float:
        """The floor of a generation in bf16."""
        return sum(work.bf16_seconds(self.gpu) for work in self.work)

    @property
    def fp8_seconds(self) -> float:
        """The floor of a generation with 8-bit denoisers."""
        return sum(work.fp8_seconds(self.gpu) for work in self.work)


def make_plan(
    preset: Preset,
    gpu: Gpu,
    task: Task,
    *,
    aspect_ratio: str = "16:9",
    num_frames: int = 0,
    batch: int = 1,
) -> Plan:
    """Plan one task.

    Args:
        preset: what is served.
        gpu: on what.
        task: of those the preset serves.
        aspect_ratio: of the preset's table.
        num_frames: of the clip, 1 + 4k; 0 is the preset's own.
        batch: samples that are made at once.

    Raises:
        InvalidRequestError: the preset doesn't serve that.
    """
    if batch < 1:
        raise InvalidRequestError(f"batch {batch} must be 1 or more")
    preset.dit(task)
    sizes = []
    if task != "video2world":
        width, height = preset.size("text2image", aspect_ratio)
        sizes.append(_size(preset, "text2image", VideoShape(1, height, width)))
    if task != "text2image":
        width, height = preset.size(task, aspect_ratio)
        sizes.append(
            _size(preset, task, VideoShape(num_frames or preset.num_frames, height, width))
        )
    works = [work for size in sizes for work in _stages(preset, size, batch)]
    return Plan(
        preset.name,
        task,
        batch,
        gpu,
        tuple(sizes),
        tuple(works),
        _memory(works),
        host_needs(preset),
        tuple(
            stage.name
            for stage in tensors.served_stages(preset)
            if isinstance(preset.vae, nets.ScriptedVaeSpec) and stage in VAE_STAGES
        ),
    )


def _size(preset: Preset, task: Task, shape: VideoShape) -> Size:
    preset.check(task, shape)
    latent = shape.latent
    return Size(
        "picture" if task == "text2image" else "clip", shape, latent, latent.grid, latent.tokens
    )


def _stages(preset: Preset, size: Size, batch: int) -> list[Work]:
    """What happens to make one picture or clip, in order."""
    picture = size.of == "picture"
    text, latent = preset.text_encoder, size.latent
    # A picture without a negative prompt needs one text, a clip is always told what to avoid.
    prompts = batch if picture else 2 * batch
    encode_text = Work(
        stage=tensors.TEXT_ENCODER.name,
        of="prompt",
        parameters=text_encoder_parameters(text),
        activation_bytes=prompts * text_encoder_activation_bytes(text),
        pass_flops=prompts * text_encoder_flops(text),
    )
    denoise = _denoise(preset, size, batch)
    if isinstance(preset.vae, nets.ScriptedVaeSpec):
        return [encode_text, denoise]
    decode = _vae_work(tensors.VAE_DECODER, size.of, preset.vae, latent, batch)
    if picture:
        return [encode_text, denoise, decode]
    first = LatentShape(1, latent.height, latent.width)  # only what is given is encoded
    encode = _vae_work(tensors.VAE_ENCODER, "input", preset.vae, first, batch)
    return [encode_text, encode, denoise, decode]


def _denoise(preset: Preset, size: Size, batch: int) -> Work:
    picture = size.of == "picture"
    spec = preset.dit("text2image" if picture else "video2world")
    stage = tensors.TEXT2IMAGE_DENOISER if picture else tensors.VIDEO2WORLD_DENOISER
    distilled = preset.distilled and picture
    steps = MAX_DISTILL_STEPS if distilled else STEPS
    kinds = dit_flops(spec, size.grid, preset.text_encoder.num_tokens)
    return Work(
        stage=stage.name,
        of=size.of,
        parameters=dit_parameters(spec),
        small_bytes=dit_fp8_bytes(spec),
        activation_bytes=batch * dit_activation_bytes(spec, size.grid),
        pass_flops=batch * kinds.total,
        passes=steps * (1 if distilled else GUIDED_PASSES),
        steps=steps,
        by_kind=kinds,
    )


def _vae_work(
    stage: tensors.Model, of: str, spec: nets.VaeSpec, latent: LatentShape, batch: int
) -> Work:
    convs = _vae_convs(stage, spec)
    return Work(
        stage=stage.name,
        of=of,
        parameters=vae_parameters(convs),
        activation_bytes=batch * vae_activation_bytes(convs, latent),
        pass_flops=batch * vae_flops(spec, convs, latent),
    )


def _vae_convs(stage: tensors.Model, spec: nets.VaeSpec | nets.ScriptedVaeSpec) -> list[Conv]:
    """The layers of a VAE's half; none of a scripted one, whose layers are in its file alone."""
    if isinstance(spec, nets.ScriptedVaeSpec):
        return []
    return list((encoder_convs if stage is tensors.VAE_ENCODER else decoder_convs)(spec))


def _memory(works: Iterable[Work]) -> Memory:
    engines = {work.stage: work for work in works}
    most = dict.fromkeys(engines, 0)
    for work in works:
        most[work.stage] = max(most[work.stage], work.activation_bytes)
    return Memory(
        bf16_weights=sum(work.bf16_bytes for work in engines.values()),
        fp8_weights=sum(work.fp8_bytes for work in engines.values()),
        activations=sum(most.values()),
    )


def host_needs(preset: Preset) -> Host:
    """Disk and host memory for fetching a preset, exporting it and building its engines."""
    dits = [dit for dit in (preset.text2image, preset.video2world) if dit]
    stages = [stage for stage in tensors.served_stages(preset) if stage in VAE_STAGES]
    vae = [vae_parameters(_vae_convs(stage, preset.vae)) for stage in stages]
    counts = [text_encoder_parameters(preset.text_encoder), *vae, *map(dit_parameters, dits)]
    in_graphs = sum(counts) + (VAE_GRAPHS - 1) * sum(vae)
    saved = sum(BF16_BYTES * dit_parameters(dit) - dit_fp8_bytes(dit) for dit in dits)
    return Host(
        checkpoints=checkpoint_bytes(preset),
        checkpoints_diffusers=checkpoint_bytes(preset, small_text_encoder=True),
        onnx_fp32=FP32_BYTES * in_graphs,
        onnx_bf16=BF16_BYTES * in_graphs,
        engines_bf16=BF16_BYTES * in_graphs,
        engines_fp8=BF16_BYTES * in_graphs - saved,
        temporary=FP32_BYTES * max(counts),
        export_memory=round(ENGINE_MEMORY * FP32_BYTES * max(counts)),
        engine_build_memory=2 * BF16_BYTES * max(counts),
    )


def checkpoint_bytes(preset: Preset, *, small_text_encoder: bool = False) -> int:
    """Bytes of the tensors in the files that a preset names.

    The released denoisers are in bf16 and their VAE in fp32. T5 is published in fp32 with the decoder
    that nobody needs here; beside the 2B and 14B networks lies its encoder alone in bf16, which
    `small_text_encoder` takes. All of the toy is in fp16.
    """
    dits = sum(dit_parameters(dit) for dit in (preset.text2image, preset.video2world) if dit)
    vae = sum(vae_parameters(_vae_convs(stage, preset.vae)) for stage in VAE_STAGES)
    text = text_encoder_parameters(preset.text_encoder)
    if preset.text_encoder is not nets.T5_11B:
        return BF16_BYTES * (dits + vae + text)
    if small_text_encoder and preset.video2world:
        return BF16_BYTES * (dits + text) + FP32_BYTES * vae
    return BF16_BYTES * dits + FP32_BYTES * (vae + whole_t5_parameters(preset.text_encoder))
