# SPDX-License-Identifier: Apache-2.0
"""Functions of tensors recorded as CUDA graphs, so that a GPU needn't wait for a thousand launches."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Run = Callable[
    ..., Tensors
]  # pure: it writes to none of its tensors, and reads no number on the CPU
# From work to where its results will lie, and what does the work again with what its inputs hold by then
Capture = Callable[[Callable[[], Tensors]], tuple[Tensors, Callable[[], None]]]


def cuda_graph(work: Callable[[], Tensors]) -> tuple[Tensors, Callable[[], None]]:
    """Record work as a CUDA graph; its results are what the first replay will have left there."""
    # Libraries allocate and choose kernels at a first call, which can't be recorded.
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Torch keeps cuBLAS's scratch memory by stream and drops it with any graph recorded there, so that others would
    # write to what is no longer theirs: pytorch/pytorch#193402. Cleared before and after, each has its own in its pool.
    torch._C._cuda_clearCublasWorkspaces()
    try:
        with torch.cuda.graph(graph):
            results = work()
    finally:
        torch._C._cuda_clearCublasWorkspaces()
    return results, graph.replay


@dataclass
class Recording:
    """One function with its inputs and its results at fixed places."""

    run: Run  # holds what it reads beside its inputs, which must not be freed
    inputs: Tensors
    constants: Tensors
    copied: Tensors  # the constants whose numbers were copied last
    results: Tensors
    replay: Callable[[], None]

    def take(self, inputs: Sequence[Tensor], constants: Sequence[Tensor]) -> None:
        """Copy what is read to where it is read."""
        for place, value in zip(self.inputs, inputs, strict=True):
            place.copy_(value)
        for place, value, before in zip(self.constants, constants, self.copied, strict=True):
            if value is not before:
                place.copy_(value)
        self.copied = tuple(constants)


class Recordings:
    """Functions that are recorded for each shape, and replayed. Calls must not overlap.

    Args:
        most: recordings to keep, the one that wasn't used for the longest time makes room; with 0 nothing is recorded.
        capture: what records.
    """

    def __init__(self, most: int, capture: Capture = cuda_graph) -> None:
        self._most, self._capture = most, capture
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()

    def __call__(
        self,
        run: Run,
        inputs: Sequence[Tensor],
        constants: Sequence[Tensor] = (),
        facts: Hashable = None,
    ) -> Tensors:
        """`run(*inputs, *constants)`; recorded, in memory of its own.

        Args:
            run: given the same facts and shapes, it is the same function at every call.
            inputs: copied at each call.
            constants: tensors that nobody ever writes to, so that one which was copied last needn't be copied again.
            facts: what changes `run` beside the shapes.
        """
        if not self._most:
            return run(*inputs, *constants)
        layouts = tuple((tensor.shape, tensor.dtype) for tensor in (*inputs, *constants))
        key = (facts, len(inputs), layouts)
        recording = self._recordings.pop(key, None)
        if recording is None:
            if len(self._recordings) == self._most:  # before the memory is needed
                self._recordings.popitem(last=False)
            recording = self._record(run, inputs, constants)
        else:
            recording.take(inputs, constants)
        self._recordings[key] = recording
        recording.replay()
        # The next replay writes over its results, and a caller may give them back as its inputs.
        return tuple(result.clone() for result in recording.results)

    def _record(self, run: Run, inputs: Sequence[Tensor], constants: Sequence[Tensor]) -> Recording:
        fixed = tuple(tensor.clone() for tensor in inputs)
        kept = tuple(tensor.clone() for tensor in constants)
        results, replay = self._capture(lambda: run(*fixed, *kept))
        return Recording(run, fixed, kept, tuple(constants), results, replay)
