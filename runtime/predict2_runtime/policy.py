# SPDX-License-Identifier: Apache-2.0
"""What a server's owner decided when starting it. predict2-serve writes it, the models read it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from predict2_spec.admission import REQUEST_TIMEOUT_S
from predict2_spec.limits import LIMITS, Limits

from .logs import LogFormat, LogLevel

POLICY_VARIABLE = "PREDICT2_POLICY"  # of the environment; JSON, without secrets
# Of the environment: the keys of endpoints, which are never in a policy.
TEXT_GUARD_KEY_VARIABLE = "PREDICT2_TEXT_GUARD_API_KEY"
REASONER_KEY_VARIABLE = "PREDICT2_REASONER_API_KEY"


@dataclass(frozen=True)
class LanguageModel:
    """Where a language model answers: in this process through transformers, or behind a URL."""

    model: str  # a checkpoint folder, or the name the endpoint knows it by
    url: str = (
        ""  # of an OpenAI-compatible endpoint, such as http://127.0.0.1:9000/v1; empty: local
    )
    device: str = "cpu"  # cpu or cuda, of a local one
    offload: bool = False  # rest on the CPU, and move to the device for each call
    timeout_s: float = 120.0  # of one call
    key_variable: str = ""  # of the environment, that holds the endpoint's key; empty: it has none


@dataclass(frozen=True)
class Policy:
    """The defaults are the safe ones; they hold where Triton is started without predict2-serve."""

    allow_disable_guardrail: bool = False  # by a request
    run_unguarded: bool = False  # the owner said that guard models may be missing
    guard_frames: bool = True  # False: the repository holds no frame guard and the owner said so
    guard_pictures: bool = False  # look at pictures too, not only at clips; the original doesn't
    blocklists: str = ""  # a folder with lists beside the ones that ship
    text_guard: LanguageModel | None = None  # asked after the blocklist
    reasoner: LanguageModel | None = None  # None: prompts aren't refined and clips not judged
    require_refiner: bool = (
        False  # refuse what the refiner fails on, rather than go on with the prompt
    )
    limits: Limits = LIMITS
    # The longest a request may take. Triton ends its waiting by it; a model can't learn it from Triton.
    request_timeout_s: float = REQUEST_TIMEOUT_S

    log_format: LogFormat = "text"
    log_level: LogLevel = "info"
    warm_up: bool = True  # have every engine evaluate something before the server is ready
    state: str = ""  # the folder where requests are followed; empty: one that ends with the server
    kept_bytes: int = 4 * 1024**3  # of all results of followed requests together
    kept_seconds: int = 3600  # how long one of them is kept

    def to_json(self) -> str:
        """The policy as it stands in the environment."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Policy":
        """Read a policy of this version."""
        values = json.loads(text)
        for name in ("text_guard", "reasoner"):
            if values.get(name):
                values[name] = LanguageModel(**values[name])
        values["limits"] = Limits(**values["limits"])
        return cls(**values)


def read_policy(environment: Mapping[str, str]) -> Policy:
    """The policy of the server that this process belongs to."""
    text = environment.get(POLICY_VARIABLE)
    return Policy.from_json(text) if text else Policy()
