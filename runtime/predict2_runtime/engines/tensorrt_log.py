# SPDX-License-Identifier: Apache-2.0
"""What TensorRT says: to Python's log, and its last errors for ours."""

import logging
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Protocol

from .bindings import Flavour, bindings

if TYPE_CHECKING:
    import tensorrt as trt

_KEPT = 4  # errors; one failure rarely logs more
_LEVELS = (
    logging.ERROR,
    logging.ERROR,
    logging.WARNING,
)  # by severity; what comes after is chatter
_python_log = logging.getLogger(__name__)


class TensorrtLog(Protocol):
    """An ILogger that also remembers."""

    errors: deque[str]  # the last ones

    def as_logger(self) -> "trt.ILogger":
        """The same for TensorRT's functions."""


@cache
def tensorrt_log(flavour: Flavour) -> TensorrtLog:
    """The log of this process: TensorRT keeps the first that it is given for what belongs to no object.

    Raises:
        EngineMismatchError: the flavour can't be used here.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = bindings(flavour)

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            rank = int(severity)
            if rank < len(_LEVELS):
                _python_log.log(_LEVELS[rank], "%s: %s", flavour, msg)
            if rank <= int(trt.ILogger.Severity.ERROR):
                self.errors.append(msg)

        def as_logger(self) -> trt.ILogger:
            return self

    return Log()
