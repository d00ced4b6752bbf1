# SPDX-License-Identifier: Apache-2.0
"""A language model in this process, through transformers: Cosmos-Reason1, and the guards that only read text."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    LogitsProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3ForCausalLM,
    StoppingCriteria,
)

from predict2_runtime.frames import Frames
from predict2_runtime.policy import LanguageModel
from predict2_spec.errors import (
    EngineMismatchError,
    InvalidRequestError,
    ServerError,
    ServerUnavailableError,
)

from . import LOOKS, Ask, Question, local_kind, plain_text
from .vision import DEPTH, Seen, look

_CLASSES: dict[str, Any] = {
    LOOKS: Qwen2_5_VLForConditionalGeneration,
    "llama": LlamaForCausalLM,
    "qwen3": Qwen3ForCausalLM,
}
_PICTURE, _CLIP = "<|image_pad|>", "<|video_pad|>"
_TEXT_TYPE, _PICTURE_TYPE, _CLIP_TYPE = 0, 1, 2  # of tokens, as transformers numbers them


def open_local(where: LanguageModel) -> Ask:
    """The language model whose checkpoint lies in the folder `where.model`; nothing is fetched from anywhere.

    Raises:
        EngineMismatchError: the checkpoint is missing, damaged or of another kind, or the device isn't there.
    """
    folder = Path(where.model)
    kind = local_kind(folder)
    if where.device.startswith("cuda") and not torch.cuda.is_available():
        raise EngineMismatchError(
            f"{folder} is to run on {where.device}, and torch finds no such device here; run it on the cpu, or "
            "install a torch with CUDA"
        )
    try:
        model, tokenizer = _load(folder, kind)
    except EngineMismatchError:
        raise
    except Exception as error:  # transformers raises whatever its file's reader raises
        raise EngineMismatchError(
            f"{folder} can't be read as a {kind} checkpoint ({error}); fetch it again, whole, "
            "with its weights as safetensors"
        ) from error
    try:
        return _Local(where, kind, model.to("cpu" if where.offload else where.device), tokenizer)
    except torch.OutOfMemoryError as error:
        raise EngineMismatchError(
            f"{folder} doesn't fit into the memory left on {where.device}; let it rest on the cpu between calls "
            "(--offload-prompt-refiner, --offload-guardrail), or serve it elsewhere"
        ) from error


def _load(folder: Path, kind: str) -> tuple[Any, Any]:
    """The model on the CPU in its file's dtype, and its tokenizer."""
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    model, report = _CLASSES[kind].from_pretrained(
        folder, dtype="auto", use_safetensors=True, output_loading_info=True, **local
    )
    if report["missing_keys"]:  # transformers would go on with random ones
        raise EngineMismatchError(
            f"{folder} lacks the weights {sorted(report['missing_keys'])[:3]} and perhaps more; fetch it again"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    if kind != LOOKS and not tokenizer.chat_template:
        raise EngineMismatchError(f"{folder} has no chat template; fetch it again, whole")
    # Else settings of the checkpoint would stand in for those a question leaves at their defaults.
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends if isinstance(ends, int) else ends[0]
    model.generation_config = type(model.generation_config)(eos_token_id=ends, pad_token_id=pad)
    return model.eval(), tokenizer


@dataclass(frozen=True)
class _Local:
    where: LanguageModel
    kind: str
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)

    def __call__(self, question: Question, frames: Frames | None, fps: float) -> list[str]:
        deadline = time.monotonic() + self.where.timeout_s
        seen = self._look(frames, fps)
        inputs = self._inputs(self._prompt(question, seen), seen)
        try:
            with (
                self._on_device(),
                torch.inference_mode(),
                _seeded(question.seed, self.where.device),
            ):
                ids = self.model.generate(
                    **{name: tensor.to(self.where.device) for name, tensor in inputs.items()},
                    **_settings(question),
                    logits_processor=[_Only(self._ascii)] if question.ascii_only else [],
                    stopping_criteria=[_Deadline(deadline, self.where)],
                ).cpu()
        except torch.OutOfMemoryError as error:
            raise ServerError(
                f"{Path(self.where.model).name} ran out of memory on {self.where.device}; ask for fewer responses, or have the "
                "server's owner free some or serve it elsewhere"
            ) from error
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        answers = [text.strip() for text in texts]
        return answers if question.temperature else answers * question.num_responses

    def _look(self, frames: Frames | None, fps: float) -> Seen | None:
        if frames is None:
            return None
        if self.kind != LOOKS:
            raise InvalidRequestError(
                f"{Path(self.where.model).name} is a {self.kind} model and takes no frames"
            )
        return look(frames, fps)

    def _prompt(self, question: Question, seen: Seen | None) -> str:
        """The conversation as the model was trained to read it, up to where its answer begins."""
        system, text = self._plain(question.system), self._plain(question.text)
        if self.kind == LOOKS:
            pad = _CLIP if seen and seen.fps else _PICTURE
            counts = seen.tokens if seen else []
            pads = "".join(f"<|vision_start|>{pad * n}<|vision_end|>" for n in counts)
            user = pads + text if question.frames_first else text + pads
            turns = [("system", system or "You are a helpful assistant."), ("user", user)]
            told = "".join(f"<|im_start|>{who}\n{said}<|im_end|>\n" for who, said in turns)
            return f"{told}<|im_start|>assistant\n"
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        prompt = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return str(prompt)

    def _plain(self, text: str) -> str:
        """The text without this tokenizer's special tokens, which needn't look like others' control tokens."""
        return self._special.sub(" ", plain_text(text))

    @cached_property
    def _special(self) -> re.Pattern[str]:
        tokens = self.tokenizer.added_tokens_decoder.values()
        return re.compile(
            "|".join(re.escape(str(token)) for token in tokens if token.special) or "(?!)"
        )

    def _inputs(self, prompt: str, seen: Seen | None) -> dict[str, Any]:
        """What the model's `generate` takes, on the CPU."""
        ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if seen is None:
            return inputs
        patches, grids = torch.from_numpy(seen.patches), torch.from_numpy(seen.grids)
        types = torch.full_like(ids, _TEXT_TYPE)
        types[ids == self.model.config.image_token_id] = _PICTURE_TYPE
        types[ids == self.model.config.video_token_id] = _CLIP_TYPE
        inputs["mm_token_type_ids"] = types
        if not seen.fps:
            return inputs | {"pixel_values": patches, "image_grid_thw": grids}
        seconds = torch.tensor([DEPTH / seen.fps])
        return inputs | {
            "pixel_values_videos": patches,
            "video_grid_thw": grids,
            "second_per_grid_ts": seconds,
        }

    @cached_property
    def _ascii(self) -> torch.Tensor:
        """Which tokens are plain ASCII; BOOL [vocabulary], ids without a token are not."""
        tokens = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
        allowed = torch.zeros(self.model.get_output_embeddings().weight.shape[0], dtype=torch.bool)
        allowed[: len(tokens)] = torch.tensor([token.isascii() for token in tokens])
        return allowed

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """The weights on their device; with `offload` only in here, and never copied back."""
        if not self.where.offload:
            yield
            return
        tensors = [*chain(self.model.parameters(), self.model.buffers())]
        resting = [tensor.data for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.data = tensor.data.to(self.where.device)
            yield
        finally:
            for tensor, data in zip(tensors, resting, strict=True):
                tensor.data = data
            if self.where.device != "cpu":
                torch.cuda.empty_cache()


def _settings(question: Question) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "max_new_tokens": question.max_new_tokens,
        "repetition_penalty": question.repetition_penalty,
        "do_sample": question.temperature > 0,
    }
    if not question.temperature:
        return settings
    return settings | {
        "num_return_sequences": question.num_responses,
        "temperature": question.temperature,
        "top_p": question.top_p,
        "top_k": question.top_k,
    }


@contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Random numbers that a question's seed decides, and nobody else's disturbed."""
    with torch.random.fork_rng([] if device == "cpu" else [torch.device(device).index or 0]):
        torch.manual_seed(seed)
        yield


class _Only(LogitsProcessor):
    """Lets only some tokens be chosen."""

    def __init__(self, allowed: torch.Tensor) -> None:
        self.allowed = allowed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(~self.allowed.to(scores.device), -torch.inf)


class _Deadline(StoppingCriteria):
    """Gives up when the time is over: half an answer would be worse than none."""

    def __init__(self, deadline: float, where: LanguageModel) -> None:
        self.deadline, self.where = deadline, where

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if time.monotonic() > self.deadline:
            raise ServerUnavailableError(
                f"{Path(self.where.model).name} on {self.where.device} didn't answer within {self.where.timeout_s:g} s; ask for "
                "fewer responses or tokens, or have the server's owner raise --language-timeout"
            )
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
