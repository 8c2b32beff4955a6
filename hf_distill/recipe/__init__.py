"""Recipes: a YAML file in, a teacher, a baseline, a student, a report and a model card out."""

from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.loading import load_recipe
from hf_distill.recipe.runner import Run
from hf_distill.recipe.schema import Recipe

__all__ = ["Recipe", "RecipeError", "Run", "load_recipe"]
