# SPDX-License-Identifier: Apache-2.0
"""`predict2-serve`: start Triton over a repository, wait until it is ready, stop it cleanly."""

import argparse
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from predict2_runtime import following
from predict2_runtime.policy import REASONER_KEY_VARIABLE, TEXT_GUARD_KEY_VARIABLE, Policy
from predict2_runtime.stalls import find_stalled
from predict2_spec.errors import Predict2Error, ServerUnavailableError, in_words

from . import checks, configs, inspection, launch, owner, tracing
from .tritonserver import find_tritonserver

EPILOG = """\
With a command after --, the server runs only as long as the command:

  predict2-serve build/served/toy -- predict2 text2image --prompt "a red ball"

The command finds the server in PREDICT2_URL (gRPC), PREDICT2_HTTP_URL and PREDICT2_METRICS_URL.
The server listens on this machine only. To serve others, put a proxy with TLS and authentication before it;
Triton itself asks nobody who they are.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="predict2-serve",
        description="Serve a model repository made by predict2-export.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repository", type=Path, help="folder that `predict2-export build` made")
    parser.add_argument("--address", default="127.0.0.1", help="address to listen on (%(default)s)")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(
            f"--{name}-port", type=_port, default=port, help="0 takes a free one (%(default)s)"
        )
    parser.add_argument(
        "--start-timeout", type=float, default=600, metavar="S", help="seconds (%(default)s)"
    )
    parser.add_argument(
        "--exit-timeout",
        type=int,
        default=900,
        metavar="S",
        help="seconds that running requests get to finish when the server is told to stop (%(default)s)",
    )
    parser.add_argument(
        "--stage-timeout",
        type=_seconds,
        default=1800,
        metavar="S",
        help="longest that one call of a stage may take, such as a solver step, before it counts as hanging and the "
        "server ends, to be started again (%(default)s)",
    )
    parser.add_argument(
        "--allow-http-inference",
        action="store_true",
        help="take requests over HTTP too; with Triton 2.51 a small malformed one can end the server",
    )
    parser.add_argument(
        "--allow-stage-calls",
        action="store_true",
        help="let callers call the stages themselves, past the guardrails; for measuring",
    )
    parser.add_argument(
        "--allow-shared-memory",
        action="store_true",
        help="let callers on this machine register shared memory; they can then read and write any region by name",
    )
    parser.add_argument("--verbose", action="store_true", help="Triton's own log as well")
    parser.add_argument("--check", action="store_true", help="say what a start would find, engine by engine, and don't start; exit code 1 if it would fail")  # fmt: skip
    tracing.add_flags(parser)
    owner.add_flags(parser)
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 1 <= seconds <= 86400:  # nor is NaN
        raise argparse.ArgumentTypeError(f"{text} must be between 1 and 86400")
    return seconds


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"port {port} must be between 0 and 65535")
    return port


def _parse(argv: list[str]) -> argparse.Namespace:
    """The options; `command` is what stands after --."""
    cut = argv.index("--") if "--" in argv else len(argv)
    args = _parser().parse_args(argv[:cut])
    args.command = argv[cut + 1 :]
    return args


class _Signals:
    """SIGINT and SIGTERM as a request to stop; a second one means now."""

    def __init__(self) -> None:
        self._count = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self._count += 1

    def stopping(self) -> bool:
        return self._count > 0

    def now(self) -> bool:
        return self._count > 1


def _ports(args: argparse.Namespace) -> launch.Ports:
    asked = {"http-port": args.http_port, "grpc-port": args.grpc_port, "metrics-port": args.metrics_port}  # fmt: skip
    chosen = checks.choose_ports(args.address, asked)
    return launch.Ports(args.address, *(chosen[name] for name in asked))


def _run(server: launch.Server, args: argparse.Namespace, policy: Policy, signals: _Signals) -> int:
    """From the started server to the exit code: until a signal or the command's end.

    Raises:
        ServerUnavailableError: the server or one of its models ended by itself.
    """
    began, ports = time.monotonic(), server.ports
    if not launch.wait_until_ready(server, args.start_timeout, signals.stopping):
        return 130
    print(
        f"ready after {time.monotonic() - began:.1f} s: gRPC {ports.address}:{ports.grpc}, "
        f"HTTP {ports.address}:{ports.http}, metrics {ports.address}:{ports.metrics}/metrics",
        owner.describe(policy),
        sep="\n",
        file=sys.stderr,
        flush=True,
    )
    models = launch.model_processes(server)
    command = _start_command(args.command, ports) if args.command else None
    try:
        while not signals.stopping():
            if command is not None and command.poll() is not None:
                return command.returncode
            _check_alive(server, models, args.stage_timeout)
            time.sleep(0.1)
    finally:
        if command is not None:
            _end(command, signals)
    return 130 if command else 0


def _check_alive(server: launch.Server, models: set[int], stage_timeout_s: float) -> None:
    if server.process.poll() is not None:
        raise ServerUnavailableError(f"tritonserver ended with code {server.process.returncode}")
    if not all(map(launch.is_alive, models)):
        # Triton neither replaces it nor stops being ready; whoever runs us starts us again.
        raise ServerUnavailableError("a model's process died, so the server is stopped")
    if stalled := find_stalled(server.run_folder, stage_timeout_s):
        # nothing but its process's end frees what waits for it
        raise ServerUnavailableError(
            f"{stalled} has worked on one call for more than {stage_timeout_s:g} s, so the server is stopped; where a "
            "call may take as long, allow it with --stage-timeout"
        )


def _start_command(command: Sequence[str], ports: launch.Ports) -> subprocess.Popen[bytes]:
    urls = {
        "PREDICT2_URL": f"{ports.address}:{ports.grpc}",
        "PREDICT2_HTTP_URL": f"{ports.address}:{ports.http}",
        "PREDICT2_METRICS_URL": f"{ports.address}:{ports.metrics}",
    }
    secrets = (REASONER_KEY_VARIABLE, TEXT_GUARD_KEY_VARIABLE)
    inherited = {name: value for name, value in os.environ.items() if name not in secrets}
    return subprocess.Popen(list(command), env={**inherited, **urls})


def _end(command: subprocess.Popen[bytes], signals: _Signals) -> None:
    """Have a command end, at the latest when everything is to end now."""
    if command.poll() is None:
        command.terminate()
    while command.poll() is None:
        if signals.now():
            command.kill()
        time.sleep(0.05)


@contextlib.contextmanager
def _work_folder() -> Iterator[Path]:
    """A folder that is gone afterwards, and that a cleaner of temporary files leaves alone until then."""
    with tempfile.TemporaryDirectory(prefix="predict2-serve-") as folder:
        handle = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # of file systems that know no such locks
                fcntl.flock(handle, fcntl.LOCK_SH)  # systemd-tmpfiles heeds it
            yield Path(folder)
        finally:
            os.close(handle)


def _check(args: argparse.Namespace) -> int:
    failed = False
    for finding in inspection.inspect(args):
        print(finding)
        failed |= finding.status == "failed"
    return int(failed)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `predict2-serve`; returns the exit code."""
    args = _parse(sys.argv[1:] if argv is None else list(argv))
    if args.check:
        return _check(args)
    signals = _Signals()  # before there is anything to clean up
    try:
        traces = tracing.trace_arguments(args.trace, args.trace_rate)
        preset = checks.check_repository(args.repository)
        policy = owner.policy_from(args, preset, args.repository)
        checks.check_shared_memory()
        checks.check_command(args.command)
        ports = _ports(args)
        with (
            following.taken_over(policy),
            _work_folder() as work_folder,
        ):
            view = work_folder / "models"
            configs.write_view(args.repository, view, configs.load_from(args))
            triton = find_tritonserver(work_folder)
            failed = True
            server = launch.start(
                triton,
                view,
                ports,
                work_folder,
                policy,
                verbose=args.verbose,
                opened=launch.Opened(
                    args.allow_shared_memory, args.allow_http_inference, args.allow_stage_calls
                ),
                tracing=traces,
            )
            try:
                code = _run(server, args, policy, signals)
                failed = False
                return code
            finally:
                launch.stop(server, args.exit_timeout, lambda: failed or signals.now())
    except (Predict2Error, OSError) as error:
        print(f"predict2-serve: {in_words(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
