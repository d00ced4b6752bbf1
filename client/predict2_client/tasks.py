# SPDX-License-Identifier: Apache-2.0
"""Tasks by their names, for clients that answer at once and for those that answer with a coroutine."""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from predict2_spec.requests import Request, Text2ImageRequest, Text2WorldRequest, Video2WorldRequest

from . import media
from .exchange import OnEvent

Made = TypeVar("Made")  # Result, or a coroutine of it


class TaskCalls(ABC, Generic[Made]):
    """`generate` with the request spelled out."""

    @abstractmethod
    def generate(
        self,
        request: Request,
        on_event: OnEvent | None = None,
        timeout_s: float | None = None,
        *,
        request_id: str = "",
    ) -> Made:
        """Run a request to its end."""

    def text2image(
        self,
        prompt: str,
        *,
        on_event: OnEvent | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
        **fields: Any,
    ) -> Made:
        """A picture from text; `fields` are those of Text2ImageRequest."""
        request = Text2ImageRequest(prompt=prompt, **fields)
        return self.generate(request, on_event, timeout_s, request_id=request_id)

    def text2world(
        self,
        prompt: str,
        *,
        on_event: OnEvent | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
        **fields: Any,
    ) -> Made:
        """A clip from text; `fields` are those of Text2WorldRequest."""
        request = Text2WorldRequest(prompt=prompt, **fields)
        return self.generate(request, on_event, timeout_s, request_id=request_id)

    def video2world(
        self,
        prompt: str,
        input_path: media.AnyPath | None = None,
        *,
        on_event: OnEvent | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
        **fields: Any,
    ) -> Made:
        """A clip that goes on from the picture or clip in `input_path`, `image` or `video`.

        `fields` are those of Video2WorldRequest.
        """
        if input_path is not None:
            fields = {**fields, **media.read_input(input_path)}
        request = Video2WorldRequest(prompt=prompt, **fields)
        return self.generate(request, on_event, timeout_s, request_id=request_id)
