"""``fxq explain``: what would be quantized how, and why, or why not."""

import json

import torch

from fxq import api
from fxq.cli.console import print_plain, print_result
from fxq.cli.models import ModelSource, load_model
from fxq.cli.recipes import RecipeChoice
from fxq.explain import explain


def run_explain(source: ModelSource, choice: RecipeChoice, input_shape: tuple[int, ...] | None, as_json: bool) -> None:
    """Print the explanation of a model as a table, or as JSON.

    Args:
        source: the model; its weights do not matter.
        choice: the recipe.
        input_shape: of an example input, None for models that trace without.
        as_json: print plain data.
    """
    model = load_model(source)
    inputs = None if input_shape is None else torch.zeros(input_shape)
    explanation = explain(api.prepare(model, inputs, choice.resolve()))
    if as_json:
        print_plain(json.dumps(explanation.to_dict(), indent=2))
    else:
        print_result(explanation)
