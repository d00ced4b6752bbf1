# SPDX-License-Identifier: Apache-2.0
"""The owner's part of `predict2-serve`: guardrails, refiner and critic, from options to a policy."""

import argparse
import importlib.util
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from predict2_runtime.guardrails.blocklist import Blocklist
from predict2_runtime.guardrails.text_guard import kind_of
from predict2_runtime.language import local_kind
from predict2_runtime.logs import LOG_FORMATS, LOG_LEVELS
from predict2_runtime.policy import (
    REASONER_KEY_VARIABLE,
    TEXT_GUARD_KEY_VARIABLE,
    LanguageModel,
    Policy,
)
from predict2_runtime.repository import VERSION_FOLDER
from predict2_spec.admission import REQUEST_TIMEOUT_S
from predict2_spec.errors import EngineMismatchError, ServerUnavailableError
from predict2_spec.limits import LIMITS, parse_number
from predict2_spec.manifest import MANIFEST_FILE
from predict2_spec.presets import Preset
from predict2_spec.tensors import GUARDRAIL_VIDEO

from . import configs

NONE = "none"
MAX_ANSWER_SECONDS = 3600
_KEY_VARIABLES = {"text_guard": TEXT_GUARD_KEY_VARIABLE, "reasoner": REASONER_KEY_VARIABLE}
_WHERE = "a checkpoint folder, or URL#MODEL of an OpenAI-compatible endpoint"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The options that decide what may be asked for and who helps with it."""
    guards = parser.add_argument_group("guardrails")
    guards.add_argument("--text-guard", metavar="WHERE", help=f"Llama-Guard-3 or Qwen3Guard: {_WHERE}; the default is what lies in --checkpoints")  # fmt: skip
    guards.add_argument("--blocklists", type=Path, metavar="DIR", help="folder with custom/, whitelist/ and exact_match/ lists beside those that ship")  # fmt: skip
    guards.add_argument("--guard-pictures", action="store_true", help="look at text2image's pictures too, not only at clips")  # fmt: skip
    guards.add_argument("--offload-guardrail", action="store_true", help="keep a local text guard on the CPU between calls")  # fmt: skip
    guards.add_argument("--allow-disable-guardrail", action="store_true", help="let a request switch all guardrails off for itself")  # fmt: skip
    guards.add_argument("--run-unguarded", action="store_true", help="start although guard models are missing; what is there still guards")  # fmt: skip
    refiner = parser.add_argument_group("prompt refiner and critic")
    refiner.add_argument("--reasoner", metavar="WHERE", help=f"Cosmos-Reason1: {_WHERE}; the default is what lies in --checkpoints; '{NONE}': no refiner, no critic")  # fmt: skip
    refiner.add_argument("--offload-prompt-refiner", action="store_true", help="keep a local reasoner on the CPU between calls")  # fmt: skip
    refiner.add_argument("--require-prompt-refiner", action="store_true", help="refuse a request when the refiner fails, rather than take its own prompt")  # fmt: skip
    followed = parser.add_argument_group("followed requests")
    followed.add_argument("--state", type=Path, metavar="DIR", help="keep their results here, also when the server ends; the default ends with it")  # fmt: skip
    followed.add_argument("--kept-bytes", type=_whole, default=Policy.kept_bytes, metavar="N", help="of all results together; the oldest make room (%(default)s)")  # fmt: skip
    followed.add_argument("--kept-seconds", type=_whole, default=Policy.kept_seconds, metavar="S", help="how long one is kept (%(default)s)")  # fmt: skip
    running = parser.add_argument_group("start and log")
    running.add_argument("--no-warm-up", action="store_true", help="be ready as soon as the engines are loaded; first requests take longer")  # fmt: skip
    running.add_argument("--log-format", choices=LOG_FORMATS, default="text", help="of the models' log (%(default)s)")  # fmt: skip
    running.add_argument("--log-level", choices=LOG_LEVELS, default="info", help="debug: a line for each call of a stage, too (%(default)s)")  # fmt: skip
    configs.add_flags(parser)
    models = parser.add_argument_group("language models")
    models.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR", help="where `predict2-export fetch` put them (%(default)s)")  # fmt: skip
    models.add_argument("--language-device", choices=("cpu", "cuda"), help="for local ones; cuda where there is a GPU")  # fmt: skip
    models.add_argument("--language-timeout", type=_answer_seconds, default=120.0, metavar="S", help=f"seconds of one answer (%(default)s); an endpoint's key stands in {' or '.join(_KEY_VARIABLES.values())}")  # fmt: skip


def _answer_seconds(text: str) -> float:
    seconds = float(text)
    if not 1 <= seconds <= MAX_ANSWER_SECONDS:  # nor is NaN
        raise argparse.ArgumentTypeError(f"{text} must be between 1 and {MAX_ANSWER_SECONDS}")
    return seconds


def _whole(text: str) -> int:
    number = parse_number(text)
    if number is None or number != int(number):
        raise argparse.ArgumentTypeError(
            f"{text} must be a whole number; 64MB and 64MiB are understood too"
        )
    return int(number)


def policy_from(args: argparse.Namespace, preset: Preset, repository: Path) -> Policy:
    """What the options decide.

    Raises:
        EngineMismatchError: guard models are missing and nobody said to run without them.
        ServerUnavailableError: an option names nothing that can answer.
    """
    text_guard = _find(args, "text_guard", preset.text_guard_path, args.offload_guardrail)
    reasoner = None
    if preset.video2world:  # pictures are neither refined nor judged
        reasoner = _find(args, "reasoner", preset.reasoner_path, args.offload_prompt_refiner)
    guard_frames = (repository / GUARDRAIL_VIDEO.name / VERSION_FOLDER / MANIFEST_FILE).is_file()
    _check_guards(args, preset, repository, text_guard, guard_frames)
    if args.require_prompt_refiner and reasoner is None:
        raise ServerUnavailableError(
            "--require-prompt-refiner needs a refiner; name one with --reasoner, or leave the option out"
        )
    return Policy(
        allow_disable_guardrail=args.allow_disable_guardrail,
        run_unguarded=args.run_unguarded,
        guard_frames=guard_frames,
        guard_pictures=args.guard_pictures,
        blocklists=str(args.blocklists.resolve()) if args.blocklists else "",
        text_guard=text_guard,
        reasoner=reasoner,
        require_refiner=args.require_prompt_refiner,
        state=str(args.state.resolve()) if args.state else "",
        kept_bytes=args.kept_bytes,
        kept_seconds=args.kept_seconds,
        limits=replace(LIMITS, **dict(args.limit)),
        request_timeout_s=args.request_timeout or REQUEST_TIMEOUT_S,
        log_format=args.log_format,
        log_level=args.log_level,
        warm_up=not args.no_warm_up,
    )


def _check_guards(
    args: argparse.Namespace,
    preset: Preset,
    repository: Path,
    text_guard: LanguageModel | None,
    guard_frames: bool,
) -> None:
    """What would else end Triton's start with the models' traces."""
    missing = []
    if preset.text_guard_path and text_guard is None:
        missing.append(
            f"no text guard in {args.checkpoints / preset.text_guard_path} (`predict2-export fetch --with guardrails`, "
            "or name one with --text-guard)"
        )
    looks_at_frames = bool(preset.video2world) or args.guard_pictures
    if looks_at_frames and not guard_frames:
        missing.append(
            f"no engine of {GUARDRAIL_VIDEO.name} in {repository} (build it from the fetched guardrails)"
        )
    if missing and not args.run_unguarded:
        raise EngineMismatchError(
            f"guard models are missing: {'; '.join(missing)}. To start without them, say --run-unguarded"
        )
    if args.guard_pictures and not guard_frames:
        raise EngineMismatchError(
            f"--guard-pictures needs the engine of {GUARDRAIL_VIDEO.name}, and {repository} has none; build it, or "
            "leave the option out"
        )
    if args.blocklists and not args.blocklists.is_dir():
        raise ServerUnavailableError(f"--blocklists {args.blocklists} is no folder")
    if args.blocklists:
        Blocklist.read(args.blocklists)
    if text_guard:
        kind_of(text_guard)


def describe(policy: Policy) -> str:
    """One line on what guards the server and who refines its prompts."""
    guards = [
        "blocklist",
        *([f"text guard {policy.text_guard.model}"] if policy.text_guard else []),
        *(["frames"] if policy.guard_frames else []),
        *(["pictures"] if policy.guard_frames and policy.guard_pictures else []),
    ]
    may = "may" if policy.allow_disable_guardrail else "can't"
    reasoner = policy.reasoner.model if policy.reasoner else "none"
    return f"guardrails: {', '.join(guards)}; requests {may} switch them off; reasoner: {reasoner}"


def _find(
    args: argparse.Namespace, option: str, default: str, offload: bool
) -> LanguageModel | None:
    """The language model an option names; without one the checkpoint at its default place, if it's there."""
    flag, where = f"--{option.replace('_', '-')}", getattr(args, option)
    if where == NONE:
        return None
    if where and where.startswith(("http://", "https://")):
        url, _, model = where.partition("#")
        if not (model and urlsplit(url).hostname):
            raise ServerUnavailableError(
                f"{flag} must be a URL and the name of the model there, such as "
                "http://127.0.0.1:9000/v1#nvidia/Cosmos-Reason1-7B"
            )
        return LanguageModel(
            model, url=url, timeout_s=args.language_timeout, key_variable=_KEY_VARIABLES[option]
        )
    folder = Path(where) if where else args.checkpoints / default
    if not (where or default) or not (where or folder.is_dir()):
        return None
    local_kind(folder)
    _check_local(flag)
    device = args.language_device or ("cuda" if Path("/dev/nvidiactl").exists() else "cpu")
    return LanguageModel(
        str(folder.resolve()), device=device, offload=offload, timeout_s=args.language_timeout
    )


def _check_local(flag: str) -> None:
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise ServerUnavailableError(
                f"{flag} names a folder, and {package}, which would run it here, isn't installed; "
                "install it (pip install torch transformers), or name an endpoint by its URL"
            )
