# SPDX-License-Identifier: Apache-2.0
"""What a caller waits for: server start, each task end to end, and where a task's time goes.

make bench        starts the toy server and runs this
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.results import record, summary
from predict2_client import Client
from predict2_spec.presets import TASKS

COMMAND = "make bench"
SERVE = Path(sys.executable).parent / "predict2-serve"
INPUT_PROMPT = "a green circle moves right on a white background"


def measure_start(repository: Path, runs: int) -> list[float]:
    """Seconds from starting tritonserver to every model being ready."""
    seconds = []
    for _ in range(runs):
        out = subprocess.run(
            [
                str(SERVE), str(repository),
                "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--", "true",
            ],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds.append(float(re.search(r"ready after ([\d.]+) s", out.stderr)[1]))
    return seconds


def measure_task(client: Client, task: str, runs: int) -> tuple[list[float], dict[str, float]]:
    """Seconds of a whole unary call, and the stages of the last one."""
    picture = client.text2image(INPUT_PROMPT, output_format="png").media
    calls = {
        "text2image": lambda seed: client.text2image(INPUT_PROMPT, seed=seed),
        "video2world": lambda seed: client.video2world(INPUT_PROMPT, image=picture, seed=seed),
        "text2world": lambda seed: client.text2world(INPUT_PROMPT, seed=seed),
    }
    calls[task](0)  # warm-up
    seconds = []
    for seed in range(runs):
        began = time.perf_counter()
        result = calls[task](seed)
        seconds.append(time.perf_counter() - began)
    return seconds, result.metadata.seconds


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=20)
    args = parser.parse_args()
    start = summary(measure_start(args.repository, 5))
    record("server start, toy", COMMAND, {**start, "note": "15 model processes"})
    with Client(args.url) as client:
        for task in TASKS:
            seconds, stages = measure_task(client, task, args.runs)
            note = ", ".join(f"{k} {v:g}" for k, v in stages.items() if k != "total")
            record(f"{task}, toy, 35 steps", COMMAND, {**summary(seconds), "note": note})


if __name__ == "__main__":
    main()
