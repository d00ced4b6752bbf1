# SPDX-License-Identifier: Apache-2.0
"""Recipes of networks whose files aren't there: seeded random weights, to try out a machine or measure its speed."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from .checkpoint.stored import StoredTensor
from .checkpoint.synthetic import synthetic_weights
from .recipes import Recipe, ScriptedRecipe


@dataclass(frozen=True)
class RandomRecipe(Recipe):
    """A network with random weights."""

    @property
    def weight_files(self) -> list[Path]:
        """None."""
        return []

    @property
    def choices(self) -> str:
        """That they are random."""
        return "random weights"

    def weights(self) -> dict[str, StoredTensor]:
        """The values of the module's parameters, made when they are read."""
        network, _ = self.lowerable()
        return synthetic_weights(network)


def with_random_weights(recipe: Recipe) -> Recipe:
    """The same network with random weights; one that is a program keeps its own.

    A text encoder's tokenizer is installed where it is there.
    """
    if isinstance(recipe, ScriptedRecipe):
        return recipe
    tokenizer = recipe.tokenizer if recipe.tokenizer and recipe.tokenizer.is_file() else None
    same = {field.name: getattr(recipe, field.name) for field in fields(Recipe)}
    return replace(RandomRecipe(**same), checkpoint=Path("random weights"), tokenizer=tokenizer)
