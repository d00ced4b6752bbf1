# SPDX-License-Identifier: Apache-2.0
"""The training loop of every stage: a budget of minutes, an average of the weights, and checkpoints to go on from."""

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .muon import Muon
from .plots import write_curve

CHECKPOINT_EVERY = 60.0  # seconds
EMA = 0.995
Network = TypeVar("Network", bound=nn.Module)
Loss = Callable[[float], Tensor]  # from the progress 0..1 of the stage


@dataclass
class Stage:
    """Where a stage keeps its state, and how long it trains."""

    name: str
    folder: Path
    minutes: float

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.folder / f"{self.name}.pt"


def fit(stage: Stage, network: Network, optimiser: Muon, loss_of: Loss) -> Network:
    """Train until the stage's minutes of processor time are used up, all its runs together.

    A run that was interrupted goes on from its last checkpoint, at most a minute old. In a process
    group all processes train one network, each on batches of its own.

    Returns:
        The average of the weights over the last few hundred steps.
    """
    average = copy.deepcopy(network).requires_grad_(False)
    spent, losses = _resume(stage, network, average, optimiser)
    began, saved = time.process_time() - spent, spent
    progress = _agreed(min(spent / (60 * stage.minutes), 1.0))
    while progress < 1.0:
        loss = loss_of(progress)
        network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        _share_gradients(network)
        norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if torch.isfinite(norm):
            optimiser.step(progress)
            _follow(average, network, min(EMA, len(losses) / (len(losses) + 10)))
            losses.append(loss.item())
        spent = time.process_time() - began
        progress = _agreed(min(spent / (60 * stage.minutes), 1.0))
        if spent - saved > CHECKPOINT_EVERY or progress >= 1.0:
            saved = spent
            _save(stage, network, average, optimiser, spent, losses)
    return average


def _agreed(progress: float) -> float:
    """The first process's progress, so that all take the same steps."""
    if not dist.is_initialized():
        return progress
    value = torch.tensor(progress, dtype=torch.float64)
    dist.broadcast(value, src=0)
    return value.item()


def _share_gradients(network: nn.Module) -> None:
    """Give every process the mean of all processes' gradients."""
    if not dist.is_initialized():
        return
    parameters = [p for p in network.parameters() if p.requires_grad]
    for p in parameters:  # a picture's batch doesn't reach the layers over time
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    parts = torch.split(flat / dist.get_world_size(), [grad.numel() for grad in grads])
    for grad, part in zip(grads, parts, strict=True):
        grad.copy_(part.view_as(grad))


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    for kept, now in zip(average.parameters(), network.parameters(), strict=True):
        kept.lerp_(now, 1 - decay)


def _resume(
    stage: Stage, network: nn.Module, average: nn.Module, optimiser: Muon
) -> tuple[float, list[float]]:
    if not stage.path.is_file():
        return 0.0, []
    state = torch.load(stage.path, weights_only=True)
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return float(state["seconds"]), list(state["losses"])


def _save(
    stage: Stage,
    network: nn.Module,
    average: nn.Module,
    optimiser: Muon,
    seconds: float,
    losses: list[float],
) -> None:
    if dist.is_initialized() and dist.get_rank():
        return
    state = {
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "seconds": seconds,
        "losses": losses,
    }
    stage.folder.mkdir(parents=True, exist_ok=True)
    part = stage.path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, stage.path)
    write_curve(stage.folder / f"{stage.name}.png", stage.name, losses)
    recent = losses[-100:]
    line = f"{stage.name} {seconds:.0f} s, step {len(losses)}, loss {sum(recent) / max(len(recent), 1):.4f}\n"
    with (stage.folder / f"{stage.name}.log").open("a", encoding="utf-8") as log:
        log.write(line)


def trained(stage: Stage, network: Network) -> Network:
    """`network` with the averaged weights of a stage's checkpoint.

    Raises:
        FileNotFoundError: the stage hasn't run.
    """
    network.load_state_dict(torch.load(stage.path, weights_only=True)["average"])
    return network.eval().requires_grad_(False)
