# SPDX-License-Identifier: Apache-2.0
"""Best of n: several clips from one input, each with its own seed, judged by the critic."""

import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any

from predict2_runtime.drain import in_progress
from predict2_runtime.progress import Progress
from predict2_runtime.stages import Arrays
from predict2_runtime.tensors import parse_number, parse_request
from predict2_spec import critic, tensors
from predict2_spec.errors import (
    InvalidRequestError,
    Predict2Error,
    RequestCancelledError,
    ServerUnavailableError,
)
from predict2_spec.limits import Limits, way_out
from predict2_spec.requests import Video2WorldRequest
from predict2_spec.results import Metadata

from .generation import Backend
from .tasks import Outputs, finish_clip, prepare_clip

NUM_GENERATIONS = 2  # as the original


def best_of_n_handler(backend: Backend) -> Callable[[Arrays, Progress], Outputs]:
    """The handler of the Triton model `best_of_n`."""

    def run(arrays: Arrays, progress: Progress) -> Outputs:
        rest = dict(arrays)
        asked = rest.pop("num_generations", [NUM_GENERATIONS])
        limits = backend.policy.limits
        generations = _count_generations(asked, limits)
        asked = rest.pop("num_critic_trials", [critic.NUM_TRIALS])
        trials = parse_number("num_critic_trials", asked, 1, critic.MAX_TRIALS)
        request = parse_request("video2world", rest, limits)
        assert isinstance(request, Video2WorldRequest)
        request.expect(backend.preset)
        if request.seed + generations > 2**32:
            raise InvalidRequestError(
                f"seed {request.seed} and the {generations - 1} after it must be below {2**32}"
            )
        if request.return_frames:
            raise InvalidRequestError(
                "best_of_n returns encoded clips only; leave out return_frames"
            )
        if backend.policy.reasoner is None:
            raise ServerUnavailableError(
                "this server has no reasoner to judge clips with; its owner can name one with "
                "predict2-serve --reasoner"
            )
        with in_progress(backend.run_folder):
            return best_of_n(backend, request, generations, trials, progress)

    return run


def _count_generations(asked: Any, limits: Limits) -> int:
    number = parse_number("num_generations", asked, 1, critic.MAX_GENERATIONS)
    if number > limits.num_generations:
        raise InvalidRequestError(
            f"num_generations {number} is above this server's limit of {limits.num_generations}; ask for fewer, "
            f"{way_out('num_generations')}"
        )
    return number


def best_of_n(
    backend: Backend,
    request: Video2WorldRequest,
    num_generations: int,
    num_trials: int,
    progress: Progress,
) -> Outputs:
    """The clip that the critic finds best, and the ranking of all.

    The prompt is checked and refined once. The clips are made side by side: their steps interleave, so several
    denoisers or GPUs share them. One that fails, or can't be judged, is ranked last with its reason.

    Raises:
        Predict2Error: no clip came about; what the first one failed with, such as a guardrail's refusal.
    """
    prepared = prepare_clip(backend, request, progress)

    def make(seed: int) -> tuple[critic.Judged, Outputs | Predict2Error]:
        try:
            outputs = finish_clip(replace(request, seed=seed), prepared.beside())
        except RequestCancelledError:
            raise
        except Predict2Error as error:
            # Without its traceback, which would hold the clip's latents until all clips are judged.
            return critic.Judged(seed, 0.0, (), str(error)), error.with_traceback(None)
        return _judge(backend, outputs, seed, num_trials), outputs

    seeds = range(request.seed, request.seed + num_generations)
    with ThreadPoolExecutor(num_generations) as pool:
        # Each with the request's own id, which goes along with calls.
        runs = [partial(copy_context().run, make, seed) for seed in seeds]
        made = dict(pool.map(operator.call, runs))
    ranking = critic.ranked(made)
    chosen = next((j for j in ranking if isinstance(made[j], dict)), ranking[0])
    best = made[chosen]
    if isinstance(best, Predict2Error):
        raise best
    score = None if chosen.error else chosen.score
    return {
        "media": best["media"],
        "metadata": replace(Metadata.from_json(best["metadata"]), score=score).to_json(),
        "ranking": critic.to_json(ranking),
    }


def _judge(backend: Backend, outputs: Outputs, seed: int, num_trials: int) -> critic.Judged:
    try:
        answer = backend.call(
            tensors.CRITIC, video=outputs["media"], num_trials=num_trials, seed=seed
        )
    except RequestCancelledError:
        raise
    except Predict2Error as error:
        return critic.Judged(seed, 0.0, (), str(error))
    return critic.Judged(seed, float(answer["score"][0]), tuple(answer["responses"]))
