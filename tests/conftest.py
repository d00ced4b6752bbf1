# SPDX-License-Identifier: Apache-2.0
"""What several folders of tests compare with."""

import json
import os
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from predict2_spec.networks import LATENT_CHANNELS

# Fuzzed inputs: five hundred of each kind, the same every time, or as many as the environment says and always others.
# No deadline, for the machine may be busy; no database, for a failure prints what repeats it.
with suppress(ModuleNotFoundError):  # which `make gpu` doesn't ask for
    from hypothesis import HealthCheck, Phase, settings

    _EXAMPLES = os.environ.get("PREDICT2_FUZZ_EXAMPLES")
    settings.register_profile(
        "fuzz",
        max_examples=int(_EXAMPLES or 500),
        derandomize=not _EXAMPLES,
        deadline=None,
        database=None,
        print_blob=True,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=tuple(HealthCheck),
    )
    settings.load_profile("fuzz")


def _diffusers_dit(spec):
    from diffusers import CosmosTransformer3DModel  # takes seconds, and most tests do without
    from diffusers.models.normalization import RMSNorm

    module = CosmosTransformer3DModel(
        in_channels=LATENT_CHANNELS + int(spec.condition_mask),
        num_attention_heads=spec.num_heads,
        attention_head_dim=spec.head_dim,
        num_layers=spec.num_blocks,
        text_embed_dim=spec.text_width,
        adaln_lora_dim=spec.adaln_rank,
        rope_scale=spec.rope_scale,
        extra_pos_embed_type=None,
    )
    for part in module.modules():
        if isinstance(part, RMSNorm):
            part.eps = 1e-6  # the original's; diffusers leaves its own default of 1e-5
    return module


@pytest.fixture(scope="session")
def diffusers_dit():
    """From a DitSpec to diffusers' own network with the original's epsilon."""
    return _diffusers_dit


# Small language models of the true classes with random weights, and an endpoint. A session builds each once.

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")  # fmt: skip
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _save_tokenizer(folder):
    """A token for each byte and a few for pairs of them, so some tokens are plain ASCII and some aren't."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("o", "n"), ("Ã", "©")]  # the last: é, as its two bytes
    vocabulary = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return {token: tokenizer.token_to_id(token) for token in _SPECIAL}


def _language_model(kind, ids):
    """A model of the class that `kind`, a model_type, stands for; 300 ids, more than it has tokens."""
    import transformers

    text = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "eos_token_id": ids["<|im_end|>"],
        "bos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    if kind == "qwen2_5_vl":
        return transformers.Qwen2_5_VLForConditionalGeneration(_vision_config(text, ids))
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**text))
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**text, head_dim=16))


def _vision_config(text, ids):
    import transformers

    multimodal_rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    return transformers.Qwen2_5_VLConfig(
        text_config=text | {"rope_parameters": multimodal_rope},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def _save_language_model(folder, kind):
    """A checkpoint of `kind` in bfloat16."""
    import torch

    ids = _save_tokenizer(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _language_model(kind, ids)
        for weight in model.parameters():  # as initialised, every token would be about as likely
            weight.data.mul_(8 if weight.ndim > 1 else 1)
        # What released checkpoints ship; nothing of it may reach a question that doesn't ask for it.
        model.generation_config.update(do_sample=True, temperature=1e-6, top_k=1, repetition_penalty=9.0)  # fmt: skip
        model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_reasoner(tmp_path_factory):
    """A folder with a Qwen2.5-VL like Cosmos-Reason1."""
    return _save_language_model(tmp_path_factory.mktemp("reasoner"), "qwen2_5_vl")


@pytest.fixture(scope="session")
def tiny_llama_guard(tmp_path_factory):
    """A folder with a Llama like Llama-Guard-3."""
    return _save_language_model(tmp_path_factory.mktemp("llama_guard"), "llama")


@pytest.fixture(scope="session")
def tiny_qwen3guard(tmp_path_factory):
    """A folder with a Qwen3 like Qwen3Guard-Gen."""
    return _save_language_model(tmp_path_factory.mktemp("qwen3guard"), "qwen3")


class _ChatHandler(BaseHTTPRequestHandler):
    """Speaks POST /v1/chat/completions; answers what the server's `answer` makes of a request."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(
            SimpleNamespace(path=self.path, headers=dict(self.headers), body=body)
        )
        answer = self.server.answer
        answer = answer(body) if callable(answer) else answer
        if not isinstance(answer, Reply):
            texts = [answer] * body.get("n", 1) if isinstance(answer, str) else answer
            choices = [{"message": {"role": "assistant", "content": text}} for text in texts]
            answer = Reply(json.dumps({"choices": choices}).encode())
        with suppress(OSError):  # the caller may have gone away
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.data)))
            self.end_headers()
            for start in range(0, len(answer.data), answer.piece):
                self.wfile.write(answer.data[start : start + answer.piece])
                time.sleep(answer.pause)

    def log_message(self, *args):
        pass


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, for those who want more than texts."""

    data: bytes = b""
    status: int = 200
    headers: dict = field(default_factory=dict)
    piece: int = 65536  # bytes sent at once ...
    pause: float = 0.0  # ... and seconds after each


@pytest.fixture(scope="session")
def chat_server():
    """Starts OpenAI-compatible endpoints.

    `chat_server(answer)` has a `url`, and the `requests` it got with path, headers and body. `answer` is a text for
    each choice, a list of all choices' texts, a `chat_server.Reply`, or a function from the request's body to one.
    """
    with ExitStack() as stack:

        def start(answer):
            server = ThreadingHTTPServer(("127.0.0.1", 0), _ChatHandler)
            server.daemon_threads, server.block_on_close = True, False
            server.answer, server.requests = answer, []
            server.url = f"http://127.0.0.1:{server.server_port}/v1"
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            stack.callback(lambda: (server.shutdown(), thread.join(), server.server_close()))
            return server

        start.Reply = Reply
        yield start
