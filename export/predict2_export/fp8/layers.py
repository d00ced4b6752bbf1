# SPDX-License-Identifier: Apache-2.0
"""Which layers of a denoiser may be computed in FP8."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import DitSpec

# Of every block. What remains is small, and sets the scale of all else: modulation, embeddings, norms, the last layer.
_ATTENTION = ("q_proj", "k_proj", "v_proj", "output_proj")
_IN_BLOCK = (
    *(f"self_attn.{name}" for name in _ATTENTION),
    *(f"cross_attn.{name}" for name in _ATTENTION),
    "mlp.layer1",
    "mlp.layer2",
)
# The first and last blocks suffer most from rounding: of Wan's 40 blocks, NVIDIA's recipe keeps 3 at either end.
_KEPT = 3 / 40


@dataclass(frozen=True)
class Fp8Layers:
    """The owner's choice; the default suits every member of the family."""

    kept_blocks: int | None = None  # at either end, exact; None: by the network's depth
    patterns: tuple[str, ...] = ("*",)  # of names within a block, such as mlp.* or *.output_proj

    def names(self, spec: DitSpec) -> tuple[str, ...]:
        """Whole names of the layers in FP8.

        Raises:
            InvalidRequestError: there are none, or a pattern is of no layer that may be.
        """
        kept = (
            max(1, round(_KEPT * spec.num_blocks)) if self.kept_blocks is None else self.kept_blocks
        )
        for pattern in self.patterns:
            if not any(fnmatchcase(name, pattern) for name in _IN_BLOCK):
                raise InvalidRequestError(
                    f"no layer that may be in FP8 is called {pattern!r:.80}; a block has {', '.join(_IN_BLOCK)}"
                )
        if not 0 <= 2 * kept < spec.num_blocks:
            raise InvalidRequestError(
                f"{kept} blocks at either end were asked to stay exact and the network has {spec.num_blocks}; "
                f"keep 0 to {(spec.num_blocks - 1) // 2}"
            )
        return _names(range(kept, spec.num_blocks - kept), self.patterns)


DEFAULT_LAYERS = Fp8Layers()


def candidates(spec: DitSpec) -> tuple[str, ...]:
    """Every layer that some choice puts in FP8, in all blocks."""
    return _names(range(spec.num_blocks), ("*",))


def _names(blocks: Sequence[int], patterns: Sequence[str]) -> tuple[str, ...]:
    chosen = [name for name in _IN_BLOCK if any(fnmatchcase(name, p) for p in patterns)]
    return tuple(f"blocks.{block}.{name}" for block in blocks for name in chosen)
