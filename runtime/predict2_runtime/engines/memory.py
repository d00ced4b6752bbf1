# SPDX-License-Identifier: Apache-2.0
"""Working memory of TensorRT's execution contexts on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

Place = tuple[int, int]  # address and bytes


class Memory:
    """One buffer for all graphs of an installed engine, which never run together. It grows as they need it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # of the last work with it

    @property
    def place(self) -> Place:
        """Where it is now; whoever was told another place must be told this one."""
        return self._buffer.data_ptr(), self._buffer.numel()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Queue work with the buffer: it begins when all earlier such work is done, whatever streams both are on."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(self._done)
        try:
            yield
        finally:
            self._done.record(stream)

    def grow(self, size: int) -> None:
        """Make it `size` bytes or more. To be called while it is held."""
        if self._buffer.numel() < size:
            # Its memory goes back to the stream it came from; this one has waited for whoever used it last.
            self._buffer.record_stream(torch.cuda.current_stream(self.device))
            self._buffer = torch.empty(
                0, dtype=torch.uint8, device=self.device
            )  # before the larger
            self._buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
