"""The road: a recipe, its stages, and the walk over all of them."""

from __future__ import annotations

from deepseek.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Recipe": "deepseek.road.recipe:Recipe",
        "read_recipe": "deepseek.road.recipe:read_recipe",
        "walk": "deepseek.road.walk:walk",
    },
)
