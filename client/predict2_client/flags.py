# SPDX-License-Identifier: Apache-2.0
"""The flags of `predict2`: the original's, by its names and defaults, and a few of our own."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from predict2_spec.critic import MAX_TRIALS, NUM_TRIALS
from predict2_spec.presets import TASKS, Task
from predict2_spec.requests import FIELD_TYPES, SOLVERS
from predict2_spec.video import ASPECT_RATIOS, CONDITIONAL_FRAMES

from .batch import RETRY_FOR_S
from .exchange import DEFAULT_LEASE_S
from .settings import setting_defaults, setting_names

BEST_OF_N = "best-of-n"
SAMPLE_PROMPT = "a green circle moves right on a white background"

_BUILD = "choose the checkpoint when building engines with predict2-export"
_PLACE = (
    "where a network lies, on the GPU or the CPU, is decided when its engine is built and served"
)
_LORA = "merge the adapter into the checkpoint and build an engine from it with predict2-export"
_CRITIC = "whoever runs predict2-serve names the critic's checkpoint with --reasoner"
SERVER_FLAGS = {  # a flag of the original that configures what is now the server -> what to do instead
    "--dit_path": _BUILD,
    "--dit_path_text2image": _BUILD,
    "--dit_path_video2world": _BUILD,
    "--load_ema": _BUILD,
    "--natten": _BUILD,
    "--distill_steps": _BUILD,  # of text2world; text2image has it as a setting
    "--use_fast_tokenizer": _BUILD,
    "--use_lora": _LORA,
    "--lora_rank": _LORA,
    "--lora_alpha": _LORA,
    "--lora_target_modules": _LORA,
    "--init_lora_weights": _LORA,
    "--offload_guardrail": _PLACE,
    "--offload_prompt_refiner": _PLACE,
    "--offload_text_encoder": _PLACE,
    "--downcast_text_encoder": "choose the precision when building engines with predict2-export",
    "--gr00t_variant": _BUILD,
    "--checkpoint_dir": _CRITIC,
    "--num_gpus": "start predict2-serve on the machine and GPUs it is to use",
    "--use_cuda_graphs": "its engines use them by themselves where they help",
    "--benchmark": "measure it with the programs in benchmarks/",
}

_HELP = {
    "prompt": "what to generate",
    "negative_prompt": "what to keep away from; clips have a long default, shared with the original",
    "seed": "same seed, settings and server: same result (%(default)s)",
    "num_steps": "solver steps (%(default)s)",
    "solver": "ab2 is the original's, euler is for comparison (%(default)s)",
    "aspect_ratio": "(%(default)s)",
    "width": "pixels, a multiple of 16; together with --height, instead of the aspect ratio",
    "height": "pixels, a multiple of 16",
    "model_size": "refuse to run unless the server runs this size, such as 2B",
    "resolution": "refuse to run unless the server runs this resolution, such as 720",
    "fps": "refuse to run unless the server runs this frame rate, such as 16",
    "guidance": "how closely to follow the prompt (%(default)s)",
    "distill_steps": "steps of a distilled network, 1 to 4; its server takes 4 unless given",
    "image_guidance": "the same for the clip's first picture (%(default)s)",
    "disable_guardrail": "leave prompt and result unchecked; refused unless the server's owner allows it",
    "disable_prompt_refiner": "take the prompt as it is, where the server would refine it",
    "num_frames": "frames of the clip, 1 + 4k; the server's own number unless given",
    "num_conditional_frames": "frames of the input to go on from; 5 need a clip (%(default)s)",
}
_CHOICES: dict[str, Sequence[Any]] = {
    "aspect_ratio": ASPECT_RATIOS,
    "num_conditional_frames": CONDITIONAL_FRAMES,
    "solver": SOLVERS,
}
_ABOUT: dict[Task, str] = {
    "text2image": "make a picture from text",
    "video2world": "make a clip that goes on from a picture or a clip",
    "text2world": "make a clip from text",
}
_INPUT_HELP = "jpg, png, webp or mp4 to go on from"
_DASHED_FLAG = re.compile(r"\A--[a-z0-9]+(?:-[a-z0-9]+)+(?==|\Z)")


def parse(
    argv: Sequence[str], default_url: str, default_metrics_url: str = ""
) -> argparse.Namespace:
    """Read a command line; a wrong one ends the program with code 2."""
    parser = _parser(default_url, default_metrics_url)
    args = parser.parse_args(_with_underscores(argv))
    if args.command == "video2world" and not (args.input_path or args.batch_input_json):
        args.refuse("video2world needs --input_path: the picture or clip to go on from")
    if getattr(args, "request_id", "") and getattr(args, "batch_input_json", None):
        args.refuse("--request_id names one request; a batch file holds several")
    if args.command == BEST_OF_N and not (args.input_path or args.skip_generation):
        args.refuse(
            f"{BEST_OF_N} needs --input_path: the picture or clip to go on from; or --skip_generation"
        )
    return args


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The request fields that the flags of a command with a task hold."""
    return {name: getattr(args, name) for name in setting_names(args.task)}


def connection(args: argparse.Namespace) -> dict[str, Any]:
    """What a Client needs to reach the server that the flags name."""
    return {"url": args.url, "tls": args.tls, "ca_file": args.ca_file, "token": args.token}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"predict2: {message} (see {self.prog} --help)\n")


class _ServerFlag(argparse.Action):
    """Refuses a flag that belongs to the server."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        flag = self.option_strings[0]
        parser.error(f"{flag} belongs to the server: {SERVER_FLAGS[flag]}")


def _with_underscores(argv: Sequence[str]) -> list[str]:
    """--save-path as --save_path; values and what follows -- stay as they are."""
    end = argv.index("--") if "--" in argv else len(argv)
    flags = [_DASHED_FLAG.sub(lambda m: "--" + m[0][2:].replace("-", "_"), a) for a in argv[:end]]
    return [*flags, *argv[end:]]


def _parser(default_url: str, default_metrics_url: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="predict2",
        description="Make pictures and clips on a Cosmos-Predict2 server.",
        epilog="Flags take underscores or dashes. The server's address may stand in PREDICT2_URL, "
        "this caller's token in PREDICT2_TOKEN.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, about: str, *aliases: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, aliases=aliases, help=about, description=f"{about}.", allow_abbrev=False
        )
        # Its name, whichever was used; and its own error, which points to its own help.
        command.set_defaults(command=name, refuse=command.error)
        return command

    for task in TASKS:
        command = add(task, _ABOUT[task])
        _add_request_flags(command, task)
        _add_file_flags(command, task)
        _add_server_flags(command, default_url)
    best = add(BEST_OF_N, "make several clips, let the critic judge them, rank them", "best_of_n")
    _add_request_flags(best, "video2world")
    _add_best_of_n_flags(best)
    _add_server_flags(best, default_url)
    demo = add("demo", "make a picture, a clip and the clip's contact sheet from a sample prompt")
    demo.add_argument("--prompt", default=SAMPLE_PROMPT, help="(%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    demo.add_argument("--output_dir", type=Path, default=Path("output/demo"), help="(%(default)s)")
    _add_server_flags(demo, default_url)
    sheet = add("sheet", "lay out the frames of a clip in one picture")
    sheet.add_argument("clip", type=Path, help="an mp4")
    sheet.add_argument("output", type=Path, nargs="?", help="a png or jpg; CLIP_sheet.png")
    sheet.add_argument("--columns", type=_count, default=0, help="frames a row; about a square")
    _add_following(add, default_url, default_metrics_url)
    doctor = add("doctor", "say what this machine and a server have and lack")
    _add_url_flag(doctor, default_url)
    doctor.add_argument("--repository", type=Path, help="also check what is to be served from here, engine by engine; no server need be running then")  # fmt: skip
    ready = add("ready", "wait until the server is ready")
    _add_url_flag(ready, default_url)
    ready.add_argument("--timeout", type=_seconds, default=300.0, help="seconds (%(default)s)")
    return parser


def _add_following(
    add: Callable[..., argparse.ArgumentParser], default_url: str, default_metrics_url: str
) -> None:
    fetch = add("fetch", "get the result of a request sent before, as soon as it is there")
    fetch.add_argument("request_id")
    fetch.add_argument("--save_path", help="the result (output/REQUEST_ID and its extension)")
    fetch.add_argument(
        "--timeout", type=_seconds, metavar="S", help="give up after so many seconds"
    )
    fetch.add_argument("--quiet", action="store_true", help="print nothing but errors")
    _add_url_flag(fetch, default_url)
    cancel = add("cancel", "stop a request, whoever sent it")
    cancel.add_argument("request_id")
    _add_url_flag(cancel, default_url)
    status = add("status", "say what the server does, or how far a request is")
    status.add_argument("request_id", nargs="?")
    _add_url_flag(status, default_url)
    status.add_argument(
        "--metrics_url",
        default=default_metrics_url,
        help="host:port of its metrics (PREDICT2_METRICS_URL; else port 8002 of the same host)",
    )


def _add_url_flag(parser: argparse._ActionsContainer, default_url: str) -> None:
    parser.add_argument("--url", default=default_url, help="host:port of its gRPC (%(default)s)")
    parser.add_argument("--tls", action="store_true", help="encrypt, and check its certificate")
    parser.add_argument(
        "--ca_file", help="PEM of the authorities to trust in the place of the public ones; means --tls"
    )  # fmt: skip


def _add_request_flags(parser: argparse.ArgumentParser, task: Task) -> None:
    parser.set_defaults(task=task)
    defaults = setting_defaults(task)
    defaults["prompt"] = "" if task == "video2world" else SAMPLE_PROMPT
    request = parser.add_argument_group("request")
    for name in setting_names(task):
        if FIELD_TYPES[name] is bool:
            request.add_argument(f"--{name}", action="store_true", help=_HELP[name])
            continue
        request.add_argument(
            f"--{name}",
            type=FIELD_TYPES[name],
            default=defaults[name],
            choices=_CHOICES.get(name),
            help=_HELP[name],
        )
    for flag in SERVER_FLAGS.keys() - {f"--{name}" for name in setting_names(task)}:
        parser.add_argument(flag, action=_ServerFlag, nargs="*", help=argparse.SUPPRESS)


def _add_file_flags(parser: argparse.ArgumentParser, task: Task) -> None:
    files = parser.add_argument_group("files")
    if task == "video2world":
        files.add_argument("--input_path", help=_INPUT_HELP)
    name = "image.jpg" if task == "text2image" else "video.mp4"
    files.add_argument(
        "--save_path",
        default=f"output/generated_{name}",
        help="the result; a JSON file of the same name lies beside it (%(default)s)",
    )
    files.add_argument(
        "--batch_input_json",
        type=Path,
        help="run the list of requests in this file; each names its own output",
    )
    files.add_argument(
        "--resume", action="store_true", help="skip what an equal request has already made"
    )
    files.add_argument(
        "--request_id",
        default="",
        help="by which other commands know it: 8 to 128 letters, digits, . _ -, hard to guess (a UUID)",
    )


def _add_best_of_n_flags(parser: argparse.ArgumentParser) -> None:
    best = parser.add_argument_group("best of n")
    best.add_argument(
        "--num_generations", type=_count, default=2, help="clips, of --seed and on (%(default)s)"
    )
    best.add_argument(
        "--num_critic_trials",
        type=_trials,
        default=NUM_TRIALS,
        help=f"how many times the critic is asked about each clip, at most {MAX_TRIALS} (%(default)s)",
    )
    best.add_argument(
        "--parallel", type=_count, default=2, help="clips in the making at a time (%(default)s)"
    )
    best.add_argument(
        "--prompt_prefix",
        default="",
        help="put before the prompt, such as the sentence a gr00t checkpoint was trained with",
    )
    best.add_argument(
        "--skip_generation",
        action="store_true",
        help="judge the *.mp4 that lie in --save_path and make none; --input_path is ignored",
    )
    files = parser.add_argument_group("files")
    files.add_argument("--input_path", help=_INPUT_HELP)
    files.add_argument(
        "--save_path",
        type=Path,
        default=Path("output/best-of-n"),
        help="a folder for the clips, what the critic says of each, and index.html (%(default)s)",
    )
    files.add_argument(
        "--resume",
        action="store_true",
        help="keep clips an equal request made, and judgements of as many trials",
    )


def _add_server_flags(parser: argparse.ArgumentParser, default_url: str) -> None:
    server = parser.add_argument_group("server")
    _add_url_flag(server, default_url)
    server.add_argument(
        "--timeout", type=_seconds, metavar="S", help="give up a request after so many seconds"
    )
    server.add_argument(
        "--retry_for",
        type=_pause,
        metavar="S",
        help=f"try so long where the server is busy or away (0; {RETRY_FOR_S:g} in batches)",
    )
    server.add_argument(
        "--lease",
        type=int,
        default=DEFAULT_LEASE_S,
        metavar="S",
        help="how long the server works on once it doesn't hear of this program any more (%(default)s)",
    )
    server.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be more than 0")
    return value


def _pause(text: str) -> float:
    return _seconds(text) if float(text) else 0.0


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


def _trials(text: str) -> int:
    value = _count(text)
    if value > MAX_TRIALS:
        raise argparse.ArgumentTypeError(f"{text} must be {MAX_TRIALS} or less")
    return value
