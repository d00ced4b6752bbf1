# SPDX-License-Identifier: Apache-2.0
"""The Muon optimiser: momentum whose matrices are made orthogonal before they are applied."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Jordan et al. 2024: five iterations bring every singular value near 1, without a decomposition.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices [n, rows, columns] with singular values of about 1."""
    a, b, c = _QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = (matrices.mT if tall else matrices).bfloat16()  # enough, and three times as fast
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Muon for the hidden matrices and convolutions of a network, AdamW's rule for all else."""

    def __init__(self, network: nn.Module, lr: float, plain: Iterable[str] = ()) -> None:
        """`plain` are beginnings of names of parameters that take Adam's rule."""
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        starts = tuple(plain)
        by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        others = []
        for name, p in named:
            is_matrix = (
                p.ndim >= 2 and p.numel() > len(p) and not name.startswith(starts or ("\0",))
            )
            if is_matrix:
                by_shape[len(p), p.numel() // len(p)].append(p)
            else:
                others.append(p)
        self.lr = lr
        self.adam = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
        self.groups = list(by_shape.items())
        self.momenta = [torch.zeros(len(group), *shape) for shape, group in self.groups]

    @torch.no_grad()
    def step(self, progress: float, momentum: float = 0.95) -> None:
        """One update; the rate warms up over the first hundredth and falls linearly to zero."""
        lr = self.lr * min(1.0, progress * 100) * (1 - progress)
        for options in self.adam.param_groups:
            options["lr"] = lr
        self.adam.step()
        for index, (shape, group) in enumerate(self.groups):
            grads = torch.stack([_grad(p).reshape(shape) for p in group])
            kept = self.momenta[index].mul_(momentum).add_(grads, alpha=1 - momentum)
            updates = orthogonal(grads.lerp(kept, momentum)) * (0.2 * max(shape) ** 0.5)
            for p, update in zip(group, updates, strict=True):
                p.sub_(update.reshape(p.shape), alpha=lr)

    def state_dict(self) -> dict[str, object]:
        """What a continued run needs."""
        return {"adam": self.adam.state_dict(), "momenta": self.momenta}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from `state_dict`'s result."""
        self.adam.load_state_dict(state["adam"])  # type: ignore[arg-type]
        self.momenta = state["momenta"]  # type: ignore[assignment]


def _grad(p: nn.Parameter) -> Tensor:
    return p.grad if p.grad is not None else torch.zeros_like(p)
