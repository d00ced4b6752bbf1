# SPDX-License-Identifier: Apache-2.0
"""What serving adds to a request: beside the same pipeline called in this process, and by calculation for the 2B.

make bench        the toy on this machine, among other things
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferResult
from tritonclient.utils import np_to_triton_dtype

from benchmarks.headline import NUM_STEPS, WORKLOADS, Workload
from benchmarks.results import ROOT, record
from predict2_runtime.repository import read_preset
from predict2_spec.presets import Preset, Task, find_preset
from predict2_spec.video import VideoShape

from . import servers
from .in_process import InProcess
from .inputs import arrays
from .traffic import Cost, calls, fit, step_bytes

COMMAND = "make bench"
VIEW = ROOT / "build" / "bench" / "round_trip"
# Presets whose solver steps are sent to a stage that does nothing, and how often.
_TRIPS = {"toy": 200, "2b-480p-16fps": 36, "2b-720p-16fps": 36}


def infer(client: InferenceServerClient, model: str, inputs: dict[str, np.ndarray]) -> InferResult:
    """A unary call with arrays of the contract's types."""
    sent = []
    for name, array in inputs.items():
        data = array
        if array.dtype == np.object_:
            data = np.array([text.encode() for text in array], np.object_)
        tensor = InferInput(name, data.shape, np_to_triton_dtype(data.dtype))
        tensor.set_data_from_numpy(data)
        sent.append(tensor)
    return client.infer(model, sent)


def paired(
    first: Callable[[], object], second: Callable[[], object], pairs: int
) -> tuple[list[float], list[float]]:
    """Seconds of each, run in turn; who begins alternates, so that what drifts meets both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 else (1, 0):
            began = time.perf_counter()
            (first, second)[which]()
            seconds[which].append(time.perf_counter() - began)
    return seconds


def compare(served: Sequence[float], direct: Sequence[float]) -> dict[str, float]:
    """Medians of both and of the differences of pairs, and the difference as a share of the served request."""
    differences = [a - b for a, b in zip(served, direct, strict=True)]
    whole, difference = statistics.median(served), statistics.median(differences)
    found = {
        "served_s": whole,
        "in_process_s": statistics.median(direct),
        "overhead_s": difference,
        "share": difference / whole,
    }
    return {name: round(value, 6) for name, value in found.items()}


def measure_task(
    client: InferenceServerClient, local: InProcess, preset: Preset, task: Task, pairs: int
) -> dict[str, object]:
    """One task served and in process, on the same inputs."""
    inputs = arrays(task, preset, 0)

    def serve() -> bytes:
        return infer(client, task, inputs).as_numpy("media").tobytes()

    def run() -> bytes:
        return local(task, inputs)

    for _ in range(2):  # shared memory grows, caches fill
        same = serve() == run()
    if not same:
        raise RuntimeError(
            f"{task} gives other bytes in process than served; their times say nothing"
        )
    before = local.direct.calls
    seconds = paired(serve, run, pairs)
    made = (local.direct.calls - before) // pairs
    return {"n": pairs, "calls": made, **compare(*seconds)}


def measure_trips(repository: Path) -> dict[int, dict[str, object]]:
    """Seconds of one call through Triton with a solver step's tensors, by their bytes."""
    found = {}
    view = servers.round_trip(repository, VIEW)
    with servers.running(view) as server, InferenceServerClient(server.grpc) as client:
        for name, count in _TRIPS.items():
            preset = find_preset(name)
            width, height = preset.size("video2world", "16:9")
            shape, text = VideoShape(preset.num_frames, height, width), preset.text_encoder
            sizes = [shape.frames, height, width, count, text.num_tokens, text.width]
            for _ in range(2):  # the first grows the regions of shared memory
                result = infer(client, "caller", {"sizes": np.array(sizes, np.int64)})
            seconds = result.as_numpy("seconds")
            found[step_bytes(preset, shape, "video2world")] = {
                "n": count,
                "trip": f"{shape.frames} frames of {width} x {height}",
                "trip_s": round(float(np.median(seconds)), 6),
                "trip_min_s": round(float(seconds.min()), 6),
            }
    return found


def calculate(workload: Workload, cost: Cost) -> dict[str, object]:
    """What calls between models add to a released network's request."""
    sizes = calls(workload.preset, workload.task, NUM_STEPS)
    seconds = cost.of(sizes)
    return {
        "workload": workload.name,
        "calls": len(sizes),
        "bytes": sum(sizes),
        "calculated_s": round(seconds, 6),
        "published_s": workload.published_s,
        "share": round(seconds / workload.published_s, 6),
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=20)
    args = parser.parse_args()
    preset, local = read_preset(args.repository), InProcess.open(args.repository)
    with servers.running(args.repository) as server, InferenceServerClient(server.grpc) as client:
        for task in preset.tasks:
            result = measure_task(client, local, preset, task, args.pairs)
            record(f"overhead {task}, {preset.name}", COMMAND, result)
    trips = measure_trips(args.repository)
    for size, trip in trips.items():
        record(f"overhead of a call, {trip['trip']}", COMMAND, {**trip, "bytes": size})
    cost = fit({size: float(str(trip["trip_s"])) for size, trip in trips.items()})
    for workload in WORKLOADS:
        if workload.preset.model_size == "2B":
            record(f"overhead calculated, {workload.name}", COMMAND, calculate(workload, cost))


if __name__ == "__main__":
    main()
